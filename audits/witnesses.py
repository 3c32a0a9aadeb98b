"""Did enough silos sign the aggregator's transcript, round by round, and is there one?

READY of every silo of a cohort holds the head that it was shown, and the silos refuse
to mask unless all of them signed the same. The aggregator records these signatures;
here each is verified, once, and the head compared with the transcript. At the end of a
run each silo acknowledges the last head. Two heads that one transcript cannot have are
evidence on their own: the aggregator signed both.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from audits.accounts import Account, Accounts, Placed
from audits.chain import roots_at
from audits.evidence import AGGREGATOR, Evidence
from audits.findings import Finding, count, fail, listing, settle, warn
from audits.forks import CHECK, check_conflict, head_of, in_words, two_heads
from crypto.errors import InvalidSignature
from crypto.frame import Header, Kind, verify_frame
from crypto.merkle import HASH_BYTES
from crypto.secagg.ready import Ready
from protocol import envelope
from protocol.audit_records import (
    HeadConflict,
    ReferencePooled,
    ReferenceSkipped,
    SiloHead,
    Witnessed,
)
from protocol.heads import Head
from protocol.model_records import MeasuredInSilos, MeasurementSkipped
from protocol.plan import RunPlan
from protocol.records import (
    Finished,
    HeadSeen,
    RoundClosed,
    RoundLost,
    RoundOpened,
    Summed,
)

Slot = tuple[int, int, int]
"""Round, setup and slot."""


_ENDS: tuple[type[Any], ...] = (
    MeasuredInSilos,
    MeasurementSkipped,
    ReferencePooled,
    ReferenceSkipped,
    RoundClosed,
    RoundLost,
)
"""Records with which a round ends."""


@dataclass
class _Ledger:
    """Which silos have validly signed what.

    ``by_slot`` are those of READY, and ``sizes`` the smallest head that they signed
    there; ``verified`` what was verified before; ``ended`` those that acknowledged the
    end, with the size of the head.
    """

    by_slot: dict[Slot, set[str]] = field(default_factory=dict)
    sizes: dict[Slot, int] = field(default_factory=dict)
    verified: set[tuple[Slot, str, bytes, bytes]] = field(default_factory=set)
    ended: dict[str, int] = field(default_factory=dict)


def check_witnesses(evidence: Evidence, accounts: Accounts) -> list[Finding]:
    """Check every signature of a silo under a head of the aggregator's transcript.

    Guarantees: each distinct signature is verified once; the aggregator's transcript is
    hashed once.
    """
    return settle(
        CHECK,
        _findings(evidence, accounts),
        "In every round at least "
        f"{count(_threshold(accounts.plan), 'silo')} signed one head of the "
        "aggregator's transcript, and so many acknowledged its last.",
        *_absent(accounts),
    )


def _findings(evidence: Evidence, accounts: Accounts) -> Iterator[Finding]:
    """Yield what is to be said of witnesses."""
    account, plan = accounts.aggregator, accounts.plan
    roots = _roots(evidence, accounts)
    for silo in accounts.silos.values():
        for conflict in silo.all(HeadConflict):
            yield from check_conflict(plan, silo, conflict, roots)
    yield from two_heads(evidence, accounts, roots)
    if account is None or roots is None:
        yield warn(
            CHECK,
            "Not checked: the aggregator's transcript is missing.",
            party=AGGREGATOR,
        )
        return
    ledger = _Ledger()
    models = {_slot(p.record): p.record.model for p in account.all(RoundOpened)}
    for witnessed in account.all(Witnessed):
        yield from _ready_signatures(plan, witnessed, roots, ledger)
        yield from _other_model(witnessed, models)
    for told in account.all(SiloHead):
        yield from _acknowledgement(plan, told, roots, ledger)
    if plan.protection.is_hidden:
        yield from _rounds(account, ledger)
    else:
        seen = sum(len(silo.all(HeadSeen)) for silo in accounts.silos.values())
        yield warn(
            CHECK,
            "Rounds are not witnessed: without secure aggregation no silo signs what "
            f"it was shown. {count(seen, 'head')} that the silos accepted, each with "
            "a proof that it extends the last, stand in their own transcripts.",
            party=AGGREGATOR,
        )
    yield from _end(account, ledger)


def _roots(evidence: Evidence, accounts: Accounts) -> Mapping[int, str] | None:
    """Return the roots of the aggregator's transcript that others speak of."""
    if evidence.aggregator is None or accounts.aggregator is None:
        return None
    sizes = {p.record.size for p in accounts.aggregator.all(Witnessed)}
    sizes |= {p.record.seen_size for p in accounts.aggregator.all(SiloHead)}
    for silo in accounts.silos.values():
        sizes |= {p.record.size for p in silo.all(HeadSeen)}
        for placed in silo.all(HeadConflict):
            sizes |= {placed.record.seen_size, placed.record.shown_size}
    return roots_at(evidence.aggregator.folder, sizes)[0]


