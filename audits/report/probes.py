"""What silos' probes found, beside the ceiling that epsilon implies."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scipy.stats import beta

from audits.accounts import Accounts
from audits.audit import Audit
from audits.findings import Finding, fail, warn
from audits.report.curves import ceiling
from protocol.encoding import to_table
from protocol.probe_report import AttackResult, ProbeReport
from protocol.records import Finished, RoundClosed

Table = dict[str, Any]

MODELS = {
    "global": "the global model",
    "own": "its own model",
    "control": "the overfitted control",
}
SIGNIFICANCE = 0.05
"""Chance, at most, that any attack within the ceiling is said to beat it."""


def membership_table(
    probes: Sequence[ProbeReport], privacy: Mapping[str, Any] | None
) -> list[Table]:
    """Return the attacks of each silo, a row for each model that it attacked."""
    rows = []
    for probe in probes:
        for target, model in MODELS.items():
            attacks = [each for each in probe.attacks if each.target == target]
            if attacks:
                rows.append(
                    {
                        "silo": probe.silo,
                        "round_number": probe.round_number,
                        "target": target,
                        "model": model,
                        "software": probe.software,
                        "control_images": probe.control_images,
                        "control_steps": probe.control_steps,
                        "has_power": probe.has_power,
                        "attacks": [_attack(each, privacy) for each in attacks],
                        "ceiling": _drawn_ceiling(attacks, privacy),
                    }
                )
    return rows


def memorisation_table(probes: Sequence[ProbeReport]) -> list[Table]:
    """Return what samples have in common with training images, silo by silo."""
    return [
        {"silo": probe.silo, "model": MODELS[each.target], **to_table(each)}
        for probe in probes
        for each in probe.memorisation
    ]


def check_probes(
    audit: Audit, probes: Sequence[ProbeReport], privacy: Mapping[str, Any] | None
) -> list[Finding]:
    """Return what contradicts the run: another model, or an attack above the ceiling.

    An attack beats the ceiling if the lower bound of its true positives lies above the
    ceiling at the upper bound of its false positives (Clopper & Pearson, 1934), at a
    significance shared by all attacks and rates.
    """
    known = _models(audit.accounts)
    found = [
        warn(
            "probes",
            f"The probe of {probe.silo} is of a model that no transcript names.",
            f"model {probe.model}",
            party=probe.silo,
        )
        for probe in probes
        if known and probe.model not in known
    ]
    return found + list(_violations(probes, privacy))


def _violations(
    probes: Sequence[ProbeReport], privacy: Mapping[str, Any] | None
) -> Iterator[Finding]:
    """Yield the attacks that found more than epsilon permits."""
    guarded = [
        (probe, each)
        for probe in probes
        for each in probe.attacks
        if _has_ceiling(each, privacy)
    ]
    num_tests = sum(len(each.tpr_at) for _, each in guarded)
    for probe, each in guarded:
        points = zip(each.at_fpr, each.tpr_at, each.false_positives_at, strict=False)
        for rate, share, alarms in points:
            level = SIGNIFICANCE / (2 * num_tests)
            low = _lowest(share.count, share.total, level)
            high = 1 - _lowest(each.num_held_out - alarms, each.num_held_out, level)
            if low > ceiling((privacy or {})["profile"], high):
                yield fail(
                    "probes",
                    f"{probe.silo}: the attack {each.attack} on {MODELS[each.target]} "
                    f"finds more at {rate:g} false alarms than epsilon permits.",
                    party=probe.silo,
                )


def _lowest(count: int, total: int, level: float) -> float:
    """Return the lower Clopper-Pearson bound of a share at a one-sided level."""
    if not 0 < count <= total:
        return 0.0
    return float(beta.ppf(level, count, total - count + 1))


def _attack(each: AttackResult, privacy: Mapping[str, Any] | None) -> Table:
    """Return one attack, its true positives with their counts and the ceiling there."""
    table: Table = to_table(each)
    for name in ("at_fpr", "tpr_at", "false_positives_at", "target"):
        del table[name]
    points = zip(each.at_fpr, each.tpr_at, each.false_positives_at, strict=False)
    table["true_positives"] = [
        {
            "fpr": fpr,
            **to_table(share),
            "false_positives": alarms,
            "ceiling": ceiling(privacy["profile"], fpr)
            if privacy and _has_ceiling(each, privacy)
            else None,
        }
        for fpr, share, alarms in points
    ]
    return table


def _has_ceiling(each: AttackResult, privacy: Mapping[str, Any] | None) -> bool:
    """Return whether a guarantee of this run bounds an attack.

    The silo says whether the model that it attacked falls under one; how high the
    ceiling is follows from the events in the transcripts.
    """
    guarded = each.ceiling_epsilon > 0 and each.target != "control"
    return bool(guarded and privacy and privacy["profile"])


def _drawn_ceiling(
    attacks: Sequence[AttackResult], privacy: Mapping[str, Any] | None
) -> list[list[float]]:
    """Return the ceiling as a curve, where every attack on a model falls under it."""
    if privacy and all(_has_ceiling(each, privacy) for each in attacks):
        return [list(point) for point in privacy["trade_off"]]
    return []


def _models(accounts: Accounts) -> set[str]:
    """Return the digests of the models that transcripts name."""
    known: set[str] = set()
    for account in accounts.everyone:
        known |= {placed.record.parameters for placed in account.all(RoundClosed)}
        for placed in account.all(Finished):
            known |= {placed.record.parameters, placed.record.average}
    return known
