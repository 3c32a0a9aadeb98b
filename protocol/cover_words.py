"""What limits what a recipient learns of the images, by name and in words."""

from enum import StrEnum

from protocol.noise_claim import claim, upward
from protocol.plan import RunPlan


class Cover(StrEnum):
    """What limits what a recipient learns of the images from it."""

    SECURE_AGGREGATION = "secure-aggregation"
    DIFFERENTIAL_PRIVACY = "differential-privacy"
    INDEPENDENT = "independent-of-images"
    NONE = "none"


def cover_words(
    plan: RunPlan, covers: tuple[Cover, ...], epsilon: float | None = None
) -> str:
    """Return in words which guarantee covers something that left.

    Args:
        epsilon: what the silo recorded as spent in the run; None for the plan's target.
    """
    return "; ".join(_cover_words(plan, cover, epsilon) for cover in covers)


def _cover_words(plan: RunPlan, cover: Cover, epsilon: float | None) -> str:
    """Return one guarantee in words."""
    if cover == Cover.SECURE_AGGREGATION:
        return _secure_aggregation_words(plan)
    if cover == Cover.DIFFERENTIAL_PRIVACY:
        return _privacy_words(plan, epsilon)
    is_independent = cover == Cover.INDEPENDENT
    return "does not depend on the images" if is_independent else "none"


def _secure_aggregation_words(plan: RunPlan) -> str:
    """Say what secure aggregation promises in this plan, and up to which collusion."""
    protection = plan.protection
    least = max(protection.min_cohort, protection.threshold)
    if plan.update.is_dealt:
        least = protection.min_cohort
    if protection.is_encrypted:
        return (
            f"encryption: only sums of at least {least} silos are decrypted, as long "
            "as no silo gives the aggregator the key, which opens every upload"
        )
    follows = "follows the protocol and " * (protection.trust == "semi-honest")
    most = protection.max_colluding
    return (
        f"secure aggregation: only sums of at least {least} silos are opened, as long "
        f"as the aggregator {follows}colludes with at most {most} "
        f"silo{'s' * (most != 1)}"
    )


def _privacy_words(plan: RunPlan, epsilon: float | None) -> str:
    """Say what differential privacy promises over the run."""
    privacy = plan.privacy
    spent = epsilon if epsilon is not None else privacy.epsilon or None
    if privacy.is_in_sum:
        return f"{claim(plan, spent)}, under the assumptions of its mechanism"
    amount = f"epsilon {upward(spent)}" if spent else "an epsilon that the plan implies"
    unit = "image" if privacy.unit == "example" else "patient"
    return (
        f"differential privacy: {amount} at delta {privacy.delta:g} per {unit}, over "
        "the whole run"
    )