# ------------------------------------------------------------------ signatures


def _ready_signatures(
    plan: RunPlan,
    placed: Placed[Witnessed],
    roots: Mapping[int, str],
    ledger: _Ledger,
) -> Iterator[Finding]:
    """Verify what the silos of one slot have signed."""
    record, where = placed.record, f"record {placed.index:,}"
    number, names = record.round_number, [silo.name for silo in plan.silos]
    slot = _slot(record)
    valid = ledger.by_slot.setdefault(slot, set())
    try:
        head = head_of(record.size, record.root, record.signature)
        agreed, model = (_digest(each) for each in (record.agreed, record.model))
        body = Ready(agreed, number, model, head.to_bytes()).to_bytes()
        pairs = list(zip(record.silos, record.signatures, strict=True))
        signatures = {names.index(name): bytes.fromhex(s) for name, s in pairs}
        headers = {
            silo: Header(Kind.READY, plan.run, record.setup, record.slot, silo)
            for silo in signatures
        }
    except (ValueError, OverflowError):
        yield fail(
            CHECK,
            f"Round {number}: {where} of {AGGREGATOR} holds no signatures of READY.",
            party=AGGREGATOR,
            round_number=number,
        )
        return
    forged = []
    for silo, signature in signatures.items():
        signed = (slot, names[silo], body, signature)
        if signed in ledger.verified:
            continue
        try:
            verify_frame(plan.roster[silo], headers[silo], body, signature)
        except InvalidSignature:
            forged.append(names[silo])
        else:
            valid.add(names[silo])
            ledger.verified.add(signed)
            ledger.sizes[slot] = min(head.size, ledger.sizes.get(slot, head.size))
    if forged:
        yield fail(
            CHECK,
            f"Round {number}: {listing(forged)} did not sign the READY that {where} of "
            f"{AGGREGATOR} says they did.",
            f"head over {record.size:,} records, root {record.root:.64}",
            party=AGGREGATOR,
            round_number=number,
        )
    yield from _unknown(plan, head, roots, f"Round {number}", listing(record.silos))


def _other_model(
    placed: Placed[Witnessed], models: Mapping[Slot, str]
) -> Iterator[Finding]:
    """Yield that silos signed another model than the aggregator says it sent."""
    record = placed.record
    sent = models.get(_slot(record))
    if sent != record.model:
        yield fail(
            CHECK,
            f"Round {record.round_number}: record {placed.index:,} of {AGGREGATOR} "
            "shows that silos signed another model than it says it sent them.",
            f"signed {record.model:.64}",
            f"sent {sent:.64}" if sent else "it says nothing of that slot",
            party=AGGREGATOR,
            round_number=record.round_number,
        )


def _acknowledgement(
    plan: RunPlan,
    placed: Placed[SiloHead],
    roots: Mapping[int, str],
    ledger: _Ledger,
) -> Iterator[Finding]:
    """Verify what one silo has signed at the end."""
    record, names = placed.record, [silo.name for silo in plan.silos]
    index = names.index(record.silo)
    seen = head_of(record.seen_size, record.seen_root, record.seen_signature)
    own = Head(
        party=record.silo,
        size=record.size,
        root=record.root,
        signature=record.signature,
    )
    try:
        body = envelope.EndReply(head=own, seen=seen).to_body()
        header = Header(envelope.Kind.END_SEEN, plan.run, 0, 0, index)
        signature = bytes.fromhex(record.acknowledgement)
        verify_frame(plan.roster[index], header, body, signature)
    except (InvalidSignature, ValueError, OverflowError):
        yield fail(
            CHECK,
            f"The end: {record.silo} did not sign what record {placed.index:,} of "
            f"{AGGREGATOR} says it did.",
            f"head over {record.seen_size:,} records, root {record.seen_root:.64}",
            party=AGGREGATOR,
        )
        return
    ledger.ended[record.silo] = max(seen.size, ledger.ended.get(record.silo, 0))
    yield from _unknown(plan, seen, roots, "The end", record.silo)


