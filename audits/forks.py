"""Heads of the aggregator that one transcript cannot have, wherever they stand.

Every head carries the aggregator's signature: two over as many records with other
roots prove that there are two versions of its transcript, whoever holds them and
whether or not the aggregator hands its transcript over.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from audits.accounts import Account, Accounts, Placed
from audits.evidence import AGGREGATOR, Evidence
from audits.findings import Finding, fail, listing, warn
from protocol.audit_records import HeadConflict, SiloHead, Witnessed
from protocol.errors import TranscriptBroken
from protocol.heads import Head
from protocol.plan import RunPlan
from protocol.records import HeadSeen
from protocol.transcript import read_heads

CHECK = "witnesses"
Places = dict[Head, list[str]]
"""Heads, each with the records or files that hold it."""


def two_heads(
    evidence: Evidence, accounts: Accounts, roots: Mapping[int, str] | None
) -> Iterator[Finding]:
    """Yield where the aggregator signed two heads over as many records.

    Args:
        roots: of the aggregator's transcript, by size; None where it is missing.
    """
    plan, by_size = accounts.plan, defaultdict[int, Places](dict)
    for head, where in _shown(accounts):
        by_size[head.size].setdefault(head, []).append(where)
    if evidence.aggregator is not None and roots is not None:
        strange = {
            size
            for size, heads in by_size.items()
            if size in roots and any(head.root != roots[size] for head in heads)
        }
        for head in _own(evidence, strange):
            by_size[head.size].setdefault(head, []).append(
                f"a head of {evidence.aggregator.name}"
            )
    for size, heads in sorted(by_size.items()):
        if len({head.root for head in heads}) < 2:
            continue
        signed = {head: at for head, at in heads.items() if _is_signed(plan, head)}
        if len({head.root for head in signed}) > 1:
            yield fail(
                CHECK,
                f"The aggregator signed two heads over {size:,} records: there are two "
                "versions of its transcript.",
                *(
                    line
                    for head, places in signed.items()
                    for line in (f"in {listing(places[:4])}", *in_words(plan, head))
                ),
                party=AGGREGATOR,
            )


def _shown(accounts: Accounts) -> Iterator[tuple[Head, str]]:
    """Yield the heads of the aggregator that records hold, but for conflicts."""
    for silo in accounts.silos.values():
        for seen in silo.all(HeadSeen):
            where = f"record {seen.index:,} of {silo.party}"
            record = seen.record
            yield head_of(record.size, record.root, record.signature), where
    account = accounts.aggregator
    if account is None:
        return
    for witnessed in account.all(Witnessed):
        where, told = f"record {witnessed.index:,} of {AGGREGATOR}", witnessed.record
        yield head_of(told.size, told.root, told.signature), where
    for end in account.all(SiloHead):
        where, last = f"record {end.index:,} of {AGGREGATOR}", end.record
        yield head_of(last.seen_size, last.seen_root, last.seen_signature), where


def _own(evidence: Evidence, sizes: set[int]) -> Iterator[Head]:
    """Yield the heads of these sizes among the aggregator's own, as far as readable."""
    if evidence.aggregator is None or not sizes:
        return
    try:
        for head in read_heads(evidence.aggregator.folder):
            if head.size in sizes:
                yield head
    except TranscriptBroken:
        return  # The check of signatures says so.


def _is_signed(plan: RunPlan, head: Head) -> bool:
    """Return whether the aggregator signed a head."""
    try:
        head.check(plan.digest, plan.aggregator_key)
    except TranscriptBroken:
        return False
    return True


def check_conflict(
    plan: RunPlan,
    silo: Account,
    placed: Placed[HeadConflict],
    roots: Mapping[int, str] | None,
) -> Iterator[Finding]:
    """Judge two heads that a silo says do not go together."""
    record, where = placed.record, f"record {placed.index:,} of {silo.party}"
    heads = (
        head_of(record.seen_size, record.seen_root, record.seen_signature),
        head_of(record.shown_size, record.shown_root, record.shown_signature),
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
    shown = [line for head in heads for line in in_words(plan, head)]
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


def in_words(plan: RunPlan, head: Head) -> Iterable[str]:
    """Return a head as evidence that stands alone."""
    origin = f"cloister/{plan.digest.hex()}/{head.party}"
    yield f"{origin}: head over {head.size:,} records, root {head.root:.64}"
    yield f"signature of that head {head.signature:.128}"


def head_of(size: int, root: str, signature: str) -> Head:
    """Return a head of the aggregator from the fields of a record."""
    return Head(party=AGGREGATOR, size=size, root=root, signature=signature)
