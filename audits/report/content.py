"""What a report says, as one table of text and numbers: JSON as it stands.

HTML and Markdown show this table and add nothing; docs/audits.md describes it.
"""

from collections import defaultdict
from typing import Any

from audits.accounts import Account
from audits.audit import Audit
from audits.disclosure import Disclosure
from audits.evidence import AGGREGATOR
from audits.findings import CHECKS, Severity
from audits.measurement import sentence as measurement_sentence
from audits.report.calibration import calibration_table
from audits.report.privacy import privacy_table
from audits.report.samples import Samples
from audits.report.verdict import headline, not_covered, sentences
from audits.sums import least_survivors
from protocol.audit_records import ReferencePooled, ReferenceSkipped
from protocol.disclosures import ledger_line
from protocol.encoding import to_table
from protocol.model_records import Evaluated, MeasuredInSilos, MeasurementSkipped
from protocol.plan import RunPlan
from protocol.records import (
    Cohort,
    Confirmed,
    Dropped,
    Finished,
    Masked,
    RoundClosed,
    RoundLost,
    RoundOpened,
    Survivors,
)
from protocol.tally import StageBytes
from protocol.update_settings import UpdateConfig
from protocol.version import SOFTWARE

Table = dict[str, Any]
FORMAT = 1


def make_content(audit: Audit, samples: Samples | None) -> Table:
    """Return the content of a report.

    Guarantees: deterministic; nothing but names, digests, counts and published
    numbers from plan and transcripts, and the digest of the samples.
    """
    plan = audit.evidence.plan
    return {
        "format": FORMAT,
        "software": SOFTWARE,
        "run": _run(plan),
        "verdict": _verdict(audit),
        "findings": _findings(audit),
        "plan": _plan_in_brief(plan),
        "privacy": privacy_table(audit),
        "calibration": calibration_table(audit),
        "rounds": _rounds(audit),
        "disclosures": [_disclosure(each, plan) for each in audit.disclosures],
        "evaluations": _evaluations(audit.accounts.aggregator),
        "measurement": _measurement(audit.accounts.aggregator),
        "transcripts": [_transcript(account) for account in audit.accounts.everyone],
        "missing": list(audit.evidence.missing),
        "samples": samples.to_table() if samples else None,
    }


def _run(plan: RunPlan) -> Table:
    """Return who took part in what."""
    return {
        "name": plan.name,
        "plan_digest": plan.digest.hex(),
        "num_rounds": plan.num_rounds,
        "aggregator_key": plan.aggregator.identity_key,
        "silos": [
            {"name": silo.name, "identity_key": silo.identity_key}
            for silo in plan.silos
        ],
    }


def _verdict(audit: Audit) -> Table:
    """Return the verdict in words and counts."""
    return {
        "severity": str(audit.verdict),
        "headline": headline(audit),
        "sentences": sentences(audit),
        "not_covered": not_covered(audit),
        "counts": {str(each): len(audit.with_severity(each)) for each in Severity},
    }


def _findings(audit: Audit) -> list[Table]:
    """Return all findings, in the order in which the checks were made."""
    return [
        {
            "check": finding.check,
            "title": CHECKS[finding.check],
            "severity": str(finding.severity),
            "party": finding.party,
            "round_number": finding.round_number,
            "statement": finding.statement,
            "evidence": list(finding.evidence),
        }
        for finding in audit.findings
    ]


def _plan_in_brief(plan: RunPlan) -> list[list[str]]:
    """Return what a reader has to know of the plan, as pairs of words."""
    protection, update, training = plan.protection, plan.update, plan.training
    amount = (
        f"{training.local_steps:,} steps"
        if training.local_steps
        else f"{training.local_epochs:,} epochs"
    )
    silos = "silo" if protection.max_colluding == 1 else "silos"
    masks = (
        "none: updates in the clear"
        if protection.method == "none"
        else f"masked sums ({protection.trust} aggregator, up to "
        f"{protection.max_colluding} colluding {silos})"
    )
    model = plan.model
    shape = f"{model.channels} × {model.image_size} × {model.image_size}"
    network = f"{model.architecture} UNet for images of {shape}"
    if model.is_central_images:
        network = f"none: {model.dim} central images of {shape}"
    return [
        ["Model", network],
        ["What is federated", f"{_selection(update)} ({_form(update)})"],
        ["Training in a round", f"{amount} of {training.examples_per_step} examples"],
        ["Clipping norm of an update", _clipping(update)],
        ["Weights in the mean", _weights(update)],
        ["Protection", masks],
        ["Threshold", f"{protection.threshold_for(len(plan.silos))} silos"],
        ["Smallest cohort", f"{protection.min_cohort} silos"],
        ["Differential privacy", plan.privacy.mechanism],
        ["Rounds", f"{plan.num_rounds:,}"],
        ["Digest of the plan", plan.digest.hex()],
    ]


def _selection(update: UpdateConfig) -> str:
    """Name what is federated."""
    if update.selection == "parts":
        return ", ".join(update.parts)
    return f"{update.selection}, dealt" if update.is_dealt else update.selection


def _form(update: UpdateConfig) -> str:
    """Say in which form values leave a silo."""
    rotated = "rotated, " if update.rotation else ""
    return f"{rotated}{update.value_bits} bits a value, {update.rounding} rounding"


def _clipping(update: UpdateConfig) -> str:
    """Say how long an update may be."""
    if update.clipping == "fixed":
        return f"{update.clipping_norm:g}"
    return (
        f"three times the norm of the mean update before, at most "
        f"{update.clipping_norm:g}"
    )


def _weights(update: UpdateConfig) -> str:
    """Say what each silo counts for, and who knows it."""
    return {
        "equal": "all silos count alike",
        "declared": "as the plan declares",
        "secret": f"each silo's number of examples, at most {update.max_weight:,}; the "
        "aggregator learns their sum in each round, and so exactly a silo's number if "
        "the survivors of two rounds differ by that silo",
    }[update.weights]


def _rounds(audit: Audit) -> list[Table]:
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


def _disclosure(disclosure: Disclosure, plan: RunPlan) -> Table:
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


def _bytes(each: StageBytes) -> Table:
    """Return a count of bytes as a table."""
    return {
        "sent_bytes": each.sent,
        "received_bytes": each.received,
        "vector_bytes": each.vector,
        "broadcast_bytes": each.broadcast,
    }


def _evaluations(account: Account | None) -> list[Table]:
    """Return the Fréchet distances, each with all that it depends on."""
    return [
        {
            "round_number": placed.record.round_number,
            "extractor": placed.record.extractor,
            "extractor_digest": placed.record.extractor_digest,
            "reference": placed.record.reference,
            "reference_count": placed.record.reference_count,
            "num_samples": placed.record.num_samples,
            "frechet_distance": placed.record.frechet_distance,
            "class_shares": list(placed.record.class_shares),
        }
        for placed in (account.all(Evaluated) if account else ())
    ]


def _measurement(account: Account | None) -> Table | None:
    """Return mean and spread of what the silos measured, where they did."""
    placed = account.last(MeasuredInSilos) if account else None
    if placed is None:
        return None
    table: Table = to_table(placed.record)
    return table | {"sentence": measurement_sentence(placed.record)}


def _transcript(account: Account) -> Table:
    """Return how far a transcript goes, and how it grew from head to head."""
    return {
        "party": account.party,
        "num_records": account.num_records,
        "finished": account.last(Finished) is not None,
        "last_round": account.last_round,
        "heads": [{"time": time, "size": size} for time, size in account.growth],
    }
