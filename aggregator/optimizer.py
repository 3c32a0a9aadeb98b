"""The aggregator's step: from a round's mean update to the next global parameters.

The mean is a public function of released sums, and so is all that is kept here: steps
cost no privacy.

Source: Hsu et al., 2019 (arXiv 1909.06335), FedAvgM; Reddi et al., 2021 (arXiv
2003.00295), algorithm 2, FedAdam.
"""

from dataclasses import dataclass, field

import numpy as np

from privacy.clipping import Vector
from protocol.aggregation_settings import AggregationConfig


@dataclass(frozen=True)
class Moments:
    """What an optimizer keeps of the mean updates so far, float32 ``[d]`` each.

    "momentum": ``mean`` is the velocity, and there is no ``square``. "adam": the moving
    averages of the mean update and of its square.
    """

    mean: Vector = field(repr=False)
    square: Vector | None = field(default=None, repr=False)


def first_moments(config: AggregationConfig, length: int) -> Moments | None:
    """Return the moments before the first round; None for plain steps.

    The square begins at the adaptivity's own square, its smallest value in the source.
    """
    if config.optimizer == "sgd":
        return None
    zeros = np.zeros(length, np.float32)
    if config.optimizer == "momentum":
        return Moments(zeros)
    square = np.full(length, config.adaptivity**2, np.float32)
    return Moments(zeros, square)


def step(
    config: AggregationConfig, moments: Moments | None, mean: Vector
) -> tuple[Vector, Moments | None]:
    """Return what is added to the parameters, float32 ``[d]``, and the next moments.

    In float32, element by element::

        "sgd"        η Δ
        "momentum"   v ← β₁ v + Δ     η v
        "adam"       m ← β₁ m + (1 − β₁) Δ,  v ← β₂ v + (1 − β₂) Δ²     η m / (√v + τ)

    Guarantees: the same bits from the same bits; the arguments are not changed.

    Args:
        mean: Δ, the mean update; along it a loss falls.

    Raises:
        RuntimeError: "momentum" or "adam" without its moments.
    """
    rate = np.float32(config.learning_rate)
    if config.optimizer == "sgd":
        return rate * mean, None
    if moments is None:
        raise RuntimeError("the moments of aggregation.optimizer are missing")
    if config.optimizer == "momentum":
        velocity = np.float32(config.decay_mean) * moments.mean + mean
        return rate * velocity, Moments(velocity)
    if moments.square is None:
        raise RuntimeError("the second moment of aggregation.optimizer is missing")
    first, second = np.float32(config.decay_mean), np.float32(config.decay_square)
    one, small = np.float32(1), np.float32(config.adaptivity)
    square = np.asarray(
        second * moments.square + (one - second) * np.square(mean), np.float32
    )
    following = np.asarray(first * moments.mean + (one - first) * mean, np.float32)
    added = rate * following / (np.sqrt(square) + small)
    return np.asarray(added, np.float32), Moments(following, square)
