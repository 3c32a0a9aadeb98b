"""Membership attacks on a diffusion model: images in, a score for each out.

The higher its score, the more likely an image was trained on. Each attack is a function
of image batches that asks the network for its predicted noise, without gradients. What
is random in one (the noises of ``loss``) is drawn once and used for every image, so
that a score depends on no other image.

===== ======================================================= =============
loss  minus the mean denoising loss over fixed timesteps,     32 queries
      noises
SecMI minus the error of one DDIM step forward and back at t  10 + 2 queries
PIA   minus the change of the predicted noise from 0 to t     1 + 1 queries
PIAN  the same, the first predicted noise normalised          1 + 1 queries
===== ======================================================= =============

The timesteps decide how strong an attack is. They are found on a model that was
overfitted on purpose (``silo.control``), never on the one that is attacked.

Sources: Matsumoto et al., 2023 (loss); Duan et al., 2023 (SecMI-stat); Kong et al.,
2024 (PIA, PIAN; the normalisation as in their code, not as printed in equation 10).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from diffusion.loss import denoising_loss
from diffusion.sampling import predict_x_0
from diffusion.schedule import Schedule
from silo.data import ImageSet
from silo.errors import SiloError

AttackName = Literal["loss", "SecMI", "PIA", "PIAN"]
ATTACKS: tuple[AttackName, ...] = get_args(AttackName)

Attack: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""Images ``[n, c, h, w]`` and labels ``[n]`` or None to scores, float64 ``[n]``."""
Scores: TypeAlias = npt.NDArray[np.float64]

LOSS_TIMESTEPS, LOSS_NOISES = 16, 2
SECMI_STEPS = 10
LOSS_BANDS = ((0.0, 0.1), (0.0, 0.3), (0.1, 0.5), (0.0, 1.0))
"""Shares of the schedule from which the timesteps of ``loss`` may be taken."""
TIMESTEP_SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
"""Shares of the schedule at which t may be; the papers' are 0.1 and 0.2."""
BLOCK_IMAGES = 128
TINY = 1e-12
"""In the place of a mean of zero: a network that was never trained predicts zeros."""


class ScoresNotFinite(SiloError):
    """A model gives no finite scores; it cannot be attacked."""


@dataclass(frozen=True)
class Setting:
    """An attack with its timesteps: those of ``loss``; SecMI's path; 0 and t of PIA."""

    attack: AttackName
    timesteps: tuple[int, ...]

    def in_words(self) -> str:
        """Return the setting in words, for a report."""
        first, last = self.timesteps[0], self.timesteps[-1]
        if self.attack == "loss":
            return (
                f"{len(self.timesteps)} timesteps from {first} to {last}, "
                f"{LOSS_NOISES} noises each, squared error"
            )
        if self.attack == "SecMI":
            at = self.timesteps[-2]
            return f"t = {at} in {len(self.timesteps) - 2} steps, squared t-error"
        return f"t = {last}, 4-norm"


def settings(attack: AttackName, num_timesteps: int) -> tuple[Setting, ...]:
    """Return the settings that an attack may be tuned over, for a schedule's length."""
    last = num_timesteps - 1
    if attack == "loss":
        found = [
            tuple(sorted({round(t) for t in np.linspace(low * last, high * last, 16)}))
            for low, high in LOSS_BANDS
        ]
    else:
        at = [max(1, round(share * num_timesteps)) for share in TIMESTEP_SHARES]
        if attack == "SecMI":
            found = [_path(t) for t in at]
            found = [path for path in found if path[-1] <= last]
        else:
            found = [(0, min(t, last)) for t in at]
    return tuple(Setting(attack, one) for one in dict.fromkeys(found))


def _path(t: int) -> tuple[int, ...]:
    """Return 0 … t in ten even steps, fewer where t is small, and one step more."""
    steps = min(SECMI_STEPS, t)
    path = tuple(round(t * step / steps) for step in range(steps + 1))
    return (*path, t + max(1, round(t / steps)))


def make_attack(
    setting: Setting,
    network: nn.Module,
    schedule: Schedule,
    *,
    seed: int,
    image_shape: tuple[int, int, int],
) -> Attack:
    """Return one attack on one network.

    Args:
        network: predicts the noise: ``network(x_t, t)``, with labels as third argument
            where it has classes; in evaluation mode.
        schedule: the forward process, on the network's device.
        seed: of the noises of ``loss``; the same for members and others.
        image_shape: ``(c, h, w)``.
    """
    predict = _Predictor(network)
    if setting.attack == "loss":
        generator = torch.Generator().manual_seed(seed)
        count = len(setting.timesteps) * LOSS_NOISES
        noises = torch.randn((count, *image_shape), generator=generator)
        return _loss(network, schedule, setting.timesteps * LOSS_NOISES, noises)
    if setting.attack == "SecMI":
        return _secmi(predict, schedule, setting.timesteps)
    return _pia(predict, schedule, setting.timesteps[-1], setting.attack == "PIAN")


