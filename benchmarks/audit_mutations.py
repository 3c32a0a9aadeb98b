"""Broken privacy mechanisms: each is the package's own code with one fault put in.

A fault holds for as long as its context lasts. What is broken is the mechanism; what
the ledger writes, what the canaries score and what checks look at is left alone, but
for ``steps-uncounted``, whose fault is in what is counted.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from silo.canaries import GradientCanaries, Places
from silo.dpsgd import NoisedSteps, PrivateOptimizer, unit_norms
from silo.per_example import (
    Draws,
    LoopEngine,
    Objective,
    UnitGradients,
    VmapEngine,
)
from silo.randomness import PrivateRandom

FEW, MANY = 100, 500
"""Of the canaries, the first so many have no noise at their coordinate."""

FEW_LOUD, MANY_LOUD, LOUDNESS = 10, 250, 10.0
"""The first so many included canaries are added so many times over."""

Fault = Callable[[], AbstractContextManager[Any]]


def noise_times(factor: float) -> AbstractContextManager[Any]:
    """Scale all noise, wherever it is added to a sum."""
    honest = PrivateRandom.add_noise_

    def scaled(self: PrivateRandom, values: Any, noise_stddev: float) -> None:
        honest(self, values, noise_stddev * factor)

    return patch.object(PrivateRandom, "add_noise_", scaled)


@contextmanager
def each_draw_alone(*, is_averaged: bool, clipping_norm: float) -> Iterator[None]:
    """Clip every draw of a unit by itself, and add them up, or average them."""
    with ExitStack() as patches:
        for engine in (LoopEngine, VmapEngine):
            honest = engine.gradients

            def gradients(
                self: Any, objective: Objective, draws: Draws, honest: Any = honest
            ) -> Iterator[UnitGradients]:
                made = [
                    _joined(list(honest(self, objective, _one(draws, k))))
                    for k in range(draws.t.shape[1])
                ]
                if not is_averaged:
                    yield from made
                    return
                rows = [clipped(each.gradients, clipping_norm) for each in made]
                means = [sum(g) / len(rows) for g in zip(*rows, strict=True)]
                yield UnitGradients(means, made[0].losses)

            patches.enter_context(patch.object(engine, "gradients", gradients))
        yield


def _one(draws: Draws, k: int) -> Draws:
    """Return the k-th draw of each unit, with weight 1."""
    parts = [values[:, k : k + 1] for values in draws.tensors]
    parts[3] = torch.ones_like(parts[3])
    return Draws(*parts)


def _joined(parts: list[UnitGradients]) -> UnitGradients:
    """Return the gradients of all chunks together."""
    gradients = zip(*(part.gradients for part in parts), strict=True)
    return UnitGradients(
        [torch.cat(each) for each in gradients],
        torch.cat([part.losses for part in parts]),
    )


def clipped(gradients: list[Tensor], norm: float) -> list[Tensor]:
    """Return per-unit gradients, clipped to a norm."""
    factors = (norm / unit_norms(gradients)).clamp(max=1.0).float()
    return [g * factors.view(-1, *[1] * (g.dim() - 1)) for g in gradients]


def steps_uncounted(keep: Callable[[int], int]) -> AbstractContextManager[Any]:
    """Count fewer steps than were noised, at every checkpoint."""
    honest = NoisedSteps.take
    return patch.object(NoisedSteps, "take", lambda self: keep(honest(self)))


@contextmanager
def no_noise_at(number: int) -> Iterator[None]:
    """Release the sum without noise at the coordinates of so many canaries."""
    seen: dict[str, Any] = {}
    honest_plant, honest_noise = GradientCanaries.plant, PrivateOptimizer.add_noise

    def plant(self: GradientCanaries, sums: Any) -> None:
        honest_plant(self, sums)
        seen["sums"] = [sum_.reshape(-1).clone() for sum_ in sums]
        seen["places"] = self._placed(sums)

    def add_noise(self: PrivateOptimizer) -> None:
        honest_noise(self)
        places: Places | None = seen.get("places")
        if places is None:
            return
        for tensor, offset in zip(
            places._tensors[:number], places._offsets[:number], strict=True
        ):
            flat = self.params[tensor].grad.view(-1)
            flat[int(offset)] = float(seen["sums"][tensor][int(offset)])

    with (
        patch.object(GradientCanaries, "plant", plant),
        patch.object(PrivateOptimizer, "add_noise", add_noise),
    ):
        yield


def too_loud(number: int) -> AbstractContextManager[Any]:
    """Add so many included canaries many times over."""
    honest = Places.add

    def add(self: Places, sums: Any, which: Any, size: float) -> None:
        is_loud = np.isin(which, self.included[:number])
        honest(self, sums, which[~is_loud], size)
        honest(self, sums, which[is_loud], size * LOUDNESS)

    return patch.object(Places, "add", add)


def faults(clipping_norm: float) -> Mapping[str, Fault]:
    """Return every mutation by name; the first has no fault."""
    return {
        "none": nullcontext,
        "noise-halved": lambda: noise_times(0.5),
        "no-noise": lambda: noise_times(0.0),
        "clip-per-draw-summed": lambda: each_draw_alone(
            is_averaged=False, clipping_norm=clipping_norm
        ),
        "clip-per-draw-averaged": lambda: each_draw_alone(
            is_averaged=True, clipping_norm=clipping_norm
        ),
        "step-uncounted": lambda: steps_uncounted(lambda count: max(0, count - 1)),
        "half-the-steps-uncounted": lambda: steps_uncounted(lambda count: count // 2),
        "half-the-canaries-without-noise": lambda: no_noise_at(MANY),
        "half-the-canaries-ten-times": lambda: too_loud(MANY_LOUD),
        "leaked-without-noise": lambda: no_noise_at(FEW),
        "leaked-ten-times": lambda: too_loud(FEW_LOUD),
    }
