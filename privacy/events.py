"""What was released about a data set: frozen records of mechanisms that ran.

An event says all that its price depends on, and nothing else: no example, no count of
examples, no value of a gradient.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace


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


def merged(events: Iterable[SampledGaussian]) -> tuple[SampledGaussian, ...]:
    """Return the events with equal neighbours made one; their steps are added.

    Nothing else is reordered: the price of a composition is that of the list as given.
    """
    result: list[SampledGaussian] = []
    for event in events:
        if result and result[-1].times(event.steps) == event:
            result[-1] = event.times(result[-1].steps + event.steps)
        else:
            result.append(event)
    return tuple(result)
