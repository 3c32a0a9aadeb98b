"""An exponential moving average of parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.errors import ShapeMismatch


def warmed_up_decay(decay: float, num_updates: int) -> float:
    """Return min(decay, (1 + n) / (10 + n)) after n earlier updates.

    Early averages follow quickly, so the random initial parameters are forgotten.

    Source:
        The warm-up of TensorFlow's ``ExponentialMovingAverage`` (``num_updates``).
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


@dataclass(frozen=True, kw_only=True)
class ExponentialMovingAverage:
    """An average of parameters and the number of updates that it has seen.

    Args:
        decay: the largest share of the old average that an update keeps, 0 … 1.
        parameters: the average so far, by name; at the start the first parameters.
        num_updates: updates so far.

    Raises:
        ValueError: the decay is not in [0, 1), or the number is negative.
    """

    decay: float
    parameters: Mapping[str, Tensor]
    num_updates: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"EMA decay must lie in [0, 1); got {self.decay}")
        if self.num_updates < 0:
            raise ValueError(f"num_updates must not be negative; {self.num_updates}")

    def updated(self, parameters: Mapping[str, Tensor]) -> "ExponentialMovingAverage":
        """Return the average after one more update; this one stays as it is.

        average ← decay_n · average + (1 - decay_n) · parameters

        Raises:
            ShapeMismatch: the names or shapes differ from the average's.
        """
        if parameters.keys() != self.parameters.keys():
            raise ShapeMismatch("the update has other parameter names than the average")
        share = 1.0 - warmed_up_decay(self.decay, self.num_updates)
        average = {}
        with torch.no_grad():
            for name, old in self.parameters.items():
                if old.shape != parameters[name].shape:
                    raise ShapeMismatch(f"parameter {name} has another shape")
                average[name] = torch.lerp(old, parameters[name], share)
        return replace(self, parameters=average, num_updates=self.num_updates + 1)
