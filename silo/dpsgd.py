"""The private step: Opacus's DPOptimizer, with our clip and our randomness.

    g = (sum over drawn units of min(1, C / |g_u|) g_u + N(0, (sigma C)^2 I)) / B

g_u is the gradient of one privacy unit over all its draws, C the clipping norm, sigma
the noise multiplier, B the expected batch size: a public constant, not the number of
units that were drawn.

Source: Abadi et al., 2016, algorithm 1; clip after the mean over the draws: Dockhorn et
al., 2023, algorithm 1.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.func import functional_call

from silo.errors import SiloError
from silo.per_example import UnitGradients
from silo.randomness import PrivateRandom

NORM_SEGMENT = 256
"""Values whose squares are added up in float32; sums of segments are in float64."""

MAX_NORM = 1e18
"""A unit with a larger gradient adds nothing: its squares are beyond float32."""

REFUSED: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.modules.batchnorm._BatchNorm, "normalises over the batch"),
    (nn.RNNBase, "has no per-example gradients in Opacus"),
    (nn.MultiheadAttention, "has no per-example gradients in Opacus"),
)
"""Modules that Opacus refuses, with their sub-classes, which it lets pass."""


class NotPrivate(SiloError):
    """The model cannot be trained with DP-SGD; names the module."""


class Planted(Protocol):
    """What is added to each sum as a unit's clipped gradient is, and looks on."""

    def plant(self, sums: Sequence[Tensor]) -> None:
        """Add to the sum of each parameter, after the clip and before the noise."""

    def observe(self, gradients: Sequence[Tensor], divisor: float) -> None:
        """Look at a step's released gradients: the noised sums over a divisor."""


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]
    """Clips per-unit gradients, adds them up, adds noise once, and takes a step.

    For each logical batch: :meth:`accumulate` any number of times, none included, then
    :meth:`step` once. Parameters that need no gradient are never touched.

    Guarantees:
        - A unit adds a vector of norm at most C (1 + 1e-6), and nothing if a value of
          its gradient is NaN or infinite, or the norm above 1e18.
        - Every step is noised, that of an empty batch, too.
        - Norms and the sum over chunks are in float64; within a chunk of several units
          their clipped gradients are added in the gradients' own precision. Memory is
          that of two gradients in float64.

    Args:
        inner: the optimizer that takes the step.
        noise_multiplier: 0 only where the mechanism itself is measured or tested.
        expected_batch_size: the public divisor B.
        after_noise: is called with the parameters whose ``grad`` is clipped, noised
            and divided, before the step: the place for terms that do not depend on
            the data of a unit, such as a proximal one.
        canaries: are added to each sum and see what becomes of it; without them a step
            is the same to the last bit.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        clipping_norm: float,
        expected_batch_size: int,
        random: PrivateRandom,
        after_noise: Callable[[Sequence[nn.Parameter]], None] | None = None,
        canaries: Planted | None = None,
    ) -> None:
        if not 0 < clipping_norm < np.inf:
            raise ValueError("clipping_norm: must be positive and finite")
        if not 0 <= noise_multiplier < np.inf:
            raise ValueError("noise_multiplier: must be finite and not negative")
        if expected_batch_size < 1:
            raise ValueError("expected_batch_size: must be at least 1")
        super().__init__(
            inner,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clipping_norm,
            expected_batch_size=expected_batch_size,
        )
        self._random, self._after_noise = random, after_noise
        self._canaries = canaries
        self._scratch: list[Tensor] = []

    @torch.no_grad()
    def accumulate(self, units: UnitGradients) -> None:
        """Clip the gradients of some units, and add them to the batch's sum."""
        for parameter, gradient in zip(self.params, units.gradients, strict=True):
            parameter.grad_sample = gradient
        self.clip_and_accumulate()
        for parameter in self.params:
            parameter.grad_sample = None

    def clip_and_accumulate(self) -> None:
        """Add the clipped ``grad_sample`` of every parameter to its ``summed_grad``."""
        parameters, gradients = self.params, self.grad_samples
        for parameter in parameters:
            if parameter.summed_grad is None:
                parameter.summed_grad = torch.zeros(
                    parameter.shape, dtype=torch.float64, device=parameter.device
                )
        if not len(gradients[0]):
            return
        norms = unit_norms(gradients)
        sound = norms < MAX_NORM  # false for NaN
        if not sound.all():
            gradients = [gradient[sound] for gradient in gradients]
            norms = norms[sound]
        if not len(norms):
            return
        factors = (self.max_grad_norm / norms).clamp(max=1.0)  # [m], 1 at norm 0
        sums = [parameter.summed_grad for parameter in parameters]
        if len(norms) == 1:
            self._add(sums, [gradient[0] for gradient in gradients], float(factors))
            return
        totals = [
            torch.mv(
                gradient.reshape(len(norms), -1).t(), factors.to(gradient.dtype)
            ).view(sum_.shape)
            for gradient, sum_ in zip(gradients, sums, strict=True)
        ]
        self._add(sums, totals, 1.0)

    def _add(self, sums: list[Tensor], values: list[Tensor], factor: float) -> None:
        """Add values times a factor to sums, in float64."""
        if not self._scratch:
            self._scratch = [torch.empty_like(sum_) for sum_ in sums]
        torch._foreach_copy_(self._scratch, values)
        torch._foreach_add_(sums, self._scratch, alpha=factor)

    def add_noise(self) -> None:
        """Put the sum with Gaussian noise of stddev sigma C into ``grad``."""
        if self._canaries is not None:
            self._canaries.plant([parameter.summed_grad for parameter in self.params])
        noise_stddev = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            values = parameter.summed_grad.cpu()
            self._random.add_noise_(values.numpy(), noise_stddev)
            parameter.grad = values.to(parameter.device, parameter.dtype)
            parameter.summed_grad = None  # the noise is drawn for this sum alone

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool | None:
        """Clip, add noise, divide, count; then what ``after_noise`` adds."""
        is_ready: bool | None = super().pre_step(closure)
        if is_ready and self._canaries is not None:
            released = [parameter.grad for parameter in self.params]
            self._canaries.observe(released, self.expected_batch_size)
        if is_ready and self._after_noise is not None:
            self._after_noise(self.params)
        return is_ready

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Add noise to what was accumulated, perhaps nothing, and take the step."""
        for parameter in self.params:
            if getattr(parameter, "grad_sample", None) is None:
                parameter.grad_sample = parameter.new_empty((0, *parameter.shape))
        result: float | None = super().step(closure)
        self.zero_grad(set_to_none=True)
        return result

    def release(self) -> None:
        """Remove what Opacus keeps at the parameters."""
        for parameter in self.params:
            for name in ("grad_sample", "summed_grad"):
                parameter.__dict__.pop(name, None)
        self._scratch = []


class NoisedSteps:
    """Counts steps where the noise is added, not where a loop believes it is.

    To be attached with ``PrivateOptimizer.attach_step_hook``.
    """

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, _: DPOptimizer) -> None:
        """Count a step."""
        self._count += 1

    def take(self) -> int:
        """Return how many steps were noised since the last call."""
        count, self._count = self._count, 0
        return count


def unit_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each unit's gradient over all parameters.

    Guarantees:
        The relative error is below 1e-6 for gradients in float32: at most 256 squares
        are added up in float32, all else is in float64. NaN or infinite where a value
        is, and infinite where squares are beyond float32.

    Args:
        gradients: ``[m, *shape]`` of every parameter.

    Returns:
        float64 ``[m]``.
    """
    parts = []
    for gradient in gradients:
        flat = gradient.reshape(len(gradient), -1)
        if flat.dtype in (torch.float16, torch.bfloat16):
            flat = flat.float()
        whole = flat.shape[1] // NORM_SEGMENT * NORM_SEGMENT
        if whole:
            segments = flat[:, :whole].reshape(len(flat), -1, NORM_SEGMENT)
            parts.append(torch.linalg.vector_norm(segments, dim=2).double())
        if whole < flat.shape[1]:
            parts.append(flat[:, whole:].double())
    norms: Tensor = torch.linalg.vector_norm(torch.cat(parts, dim=1), dim=1)
    return norms


