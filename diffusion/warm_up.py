"""Warm-up: a network trained on released central images, before any private training.

Central images were released by a mechanism that is accounted for; whatever is computed
from them is post-processing and costs nothing more. All randomness is reproducible.

Source: Li et al., 2025 (DP-FETA, arXiv 2504.01395), section 3; the shifts and the
choice of timesteps are ours.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.checkpoint import Checkpoint
from diffusion.config import LossKind
from diffusion.errors import CorruptFile, WarmUpFailed
from diffusion.loss import denoising_loss
from diffusion.means import IMAGES_NAME
from diffusion.parts import DenoisingNetwork
from diffusion.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class WarmUpConfig:
    """How long and how a warm-up trains.

    Args:
        num_steps: steps of Adam.
        learning_rate: constant.
        loss: as in the training that follows.
        examples_per_step: images drawn for a step, with replacement.
        max_shift_pixels: each drawn image is moved by up to so many pixels in each
            direction; its border is repeated outwards.
        max_signal_to_noise: only timesteps whose ratio alpha_bar / (1 - alpha_bar) is
            at most that are trained; infinity: all. Where there is less noise, the
            best prediction depends on the single image, of which a mean knows nothing:
            to predict the mean there is worse than to predict nothing
            (``benchmarks/central_images.py``).

    Raises:
        ValueError: a number is out of its range.
    """

    num_steps: int
    learning_rate: float
    loss: LossKind = "mse"
    examples_per_step: int = 32
    max_shift_pixels: int = 0
    max_signal_to_noise: float = 2.0

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.examples_per_step < 1:
            raise ValueError("num_steps and examples_per_step must be at least 1")
        if not 0 < self.learning_rate <= 1:
            raise ValueError("learning_rate must be in (0, 1]")
        if self.max_shift_pixels < 0:
            raise ValueError("max_shift_pixels must not be negative")
        if not self.max_signal_to_noise > 0:
            raise ValueError("max_signal_to_noise must be positive")


def central_images_of(checkpoint: Checkpoint) -> Tensor:
    """Return the images of a checkpoint, clamped to [-1, 1], float32 ``[n, c, h, w]``.

    Raises:
        CorruptFile: it holds a network, or not the images that it says.
    """
    model = checkpoint.model
    if not model.is_central_images:
        raise CorruptFile(
            "this model holds no central images: its architecture is "
            f'"{model.architecture}", not "means"'
        )
    images = checkpoint.parameters.get(IMAGES_NAME)
    shape = (model.dim, model.channels, model.image_size, model.image_size)
    if images is None or images.shape != shape or not images.isfinite().all():
        raise CorruptFile("the central images are missing, damaged, or of another size")
    return images.float().clamp(-1.0, 1.0)


def warm_up(
    model: DenoisingNetwork,
    images: Tensor,
    schedule: Schedule,
    config: WarmUpConfig,
    generator: torch.Generator,
) -> float:
    """Train a model in place on public images; return the last tenth's mean loss.

    Args:
        model: with its first parameters; on the device of ``schedule``.
        images: ``[n, c, h, w]`` in [-1, 1], on the CPU.
        generator: on the CPU; it draws images, shifts, timesteps and noise.

    Raises:
        WarmUpFailed: the loss is not finite; the model is spoilt then.
    """
    device = next(model.parameters()).device
    timesteps = trained_timesteps(schedule, config.max_signal_to_noise)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.learning_rate, fused=True
    )
    model.train()
    total, counted = 0.0, 0
    for step in range(config.num_steps):
        batch = config.examples_per_step
        chosen = torch.randint(len(images), (batch,), generator=generator)
        x_0 = shifted(images[chosen], config.max_shift_pixels, generator)
        places = torch.randint(len(timesteps), (batch,), generator=generator)
        noise = torch.randn(x_0.shape, generator=generator)
        loss = denoising_loss(
            model,
            x_0.to(device),
            timesteps[places].to(device),
            noise.to(device),
            schedule,
            config.loss,
        ).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step >= config.num_steps - max(1, config.num_steps // 10):
            total, counted = total + float(loss.detach()), counted + 1
    parameters_are_finite = all(p.isfinite().all() for p in model.parameters())
    if not (math.isfinite(total) and parameters_are_finite):
        raise WarmUpFailed(
            f"the warm-up's loss is not finite after {config.num_steps:,} steps "
            f"(learning rate {config.learning_rate:g}); a smaller one may help"
        )
    return total / counted


def trained_timesteps(schedule: Schedule, max_signal_to_noise: float) -> Tensor:
    """Return the timesteps that are noisy enough, int64 ``[k]``, k >= 1.

    The noisiest one is always among them.
    """
    alpha_bar = schedule.alpha_bar.cpu().double()
    is_noisy = alpha_bar <= max_signal_to_noise * (1.0 - alpha_bar)
    if math.isinf(max_signal_to_noise):
        is_noisy[:] = True
    is_noisy[-1] = True
    return is_noisy.nonzero().flatten()


def shifted(images: Tensor, max_pixels: int, generator: torch.Generator) -> Tensor:
    """Return images moved by up to some pixels, each by its own, ``[n, c, h, w]``.

    What comes in from outside repeats the border.
    """
    if not max_pixels:
        return images
    count, _, height, width = images.shape
    pads = (max_pixels,) * 4
    padded = F.pad(images, pads, mode="replicate")
    offsets = torch.randint(2 * max_pixels + 1, (count, 2), generator=generator)
    return torch.stack(
        [
            one[:, top : top + height, left : left + width]
            for one, (top, left) in zip(padded, offsets.tolist(), strict=True)
        ]
    )
