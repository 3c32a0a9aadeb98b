"""Did the run go as the plan says? Its rounds, its models, and how it ended.

Every check compares records of several parties, or records with the plan. A party
whose transcript is missing or broken is not held against another: only what two
records say is compared. Updates are in ``uploads``, what was summed in ``sums``.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

from audits.accounts import Account, Accounts, Placed
from audits.dealings import check_dealings
from audits.decryptions import check_decryptions
from audits.evidence import AGGREGATOR
from audits.findings import Finding, count, fail, settle, warn
from audits.held import check_held
from audits.measurement import check_measurement
from audits.reference import check_reference
from audits.sums import check_sums, place
from audits.uploads import check_uploads
from protocol.records import (
    Finished,
    Opened,
    Refused,
    RoundClosed,
    RoundLost,
    RoundOpened,
)

R = TypeVar("R")


def check_conformance(accounts: Accounts) -> list[Finding]:
    """Return the findings on how the run was carried out."""
    return [
        *_unplausible(accounts),
        *_times(accounts),
        *_same_plan(accounts),
        *_same_model(accounts),
        *check_held(accounts),
        *check_uploads(accounts),
        *check_sums(accounts),
        *check_decryptions(accounts),
        *check_dealings(accounts),
        *_rounds(accounts),
        *_parameters(accounts),
        *check_measurement(accounts),
        *check_reference(accounts),
        *_refusals(accounts),
    ]


def _unplausible(accounts: Accounts) -> list[Finding]:
    """Check that no record holds a number or name that cannot be."""
    found = [
        fail(
            "plausible",
            f"{account.party}: record {placed.index:,} cannot be: {placed.record}.",
            party=account.party,
        )
        for account in accounts.everyone
        for placed in account.impossible
    ]
    total = sum(account.num_records for account in accounts.everyone)
    return settle("plausible", found, f"{count(total, 'record')} are possible.")


def _times(accounts: Accounts) -> list[Finding]:
    """Check that the times in transcripts are times, and go forward."""
    found = []
    for account in accounts.everyone:
        party, clock = account.party, account.clock
        if clock.wrong:
            index, text = clock.wrong
            statement = f"{party}: record {index:,}: {text!r} is no time."
            found.append(fail("times", statement, party=party))
        if clock.back:
            index, seconds = clock.back
            statement = (
                f"{party}: record {index:,} is {count(seconds, 'second')} earlier than "
                "one before it: a clock was set back, or history was written later."
            )
            found.append(warn("times", statement, party=party))
    return settle("times", found, "In each transcript the times go forward.")


def _same_plan(accounts: Accounts) -> list[Finding]:
    """Check that all parties opened their transcripts for one plan."""
    digest = accounts.plan.digest.hex()
    found = [
        fail(
            "same-plan",
            f"{account.party} followed another plan.",
            f"{place(account, placed)}: {placed.record.plan:.64}",
            f"this plan: {digest}",
            party=account.party,
        )
        for account in accounts.everyone
        for placed in account.all(Opened)
        if placed.record.plan != digest
    ]
    parties = count(len(accounts.everyone), "transcript")
    return settle(
        "same-plan", found, f"{parties} name the digest of this plan.", digest
    )


def _same_model(accounts: Accounts) -> list[Finding]:
    """Check that a round began with one model everywhere."""
    found = _differences(
        accounts,
        "same-model",
        RoundOpened,
        lambda record: (record.model, record.field_bits),
        "began round {round} with another model than {other}",
    )
    rounds = {
        p.record.round_number for a in accounts.everyone for p in a.all(RoundOpened)
    }
    return settle(
        "same-model", found, f"One model in each of {count(len(rounds), 'round')}."
    )


def _parameters(accounts: Accounts) -> list[Finding]:
    """Check that rounds and run ended with one model everywhere."""
    found = [
        *_differences(
            accounts,
            "parameters",
            RoundClosed,
            lambda record: record.parameters,
            "ended round {round} with another model than {other}",
        ),
        *_differences(
            accounts,
            "parameters",
            Finished,
            lambda record: (record.parameters, record.average),
            "ended the run (round {round}) with another model than {other}",
        ),
    ]
    last = [p for a in accounts.everyone for p in a.all(Finished)]
    for account in accounts.everyone:
        for placed in account.all(Finished):
            if placed.record.round_number != accounts.plan.num_rounds:
                found.append(
                    fail(
                        "parameters",
                        f"{account.party} finished after round "
                        f"{placed.record.round_number} of {accounts.plan.num_rounds}.",
                        place(account, placed),
                        party=account.party,
                        round_number=placed.record.round_number,
                    )
                )
    if not last and not found:
        return [warn("parameters", "Not checked: no transcript reaches the end.")]
    digest = last[0].record.parameters if last else ""
    return settle(
        "parameters",
        found,
        f"{count(len(last), 'transcript')} end with one model.",
        f"digest {digest:.64}",
    )


def _differences(
    accounts: Accounts,
    check: str,
    kind: type[R],
    value: Callable[[R], object],
    words: str,
) -> Iterator[Finding]:
    """Yield a FAIL for each record whose value differs from the first of its round."""
    first: dict[int, tuple[object, str]] = {}
    for account in accounts.everyone:
        for placed in account.all(kind):
            number: int = placed.record.round_number  # type: ignore[attr-defined]
            here = (value(placed.record), place(account, placed))
            there = first.setdefault(number, here)
            if here[0] != there[0]:
                other = there[1].rpartition(" ")[2]
                said = words.format(round=number, other=other)
                yield fail(
                    check,
                    f"{account.party} {said}.",
                    f"{here[1]}: {here[0]}",
                    f"{there[1]}: {there[0]}",
                    party=account.party,
                    round_number=number,
                )


def _rounds(accounts: Accounts) -> list[Finding]:
    """Check that rounds ended in ascending order, and each one once."""
    found: list[Finding] = []
    for account in accounts.everyone:
        ends: list[Placed[RoundClosed] | Placed[RoundLost]] = [
            *account.all(RoundClosed),
            *account.all(RoundLost),
        ]
        ends.sort(key=lambda placed: placed.index)
        previous = 0
        for placed in ends:
            number = placed.record.round_number
            if number <= previous:
                found.append(
                    fail(
                        "rounds",
                        f"{account.party}: round {number} ended "
                        + ("twice." if number == previous else "out of order."),
                        place(account, placed),
                        party=account.party,
                        round_number=number,
                    )
                )
            previous = max(previous, number)
        found += _gaps(account, [placed.record.round_number for placed in ends])
        found += _lost(account)
    closed = len(accounts.aggregator.all(RoundClosed)) if accounts.aggregator else 0
    if accounts.aggregator is None and not found:
        return [warn("rounds", "Not checked: the aggregator's transcript is missing.")]
    return settle("rounds", found, f"{count(closed, 'round')} closed, in order.")


def _gaps(account: Account, ended: list[int]) -> Iterator[Finding]:
    """Check that the aggregator ended every round up to its last."""
    if account.party != AGGREGATOR or not ended:
        return
    absent = sorted(set(range(1, max(ended) + 1)) - set(ended))
    if absent:
        yield fail(
            "rounds",
            f"aggregator: no record says how {count(len(absent), 'round')} ended, "
            f"beginning with round {absent[0]}.",
            party=AGGREGATOR,
            round_number=absent[0],
        )


def _refusals(accounts: Accounts) -> list[Finding]:
    """Tell what the silos refused: a check of theirs failed, or a policy forbade it."""
    found = []
    for silo in accounts.silos.values():
        refused = silo.all(Refused)
        if refused:
            first = refused[0]
            found.append(
                warn(
                    "refusals",
                    f"{silo.party} refused {count(len(refused), 'request')}, the first "
                    f"at stage {first.record.stage}: {first.record.check}",
                    *(place(silo, placed) for placed in refused[:8]),
                    party=silo.party,
                    round_number=first.record.round_number,
                )
            )
    if not accounts.silos:
        return []
    return settle("refusals", found, "No silo refused a request.")


def _lost(account: Account) -> Iterator[Finding]:
    """Tell which rounds ended without a sum, as the aggregator says."""
    for placed in account.all(RoundLost) if account.party == AGGREGATOR else ():
        yield warn(
            "rounds",
            f"Round {placed.record.round_number} was lost: {placed.record.reason}",
            place(account, placed),
            party=AGGREGATOR,
            round_number=placed.record.round_number,
        )
