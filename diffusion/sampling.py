"""Ancestral and DDIM samplers as pure functions; a generator per image.

``sample`` draws images in blocks and never holds them all. The noise of image i
comes from one generator derived from (seed, purpose, i), so an image does not depend
on the block that it is drawn in. Bitwise equality over block sizes is as good as the
convolutions: a library may sum in another order for another batch size, which
changes the last bits.
"""

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from diffusion.class_embedding import NO_CLASS
from diffusion.config import SamplerConfig
from diffusion.schedule import Schedule

PURPOSE = b"cloister/sampling/1"


def image_generator(seed: int, image_index: int) -> torch.Generator:
    """Return the CPU generator of one image.

    Its seed is the first eight bytes of SHA-256(purpose, seed, image index), so
    neighbouring seeds and indices give unrelated streams.

    Raises:
        ValueError: the image index is negative.
    """
    if image_index < 0:
        raise ValueError(f"image_index must not be negative; got {image_index}")
    text = PURPOSE + b"/%d/%d" % (seed, image_index)
    derived = int.from_bytes(hashlib.sha256(text).digest()[:8], "little", signed=True)
    return torch.Generator().manual_seed(derived)


def sampling_timesteps(config: SamplerConfig, num_timesteps: int) -> list[int]:
    """Return the timesteps of a sampler, from T - 1 down to 0.

    Ancestral sampling takes every timestep; DDIM ``num_steps`` of them, evenly
    spaced with both ends included (with one step only: T - 1).

    Raises:
        ValueError: DDIM has more steps than there are timesteps.
    """
    if config.kind == "ancestral":
        return list(range(num_timesteps - 1, -1, -1))
    count = config.num_steps
    if count > num_timesteps:
        raise ValueError(f"num_steps is {count}, but T is only {num_timesteps}")
    last = num_timesteps - 1
    return [last - round(last * i / max(count - 1, 1)) for i in range(count)]


def predict_x_0(
    x_t: Tensor, predicted_noise: Tensor, alpha_bar: float, clamp: bool
) -> Tensor:
    """Return (x_t - sqrt(1 - alpha_bar) noise) / sqrt(alpha_bar), clamped if asked.

    Source:
        Ho, Jain & Abbeel, 2020, equation 15.
    """
    x_0 = (x_t - math.sqrt(1.0 - alpha_bar) * predicted_noise) / math.sqrt(alpha_bar)
    return x_0.clamp(-1.0, 1.0) if clamp else x_0


def ancestral_step(
    x_t: Tensor,
    predicted_noise: Tensor,
    t: int,
    schedule: Schedule,
    noise: Tensor,
    clamp: bool,
) -> Tensor:
    """Return x_{t-1} drawn from the posterior q(x_{t-1} | x_t, predicted x_0).

    mean = sqrt(ab') beta / (1 - ab) x_0 + sqrt(alpha) (1 - ab') / (1 - ab) x_t,
    variance = beta (1 - ab') / (1 - ab), with ab = alpha_bar_t, ab' = alpha_bar_{t-1}
    and ab' = 1 at t = 0, where no noise is added.

    Source:
        Ho, Jain & Abbeel, 2020, equations 6 and 7.
    """
    ab = float(schedule.alpha_bar_exact[t])
    ab_before = float(schedule.alpha_bar_exact[t - 1]) if t else 1.0
    alpha = ab / ab_before
    beta = 1.0 - alpha
    x_0 = predict_x_0(x_t, predicted_noise, ab, clamp)
    of_x_0 = math.sqrt(ab_before) * beta / (1.0 - ab)
    of_x_t = math.sqrt(alpha) * (1.0 - ab_before) / (1.0 - ab)
    noise_stddev = math.sqrt(beta * (1.0 - ab_before) / (1.0 - ab))
    return of_x_0 * x_0 + of_x_t * x_t + noise_stddev * noise


def ddim_step(
    x_t: Tensor,
    predicted_noise: Tensor,
    t: int,
    t_next: int | None,
    schedule: Schedule,
    eta: float,
    noise: Tensor,
    clamp: bool,
) -> Tensor:
    """Return x at the next, less noisy timestep; the image itself for none.

    x' = sqrt(ab') x_0 + sqrt(1 - ab' - s²) direction + s noise,
    s = eta sqrt((1 - ab') / (1 - ab)) sqrt(1 - ab / ab'), with ab' = 1 for none.
    The direction is the noise that leads from the (clamped) x_0 to x_t.

    Source:
        Song, Meng & Ermon, 2021, equations 12 and 16.
    """
    ab = float(schedule.alpha_bar_exact[t])
    ab_next = 1.0 if t_next is None else float(schedule.alpha_bar_exact[t_next])
    x_0 = predict_x_0(x_t, predicted_noise, ab, clamp)
    direction = (x_t - math.sqrt(ab) * x_0) / math.sqrt(1.0 - ab)
    s = eta * math.sqrt((1.0 - ab_next) / (1.0 - ab) * (1.0 - ab / ab_next))
    of_direction = math.sqrt(max(1.0 - ab_next - s * s, 0.0))
    return math.sqrt(ab_next) * x_0 + of_direction * direction + s * noise


