"""What a plan for central images must say: a run of its own that releases noisy means.

The federated model is a stack of n images (``diffusion/means.py``). Each silo takes n
private steps; step j releases one noisy mean (``silo/central_images.py``). The price is
that of n steps of DP-SGD at the same rate, multiplier and clipping norm.
"""

import math
from typing import Protocol

from diffusion.config import UNetConfig
from protocol.aggregation_settings import AggregationConfig
from protocol.mechanism import HasReleases
from protocol.settings import require


class HasModel(HasReleases, Protocol):
    """A plan or a draft, as far as central images ask something of it."""

    @property
    def model(self) -> UNetConfig:
        """The network, or the stack of images."""

    @property
    def aggregation(self) -> AggregationConfig:
        """What becomes of the mean update."""


def check_central_images(plan: HasModel) -> None:
    """Refuse a plan for central images that could not give them, or not privately.

    Raises:
        ValueError: names the field.
    """
    model, privacy, count = plan.model, plan.privacy, plan.model.dim
    what = "central images (model.architecture)"
    require(
        privacy.mechanism == "dp-sgd",
        f'privacy.mechanism: must be "dp-sgd" for {what}: without noise a mean gives '
        "private images away",
    )
    require(plan.num_rounds == 1, f"num_rounds: must be 1 for {what}")
    require(
        plan.training.local_steps == count,
        f"training.local_steps: must be {count} for {count} {what}: one step each",
    )
    require(
        plan.update.selection == "full",
        f'update.selection: must be "full" for {what}',
    )
    require(
        not plan.evaluation.every_rounds,
        f"evaluation.every_rounds: must be 0 for {what}: there is no network to sample",
    )
    require(
        not plan.evaluation.in_silos,
        f"evaluation.in_silos: must be false for {what}: there is no network to sample",
    )
    require(
        privacy.multiplicity == 1,
        f"privacy.multiplicity: must be 1 for {what}: no timestep or noise is drawn",
    )
    require(
        plan.training.proximal_mu == 0,
        f"training.proximal_mu: must be 0 for {what}: nothing is trained",
    )
    require(not plan.initial.name, f"initial.name: must be empty for {what}")
    require(
        plan.aggregation == AggregationConfig(),
        f"aggregation: learning_rate must be 1 and ema_decay 0 for {what}",
    )
    needed = expected_norm(model, privacy.clipping_norm, relative_noise(plan))
    require(
        plan.update.clipping_norm >= needed,
        f"update.clipping_norm: must be at least {needed:.4g} for {what} with this "
        f"noise, better {2 * needed:.2g}: a smaller one would fade the images",
    )


def relative_noise(plan: HasReleases) -> float:
    """Return noise multiplier over expected batch size; 0 before it is calibrated."""
    return plan.privacy.noise_multiplier / plan.training.examples_per_step


def expected_norm(
    model: UNetConfig, clipping_norm: float, relative_noise: float
) -> float:
    """Return the largest norm that a silo's stack of central images should have.

    n means of norm up to C each, and in each of d pixels noise of standard deviation
    C s: C sqrt(n (1 + d s^2)). A silo with more than its share of images exceeds it.

    Args:
        clipping_norm: C, of a privacy unit.
        relative_noise: s.
    """
    pixels = model.channels * model.image_size**2
    return clipping_norm * math.sqrt(model.dim * (1 + pixels * relative_noise**2))
