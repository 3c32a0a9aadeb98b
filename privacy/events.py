"""What was released about a data set: frozen records of mechanisms that ran.

An event says all that its price depends on, and nothing else: no example, no count of
examples, no value of a gradient.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeAlias, TypeVar

from privacy.distributed import DistributedNoise

MAX_COUNT = 1 << 53


@dataclass(frozen=True, kw_only=True)
class SampledGaussian:
    """``steps`` adaptive releases of a sampled, clipped and noised sum.

    In each step every privacy unit is drawn independently with probability
    ``sample_rate`` q (Poisson sampling; 1: all of them). With g_u the contribution of
    a drawn unit u, clipped to L2 norm C, a step releases::

        Σ_u g_u + N(0, (σ C)² I),        σ = noise_multiplier, C = clipping_norm

    Neighbouring data sets differ by adding or removing one unit: the sum moves by at
    most C. The price depends on q, σ and ``steps`` alone. Source: Abadi et al., 2016,
    algorithm 1; Mironov, Talwar & Zhang, 2019.

    Raises:
        ValueError: a number out of its range; the message begins with its name.
    """

    sample_rate: float
    noise_multiplier: float
    clipping_norm: float
    steps: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"sample_rate: must be in (0, 1], is {self.sample_rate}")
        for name in ("noise_multiplier", "clipping_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: must be positive, is {getattr(self, name)}")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps: must be an integer >= 1, is {self.steps}")

    def times(self, steps: int) -> "SampledGaussian":
        """Return the same mechanism, run so many steps."""
        return replace(self, steps=steps)


@dataclass(frozen=True, kw_only=True)
class NoisySum:
    """``steps`` adaptive releases of a sum to which every silo added integer noise.

    In each step a silo draws its privacy units with probability ``sample_rate`` (1: no
    sampling), and adds to its levels discrete Gaussian noise of ``share_variance``,
    grid steps squared. The sum of at least ``min_survivors`` silos is released; of
    them at most ``max_colluding`` tell others their noise. One unit moves the levels,
    ``length`` of them, by at most ``sensitivity`` grid steps of L2 norm;
    ``clipping_norm`` says to what it was clipped, and is not in the price.

    Source: docs/noise-inside-the-sum.md.

    Raises:
        ValueError: a number out of its range; fewer than three honest silos.
    """

    sample_rate: float
    clipping_norm: float
    sensitivity: float
    share_variance: int
    min_survivors: int
    max_colluding: int
    length: int
    steps: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"sample_rate: must be in (0, 1], is {self.sample_rate}")
        if not 0 < self.clipping_norm < math.inf:
            raise ValueError(f"clipping_norm: must be positive: {self.clipping_norm}")
        for name, most in (("steps", MAX_COUNT), ("length", MAX_COUNT),
                           ("min_survivors", 1 << 16)):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name}: must be an integer of 1 to {most}")
        _ = self.noise

    @property
    def noise(self) -> DistributedNoise:
        """How much noise is in the sum, and how much of it is relied on."""
        return DistributedNoise(
            share_variance=Fraction(self.share_variance),
            min_survivors=self.min_survivors,
            max_colluding=self.max_colluding,
            sensitivity=self.sensitivity,
            length=self.length,
        )

    def times(self, steps: int) -> "NoisySum":
        """Return the same mechanism, run so many steps."""
        return replace(self, steps=steps)


Event: TypeAlias = SampledGaussian | NoisySum
"""All that a ledger may hold; whoever prices events refuses what is none of these."""

E = TypeVar("E", SampledGaussian, NoisySum, Event)


def merged(events: Iterable[E]) -> tuple[E, ...]:
    """Return the events with equal neighbours made one; their steps are added.

    Nothing else is reordered: the price of a composition is that of the list as given.
    """
    result: list[E] = []
    for event in events:
        if result and result[-1].times(event.steps) == event:
            result[-1] = event.times(result[-1].steps + event.steps)
        else:
            result.append(event)
    return tuple(result)