@torch.inference_mode()
def score_images(
    attack: Attack,
    images: ImageSet,
    indices: npt.NDArray[np.int64],
    *,
    device: torch.device,
    with_labels: bool,
    block_images: int = BLOCK_IMAGES,
) -> Scores:
    """Return the scores of some of the images, float64 ``[n]``.

    Raises:
        ScoresNotFinite: one is NaN or infinite.
        DataError: labels are asked for and there are none.
    """
    found = []
    for start in range(0, len(indices), block_images):
        chosen = indices[start : start + block_images]
        labels = images.labels_of(chosen).to(device) if with_labels else None
        found.append(attack(images.batch(chosen).to(device), labels).cpu())
    scores: Scores = torch.cat(found).numpy()
    if not np.isfinite(scores).all():
        raise ScoresNotFinite("the model's predictions are not finite numbers")
    return scores


class _Predictor:
    """The predicted noise of a network at one timestep for a whole batch."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __call__(self, x_t: Tensor, t: int, labels: Tensor | None) -> Tensor:
        timesteps = torch.full((len(x_t),), t, device=x_t.device)
        arguments = (x_t, timesteps) if labels is None else (x_t, timesteps, labels)
        predicted: Tensor = self._network(*arguments)
        return predicted


def _loss(
    network: nn.Module, schedule: Schedule, timesteps: Sequence[int], noises: Tensor
) -> Attack:
    """Return minus the mean of ‖e(x_t, t) - noise‖² / d over pairs (t, noise)."""

    def attack(images: Tensor, labels: Tensor | None) -> Tensor:
        total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        for t, noise in zip(timesteps, noises.to(images.device), strict=True):
            at = torch.full((len(images),), t, device=images.device)
            each = noise.expand_as(images)
            losses = denoising_loss(network, images, at, each, schedule, "mse", labels)
            total -= losses.double()
        return total / len(timesteps)

    return attack


def _secmi(
    predict: _Predictor, schedule: Schedule, timesteps: tuple[int, ...]
) -> Attack:
    """Return minus ‖ψ(φ(x_t)) - x_t‖², x_t reached from the image by DDIM steps φ.

    φ goes one step up the path, ψ one down, both without noise; ``timesteps`` is the
    path, whose last step is the one there and back.

    Source: Duan et al., 2023, equations 7 to 10, and their code.
    """

    def move(x: Tensor, t: int, to: int, labels: Tensor | None) -> Tensor:
        noise = predict(x, t, labels)
        x_0 = predict_x_0(x, noise, float(schedule.alpha_bar_exact[t]), clamp=False)
        ab = float(schedule.alpha_bar_exact[to])
        return math.sqrt(ab) * x_0 + math.sqrt(1.0 - ab) * noise

    def attack(images: Tensor, labels: Tensor | None) -> Tensor:
        x = images
        *path, beyond = timesteps
        for t, to in itertools.pairwise(path):
            x = move(x, t, to, labels)
        there = move(x, path[-1], beyond, labels)
        back = move(there, beyond, path[-1], labels)
        return -(back - x).double().square().flatten(start_dim=1).sum(dim=1)

    return attack


def _pia(
    predict: _Predictor, schedule: Schedule, t: int, is_normalised: bool
) -> Attack:
    """Return minus ‖e(x_0, 0) - e(sqrt(ab) x_0 + sqrt(1 - ab) e(x_0, 0), t)‖₄.

    Normalised, e(x_0, 0) is first brought to a mean absolute value of sqrt(2 / π),
    that of a standard Gaussian.

    Source: Kong et al., 2024, equations 8 and 9, and their code.
    """
    ab = float(schedule.alpha_bar_exact[t])

    def attack(images: Tensor, labels: Tensor | None) -> Tensor:
        noise = predict(images, 0, labels)
        if is_normalised:
            size = noise.abs().flatten(start_dim=1).mean(dim=1).clamp_min(TINY)
            noise = noise * (math.sqrt(2 / math.pi) / size).reshape(-1, 1, 1, 1)
        x_t = math.sqrt(ab) * images + math.sqrt(1.0 - ab) * noise
        change = (noise - predict(x_t, t, labels)).double()
        distance: Tensor = torch.linalg.vector_norm(change, ord=4, dim=(1, 2, 3))
        return -distance

    return attack
