"""The aggregator's step: from a round's mean update to the next global parameters.

The mean is a public function of released sums, and so is all that is kept here: steps
cost no privacy.

Source: Reddi et al., 2021 (arXiv 2003.00295), algorithm 2, FedAdam.
"""

from dataclasses import dataclass, field

import numpy as np

from privacy.clipping import Vector
from protocol.aggregation_settings import AggregationConfig


@dataclass(frozen=True)
class Moments:
    """Adam's moving averages of the mean update and of its square, float32 ``[d]``."""

    mean: Vector = field(repr=False)
    square: Vector = field(repr=False)


def first_moments(config: AggregationConfig, length: int) -> Moments | None:
    """Return the moments before the first round; None for plain steps.

    The square begins at the adaptivity's own square, its smallest value in the source.
    """
    if config.optimizer == "sgd":
        return None
    square = np.full(length, config.adaptivity**2, np.float32)
    return Moments(np.zeros(length, np.float32), square)


def step(
    config: AggregationConfig, moments: Moments | None, mean: Vector
) -> tuple[Vector, Moments | None]:
    """Return what is added to the parameters, float32 ``[d]``, and the next moments.

    "sgd": η Δ. "adam", element by element, in float32::

        m ← β₁ m + (1 − β₁) Δ     v ← β₂ v + (1 − β₂) Δ²     η m / (√v + τ)

    Guarantees: the same bits from the same bits; the arguments are not changed.

    Args:
        mean: Δ, the mean update; along it a loss falls.

    Raises:
        RuntimeError: "adam" without moments.
    """
    rate = np.float32(config.learning_rate)
    if config.optimizer == "sgd":
        return rate * mean, None
    if moments is None:
        raise RuntimeError("the moments of aggregation.optimizer are missing")
    first, second = np.float32(config.decay_mean), np.float32(config.decay_square)
    one, small = np.float32(1), np.float32(config.adaptivity)
    square = second * moments.square + (one - second) * np.square(mean)
    following = Moments(
        np.asarray(first * moments.mean + (one - first) * mean, np.float32),
        np.asarray(square, np.float32),
    )
    added = rate * following.mean / (np.sqrt(following.square) + small)
    return np.asarray(added, np.float32), following
