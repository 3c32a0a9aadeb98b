"""Private training, watched at both ends: what goes in, and what comes out.

The code that runs is that of a round. Per-unit gradients are seen where an engine hands
them over; what was released is seen where the inner optimizer takes it, through torch's
own hook. What lies between is not looked into, but computed once more, plainly.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from diffusion.loss import denoising_loss
from diffusion.parts import DenoisingNetwork
from diffusion.schedule import make_schedule
from protocol.plan import PlanDraft
from silo.data import ImageSet
from silo.dpsgd import MAX_NORM, PrivateOptimizer
from silo.per_example import Draws, GradientEngine, Objective, UnitGradients
from silo.private_training import train_privately
from silo.randomness import PrivateRandom
from silo.training import TrainingState
from silo.units import PrivacyUnits

NUMBERS = 1 << 20
"""Numbered images are fewer; that each has a float32 of its own."""

Numbers = npt.NDArray[np.int64]

Row = list[Tensor]
"""One unit's gradient: a tensor for each parameter."""

Change = Callable[[int, Row], Row]
"""Changes the gradient of the so-manieth unit of a step before it is used."""


@dataclass(frozen=True)
class StepSeen:
    """One step, in float64 on the CPU.

    ``clean`` ``[d]`` is the sum of the clipped gradients that were handed over, and
    ``released`` ``[d]`` what the inner optimizer got, times the public divisor.
    ``num_left_out`` of the ``num_rows`` gradients were of no use.
    """

    clean: Tensor
    released: Tensor
    num_units: int
    num_rows: int
    num_left_out: int

    @property
    def dp_noise(self) -> Tensor:
        """What was released beyond the clean sum."""
        return self.released - self.clean


class Watch:
    """An engine that hands on what another one makes, and adds it up by itself.

    Args:
        engine: makes the gradients.
        change: what is done to each before it is seen and used.
        num_kept: how many gradients to keep, in :attr:`kept`.
        num_compared: how many to compare with :func:`plain_gradient`, the relative
            differences in :attr:`differences`, the numbers of draws in
            :attr:`num_draws`.
    """

    def __init__(
        self,
        engine: GradientEngine,
        *,
        clipping_norm: float,
        change: Change | None = None,
        num_kept: int = 0,
        num_compared: int = 0,
    ) -> None:
        self._engine, self._clipping_norm, self._change = engine, clipping_norm, change
        self._num_kept, self._num_compared = num_kept, num_compared
        self.kept: list[Row] = []
        self.differences: list[float] = []
        self.num_draws: list[int] = []
        self._begin()

    def _begin(self) -> None:
        """Begin a step."""
        self._clean: Tensor | None = None
        self._num_units = self._num_rows = self._num_left_out = 0

    @property
    def chunk_size(self) -> int:
        """That of the engine."""
        return self._engine.chunk_size

    def gradients(self, objective: Objective, draws: Draws) -> Iterator[UnitGradients]:
        """Yield the engine's gradients, changed where that is asked for."""
        is_first = len(self.differences) < self._num_compared
        self._num_units += len(draws)
        for made in self._engine.gradients(objective, draws):
            if is_first:
                self._compare(objective, draws, made)
                is_first = False
            yield self._seen(made)

    def _compare(self, objective: Objective, draws: Draws, made: UnitGradients) -> None:
        """Compare the first unit's gradient with the plain one."""
        plain = plain_gradient(objective, draws)
        found = flattened([gradient[0] for gradient in made.gradients])
        self.differences.append(float((found - plain).norm() / plain.norm()))
        self.num_draws.append(int((draws.weights[0] > 0).sum()))

    def _seen(self, made: UnitGradients) -> UnitGradients:
        """Change and count gradients, and add them up."""
        rows = [[g[row] for g in made.gradients] for row in range(len(made.losses))]
        if self._change is not None:
            rows = [self._change(self._num_rows + i, row) for i, row in enumerate(rows)]
            gradients = [torch.stack(values) for values in zip(*rows, strict=True)]
            made = replace(made, gradients=gradients)
        for row in rows:
            if len(self.kept) < self._num_kept:
                self.kept.append([value.clone() for value in row])
            self._add(flattened(row))
        return made

    def _add(self, gradient: Tensor) -> None:
        """Clip one unit's gradient in float64, and add it to the sum."""
        self._num_rows += 1
        norm = float(gradient.norm())
        if not norm < MAX_NORM:
            self._num_left_out += 1
            return
        clipped = gradient * min(1.0, self._clipping_norm / max(norm, 1e-300))
        self._clean = clipped if self._clean is None else self._clean.add_(clipped)

    def take(self, released: Tensor) -> StepSeen:
        """Return the step that ends with this release."""
        clean = torch.zeros_like(released) if self._clean is None else self._clean
        counts = self._num_units, self._num_rows, self._num_left_out
        self._begin()
        return StepSeen(clean, released, *counts)


