"""A probe's results in plain words, for the silo's operator."""

from collections.abc import Iterator

from privacy.attack_statistics import ceiling, held_out_needed
from protocol.probe_report import (
    NOT_PRIVATE,
    POWERFUL_AUC,
    AttackResult,
    Memorisation,
    ProbeReport,
    Share,
    Target,
)

NAMES: dict[Target, str] = {
    "global": "the global model",
    "own": "this silo's own model",
    "control": "the control",
}


def in_words(report: ProbeReport) -> Iterator[str]:
    """Yield a report's lines, the verdict on each model before its figures."""
    yield (
        f"{report.silo}, end of round {report.round_number} of run {report.plan[:16]}:"
    )
    yield _power(report)
    for target in NAMES:
        attacks = [one for one in report.attacks if one.target == target]
        if attacks and target != "control" and report.has_power:
            yield _verdict(target, attacks)
        for attack in attacks:
            yield f"  {_attack(attack)}"
        yield from (f"  {line}" for line in _small(attacks))
        yield from (f"  {line}" for line in _ceilings(attacks))
        for each in report.memorisation:
            if each.target == target:
                yield f"  {_memorised(each)}"
    yield (
        f"Keep this inside unless you mean to publish it: {NOT_PRIVATE}, and neither "
        "are counts of copies."
    )


def _power(report: ProbeReport) -> str:
    """Say whether the attacks work on the control, and what follows if not."""
    made = (
        f"The control, overfitted in {report.control_steps:,} steps on "
        f"{report.control_images} images: the best attack's AUC is "
        f"{report.control_auc:.3f}"
    )
    if report.has_power:
        return f"{made}; these attacks can find members."
    return (
        f"{made}, below {POWERFUL_AUC}. THE ATTACKS HAVE NO POWER HERE, AND THE RESULT "
        "MEANS NOTHING. More --control-steps overfit more."
    )


def _verdict(target: Target, attacks: list[AttackResult]) -> str:
    """Say in a sentence whether members of a model are found."""
    best = max(attacks, key=lambda one: one.auc_low)
    if best.auc_low > 0.5:
        return (
            f"Members of {NAMES[target]} CAN be told from others better than by chance "
            f"({best.attack}, AUC {best.auc:.3f}; 0.5 is chance)."
        )
    return (
        f"Members of {NAMES[target]} were not told from others: no attack's AUC is "
        "surely above 0.5, which is chance. Stronger attacks exist."
    )


def _attack(one: AttackResult) -> str:
    """Return one attack's figures."""
    found = "; ".join(
        f"at {rate:.1%} false alarms ({wrong} of {one.num_held_out}) "
        f"{_share(right)} members found"
        for rate, right, wrong in zip(
            one.at_fpr, one.tpr_at, one.false_positives_at, strict=True
        )
    )
    return (
        f"{one.target} {one.attack} ({one.settings}): AUC {one.auc:.3f} "
        f"({one.auc_low:.3f} to {one.auc_high:.3f}); {found}"
    )


def _small(attacks: list[AttackResult]) -> Iterator[str]:
    """Say for which rates there are too few held-out images."""
    if not attacks:
        return
    one = attacks[0]
    for rate in one.at_fpr:
        if (needed := held_out_needed(rate)) > one.num_held_out:
            yield (
                f"too few held-out images for a useful figure at {rate:.1%}: "
                f"{one.num_held_out:,} of {needed:,}"
            )


def _ceilings(attacks: list[AttackResult]) -> Iterator[str]:
    """Say what the claimed guarantee allows any attack at all."""
    if not attacks or not attacks[0].ceiling_epsilon:
        return
    one = attacks[0]
    guarantee = (one.ceiling_epsilon, one.ceiling_delta)
    allowed = " and ".join(
        f"{ceiling(rate, [guarantee]):.2%} at {rate:.1%}" for rate in one.at_fpr
    )
    yield (
        f"epsilon {guarantee[0]:.3g} at delta {guarantee[1]:.1g} allows no attack to "
        f"find more members than {allowed} false alarms"
    )


def _memorised(one: Memorisation) -> str:
    """Return what was found of memorised images."""
    return (
        f"{one.target}: {_share(one.nearer_to_training)} samples are nearer to a "
        f"training image than to any held-out one ({one.num_training:,} of each; half "
        f"if nothing is memorised); copies by the ratio test: {_share(one.copies)} "
        f"samples, {_share(one.copies_of_held_out)} of held-out images by chance, "
        f"{one.copies_of_any.count} among all {one.num_searched:,} training images"
    )


def _share(one: Share) -> str:
    """Return a share with its counts and interval."""
    return (
        f"{one.count} of {one.total} ({one.count / one.total:.1%}, "
        f"{one.low:.1%} to {one.high:.1%})"
    )
