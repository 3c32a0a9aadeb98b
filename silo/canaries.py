"""Gradient canaries in DP-SGD: one secret coordinate each, the clipping norm, a coin.

A canary is a made-up privacy unit whose clipped gradient is C at one coordinate, with a
sign, and 0 elsewhere. Those whose coin says so take part: each is drawn in every step
with the mechanism's own rate, like any unit, and added to the clipped sum before the
noise. What the mechanism releases at a canary's coordinate is its score::

    score_j = sum over steps t of sign_j s_t (noised sum at its coordinate) / C

s_t is 1 and -1 in turn (``protocol.canaries``), in what is added as in the score. If
the canary took part the score has mean q T, else 0, and standard deviation about sigma
sqrt(T) over T steps: an attacker who knows all but the coins and the draws tells them
apart as well as epsilon permits, and no better. Canaries are added after the clip: they
say nothing about it (``silo self-test`` does).

Source: Steinke, Nasr & Jagielski, 2023 (arXiv 2305.08846), Dirac canaries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protocol.canaries import Canaries, draw_canaries, step_sign
from silo.randomness import PrivateRandom

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """What some steps added to the scores: ``scores`` ``[m]`` over ``num_steps``."""

    num_steps: int
    scores: Floats


class GradientCanaries:
    """The canaries of one silo in the steps of DP-SGD (``silo.dpsgd.Planted``).

    Guarantees:
        The privacy units' own guarantee is as without canaries: what is added depends
        on no unit, and the noise comes after it. A step costs O(m), whatever the
        number of parameters.

    Args:
        seed: 32 bytes; coins, coordinates and signs follow from it.
        sample_rate, clipping_norm: the mechanism's.
        random: draws who takes part in a step; secret, and not from the seed.
        first_step: how many steps were scored before; of the signs in turn.
    """

    def __init__(
        self,
        seed: bytes,
        num_canaries: int,
        *,
        sample_rate: float,
        clipping_norm: float,
        random: PrivateRandom,
        first_step: int = 0,
    ) -> None:
        self._step = first_step
        self._seed, self._num_canaries = seed, num_canaries
        self._sample_rate, self._clipping_norm = sample_rate, clipping_norm
        self._random = random
        self._places: Places | None = None
        self._begin()

    def _begin(self) -> None:
        """Begin to add up."""
        self._num_steps, self._scores = 0, np.zeros(self._num_canaries)

    def plant(self, sums: Sequence[Tensor]) -> None:
        """Add the drawn canaries to the clipped sums, float64, of all parameters."""
        places = self._placed(sums)
        included = places.included
        drawn = self._random.poisson_sample(len(included), self._sample_rate)
        size = self._clipping_norm * step_sign(self._step)
        places.add(sums, included[drawn], size)

    def observe(self, gradients: Sequence[Tensor], divisor: float) -> None:
        """Add to the scores what a step released at the canaries' coordinates."""
        released = self._placed(gradients).signed(gradients)
        self._scores += released * (
            divisor / self._clipping_norm * step_sign(self._step)
        )
        self._num_steps += 1
        self._step += 1

    def take(self) -> Scored:
        """Return what the steps since the last call have added to the scores."""
        scored = Scored(self._num_steps, self._scores)
        self._begin()
        return scored

    def _placed(self, values: Sequence[Tensor]) -> "Places":
        """Return where the canaries lie in tensors of these shapes.

        Raises:
            ValueError: fewer coordinates than canaries.
        """
        sizes = tuple(value.numel() for value in values)
        if self._places is None or self._places.sizes != sizes:
            drawn = draw_canaries(self._seed, self._num_canaries, sum(sizes))
            self._places = Places(drawn, sizes)
        return self._places


class Places:
    """The coordinates of canaries as offsets into the tensors of a flat vector.

    Args:
        sizes: of the tensors; the vector is one after the other.
    """

    def __init__(self, canaries: Canaries, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.included = np.flatnonzero(canaries.included)
        self._signs = canaries.signs.astype(np.float64)
        ends = np.cumsum(sizes)
        self._tensors = np.searchsorted(ends, canaries.coordinates, side="right")
        starts = ends - np.array(sizes)
        self._offsets = canaries.coordinates - starts[self._tensors]
        order = np.argsort(self._tensors, kind="stable")
        self._order = order
        self._groups = [
            (int(tensor), torch.from_numpy(self._offsets[order][mine]))
            for tensor in np.unique(self._tensors)
            for mine in [self._tensors[order] == tensor]
        ]

    def add(
        self, sums: Sequence[Tensor], which: npt.NDArray[np.int64], size: float
    ) -> None:
        """Add size times its sign to the coordinates of some canaries."""
        for tensor in np.unique(self._tensors[which]):
            mine = which[self._tensors[which] == tensor]
            sum_ = sums[tensor]
            offsets = torch.from_numpy(self._offsets[mine]).to(sum_.device)
            values = torch.from_numpy(self._signs[mine] * size)
            sum_.put_(offsets, values.to(sum_.device, sum_.dtype), accumulate=True)

    def signed(self, values: Sequence[Tensor]) -> Floats:
        """Return each canary's sign times the value at its coordinate, ``[m]``."""
        found = torch.cat(
            [
                values[i].take(offsets.to(values[i].device))
                for i, offsets in self._groups
            ]
        )
        result = np.empty(len(self._signs))
        result[self._order] = found.to("cpu", torch.float64).numpy()
        return result * self._signs
