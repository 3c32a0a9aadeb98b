"""The forward process: how much of an image is left at timestep t.

Everything is computed in float64 and then cast; 1 - alpha_bar near t = 0 has lost
three digits when it is formed in float32.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffusion.config import ScheduleConfig

Float64Array = npt.NDArray[np.float64]

LINEAR_FIRST_BETA = 1e-4  # Ho et al. (2020), section 4, for T = 1000
LINEAR_LAST_BETA = 0.02
COSINE_OFFSET = 0.008  # Nichol & Dhariwal (2021), section 3.2
LARGEST_BETA = 0.999


@dataclass(frozen=True, eq=False)
class Schedule:
    """The variances of the forward process and what is derived from them.

    Attributes:
        betas: float32 ``[T]``.
        alpha_bar: float32 ``[T]``, the cumulative product of 1 - beta.
        signal_rate: float32 ``[T]``, sqrt(alpha_bar).
        noise_rate: float32 ``[T]``, sqrt(1 - alpha_bar).
        alpha_bar_exact: float64 ``[T]``, for the samplers' coefficients.
    """

    betas: Tensor
    alpha_bar: Tensor
    signal_rate: Tensor
    noise_rate: Tensor
    alpha_bar_exact: Float64Array

    @property
    def num_timesteps(self) -> int:
        """Return T, the number of timesteps."""
        return len(self.betas)

    def to(self, device: torch.device | str) -> "Schedule":
        """Return the same schedule with its tensors on a device."""
        return Schedule(
            betas=self.betas.to(device),
            alpha_bar=self.alpha_bar.to(device),
            signal_rate=self.signal_rate.to(device),
            noise_rate=self.noise_rate.to(device),
            alpha_bar_exact=self.alpha_bar_exact,
        )

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise.

        Args:
            x_0: clean images ``[n, c, h, w]``.
            t: timesteps ``[n]``, 0 … T - 1, on the schedule's device.
            noise: standard Gaussian, like ``x_0``.

        Returns:
            Noised images, like ``x_0``.

        Source:
            Ho, Jain & Abbeel, 2020, equation 4.
        """
        shape = (-1,) + (1,) * (x_0.dim() - 1)
        signal_rate = self.signal_rate[t].reshape(shape).to(x_0.dtype)
        noise_rate = self.noise_rate[t].reshape(shape).to(x_0.dtype)
        return signal_rate * x_0 + noise_rate * noise


def make_schedule(config: ScheduleConfig) -> Schedule:
    """Compute the schedule that a configuration names.

    Guarantees:
        Every beta lies in (0, 0.999], so alpha_bar is positive and falls strictly.
    """
    if config.kind == "linear":
        betas = linear_betas(config.num_timesteps)
    else:
        betas = cosine_betas(config.num_timesteps)
    alpha_bar: Float64Array = np.cumprod(1.0 - betas, dtype=np.float64)
    return Schedule(
        betas=_to_float32(betas),
        alpha_bar=_to_float32(alpha_bar),
        signal_rate=_to_float32(np.sqrt(alpha_bar)),
        noise_rate=_to_float32(np.sqrt(1.0 - alpha_bar)),
        alpha_bar_exact=alpha_bar,
    )


def linear_betas(num_timesteps: int) -> Float64Array:
    """Return betas rising linearly from 1e-4 to 0.02 at T = 1000.

    For another T both ends are multiplied by 1000 / T, which keeps the last
    alpha_bar nearly the same, and no beta exceeds 0.999.

    Source:
        Ho, Jain & Abbeel, 2020, section 4.
    """
    stretch = 1000 / num_timesteps
    betas = np.linspace(LINEAR_FIRST_BETA, LINEAR_LAST_BETA, num_timesteps)
    return _limited(betas * stretch)


def cosine_betas(num_timesteps: int) -> Float64Array:
    """Return the betas whose alpha_bar follows a squared cosine.

    alpha_bar(u) = cos²((u + 0.008) / 1.008 · π/2), u = t / T, normalised at 0;
    beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}, at most 0.999.

    Source:
        Nichol & Dhariwal, 2021, equation 17.
    """
    u = np.linspace(0.0, 1.0, num_timesteps + 1)
    alpha_bar = np.cos((u + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    return _limited(1.0 - alpha_bar[1:] / alpha_bar[:-1])


def _limited(betas: Float64Array) -> Float64Array:
    """Return betas, none of which exceeds 0.999."""
    return np.asarray(np.minimum(betas, LARGEST_BETA), dtype=np.float64)


def _to_float32(values: Float64Array) -> Tensor:
    """Cast to a float32 tensor of its own memory."""
    return torch.from_numpy(values.astype(np.float32))