def _unknown(
    plan: RunPlan, head: Head, roots: Mapping[int, str], when: str, who: str
) -> Iterator[Finding]:
    """Yield that silos have signed a head of another transcript."""
    if roots.get(head.size) == head.root:
        return
    yield fail(
        CHECK,
        f"{when}: {who} signed a head over {head.size:,} records that is none of the "
        "aggregator's transcript: it was altered, or there are two versions of it.",
        *in_words(plan, head),
        f"root here {roots.get(head.size, 'none')}",
        party=AGGREGATOR,
    )


# ------------------------------------------------------------------ rounds, end


def _rounds(account: Account, ledger: _Ledger) -> Iterator[Finding]:
    """Check that every round with a sum was witnessed by enough silos."""
    least, slots, ends = _threshold(account.plan), _slots(account), _ends(account)
    for number in _closed(account):
        witnesses = [ledger.by_slot.get(slot) for slot in slots[number]]
        known = [silos for silos in witnesses if silos is not None]
        if not known:
            yield fail(
                CHECK,
                f"Round {number} was closed, but no silo has signed a head of the "
                "aggregator's transcript in it.",
                party=AGGREGATOR,
                round_number=number,
            )
            continue
        before = max((i for n, i in ends.items() if n < number), default=-1)
        shown = min(ledger.sizes.get(slot, before + 1) for slot in slots[number])
        if shown <= before:
            yield fail(
                CHECK,
                f"Round {number}: the head that silos signed is over {shown:,} records "
                f"and leaves out record {before:,}, with which an earlier round ended.",
                "the aggregator could still have written them otherwise",
                party=AGGREGATOR,
                round_number=number,
            )
        fewest = min(known, key=len)
        if len(fewest) < least:
            yield warn(
                CHECK,
                f"Round {number} is not witnessed: {count(len(fewest), 'silo')} signed "
                f"a head of the aggregator's transcript, the plan asks for {least}.",
                f"signed by {listing(sorted(fewest))}",
                party=AGGREGATOR,
                round_number=number,
            )


def _end(account: Account, ledger: _Ledger) -> Iterator[Finding]:
    """Check that enough silos acknowledged a head behind the last round."""
    if not account.all(Finished):
        return
    last = max(_ends(account).values(), default=-1)
    silos = [silo for silo, size in ledger.ended.items() if size > last]
    least = _threshold(account.plan)
    if len(silos) < least:
        yield warn(
            CHECK,
            f"The end is not witnessed: {count(len(silos), 'silo')} acknowledged a "
            f"head behind the last round, the plan asks for {least}.",
            f"acknowledged by {listing(sorted(silos))}",
            party=AGGREGATOR,
        )


def _absent(accounts: Accounts) -> Iterator[str]:
    """Yield who signed nothing in which round, and at the end."""
    account = accounts.aggregator
    if account is None:
        return
    everyone = {silo.name for silo in accounts.plan.silos}
    signed: dict[int, set[str]] = defaultdict(set)
    for placed in account.all(Witnessed):
        signed[placed.record.round_number] |= set(placed.record.silos)
    for number, silos in sorted(signed.items()):
        if missing := everyone - silos:
            yield f"round {number}: without {listing(sorted(missing))}"
    told = {placed.record.silo for placed in account.all(SiloHead)}
    if account.all(Finished) and everyone - told:
        yield f"the end: without {listing(sorted(everyone - told))}"


def _closed(account: Account) -> list[int]:
    """Return the rounds that ended with a sum, those before and behind included."""
    pooled = [placed.record.round_number for placed in account.all(ReferencePooled)]
    closed = [placed.record.round_number for placed in account.all(RoundClosed)]
    measured = [placed.record.round_number for placed in account.all(MeasuredInSilos)]
    return sorted({*pooled, *closed, *measured})


def _ends(account: Account) -> dict[int, int]:
    """Return with which record each round ended, those before and behind included."""
    return {
        placed.record.round_number: placed.index
        for kind in _ENDS
        for placed in account.all(kind)
    }


def _slot(record: Witnessed | RoundOpened | Summed) -> Slot:
    """Return where a record belongs."""
    return record.round_number, record.setup, record.slot


def _slots(account: Account) -> dict[int, set[Slot]]:
    """Return the slots whose sums were taken, by round."""
    slots: dict[int, set[Slot]] = defaultdict(set)
    for placed in account.all(Summed):
        slots[placed.record.round_number].add(_slot(placed.record))
    return slots


def _digest(text: str) -> bytes:
    """Return the bytes of a digest; ``ValueError`` if it is none."""
    content = bytes.fromhex(text)
    if len(content) != HASH_BYTES:
        raise ValueError("not a digest")
    return content


def _threshold(plan: RunPlan) -> int:
    """Return how many silos make a witnessed head."""
    return plan.protection.threshold_for(len(plan.silos))
