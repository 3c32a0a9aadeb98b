"""What a plan with noise inside the secure sum must say, and what follows from it.

Grid, sensitivity, noise and price follow from the plan alone, in every round alike:
silos, aggregator and auditor compute them here. The proofs, and the reasons for what is
refused, are in docs/noise-inside-the-sum.md.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from diffusion.config import UNetConfig
from privacy.distributed import (
    MIN_HONEST,
    calibrate_share,
    grid_sensitivity,
    signal_to_noise,
)
from privacy.errors import Overflow, Uncalibrated
from privacy.events import NoisySum
from privacy.grids import Grid
from privacy.noise import check_noisy_headroom, sampler_bound
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig, require
from protocol.update_settings import ProtectionConfig, UpdateConfig

FIELD_BITS = 32
"""The width of a noisy field, in every round."""
STEPS_IN_NORM = 1 << 15
"""Grid steps in the norm that one unit is clipped to: rounding inflates the sensitivity
of 2^21 values by 0.04 %."""
MIN_VALUE_BITS = 17
"""The levels of a vector that fills its norm with one value need so many bits."""
GRADIENT_BITS = 30
"""A clipped gradient is added up in whole multiples of 2^-30 of its norm, or less."""
CLIP_ERROR = 2.0**-20
"""What float32 may move a vector of norm 1, with the clip to a norm of 1 (docs, 3)."""


class HasSections(Protocol):
    """A draft, as far as noise in the sum depends on it."""

    @property
    def num_rounds(self) -> int:
        """The number of rounds."""

    @property
    def model(self) -> UNetConfig:
        """The network."""

    @property
    def training(self) -> TrainingConfig:
        """How a silo trains."""

    @property
    def update(self) -> UpdateConfig:
        """What leaves a silo."""

    @property
    def protection(self) -> ProtectionConfig:
        """How updates are hidden."""

    @property
    def privacy(self) -> PrivacyConfig:
        """The mechanism."""


class HasSilos(HasSections, Protocol):
    """A plan, as far as noise in the sum depends on it."""

    @property
    def silos(self) -> Sequence[object]:
        """The silos."""


def check_noisy(draft: HasSections) -> None:
    """Refuse a draft whose claim the proofs do not cover (docs, 7 and 10).

    Raises:
        ValueError: names the field and the reason.
    """
    privacy, update, protection = draft.privacy, draft.update, draft.protection
    training, name = draft.training, f'privacy.mechanism "{draft.privacy.mechanism}"'
    require(
        not protection.is_encrypted,
        f'protection.method: must be "mask" with {name}: one silo that gives the '
        "aggregator the shared key opens each upload, whose own share of the noise is "
        "small",
    )
    require(
        protection.is_hidden,
        f'protection.method: must be "mask" with {name}: without a secure sum a '
        "silo's own noise is all there is; use dp-sgd",
    )
    require(
        protection.trust == "malicious",
        f'protection.trust: must be "malicious" with {name}: the claim is made against '
        "the aggregator, who must not be trusted to open one sum only",
    )
    require(
        protection.max_colluding >= 1,
        f"protection.max_colluding: must be at least 1 with {name}: a silo knows its "
        "own noise and may subtract it",
    )
    for field, wanted, why in (
        ("weights", "equal", "other weights change what one unit moves"),
        ("rounding", "stochastic", "the proof is for stochastic rounding"),
        ("clipping", "fixed", "the grid must follow from the plan alone"),
        ("rotation", False, "its rounding is not in the proof, and it gains nothing"),
    ):
        require(
            getattr(update, field) == wanted,
            f"update.{field}: must be {str(wanted).lower()} with {name}: {why}",
        )
    require(
        update.value_bits >= MIN_VALUE_BITS,
        f"update.value_bits: must be at least {MIN_VALUE_BITS} with {name}, better 24",
    )
    require(
        training.optimizer_state == "fresh",
        f'training.optimizer_state: must be "fresh" with {name}: nothing that depends '
        "on data may stay in a silo from round to round; the optimizer is the "
        "aggregator's (aggregation.optimizer)",
    )
    require(
        not update.is_dealt,
        f'update.selection: "usplit" sums each part over a group of the silos; {name} '
        "counts on the noise of all of them",
    )
    require(
        update.is_complete or training.local_parts == "frozen",
        f'training.local_parts: must be "frozen" with {name} and selection '
        f'"{update.selection}": local parts that are trained carry data from round to '
        "round",
    )
    require(
        privacy.mechanism == "silo" or training.local_steps == 1,
        f"training.local_steps: must be 1 with {name}: the noise of other silos "
        "protects nothing that a silo's second step sees; use dp-sgd, or privacy."
        "sample_rate for a larger batch",
    )


def check_noisy_plan(plan: HasSilos) -> None:
    """Refuse a plan whose silos are too few for its claim, or its noise too large.

    Raises:
        ValueError: names the field and the reason.
    """
    privacy, count = plan.privacy, min_survivors(plan)
    for field in ("share_variance", "num_values"):
        require(
            getattr(privacy, field) > 0,
            f"privacy.{field}: a finished plan says it; `aggregator plan make` finds "
            "it",
        )
    _check_honest(plan)
    require(
        privacy.mechanism != "silo" or privacy.delta < 1 / len(plan.silos),
        f"privacy.delta: must be below one over the number of silos, {len(plan.silos)}",
    )
    try:
        check_headroom(plan)
    except Overflow as error:
        raise ValueError(
            f"privacy.share_variance: {error}; fewer silos, or less noise"
        ) from None
    require(count <= len(plan.silos), "protection.threshold: is more than all silos")


def _check_honest(plan: HasSilos) -> None:
    """Refuse a plan that relies on fewer than three honest silos."""
    least, most = min_survivors(plan), plan.protection.max_colluding
    require(
        least - most >= MIN_HONEST,
        f"protection.threshold: a sum of {least} silos, {most} of them colluding, "
        f"holds the noise of fewer than {MIN_HONEST} honest ones; more silos, a "
        f"threshold of at least {most + MIN_HONEST}, or dp-sgd",
    )


def min_survivors(plan: HasSilos) -> int:
    """Return the fewest silos whose sum is ever opened."""
    protection = plan.protection
    return max(protection.threshold_for(len(plan.silos)), protection.min_cohort)


def noise_bound(plan: HasSections) -> int:
    """Return the largest noise that a silo adds to a level, in grid steps."""
    return sampler_bound(plan.privacy.share_variance)


def check_headroom(plan: HasSilos) -> None:
    """Raise :class:`Overflow` if a sum over all silos could leave its fields."""
    check_noisy_headroom(
        (1 << (plan.update.value_bits - 1)) - 1,
        noise_bound(plan),
        field_bits=FIELD_BITS,
        num_contributors=len(plan.silos),
    )


def noisy_grid(plan: HasSections, length: int) -> Grid:
    """Return the one grid of every round: 2^15 steps in the norm of one unit."""
    max_level = (1 << (plan.update.value_bits - 1)) - 1
    range_ = np.float32(unit_norm(plan) * max_level / STEPS_IN_NORM)
    return Grid(plan.update.value_bits, np.array([range_], np.float32), (length,))


def unit_norm(plan: HasSections) -> float:
    """Return the L2 norm that one privacy unit's contribution is clipped to."""
    is_silo = plan.privacy.mechanism == "silo"
    return plan.update.clipping_norm if is_silo else plan.privacy.clipping_norm