@dataclass(frozen=True)
class Replay:
    """An engine that hands over given gradients to units of :func:`numbered_images`."""

    rows: Sequence[Row]
    chunk_size: int

    def gradients(self, _: Objective, draws: Draws) -> Iterator[UnitGradients]:
        """Yield the gradients whose numbers were drawn."""
        mine = [self.rows[unit] for unit in drawn_numbers(draws)]
        gradients = [torch.stack(values) for values in zip(*mine, strict=True)]
        yield UnitGradients(gradients, torch.zeros(len(mine)))


class OnlyDraws:
    """An engine that notes which :func:`numbered_images` were drawn, and no more."""

    chunk_size = 1 << 20

    def __init__(self) -> None:
        self._units: Numbers = np.zeros(0, np.int64)

    def gradients(self, _: Objective, draws: Draws) -> Iterator[UnitGradients]:
        """Yield nothing: the clean sum is 0."""
        self._units = np.concatenate((self._units, drawn_numbers(draws)))
        return iter(())

    def take(self) -> Numbers:
        """Return the units of the step that ends here."""
        units, self._units = self._units, np.zeros(0, np.int64)
        return units


def numbered_images(num_images: int, size: int, channels: int) -> ImageSet:
    """Return images whose pixels are all their own number, fewer than 2^20.

    Their label, which a plan with classes wants, is 0.
    """
    shape = (num_images, size, size, channels)
    numbers = np.arange(num_images, dtype=np.float32).reshape(-1, 1, 1, 1)
    labels = np.zeros(num_images, np.int64)
    return ImageSet(np.broadcast_to(numbers, shape), (0.0, float(NUMBERS)), labels)


def drawn_numbers(draws: Draws) -> Numbers:
    """Return which of :func:`numbered_images` were drawn; exact in float32."""
    corner = draws.x_0[:, 0, 0, 0, 0].double().cpu().numpy()
    return np.rint((corner + 1) * (NUMBERS / 2)).astype(np.int64)


def plain_gradient(objective: Objective, draws: Draws) -> Tensor:
    """Return the first unit's gradient ``[d]``, its draws one by one, then averaged.

    What every engine must give, without any of their means.
    """
    model, parameters = objective.model, objective.parameters
    total: Tensor | None = None
    chosen = torch.nonzero(draws.weights[0]).reshape(-1).tolist()
    for draw in chosen:
        losses = denoising_loss(
            model,
            draws.x_0[:1, draw],
            draws.t[:1, draw],
            draws.noise[:1, draw],
            objective.schedule,
            objective.loss,
            None if draws.labels is None else draws.labels[:1, draw],
        )
        gradient = torch.autograd.grad(losses.sum(), parameters, materialize_grads=True)
        flat = flattened(gradient) / len(chosen)
        total = flat if total is None else total + flat
    assert total is not None  # noqa: S101 - a unit has a draw of positive weight.
    return total


def flattened(values: Sequence[Tensor]) -> Tensor:
    """Return tensors as one vector ``[d]``, float64 on the CPU."""
    parts = [value.detach().reshape(-1).to("cpu", torch.float64) for value in values]
    return torch.cat(parts)


@contextmanager
def releases_of(
    model: nn.Module, divisor: float, seen: Callable[[Tensor], None]
) -> Iterator[None]:
    """Tell of every gradient that an inner optimizer takes a step with.

    Args:
        divisor: what the gradient ``[d]`` is multiplied with.
        seen: is told of it, just before the step.
    """
    mine = {id(parameter) for parameter in model.parameters()}

    def before_step(optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if isinstance(optimizer, PrivateOptimizer) or id(parameters[0]) not in mine:
            return
        gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad
            for p in parameters
            if p.requires_grad
        ]
        seen(flattened(gradients) * divisor)

    handle = register_optimizer_step_pre_hook(before_step)
    try:
        yield
    finally:
        handle.remove()


def train_watched(
    model: DenoisingNetwork,
    images: ImageSet,
    units: PrivacyUnits,
    draft: PlanDraft,
    engine: GradientEngine,
    seen: Callable[[Tensor], None],
    *,
    device: torch.device,
) -> None:
    """Train a round's steps privately; ``seen`` is told what each of them released.

    Nothing is kept but what the model has become.

    Raises:
        As :func:`~silo.private_training.train_privately`.
    """
    divisor = draft.training.examples_per_step
    with releases_of(model, divisor, seen):
        train_privately(
            model,
            images,
            units,
            make_schedule(draft.schedule).to(device),
            draft,
            TrainingState(),
            round_number=1,
            device=device,
            random=PrivateRandom(),
            observe=lambda progress: None,
            keep=lambda kept: None,
            checkpoint_steps=draft.training.local_steps,
            engine=engine,
        )
