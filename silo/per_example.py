"""Per-unit gradients: three engines behind one interface, equal up to rounding.

The loss of a privacy unit is the weighted mean over its *draws* of image, timestep and
noise; its gradient is one vector, whatever the number of draws (noise multiplicity,
Dockhorn et al., 2023), and is clipped as one. Engines yield the gradients chunk by
chunk, so that a logical batch of any size needs the memory of one chunk.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from diffusion.config import LossKind
from diffusion.loss import denoising_loss
from diffusion.schedule import Schedule

LOOP_FROM_MULTIPLICITY = 4
"""From here on the loop is the fastest on a CPU, or nearly so with far less memory; see
``benchmarks/dpsgd_speed.py``."""

CPU_CHUNK_SIZE = 16
MANY_UNITS = 64
SMALL_WORK = 1e9
"""Parameters times pixels times draws, up to which calls cost more than arithmetic."""


@dataclass(frozen=True)
class Draws:
    """What some privacy units contribute to a step.

    Attributes:
        x_0: clean images ``[u, d, c, h, w]`` in [-1, 1].
        t: timesteps ``[u, d]``.
        noise: standard Gaussian, like ``x_0``.
        weights: ``[u, d]``, not negative, a unit's sum is 1; 0 marks a draw that is
            padding, because another unit has more.
        labels: int64 ``[u, d]``, as the network is told them; None without classes.
    """

    x_0: Tensor
    t: Tensor
    noise: Tensor
    weights: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        """The number of units."""
        return len(self.t)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is there of images, timesteps, noise, weights and labels, in order."""
        always = (self.x_0, self.t, self.noise, self.weights)
        return always if self.labels is None else (*always, self.labels)

    def part(self, start: int, stop: int) -> "Draws":
        """Return the draws of the units from ``start`` up to ``stop``."""
        return Draws(*(values[start:stop] for values in self.tensors))

    def filled(self, size: int) -> "Draws":
        """Return the draws of so many units, the last one repeated as needed."""
        missing = size - len(self)
        if missing <= 0:
            return self
        rows = torch.arange(size).clamp_(max=len(self) - 1).to(self.t.device)
        return Draws(*(values[rows] for values in self.tensors))


@dataclass(frozen=True)
class Objective:
    """The model that is trained, and the loss of its predicted noise."""

    model: nn.Module
    schedule: Schedule
    loss: LossKind

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, each once, in the model's order."""
        return [p for p in self.model.parameters() if p.requires_grad]


@dataclass(frozen=True)
class UnitGradients:
    """The gradients of some units, not clipped yet.

    Attributes:
        gradients: one tensor ``[m, *shape]`` per trainable parameter.
        losses: the units' losses ``[m]``.
    """

    gradients: list[Tensor]
    losses: Tensor

    def first(self, count: int) -> "UnitGradients":
        """Return those of the first units alone, as views."""
        if count == len(self.losses):
            return self
        return UnitGradients([g[:count] for g in self.gradients], self.losses[:count])


class GradientEngine(Protocol):
    """Computes per-unit gradients.

    Guarantees:
        Row i of what is yielded is the gradient of unit i's own loss alone: nothing of
        another unit enters it. The model is left as it was: not wrapped, no hooks, no
        gradients.
    """

    @property
    def chunk_size(self) -> int:
        """The most units that are computed together."""

    def gradients(self, objective: Objective, draws: Draws) -> Iterator[UnitGradients]:
        """Yield the gradients of all units, in order, one chunk after the other."""


@dataclass(frozen=True)
class LoopEngine:
    """One unit after the other; its draws are the batch.

    The least memory, and on a CPU the fastest with several draws. Padding is free.
    """

    chunk_size: int = 1

    def gradients(self, objective: Objective, draws: Draws) -> Iterator[UnitGradients]:
        """Yield the gradients of the units, one by one."""
        parameters, unit_loss = objective.parameters, _UnitLoss(objective)
        for unit in range(len(draws)):
            loss = unit_loss(*_without_padding(draws, unit))
            # An unused parameter has the gradient 0.
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            yield UnitGradients([g[None] for g in gradients], loss.detach()[None])


