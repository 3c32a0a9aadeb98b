"""What silos' probes found, beside the ceiling that epsilon implies."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scipy.stats import beta

from audits.accounts import Accounts
from audits.audit import Audit
from audits.findings import Finding, warn
from audits.report.blocks import percent
from audits.report.curves import Points, attack_profile, trade_off
from privacy.attack_statistics import ceiling
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
"""Chance, at most, that any attack within the ceiling is said to beat it, if images
are scored independently and those held out are of the members' kind."""

Profiles = Mapping[str, Points]
"""By silo, what bounds attacks on its images (``curves.attack_profile``)."""


def profiles(accounts: Accounts, probes: Sequence[ProbeReport]) -> Profiles:
    """Return what bounds the attacks of each silo that made a probe."""
    return {probe.silo: attack_profile(accounts, probe.silo) for probe in probes}


def membership_table(probes: Sequence[ProbeReport], profiles: Profiles) -> list[Table]:
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
                        "attacks": [
                            _attack(each, _profile(probe, each, profiles))
                            for each in attacks
                        ],
                        "ceiling": _drawn_ceiling(probe, attacks, profiles),
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
    audit: Audit, probes: Sequence[ProbeReport], profiles: Profiles
) -> list[Finding]:
    """Return what is doubtful: another model, or an attack above the ceiling.

    An attack beats the ceiling if the lower bound of its true positives lies above the
    ceiling at the upper bound of its false positives (Clopper & Pearson, 1934), at a
    significance shared by all attacks and rates. A warning and no failure: only its
    silo knows whether held-out images are of the members' kind, and the scores of one
    model's members are not independent.
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
    return found + list(_violations(probes, profiles))


def _violations(probes: Sequence[ProbeReport], profiles: Profiles) -> Iterator[Finding]:
    """Yield the attacks that found more than epsilon permits."""
    guarded = [
        (probe, each, profile)
        for probe in probes
        for each in probe.attacks
        if (profile := _profile(probe, each, profiles))
    ]
    num_tests = sum(len(each.tpr_at) for _, each, _ in guarded)
    for probe, each, profile in guarded:
        points = zip(each.at_fpr, each.tpr_at, each.false_positives_at, strict=True)
        for rate, share, alarms in points:
            level = SIGNIFICANCE / (2 * num_tests)
            low = _lowest(share.count, share.total, level)
            high = 1 - _lowest(each.num_held_out - alarms, each.num_held_out, level)
            if low > ceiling(high, profile):
                yield warn(
                    "probes",
                    f"{probe.silo}: the attack {each.attack} on {MODELS[each.target]} "
                    f"finds more at {percent(rate)} false alarms than epsilon permits. "
                    "Either epsilon was not kept, or the held-out images are of "
                    "another kind than those of the training; chance alone does it in "
                    f"about one run of {round(1 / SIGNIFICANCE)} at most.",
                    party=probe.silo,
                )


def _lowest(count: int, total: int, level: float) -> float:
    """Return the lower Clopper-Pearson bound of a share at a one-sided level."""
    if not 0 < count <= total:
        return 0.0
    return float(beta.ppf(level, count, total - count + 1))


def _attack(each: AttackResult, profile: Points) -> Table:
    """Return one attack, its true positives with their counts and the ceiling there."""
    table: Table = to_table(each)
    for name in ("at_fpr", "tpr_at", "false_positives_at", "target"):
        del table[name]
    points = zip(each.at_fpr, each.tpr_at, each.false_positives_at, strict=True)
    table["true_positives"] = [
        {
            "fpr": fpr,
            **to_table(share),
            "false_positives": alarms,
            "ceiling": ceiling(fpr, profile) if profile else None,
        }
        for fpr, share, alarms in points
    ]
    return table


def _profile(probe: ProbeReport, each: AttackResult, profiles: Profiles) -> Points:
    """Return what bounds an attack; empty if nothing does.

    The silo says whether the model that it attacked falls under a guarantee; how high
    the ceiling is follows from the events in its transcript.
    """
    guarded = each.ceiling_epsilon > 0 and each.target != "control"
    return profiles.get(probe.silo, []) if guarded else []


def _drawn_ceiling(
    probe: ProbeReport, attacks: Sequence[AttackResult], profiles: Profiles
) -> Points:
    """Return the ceiling as a curve, where every attack on a model falls under it."""
    if all(_profile(probe, each, profiles) for each in attacks):
        return trade_off(profiles[probe.silo])
    return []


def _models(accounts: Accounts) -> set[str]:
    """Return the digests of the models that transcripts name."""
    known: set[str] = set()
    for account in accounts.everyone:
        known |= {placed.record.parameters for placed in account.all(RoundClosed)}
        for placed in account.all(Finished):
            known |= {placed.record.parameters, placed.record.average}
    return known
