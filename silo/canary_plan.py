"""What canaries cost in a plan, for an operator, and which plans refuse them."""

from collections.abc import Iterator

from protocol.mechanism import steps_of_run
from protocol.plan import PlanDraft
from silo.config import CanaryConfig


def canary_refusals(
    plan: PlanDraft, config: CanaryConfig, num_values: int
) -> Iterator[str]:
    """Yield why a plan cannot have the canaries that a silo asks for, field first.

    Args:
        num_values: how many parameters are trained.
    """
    mechanism = plan.privacy.mechanism
    if config.gradient:
        if mechanism == "none":
            yield (
                "gradient: only where DP-SGD adds noise, and this plan has no "
                "mechanism; images are the only canaries for it"
            )
        elif plan.privacy.is_in_sum:
            yield (
                f'gradient: with "{mechanism}" the noise is in the sum over silos, '
                "which no silo sees alone; only dp-sgd has steps to score"
            )
        elif plan.model.is_central_images:
            yield "gradient: central images are released without steps to score"
        elif config.gradient > num_values:
            yield (
                f"gradient: {config.gradient:,} canaries need a coordinate each, and "
                f"{num_values:,} parameters are trained"
            )
    if config.images:
        if mechanism == "silo":
            yield "images: the unit is the whole silo; an image is none"
        if plan.model.is_central_images:
            yield "images: central images have no loss to score"
        if plan.update.weights == "declared":
            yield (
                "images: the plan declares the silos' numbers of images, which "
                "planted ones would change"
            )


def canary_sentences(
    plan: PlanDraft, config: CanaryConfig, num_values: int
) -> Iterator[str]:
    """Yield what the canaries cost and what of them will be published.

    Args:
        num_values: how many parameters are trained.
    """
    reasons = list(canary_refusals(plan, config, num_values))
    if reasons:
        yield from (f"REFUSED: silo.toml, [canaries] {each}." for each in reasons)
        return
    privacy, steps = plan.privacy, steps_of_run(plan)
    if config.gradient:
        share = (
            config.gradient / 2 * privacy.sample_rate
            / (privacy.noise_multiplier**2 * num_values)
        )  # fmt: skip
        yield (
            f"Canaries: {config.gradient:,} in the gradients; about half of them add "
            f"{privacy.clipping_norm:g}, the clipping norm, to one coordinate each in "
            f"a share {privacy.sample_rate:g} of up to {steps:,} steps: {share:.2g} "
            "times the energy of the noise. They cost no epsilon. At the end their "
            f"seed and {config.gradient:,} scores are published in this silo's "
            "transcript, for whoever reads it: sums of noised gradients, which epsilon "
            "covers."
        )
    if config.images:
        covered = "epsilon covers them, since they follow from the trained model"
        if not privacy.is_private:
            covered = "nothing limits what they reveal beside the trained model"
        yield (
            f"Canaries: {config.images:,} images of noise, about half of which are "
            "planted among this silo's own and CHANGE what is trained. At the end "
            f"their seed and {config.images:,} losses under this silo's own model are "
            f"published in its transcript; {covered}. They are weak: they rarely show "
            "what others would find."
        )