@dataclass(frozen=True)
class VmapEngine:
    """``torch.func``: the gradient of one unit, vectorised over a chunk of them.

    The fastest with one draw, and on a GPU, which a single unit cannot fill. A chunk
    that does not fit into the memory of a GPU is halved. Every chunk has the same
    shape, the last one filled up with copies that are dropped, so that the kernels that
    compute a unit's gradient do not depend on how many others were drawn.
    """

    chunk_size: int = CPU_CHUNK_SIZE

    def gradients(self, objective: Objective, draws: Draws) -> Iterator[UnitGradients]:
        """Yield the gradients of the units, ``chunk_size`` at a time.

        Raises:
            torch.OutOfMemoryError: a single unit does not fit.
        """
        size, start = self.chunk_size, 0
        while start < len(draws):
            part = draws.part(start, start + size)
            try:
                made = self._vectorised(objective, part.filled(size)).first(len(part))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = (size + 1) // 2
                continue
            yield made
            start += len(made.losses)

    def _vectorised(self, objective: Objective, draws: Draws) -> UnitGradients:
        """Return the gradients of all units at once."""
        loss = _UnitLoss(objective)
        named = {
            name: parameter.detach()
            for name, parameter in loss.named_parameters()
            if parameter.requires_grad
        }

        def value(parameters: dict[str, Tensor], *drawn: Tensor) -> Tensor:
            result: Tensor = functional_call(loss, parameters, drawn)
            return result

        in_dims = (None, *(0 for _ in draws.tensors))
        vectorised = vmap(grad_and_value(value), in_dims, randomness="different")
        gradients, losses = vectorised(named, *draws.tensors)
        return UnitGradients(list(gradients.values()), losses.detach())


@dataclass(frozen=True)
class HooksEngine:
    """Opacus's hooks: one forward a draw, then one backward, for a chunk of units.

    The hooks add up what the forwards of one backward contribute, which makes the
    gradient of the weighted mean. Slower than the others; it is here to be compared.
    """

    chunk_size: int = CPU_CHUNK_SIZE

    def gradients(self, objective: Objective, draws: Draws) -> Iterator[UnitGradients]:
        """Yield the gradients of the units, ``chunk_size`` at a time."""
        for start in range(0, len(draws), self.chunk_size):
            part = draws.part(start, start + self.chunk_size)
            with _hooked(objective.model) as model:
                losses = torch.stack(
                    [
                        denoising_loss(
                            model,
                            part.x_0[:, draw],
                            part.t[:, draw],
                            part.noise[:, draw],
                            objective.schedule,
                            objective.loss,
                            None if part.labels is None else part.labels[:, draw],
                        )
                        for draw in range(part.t.shape[1])
                    ],
                    dim=1,
                )
                losses = (losses * part.weights).sum(dim=1)
                losses.sum().backward()  # type: ignore[no-untyped-call]
                gradients = [_grad_sample(p, len(part)) for p in objective.parameters]
            yield UnitGradients(gradients, losses.detach())


def default_engine(model: nn.Module, num_pixels: int, draws: int) -> GradientEngine:
    """Return the engine that was the fastest for such a model on its device.

    On a CPU a small model spends its time in calls rather than in arithmetic, and many
    units at once need little memory.

    Args:
        num_pixels: of an image, all channels.
        draws: of a unit with one image.

    Source:
        ``benchmarks/results/dpsgd_speed.json`` and ``engine_choice.json``.
    """
    parameters = list(model.parameters())
    work = sum(parameter.numel() for parameter in parameters) * num_pixels * draws
    if parameters[0].device.type != "cpu":
        return VmapEngine(MANY_UNITS)
    if draws >= LOOP_FROM_MULTIPLICITY and work >= SMALL_WORK:
        return LoopEngine()
    return VmapEngine(CPU_CHUNK_SIZE)


class _UnitLoss(nn.Module):
    """The loss of one unit: the weighted sum over its draws, ``[d, …]`` each."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model = objective.model
        self._schedule, self._loss = objective.schedule, objective.loss

    def forward(
        self,
        x_0: Tensor,
        t: Tensor,
        noise: Tensor,
        weights: Tensor,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, a scalar."""
        losses = denoising_loss(
            self.model, x_0, t, noise, self._schedule, self._loss, labels
        )
        return (losses * weights).sum()


def _without_padding(draws: Draws, unit: int) -> tuple[Tensor, ...]:
    """Return what is there of one unit's draws, padded ones left out."""
    parts = tuple(values[unit] for values in draws.tensors)
    is_draw = draws.weights[unit] > 0
    return parts if is_draw.all() else tuple(part[is_draw] for part in parts)


@contextmanager
def _hooked(model: nn.Module) -> Iterator[nn.Module]:
    """Hook a model for as long as the block lasts; then it is as it was before."""
    before = [dict(p.__dict__) for p in model.parameters()]
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    wrapped = GradSampleModule(model, loss_reduction="sum")
    try:
        with warnings.catch_warnings():
            # The first layer's input needs no gradient; Opacus's hooks know that.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield wrapped
    finally:
        wrapped.to_standard_module()
        for module in model.modules():
            for left_behind in ("activations", "max_batch_len"):
                module.__dict__.pop(left_behind, None)
        for parameter, attributes, gradient in zip(
            model.parameters(), before, gradients, strict=True
        ):
            parameter.__dict__.update(attributes)
            parameter.grad = gradient


def _grad_sample(parameter: nn.Parameter, num_units: int) -> Tensor:
    """Return what the hooks left at a parameter, 0 if it was not used."""
    gradients: Tensor | None = getattr(parameter, "grad_sample", None)
    if gradients is None:
        return parameter.new_zeros(num_units, *parameter.shape)
    return gradients