def validate(model: nn.Module) -> None:
    """Refuse a model with a module that DP-SGD cannot train.

    Opacus's validator, and beyond it: sub-classes of what it refuses, modules of that
    kind without parameters, and normalisation with running statistics.

    Raises:
        NotPrivate: one line that names the module.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise NotPrivate(f"{name}: is {parameter.dtype}; DP-SGD wants float32")
    if not model.training:
        raise NotPrivate("the model needs to be in training mode for DP-SGD")
    for name, module in model.named_modules():
        for kind, reason in REFUSED:
            if isinstance(module, kind):
                raise _refused(name, module, reason)
        if getattr(module, "track_running_stats", False):
            raise _refused(name, module, "keeps running statistics of the data")
        check = ModuleValidator.VALIDATORS.get(type(module))
        errors = check(module) if check is not None else []
        if errors:
            raise _refused(name, module, "is refused by Opacus")


def check_independence(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Refuse a model that lets one example of a batch change what it does to another.

    Runs the model on made-up images, with parameters moved at random (some networks
    start at zero and would hide anything): what is predicted for the first of two must
    depend on neither the second, nor its label, nor earlier batches, and no buffer may
    change. This finds modules that no list knows. The model is left as it was.

    Args:
        image_shape: channels, height, width.

    Raises:
        NotPrivate: what depends on what.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)

    def made_up(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    parameters = {
        name: p.detach() + 0.1 * made_up(*p.shape).to(p.dtype)
        for name, p in model.named_parameters()
    }
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    t = torch.tensor([1, 1], device=device)
    has_classes = getattr(model, "num_classes", 0) > 0
    x_t, other = made_up(2, *image_shape), made_up(1, *image_shape)
    mixed = torch.cat([x_t[:1], other])

    def predicted(batch: Tensor, label: int = 0) -> Tensor:
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(0)
            told = (torch.tensor([0, label], device=device),) if has_classes else ()
            inputs = (batch, t, *told)
            result: Tensor = functional_call(model, (parameters, buffers), inputs)
        return result

    before = {name: buffer.clone() for name, buffer in buffers.items()}
    first, beside, again = predicted(x_t), predicted(mixed, 1), predicted(x_t)
    for name, buffer in buffers.items():
        if not torch.equal(buffer, before[name]):
            raise NotPrivate(f"{name}: is a buffer that training changes")
    if not _alike(first, again):
        raise NotPrivate("the model remembers examples from one batch to the next")
    if not _alike(first[0], beside[0]):
        raise NotPrivate(
            "the model mixes the examples of a batch: what it predicts for one depends "
            "on the others"
        )


def _alike(a: Tensor, b: Tensor) -> bool:
    """Return whether two predictions are equal up to rounding."""
    largest = float(a.nan_to_num().abs().max())
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5 * largest, equal_nan=True)


def _refused(name: str, module: nn.Module, reason: str) -> NotPrivate:
    """Return the error that names a module."""
    kind = type(module).__name__
    return NotPrivate(f"{name or 'the model'} ({kind}): {reason}; DP-SGD cannot use it")