def gradient_step(clipping_norm: float) -> float:
    """Return h, of which the added values of clipped gradients are whole multiples."""
    return 2.0 ** (math.frexp(clipping_norm)[1] - 1 - GRADIENT_BITS)


def sensitivity_of(plan: HasSections, length: int) -> float:
    """Return how far one unit moves a silo's levels, in grid steps (docs, 3)."""
    norm, error = unit_norm(plan), CLIP_ERROR * plan.update.clipping_norm
    if plan.privacy.mechanism != "silo":
        norm += math.sqrt(length) * gradient_step(norm) / 2
    return grid_sensitivity(noisy_grid(plan, length), norm, arithmetic_error=error)


def round_noise(plan: HasSilos, finished: PrivacyConfig | None = None) -> NoisySum:
    """Return what a silo releases in one round: one step, from the plan alone.

    Args:
        finished: the mechanism of a plan that is still in the making.

    Raises:
        ValueError: the plan was never finished.
    """
    privacy = finished or plan.privacy
    return NoisySum(
        sample_rate=privacy.sample_rate or 1.0,
        clipping_norm=unit_norm(plan),
        sensitivity=sensitivity_of(plan, privacy.num_values),
        share_variance=privacy.share_variance,
        min_survivors=min_survivors(plan),
        max_colluding=plan.protection.max_colluding,
        length=privacy.num_values,
        steps=1,
    )


def run_noise(plan: HasSilos) -> NoisySum:
    """Return what a silo may release in a run, spare rounds included."""
    return round_noise(plan).times(plan.num_rounds + plan.privacy.spare_steps)


def finished(plan: HasSilos) -> PrivacyConfig:
    """Return the mechanism with the noise that every silo adds.

    Guarantees: where the plan names a target, a whole run spends no more than it.

    Args:
        plan: a draft that says its ``num_values``, and the silos of its plan.

    Raises:
        Uncalibrated: no noise reaches the target, or what is given misses it.
        ValueError: the draft and its silos do not permit a claim.
    """
    from privacy.pricing import epsilon

    privacy, rounds = plan.privacy, plan.num_rounds + plan.privacy.spare_steps
    _check_honest(plan)
    length = privacy.num_values
    require(length > 0, "privacy.num_values: the number of federated parameters")
    if not privacy.share_variance:
        share = calibrate_share(
            privacy.epsilon,
            privacy.delta,
            min_survivors=min_survivors(plan),
            max_colluding=plan.protection.max_colluding,
            sensitivity=sensitivity_of(plan, length),
            length=length,
            sample_rate=privacy.sample_rate or 1.0,
            rounds=rounds,
        ).share_variance
        return replace(privacy, share_variance=int(share))
    given = round_noise(plan, privacy).times(rounds)
    spent, target = epsilon((given,), privacy.delta), privacy.epsilon or math.inf
    if not (math.isfinite(spent) and spent <= target):
        raise Uncalibrated(
            f"privacy.share_variance {privacy.share_variance} spends epsilon "
            f"{spent:.4g} in the whole run, more than "
            + (f"privacy.epsilon {target:g}" if privacy.epsilon else "can be priced")
        )
    return privacy


def prices(plan: HasSilos, delta: float) -> tuple[float, float]:
    """Return epsilon of the whole run, and epsilon if secure aggregation fails."""
    from privacy.pricing import epsilon, share_epsilon

    event = run_noise(plan)
    return epsilon((event,), delta), share_epsilon((event,), delta)


def best_signal(plan: HasSilos) -> float:
    """Return the length of a mean update over the length of its noise, with "silo".

    In the best case: every update fills its clipping norm, all point the same way, and
    all silos are there.
    """
    event = round_noise(plan)
    return signal_to_noise(
        plan.update.clipping_norm,
        event.noise,
        num_contributors=len(plan.silos),
        step=float(noisy_grid(plan, event.length).steps[0]),
    )
