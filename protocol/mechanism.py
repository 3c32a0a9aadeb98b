"""The privacy mechanism of a plan: what a run releases, and what it does not cover.

Steps and events follow from the plan alone: two silos with different data, or one silo
with and without an image, run the same mechanism.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol, cast

from privacy.errors import Uncalibrated
from privacy.events import Event, SampledGaussian
from protocol import noise_plan
from protocol.aggregation_settings import EvaluationConfig
from protocol.calibration_settings import CalibrationConfig
from protocol.privacy_settings import PrivacyConfig
from protocol.reference_settings import reference_events
from protocol.settings import InitialConfig, TrainingConfig
from protocol.update_settings import UpdateConfig

RATE_ROUNDING = 1e-12
"""A sample rate such as 1/3 is no exact number: three epochs of it are nine steps."""


class HasMechanism(Protocol):
    """A plan or a draft, as far as its mechanism depends on it."""

    @property
    def num_rounds(self) -> int:
        """The number of rounds."""

    @property
    def training(self) -> TrainingConfig:
        """How a silo trains."""

    @property
    def privacy(self) -> PrivacyConfig:
        """The mechanism."""

    @property
    def calibration(self) -> CalibrationConfig:
        """What follows the mean."""

    @property
    def evaluation(self) -> EvaluationConfig:
        """When a Fréchet distance is measured, and against what."""


class HasReleases(HasMechanism, Protocol):
    """A plan or a draft, as far as it says what else is released."""

    @property
    def initial(self) -> InitialConfig:
        """What the run begins with."""

    @property
    def update(self) -> UpdateConfig:
        """What leaves a silo."""


def steps_per_round(plan: HasMechanism) -> int:
    """Return how many private steps every silo takes in a round.

    An epoch is 1 / ``sample_rate`` steps, whatever a silo's number of examples;
    ``local_epochs`` of them are rounded up. With noise in the sum a round is one step.
    """
    training = plan.training
    if plan.privacy.is_in_sum:
        return 1
    if training.local_steps:
        return training.local_steps
    steps = training.local_epochs / plan.privacy.sample_rate
    return math.ceil(steps * (1 - RATE_ROUNDING))


def pre_training_steps(plan: HasMechanism) -> int:
    """Return how many steps a silo trains for auxiliary images, before round 1.

    With DP-SGD they are steps of the same mechanism as those of the rounds.
    """
    return plan.calibration.local_steps if plan.calibration.asks_silos else 0


def relation_of(unit: str) -> str:
    """Return how neighbouring data sets differ, as ledgers name it."""
    return "updates-or-zeros" if unit == "silo" else "add-or-remove-one"


def steps_of_run(plan: HasMechanism) -> int:
    """Return how many private steps a silo may take in a run, spare ones included."""
    in_rounds = steps_per_round(plan) * plan.num_rounds
    return in_rounds + pre_training_steps(plan) + plan.privacy.spare_steps


def round_event(plan: HasMechanism) -> SampledGaussian:
    """Return what a silo releases in one round of DP-SGD.

    Raises:
        ValueError: the plan has another mechanism, or its multiplier was never
            calibrated.
    """
    privacy = plan.privacy
    return SampledGaussian(
        sample_rate=privacy.sample_rate,
        noise_multiplier=privacy.noise_multiplier,
        clipping_norm=privacy.clipping_norm,
        steps=steps_per_round(plan),
    )


def round_release(plan: HasMechanism) -> Event:
    """Return what a silo releases in one round, whatever the mechanism.

    Raises:
        ValueError: the plan has no mechanism, or its noise was never calibrated.
    """
    if plan.privacy.is_in_sum:
        return noise_plan.round_noise(cast("noise_plan.HasSilos", plan))
    return round_event(plan)


def run_events(plan: HasMechanism) -> tuple[Event, ...]:
    """Return all that a silo may release in a run, spare steps included."""
    return (*reference_events(plan), round_release(plan).times(steps_of_run(plan)))


def run_epsilon(plan: HasMechanism, delta: float) -> float:
    """Return the epsilon of a whole run at a delta; infinity without a mechanism.

    With noise in the sum it is that of a finished plan, under its assumptions.
    """
    from privacy.pricing import epsilon

    if not plan.privacy.is_private:
        return math.inf
    return epsilon(run_events(plan), delta)


def calibrated(plan: HasMechanism) -> PrivacyConfig:
    """Return the plan's mechanism with its noise multiplier, for DP-SGD.

    Guarantees: where the plan names a target, a whole run spends no more than it.

    Raises:
        Uncalibrated: no multiplier reaches the target, or the one that is given
            misses it.
    """
    from privacy.calibration import calibrate

    privacy = plan.privacy
    if not privacy.is_private or privacy.is_in_sum:
        return privacy
    if privacy.noise_multiplier:
        spent = run_epsilon(plan, privacy.delta)
        if math.isinf(spent):
            raise Uncalibrated(
                f"privacy.noise_multiplier {privacy.noise_multiplier:g} gives no "
                f"finite epsilon at delta {privacy.delta:g}; a larger one is needed"
            )
        if privacy.epsilon and spent > privacy.epsilon:
            raise Uncalibrated(
                f"privacy.noise_multiplier {privacy.noise_multiplier:g} spends epsilon "
                f"{spent:.4g} in the whole run, more than privacy.epsilon "
                f"{privacy.epsilon:g}; leave one of the two out"
            )
        return privacy
    multiplier = calibrate(
        privacy.epsilon,
        privacy.delta,
        sample_rate=privacy.sample_rate,
        clipping_norm=privacy.clipping_norm,
        steps=steps_of_run(plan),
        before=reference_events(plan),
    )
    return replace(privacy, noise_multiplier=multiplier)


def not_covered(plan: HasReleases) -> Iterator[str]:
    """Yield, in words, what epsilon says nothing about although it leaves a silo."""
    if plan.initial.name and plan.initial.origin == "public":
        yield f"public data: {plan.initial.name}"
    if plan.calibration.is_on and plan.calibration.images == "public":
        yield f"public auxiliary images: {plan.calibration.name}"
    if plan.update.weights == "declared":
        yield "the weights that the plan declares, if they were computed from data"
    yield from _uncovered_reference(plan.evaluation)
    if plan.initial.name and plan.initial.origin == "run":
        yield (
            f"what an earlier run released ({plan.initial.name}): priced in that run's "
            "ledgers, if it had a mechanism, which this run cannot know"
        )
    yield (
        "whether two data sets of one silo share an image, which earlier events on the "
        "same data and a spent budget tell"
    )
    yield "the time that a silo takes to train, and when it is absent"
    yield "how plans, clipping norms and learning rates were chosen by earlier trials"


def _uncovered_reference(config: EvaluationConfig) -> Iterator[str]:
    """Yield what epsilon says nothing about of what samples are measured against."""
    if config.needs_published:
        yield (
            "the reference statistics of the evaluation, and every Fréchet distance "
            "measured against them"
        )
    elif config.is_noised:
        yield (
            "a published file of reference statistics, if the silos' own sum fails and "
            "the aggregator measures against such a file instead"
        )
    elif config.is_pooled:
        yield (
            "the exact feature statistics of all silos' images together, which the "
            "aggregator learns (evaluation.reference_uncovered), every Fréchet "
            "distance measured against them, and whether a silo has too few images "
            "for them"
        )
