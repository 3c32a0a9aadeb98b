"""The residual UNet, the fast default.

One residual block per level on the way down, two on the way up, self-attention at
the lowest resolution only. Group normalisation, so that per-example gradients exist.

Source: Ho, Jain & Abbeel, 2020, section 4 and appendix B.
"""

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.class_embedding import ClassEmbedding
from diffusion.parts import DenoisingNetwork, Part
from diffusion.time_embedding import TimeEmbedding

MAX_GROUPS = 8


def _group_norm(channels: int) -> nn.GroupNorm:
    """Return a group normalisation with at most 8 groups."""
    return nn.GroupNorm(math.gcd(MAX_GROUPS, channels), channels)


class ResidualBlock(nn.Module):
    """Two normalised 3×3 convolutions, the time embedding between them, and a skip."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int) -> None:
        super().__init__()
        self.norm_1 = _group_norm(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_dim, out_channels)
        self.norm_2 = _group_norm(out_channels)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``[n, in, h, w]`` and ``[n, time_dim]`` to ``[n, out, h, w]``."""
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = h + self.time(F.silu(embedding))[:, :, None, None]
        h = self.conv_2(F.silu(self.norm_2(h)))
        result: Tensor = h + self.skip(x)
        return result


class SelfAttention(nn.Module):
    """Single-head self-attention over all pixels, with a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, c, h, w]`` to the same shape."""
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, 3, c, h * w).unbind(1)
        attention = torch.softmax(q.transpose(1, 2) @ k * c**-0.5, dim=-1)  # [n, i, j]
        mixed = v @ attention.transpose(1, 2)  # [n, c, i]
        result: Tensor = x + self.out(mixed.reshape(n, c, h, w))
        return result


class Bottleneck(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, time_dim: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, time_dim)
        self.attention = SelfAttention(channels)
        self.block_2 = ResidualBlock(channels, channels, time_dim)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``[n, c, h, w]`` to the same shape."""
        h = self.attention(self.block_1(x, embedding))
        result: Tensor = self.block_2(h, embedding)
        return result


class ResidualUNet(DenoisingNetwork):
    """The residual UNet: predicts the noise in ``[n, channels, h, w]``.

    Any image size works: on the way up a level takes the size of its skip.
    """

    parts: ClassVar[Mapping[Part, tuple[str, ...]]] = {
        Part.ENCODER: (
            "init_conv",
            "time_embedding",
            "class_embedding",
            "down_blocks",
            "downs",
        ),
        Part.BOTTLENECK: ("bottleneck",),
        Part.DECODER: ("up_blocks", "ups", "final"),
    }

    def __init__(
        self,
        dim: int,
        channels: int,
        dim_mults: tuple[int, ...],
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        widths = [dim * multiple for multiple in dim_mults]
        time_dim = 4 * dim
        self.init_conv = nn.Conv2d(channels, dim, 3, padding=1)
        self.time_embedding = TimeEmbedding(dim, nn.SiLU())
        self.class_embedding = ClassEmbedding(num_classes, time_dim)
        self.down_blocks = nn.ModuleList()
        self.downs = nn.ModuleList()
        skips, width = [dim], dim
        for level, level_width in enumerate(widths):
            self.down_blocks.append(ResidualBlock(width, level_width, time_dim))
            width = level_width
            skips.append(width)
            if level < len(widths) - 1:
                self.downs.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.bottleneck = Bottleneck(width, time_dim)
        self.up_blocks = nn.ModuleList()
        self.ups = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(widths))):
            for _ in range(2):
                block = ResidualBlock(width + skips.pop(), level_width, time_dim)
                self.up_blocks.append(block)
                width = level_width
            if level:
                self.ups.append(nn.Conv2d(width, width, 3, padding=1))
        self.final = nn.Sequential(
            _group_norm(width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)
        )
        # Last, so that the other parameters are drawn as without classes.

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the predicted noise ``[n, c, h, w]`` at timesteps ``[n]``."""
        embedding = self.class_embedding(self.time_embedding(t), labels)
        h = self.init_conv(x_t)
        skips = [h]
        for level, block in enumerate(self.down_blocks):
            h = block(h, embedding)
            skips.append(h)
            if level < len(self.downs):
                h = self.downs[level](h)
                skips.append(h)
        h = self.bottleneck(h, embedding)
        for index, block in enumerate(self.up_blocks):
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
            level_ends = index % 2 == 1
            if level_ends and skips:
                h = F.interpolate(h, size=skips[-1].shape[-2:], mode="nearest")
                h = self.ups[index // 2](h)
        predicted_noise: Tensor = self.final(h)
        return predicted_noise

    def zero_initialised(self) -> Iterator[nn.Module]:
        """Yield the last layer of every residual branch and of the network."""
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                yield module.conv_2
            elif isinstance(module, SelfAttention):
                yield module.out
        yield self.final[-1]
