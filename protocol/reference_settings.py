"""What a plan must say to sum up the silos' own feature statistics, and their price."""

from typing import Protocol

from privacy.events import SampledGaussian
from protocol.aggregation_settings import EvaluationConfig
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import require
from protocol.update_settings import ProtectionConfig


class HasReference(Protocol):
    """A plan or a draft, as far as a release of feature statistics depends on it."""

    @property
    def privacy(self) -> PrivacyConfig:
        """The mechanism."""

    @property
    def evaluation(self) -> EvaluationConfig:
        """What is evaluated against."""


class HasProtection(HasReference, Protocol):
    """A plan or a draft, as far as its sums are hidden."""

    @property
    def protection(self) -> ProtectionConfig:
        """How single vectors are hidden."""


def reference_events(plan: HasReference) -> tuple[SampledGaussian, ...]:
    """Return what a silo releases for the reference: one noisy sum, or nothing.

    Every privacy unit takes part; with noise of its own in each silo, the silo's part
    is protected before it is hidden.
    """
    config = plan.evaluation
    if not config.is_noised:
        return ()
    return (
        SampledGaussian(
            sample_rate=1.0,
            noise_multiplier=config.reference_noise_multiplier,
            clipping_norm=config.reference_clipping,
            steps=1,
        ),
    )


def training_events(
    plan: HasReference, events: tuple[SampledGaussian, ...]
) -> tuple[SampledGaussian, ...]:
    """Return those of some events that are not of the reference."""
    releases = reference_events(plan)
    return tuple(event for event in events if event.times(1) not in releases)


def training_steps(plan: HasReference, events: tuple[SampledGaussian, ...]) -> int:
    """Return how many steps of some events are not those of the reference."""
    return sum(event.steps for event in training_events(plan, events))


def check_reference(plan: HasProtection) -> None:
    """Refuse a plan whose reference would show one silo's, or what epsilon lacks.

    Raises:
        ValueError: names the field.
    """
    config, privacy = plan.evaluation, plan.privacy
    if not config.is_pooled:
        return
    require(
        plan.protection.is_hidden,
        'evaluation.reference: "federation" needs protection.method "mask" or "bfv"; '
        "without them the aggregator would see each silo's own statistics",
    )
    if not privacy.is_private:
        require(
            not (config.is_noised or config.reference_uncovered),
            "evaluation.reference_noise_multiplier, reference_uncovered: belong to a "
            "plan with differential privacy",
        )
        return
    require(
        config.is_noised or config.reference_uncovered,
        'evaluation.reference: "federation" would release exact statistics that '
        "epsilon does not cover: give reference_noise_multiplier and "
        "reference_clipping, or say so with reference_uncovered = true",
    )
    require(
        not config.is_noised or privacy.mechanism == "dp-sgd",
        'evaluation.reference_noise_multiplier: needs privacy.mechanism "dp-sgd"; '
        f'beside "{privacy.mechanism}" there is no account for it',
    )
    step = (1.0, config.reference_noise_multiplier, config.reference_clipping)
    same = (privacy.sample_rate, privacy.noise_multiplier, privacy.clipping_norm)
    require(
        not config.is_noised or step != same,
        "evaluation.reference_noise_multiplier: rate 1, noise and norm are those of a "
        "step of DP-SGD; the ledger could not tell them apart",
    )
