"""The models that silos held: those that the aggregator said its rounds ended with.

Only a run with a quantised down-link has such records (``update.broadcast_bits``).
"""

from collections.abc import Iterator

from audits.accounts import Account, Accounts, Placed
from audits.findings import Finding, count, fail, settle, warn
from audits.sums import place
from protocol.model_records import ModelHeld
from protocol.records import RoundClosed


def check_held(accounts: Accounts) -> list[Finding]:
    """Check that every silo moved to the model of the last round that was closed."""
    everything = [p for account in accounts.everyone for p in account.all(ModelHeld)]
    if not accounts.plan.update.broadcast_bits:
        if not everything:
            return []
        silo = everything[0].record.silo
        return [fail("held", f"{silo} was broadcast a model against the plan.")]
    aggregator = accounts.aggregator
    if aggregator is None:
        return [warn("held", "Not checked: the aggregator's transcript is missing.")]
    found = [
        finding
        for account in accounts.everyone
        for placed in account.all(ModelHeld)
        for finding in _compare(account, placed, aggregator)
    ]
    found += _unsaid(accounts, aggregator)
    number = len(aggregator.all(ModelHeld))
    return settle(
        "held",
        found,
        f"{count(number, 'time')} a silo held the model that it was broadcast.",
    )


def _compare(
    account: Account, placed: Placed[ModelHeld], aggregator: Account
) -> Iterator[Finding]:
    """Yield a FAIL if a silo was brought to another model than the last round's."""
    record, closed = placed.record, _closed_before(aggregator, placed.record)
    if aggregator.broken or record.parameters == closed:
        return
    yield fail(
        "held",
        f"{record.silo} was brought to another model before {_when(record)} than the "
        "aggregator says its last round ended with.",
        f"{place(account, placed)}: {record.parameters:.64}",
        f"aggregator: {closed:.64}" if closed else "aggregator: no round closed",
        party=record.silo,
        round_number=record.round_number or None,
    )


def _closed_before(aggregator: Account, record: ModelHeld) -> str | None:
    """Return the digest of the model that the last round before a record ended with."""
    closed = [
        placed.record
        for placed in aggregator.all(RoundClosed)
        if not record.round_number or placed.record.round_number < record.round_number
    ]
    return closed[-1].parameters if closed else None


def _unsaid(accounts: Accounts, aggregator: Account) -> Iterator[Finding]:
    """Yield a FAIL where the aggregator has the word of a silo that never gave it."""
    said = {
        (silo.party, placed.record.round_number, placed.record.parameters)
        for silo in accounts.silos.values()
        for placed in silo.all(ModelHeld)
    }
    for placed in aggregator.all(ModelHeld):
        record = placed.record
        silo = accounts.silos.get(record.silo)
        if silo is None or silo.broken:
            continue
        if (record.silo, record.round_number, record.parameters) not in said:
            yield fail(
                "held",
                f"The aggregator says that {record.silo} held a model before "
                f"{_when(record)}, and the silo never recorded it.",
                place(aggregator, placed),
                party=record.silo,
                round_number=record.round_number or None,
            )


def _when(record: ModelHeld) -> str:
    """Return the round that begins with a model, in words."""
    return f"round {record.round_number}" if record.round_number else "the end"
