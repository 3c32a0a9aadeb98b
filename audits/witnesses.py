"""Did enough silos sign the aggregator's transcript, round by round, and is there one?

READY of every silo of a cohort holds the head that it was shown, and the silos refuse
to mask unless all of them signed the same. The aggregator records these signatures;
here each is verified, once, and the head compared with the transcript. At the end of a
run each silo acknowledges the last head. Two heads that one transcript cannot have are
evidence on their own: the aggregator signed both.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from audits.accounts import Account, Accounts, Placed
from audits.chain import roots_at
from audits.evidence import AGGREGATOR, Evidence
from audits.findings import Finding, count, fail, listing, settle, warn
from crypto.errors import InvalidSignature
from crypto.frame import Header, Kind, verify_frame
from crypto.merkle import HASH_BYTES
from crypto.secagg.ready import Ready
from protocol import envelope
from protocol.audit_records import (
    HeadConflict,
    ReferencePooled,
    SiloHead,
    Witnessed,
)
from protocol.errors import TranscriptBroken
from protocol.heads import Head
from protocol.model_records import MeasuredInSilos
from protocol.plan import RunPlan
from protocol.records import (
    Finished,
    HeadSeen,
    RoundClosed,
    RoundLost,
    Summed,
)

CHECK = "witnesses"
Slot = tuple[int, int]
"""Setup and slot."""


@dataclass
class _Ledger:
    """Which silos have validly signed what.

    ``by_slot`` are those of READY, by setup and slot; ``ended`` those that acknowledged
    the end, with the size of the head.
    """

    by_slot: dict[Slot, set[str]] = field(default_factory=dict)
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
            yield from _conflict(plan, silo, conflict, roots)
    if account is None or roots is None:
        yield warn(
            CHECK,
            "Not checked: the aggregator's transcript is missing.",
            party=AGGREGATOR,
        )
        return
    ledger = _Ledger()
    for witnessed in account.all(Witnessed):
        yield from _ready_signatures(plan, witnessed, roots, ledger)
    for told in account.all(SiloHead):
        yield from _acknowledgement(plan, told, roots, ledger)
    if plan.protection.method == "mask":
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
    valid = ledger.by_slot.setdefault((record.setup, record.slot), set())
    try:
        head = _head(record.size, record.root, record.signature)
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
        if names[silo] in valid:
            continue
        try:
            verify_frame(plan.roster[silo], headers[silo], body, signature)
        except InvalidSignature:
            forged.append(names[silo])
        else:
            valid.add(names[silo])
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


def _acknowledgement(
    plan: RunPlan,
    placed: Placed[SiloHead],
    roots: Mapping[int, str],
    ledger: _Ledger,
) -> Iterator[Finding]:
    """Verify what one silo has signed at the end."""
    record, names = placed.record, [silo.name for silo in plan.silos]
    index = names.index(record.silo)
    seen = _head(record.seen_size, record.seen_root, record.seen_signature)
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
        *_in_words(plan, head),
        f"root here {roots.get(head.size, 'none')}",
        party=AGGREGATOR,
    )


# ------------------------------------------------------------------ rounds, end


def _rounds(account: Account, ledger: _Ledger) -> Iterator[Finding]:
    """Check that every round with a sum was witnessed by enough silos."""
    least, slots = _threshold(account.plan), _slots(account)
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
    last = max(
        (p.index for kind in (RoundClosed, RoundLost) for p in account.all(kind)),
        default=-1,
    )
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


def _slots(account: Account) -> dict[int, set[Slot]]:
    """Return the slots whose sums were taken, by round."""
    slots: dict[int, set[Slot]] = defaultdict(set)
    for placed in account.all(Summed):
        slots[placed.record.round_number].add((placed.record.setup, placed.record.slot))
    return slots


# ------------------------------------------------------------------ two transcripts


def _conflict(
    plan: RunPlan,
    silo: Account,
    placed: Placed[HeadConflict],
    roots: Mapping[int, str] | None,
) -> Iterator[Finding]:
    """Judge two heads that a silo says do not go together."""
    record, where = placed.record, f"record {placed.index:,} of {silo.party}"
    heads = (
        _head(record.seen_size, record.seen_root, record.seen_signature),
        _head(record.shown_size, record.shown_root, record.shown_signature),
    )
    try:
        for head in heads:
            head.check(plan.digest, plan.aggregator_key)
    except TranscriptBroken:
        yield fail(
            CHECK,
            f"{silo.party}: {where} holds a head that the aggregator did not sign.",
            party=silo.party,
            round_number=record.round_number,
        )
        return
    shown = [line for head in heads for line in _in_words(plan, head)]
    is_fork = heads[0].size == heads[1].size and heads[0].root != heads[1].root
    strange = [h for h in heads if roots is not None and roots.get(h.size) != h.root]
    if is_fork or strange:
        what = (
            f"signed two heads over {heads[0].size:,} records"
            if is_fork
            else f"signed a head over {strange[0].size:,} records that is none of its "
            "transcript"
        )
        yield fail(
            CHECK,
            f"Round {record.round_number}: the aggregator {what}: there are two "
            f"versions of the transcript; see {where}.",
            *shown,
            party=AGGREGATOR,
            round_number=record.round_number,
        )
        return
    known = "is missing" if roots is None else "has both"
    yield warn(
        CHECK,
        f"Round {record.round_number}: {silo.party} was shown two heads that it could "
        f"not bring together; the aggregator's transcript {known}.",
        *shown,
        party=silo.party,
        round_number=record.round_number,
    )


def _in_words(plan: RunPlan, head: Head) -> Iterable[str]:
    """Return a head as evidence that stands alone."""
    origin = f"cloister/{plan.digest.hex()}/{head.party}"
    yield f"{origin}: head over {head.size:,} records, root {head.root:.64}"
    yield f"signature of that head {head.signature:.128}"


def _head(size: int, root: str, signature: str) -> Head:
    """Return a head of the aggregator from the fields of a record."""
    return Head(party=AGGREGATOR, size=size, root=root, signature=signature)


def _digest(text: str) -> bytes:
    """Return the bytes of a digest; ``ValueError`` if it is none."""
    content = bytes.fromhex(text)
    if len(content) != HASH_BYTES:
        raise ValueError("not a digest")
    return content


def _threshold(plan: RunPlan) -> int:
    """Return how many silos make a witnessed head."""
    return plan.protection.threshold_for(len(plan.silos))