def sample(
    model: nn.Module,
    schedule: Schedule,
    config: SamplerConfig,
    *,
    seed: int,
    first_index: int,
    count: int,
    image_shape: tuple[int, int, int],
    device: torch.device | str,
    block_size: int,
    labels: Tensor | None = None,
) -> Iterator[Tensor]:
    """Draw the images ``first_index`` … ``first_index + count - 1`` of a seed.

    Guarantees:
        Image i is the same for every ``first_index``, ``count`` and ``block_size``,
        up to the rounding of the convolutions. No more than one block is in memory.
        The model's mode is as before after each block.

    Args:
        model: predicts the noise; on ``device``.
        schedule: the forward process that the model was trained on.
        config: the sampler.
        seed: reproducible seed of this set of images.
        first_index: index of the first image, from 0.
        count: number of images; none for 0.
        image_shape: ``(c, h, w)``.
        device: where the network runs. Noise is drawn on the CPU, so that every
            device starts from the same noise.
        block_size: images per block, a matter of memory only.
        labels: int64 ``[count]``, the classes of the images, for a network with
            classes; None: no class, or none.

    Yields:
        float32 ``[k, c, h, w]`` on the CPU in [-1, 1], k ≤ ``block_size``.

    Raises:
        ValueError: a count, index or block size is out of range; there are not
            ``count`` labels; or guidance is asked for without labels.
    """
    if first_index < 0 or count < 0 or block_size < 1:
        raise ValueError("first_index and count must be ≥ 0 and block_size ≥ 1")
    if labels is not None and len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} images")
    if labels is None and config.guidance:
        raise ValueError("guidance needs labels, which this model does not take")
    timesteps = sampling_timesteps(config, schedule.num_timesteps)
    for start in range(first_index, first_index + count, block_size):
        stop = min(start + block_size, first_index + count)
        generators = [image_generator(seed, i) for i in range(start, stop)]
        noise = _Noise(generators, image_shape, torch.device(device))
        mine = None
        if labels is not None:
            mine = labels[start - first_index : stop - first_index].to(device)
        yield _sample_block(model, schedule, config, timesteps, noise, mine).clone()


class _Noise:
    """Standard Gaussian noise for a block, each image from its own generator."""

    def __init__(
        self,
        generators: list[torch.Generator],
        image_shape: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self._generators = generators
        self._image_shape = image_shape
        self._device = device

    def draw(self) -> Tensor:
        """Return the next noise [k, c, h, w]."""
        rows = [torch.randn(self._image_shape, generator=g) for g in self._generators]
        return torch.stack(rows).to(self._device)


@torch.inference_mode()
def _sample_block(
    model: nn.Module,
    schedule: Schedule,
    config: SamplerConfig,
    timesteps: list[int],
    noise: _Noise,
    labels: Tensor | None,
) -> Tensor:
    """Run the sampler for one block, with the model in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        x = noise.draw()
        for index, t in enumerate(timesteps):
            t_next = timesteps[index + 1] if index + 1 < len(timesteps) else None
            predicted_noise = _predict(model, x, t, labels, config.guidance)
            x = _step(config, schedule, x, predicted_noise, t, t_next, noise)
    finally:
        model.train(was_training)
    return x.clamp(-1.0, 1.0).to("cpu", torch.float32)


def _predict(
    model: nn.Module, x_t: Tensor, t: int, labels: Tensor | None, guidance: float
) -> Tensor:
    """Return the predicted noise at one timestep, guided towards the labels."""
    predicted: Tensor
    timesteps = torch.full((len(x_t),), t, device=x_t.device)
    if labels is None:
        predicted = model(x_t, timesteps)
    elif not guidance:
        predicted = model(x_t, timesteps, labels)
    else:
        both = torch.cat([labels, torch.full_like(labels, NO_CLASS)])
        predicted = model(x_t.repeat(2, 1, 1, 1), timesteps.repeat(2), both)
        conditional, unconditional = predicted.chunk(2)
        predicted = guided(conditional, unconditional, guidance)
    return predicted


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Return (1 + w) conditional - w unconditional, the noise of guidance w.

    Source:
        Ho & Salimans, 2022, equation 6.
    """
    return (1.0 + guidance) * conditional - guidance * unconditional


def _step(
    config: SamplerConfig,
    schedule: Schedule,
    x_t: Tensor,
    predicted_noise: Tensor,
    t: int,
    t_next: int | None,
    noise: _Noise,
) -> Tensor:
    """Take one step of the configured sampler; the last one needs no noise."""
    last = t_next is None
    fresh = torch.zeros_like(x_t) if last else noise.draw()
    if config.kind == "ancestral":
        return ancestral_step(x_t, predicted_noise, t, schedule, fresh, config.clamp)
    return ddim_step(
        x_t, predicted_noise, t, t_next, schedule, config.eta, fresh, config.clamp
    )
