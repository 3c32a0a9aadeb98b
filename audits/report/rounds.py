"""How the rounds went, what was sent, how far transcripts go: tables of a report."""

from collections import defaultdict
from typing import Any

from audits.accounts import Account
from audits.audit import Audit
from audits.disclosure import Disclosure
from audits.evidence import AGGREGATOR, Evidence
from audits.sums import least_survivors
from protocol.audit_records import ReferencePooled, ReferenceSkipped, Witnessed
from protocol.disclosures import ledger_line
from protocol.errors import TranscriptBroken
from protocol.model_records import MeasuredInSilos, MeasurementSkipped
from protocol.plan import RunPlan
from protocol.records import (
    Cohort,
    Confirmed,
    Dropped,
    Finished,
    Masked,
    Opened,
    RoundClosed,
    RoundLost,
    RoundOpened,
    Survivors,
)
from protocol.tally import StageBytes
from protocol.transcript import read_heads

Table = dict[str, Any]


def rounds_table(audit: Audit) -> list[Table]:
    """Return how each round went: the aggregator's words, else those of the silos."""
    account = audit.accounts.aggregator
    accounts = [account] if account else list(audit.accounts.silos.values())
    rounds: defaultdict[int, Table] = defaultdict(dict)
    for each in accounts:
        _gather(each, rounds)
    least = least_survivors(audit.accounts)
    return [
        {
            "round_number": number,
            "outcome": "open",
            "attempts": 1,
            "cohort": None,
            "uploads": None,
            "survivors": None,
            "least_survivors": least,
            "confirmations": None,
            "witnesses": None,
            "dropped": [],
        }
        | rounds[number]
        for number in sorted(rounds)
    ]


def _gather(account: Account, rounds: defaultdict[int, Table]) -> None:
    """Add what one transcript says of the rounds; later attempts replace earlier."""
    for opened in account.all(RoundOpened):
        row = rounds[opened.record.round_number]
        row["attempts"] = max(row.get("attempts", 1), opened.record.attempt)
    for cohort in account.all(Cohort):
        rounds[cohort.record.round_number]["cohort"] = len(set(cohort.record.silos))
    uploads: defaultdict[int, set[str]] = defaultdict(set)
    for masked in account.all(Masked):
        uploads[masked.record.round_number].add(masked.record.silo)
    for number, silos in uploads.items():
        rounds[number]["uploads"] = len(silos) if account.party == AGGREGATOR else None
    for survivors in account.all(Survivors):
        row = rounds[survivors.record.round_number]
        row["survivors"] = list(survivors.record.silos)
    for confirmed in account.all(Confirmed):
        row = rounds[confirmed.record.round_number]
        row["confirmations"] = len(set(confirmed.record.silos))
    for witnessed in account.all(Witnessed):
        row = rounds[witnessed.record.round_number]
        row["witnesses"] = len(set(witnessed.record.silos))
    _gather_endings(account, rounds)


def _gather_endings(account: Account, rounds: defaultdict[int, Table]) -> None:
    """Add how the rounds ended, and who was lost."""
    for lost in account.all(RoundLost):
        rounds[lost.record.round_number]["outcome"] = "lost"
    for closed in account.all(RoundClosed):
        row = rounds[closed.record.round_number]
        row |= {"outcome": "closed", "survivors": list(closed.record.survivors)}
    for measured in account.all(MeasuredInSilos):
        rounds[measured.record.round_number]["outcome"] = "measured in the silos"
    for skipped in account.all(MeasurementSkipped):
        rounds[skipped.record.round_number]["outcome"] = "measurement skipped"
    for pooled in account.all(ReferencePooled):
        rounds[pooled.record.round_number]["outcome"] = "reference summed"
    for missed in account.all(ReferenceSkipped):
        rounds[missed.record.round_number]["outcome"] = "reference skipped"
    for dropped in account.all(Dropped):
        if dropped.record.round_number:
            row = rounds[dropped.record.round_number]
            item = {"silo": dropped.record.silo, "stage": dropped.record.stage}
            row.setdefault("dropped", []).append(item)


def disclosure_table(disclosure: Disclosure, plan: RunPlan) -> Table:
    """Return what left one silo, line by line, by stage and by round."""
    return {
        "silo": disclosure.silo,
        "counted_by": disclosure.witness,
        **_bytes(disclosure.total),
        "ledger": [
            ledger_line(line, plan, disclosure.epsilon) for line in disclosure.lines
        ],
        "stages": [
            {"stage": stage, "content": _content(disclosure, stage), **_bytes(each)}
            for stage, each in disclosure.by_stage().items()
        ],
        "rounds": [
            {"round_number": number, **_bytes(each)}
            for number, each in disclosure.by_round().items()
        ],
    }


def _content(disclosure: Disclosure, stage: str) -> str:
    """Return in plain words what a silo sends in a stage, the vector first."""
    said = [
        line.content.what if line.content else f"not described: stage {stage}"
        for line in disclosure.lines
        if line.stage == stage
    ]
    return "; ".join(said) or "refusals"


def traffic_table(audit: Audit) -> list[Table]:
    """Return the bytes of all silos together in each round, 0 outside rounds."""
    total: defaultdict[int, StageBytes] = defaultdict(StageBytes)
    for disclosure in audit.disclosures:
        for number, each in disclosure.by_round().items():
            total[number] += each
    return [{"round_number": n, **_bytes(total[n])} for n in sorted(total)]


def _bytes(each: StageBytes) -> Table:
    """Return a count of bytes as a table."""
    return {
        "sent_bytes": each.sent,
        "received_bytes": each.received,
        "vector_bytes": each.vector,
        "broadcast_bytes": each.broadcast,
    }


def transcript_table(account: Account, evidence: Evidence) -> Table:
    """Return how far a transcript goes, and how it grew from head to head."""
    opened, head = account.last(Opened), _last_head(account, evidence)
    return {
        "party": account.party,
        "software": opened.record.software if opened else None,
        "num_records": account.num_records,
        "finished": account.last(Finished) is not None,
        "last_round": account.last_round,
        "head": {"size": head[0], "root": head[1]} if head else None,
        "heads": [{"time": time, "size": size} for time, size in account.growth],
    }


def _last_head(account: Account, evidence: Evidence) -> tuple[int, str] | None:
    """Return size and root of the last head of a transcript that was found to hold."""
    sizes = {size for _, size in account.growth}
    last = None
    for transcript in evidence.transcripts:
        if transcript.party != account.party:
            continue
        try:
            for head in read_heads(transcript.folder):
                last = (head.size, head.root) if head.size in sizes else last
        except TranscriptBroken:
            return last
    return last
