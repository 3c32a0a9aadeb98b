"""What left each silo: the ledger of every exchange, counted at both ends.

What the bytes of a stage are, and which guarantee covers them, is the table of
``protocol.disclosures``. Bytes that it does not describe are a FAIL.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from audits.accounts import Account, Accounts
from audits.findings import Finding, count, fail, settle, warn
from protocol.auxiliary import STAGE as AUXILIARY
from protocol.disclosures import UNREAD, Line, contents_of, in_order, ledger_lines
from protocol.measurement import MEASURE
from protocol.model_records import AuxiliarySent
from protocol.plan import RunPlan
from protocol.records import Dropped, Finished, Masked, Revealed
from protocol.sum_records import Decrypted
from protocol.tally import CONNECTION, StageBytes, StageName

MAX_PLACES = 8


@dataclass(frozen=True)
class Disclosure:
    """What one silo sent and received: ``witness`` says whose count it is.

    ``lines`` are the ledger; ``epsilon`` is what the silo recorded as spent.
    """

    silo: str
    witness: str
    stages: Mapping[StageName, StageBytes]
    lines: tuple[Line, ...] = ()
    epsilon: float | None = None

    @property
    def total(self) -> StageBytes:
        """The bytes of all rounds and stages."""
        return sum(self.stages.values(), StageBytes())

    def by_stage(self) -> dict[str, StageBytes]:
        """Return the bytes of each stage over all rounds, in the stages' order."""
        found: dict[str, StageBytes] = {}
        for (_, stage), bytes_ in in_order(self.stages):
            found[stage] = found.get(stage, StageBytes()) + bytes_
        return found

    def by_round(self) -> dict[int, StageBytes]:
        """Return the bytes of each round, 0 for what belongs to none."""
        found: dict[int, StageBytes] = {}
        for (number, _), bytes_ in sorted(self.stages.items()):
            found[number] = found.get(number, StageBytes()) + bytes_
        return found


def disclosures(accounts: Accounts) -> tuple[Disclosure, ...]:
    """Return what left each silo: its own count, or else the aggregator's."""
    found = []
    for party in accounts.plan.silos:
        silo = party.name
        own = accounts.silos.get(silo)
        account = own
        if account is None or silo not in account.traffic:
            account = accounts.aggregator
        if account is not None:
            stages = account.traffic.get(silo, {})
            lines = ledger_lines(accounts.plan, stages)
            epsilon = own.tally.epsilon if own else None
            found.append(Disclosure(silo, account.party, stages, lines, epsilon))
    return tuple(found)


# --------------------------------------------------------------------- completeness


def check_ledger(accounts: Accounts) -> list[Finding]:
    """Check that all that left is described, and that every upload is among it."""
    found = [
        finding
        for account in accounts.everyone
        for silo, stages in account.traffic.items()
        for finding in (
            *_undescribed(accounts.plan, account, silo, stages),
            *_unaccounted(account, silo, stages),
        )
    ]
    found += [
        finding
        for account in accounts.everyone
        for silo in sorted(_senders(account) - set(account.traffic))
        for finding in _unaccounted(account, silo, {})
    ]
    total = sum(each.total.sent for each in disclosures(accounts))
    return settle(
        "disclosures",
        found,
        f"All {count(total, 'byte')} that left the silos are described, and every "
        "upload is among them.",
    )


def _undescribed(
    plan: RunPlan, account: Account, silo: str, stages: Mapping[StageName, StageBytes]
) -> Iterator[Finding]:
    """Yield what left in a stage that a run of this plan does not have."""
    for (number, stage), each in stages.items():
        contents = contents_of(plan, stage, number)
        told = each.sent - each.refusal
        if stage == UNREAD or contents is None:
            told -= told * _was_refused(account, silo, number, stage)
        if (contents is None or stage == UNREAD) and told > 0:
            yield fail(
                "disclosures",
                f"{account.party}: {count(told, 'byte')} of {silo} left in stage "
                f"{stage!r:.80}, which nothing describes; a run of this plan has no "
                "such stage.",
                party=account.party,
                round_number=number or None,
            )
        elif each.vector and (contents is None or contents.vector is None):
            yield fail(
                "disclosures",
                f"{account.party}: a vector of {count(each.vector, 'byte')} of {silo} "
                f"left in stage {stage!r:.80}, where the plan lets none leave.",
                party=account.party,
                round_number=number or None,
            )


def _was_refused(account: Account, silo: str, number: int, stage: str) -> bool:
    """Return whether the aggregator left a silo out of a stage, as if it refused."""
    return any(
        placed.record.silo == silo
        and (placed.record.round_number, placed.record.stage) == (number, stage)
        for placed in account.all(Dropped)
    )


def _senders(account: Account) -> set[str]:
    """Return the silos of which an account records that something left."""
    uploads = {placed.record.silo for placed in account.all(Masked)}
    return uploads | {placed.record.silo for placed in account.all(AuxiliarySent)}


