"""The sinusoidal embedding of a timestep, shared by both networks."""

import math

import torch
from torch import Tensor, nn


def sinusoidal_embedding(t: Tensor, dim: int) -> Tensor:
    """Return sines and cosines of a timestep at geometrically spaced frequencies.

    e(t) = [sin(t f_0) … sin(t f_k), cos(t f_0) … cos(t f_k)],
    f_i = 10000^(-i / k), k = dim / 2 - 1.

    Args:
        t: timesteps ``[n]``, integers or floats.
        dim: an even number of at least 4.

    Returns:
        float32 ``[n, dim]``.

    Source:
        Vaswani et al., 2017, section 3.5, with Ho et al.'s (2020) spacing.
    """
    half = dim // 2
    positions = torch.arange(half, device=t.device, dtype=torch.float32)
    frequencies = torch.exp(positions * (-math.log(10_000) / (half - 1)))  # [half]
    angles = t.to(torch.float32)[:, None] * frequencies[None, :]  # [n, half]
    return torch.cat([angles.sin(), angles.cos()], dim=1)  # [n, dim]


class TimeEmbedding(nn.Module):
    """A sinusoidal embedding of width ``dim``, then two linear layers to 4 · dim."""

    def __init__(self, dim: int, activation: nn.Module) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(
            nn.Linear(dim, 4 * dim), activation, nn.Linear(4 * dim, 4 * dim)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Return the embedding ``[n, 4 * dim]`` of timesteps ``[n]``."""
        embedding: Tensor = self.layers(sinusoidal_embedding(t, self.dim))
        return embedding