def _unaccounted(
    account: Account, silo: str, stages: Mapping[StageName, StageBytes]
) -> Iterator[Finding]:
    """Yield uploads and reveals that a party recorded, and counted no bytes of."""
    if account.broken:
        return
    open_round = 0 if account.last(Finished) else account.last_round
    for index, number, stage, size in _recorded(account, silo):
        if number in account.resumed_rounds or (open_round and number >= open_round):
            continue  # It stopped between writing this down and sending it.
        each = stages.get((number, stage), StageBytes())
        if each.sent - each.refusal < size:
            yield fail(
                "disclosures",
                f"{account.party}: record {index:,} says that "
                f"{count(size, 'byte')} of {silo} left in stage {stage}; "
                f"{each.sent - each.refusal:,} are counted.",
                party=account.party,
                round_number=number or None,
            )


def _recorded(account: Account, silo: str) -> Iterator[tuple[int, int, str, int]]:
    """Yield what left by other records: index, round, stage, and least size."""
    for masked in account.all(Masked):
        upload = masked.record
        if upload.silo == silo:
            is_update = upload.round_number <= account.plan.num_rounds
            plain = "ready" if is_update else MEASURE
            stage = {"none": plain, "bfv": "encrypted"}.get(upload.protection, "masked")
            yield masked.index, upload.round_number, stage, upload.size_bytes
    for sent in account.all(AuxiliarySent):
        if sent.record.silo == silo:
            yield sent.index, 0, AUXILIARY, sent.record.size_bytes
    for revealed in account.all(Revealed):
        if silo in revealed.record.silos:
            yield revealed.index, revealed.record.round_number, "reveal", 1
    for decrypted in account.all(Decrypted):
        if silo in decrypted.record.silos:
            yield decrypted.index, decrypted.record.round_number, "decrypt", 1


# ------------------------------------------------------------- the same at both ends


def check_disclosure(accounts: Accounts) -> list[Finding]:
    """Check what left the silos: that all of it is described, and counted alike."""
    return [*check_ledger(accounts), *check_traffic(accounts)]


def check_traffic(accounts: Accounts) -> list[Finding]:
    """Check that both ends of each exchange counted the same bytes."""
    aggregator = accounts.aggregator
    if aggregator is None or not accounts.silos:
        return [
            warn(
                "traffic",
                "Not checked: the transcripts of both ends are needed, and one is "
                "missing.",
            )
        ]
    found = [
        finding
        for silo in accounts.silos.values()
        for finding in _compare(silo, aggregator)
    ]
    total = sum(
        stage.sent
        for name, silo in accounts.silos.items()
        for (_, kind), stage in silo.traffic.get(name, {}).items()
        if kind != CONNECTION
    )
    return settle(
        "traffic", found, f"Both ends counted the same {count(total, 'byte')} sent."
    )


def _compare(silo: Account, aggregator: Account) -> Iterator[Finding]:
    """Yield where a silo and the aggregator counted different bytes."""
    own = silo.traffic.get(silo.party, {})
    theirs = aggregator.traffic.get(silo.party, {})
    excused = []
    for name in sorted((set(own) | set(theirs)) - {(0, CONNECTION)}):
        here, there = own.get(name, StageBytes()), theirs.get(name, StageBytes())
        if any(
            each.vector > each.sent or each.broadcast > each.received
            for each in (here, there)
        ):
            yield fail(
                "traffic",
                f"{silo.party}, {_where(name)}: the vector or the model is larger than "
                "the message.",
                party=silo.party,
                round_number=name[0] or None,
            )
        if here == there:
            continue
        if _is_excused(name, silo, aggregator):
            excused.append(f"{_where(name)}: {_difference(here, there)}")
            continue
        yield fail(
            "traffic",
            f"{silo.party}, {_where(name)}: {_difference(here, there)}.",
            f"silo {here.sent:,} sent, {here.received:,} received, "
            f"{here.vector:,} vector, {here.broadcast:,} model",
            f"aggregator {there.sent:,}, {there.received:,}, {there.vector:,}, "
            f"{there.broadcast:,}",
            party=silo.party,
            round_number=name[0] or None,
        )
    if excused:
        yield warn(
            "traffic",
            f"{silo.party}: both ends counted differently where one of them had "
            "dropped out, started again or stopped; the larger count may be the true "
            "one.",
            *excused[:MAX_PLACES],
            party=silo.party,
        )


def _is_excused(name: StageName, silo: Account, aggregator: Account) -> bool:
    """Return whether an honest run can lead to different counts in a stage."""
    number, stage = name
    lost = any(
        dropped.record.silo == silo.party
        and (dropped.record.round_number == number or dropped.record.stage == stage)
        for dropped in aggregator.all(Dropped)
    )
    restarted = number in silo.resumed_rounds | aggregator.resumed_rounds
    stopped = any(
        account.broken
        or (account.last(Finished) is None and number in (0, account.last_round))
        or (account.last(Finished) is None and number > account.last_round)
        for account in (silo, aggregator)
    )
    return lost or restarted or stopped


def _where(name: StageName) -> str:
    """Return round and stage in words."""
    return f"round {name[0]}, {name[1]}" if name[0] else name[1]


def _difference(here: StageBytes, there: StageBytes) -> str:
    """Say how two counts differ."""
    verbs = {"vector": "a vector of", "broadcast": "a model of"}
    for what in ("sent", "received", "vector", "broadcast"):
        own, other = getattr(here, what), getattr(there, what)
        if own != other:
            verb = verbs.get(what, what)
            return f"the silo counts {verb} {own:,} bytes, the aggregator {other:,}"
    return "the same"
