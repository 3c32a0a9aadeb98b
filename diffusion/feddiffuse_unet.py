"""The UNet of FedDiffuse, for reproducing that paper.

ConvNeXt blocks with linear attention on every level and full attention in the
bottleneck. With dim 28, one channel and multiples (1, 2, 4) it has 2,996,315
parameters: encoder 1,280,642, bottleneck 999,376, decoder 716,297.

Source: de Goede, Cox & Decouchant, 2024 (arXiv 2406.12575), section 4, who take the
network of Rogge & Rasul, "The Annotated Diffusion Model", 2022; ConvNeXt block: Liu
et al., 2022; linear attention: Shen et al., 2021.
"""

import itertools
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffusion.class_embedding import ClassEmbedding
from diffusion.parts import DenoisingNetwork, Part
from diffusion.time_embedding import TimeEmbedding

NUM_HEADS = 4
HEAD_DIM = 32
EXPANSION = 2


class ConvNextBlock(nn.Module):
    """A 7×7 depth-wise convolution, the time embedding, two 3×3 ones, and a skip."""

    def __init__(
        self, in_channels: int, out_channels: int, time_dim: int | None = None
    ) -> None:
        super().__init__()
        inner = out_channels * EXPANSION
        self.time: nn.Sequential | None = None
        if time_dim is not None:
            self.time = nn.Sequential(nn.GELU(), nn.Linear(time_dim, in_channels))
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 7, padding=3, groups=in_channels
        )
        self.layers = nn.Sequential(
            nn.GroupNorm(1, in_channels),
            nn.Conv2d(in_channels, inner, 3, padding=1),
            nn.GELU(),
            nn.GroupNorm(1, inner),
            nn.Conv2d(inner, out_channels, 3, padding=1),
        )
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Map ``[n, in, h, w]`` to ``[n, out, h, w]``."""
        h = self.depthwise(x)
        if self.time is not None:
            h = h + self.time(embedding)[:, :, None, None]
        result: Tensor = self.layers(h) + self.skip(x)
        return result


class _MultiHead(nn.Module):
    """What both attentions share: queries, keys, values as [n, head, d, pixel]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = nn.Conv2d(channels, 3 * NUM_HEADS * HEAD_DIM, 1, bias=False)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each ``[n, head, d, h * w]``."""
        n, _, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, NUM_HEADS, HEAD_DIM, h * w)
        q, k, v = qkv.unbind(1)
        return q, k, v


class LinearAttention(_MultiHead):
    """Attention whose cost is linear in the number of pixels, with a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.out = nn.Sequential(
            nn.Conv2d(NUM_HEADS * HEAD_DIM, channels, 1), nn.GroupNorm(1, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, c, h, w]`` to the same shape."""
        n, _, h, w = x.shape
        q, k, v = self._project(x)
        q = q.softmax(dim=2) * HEAD_DIM**-0.5
        summary = k.softmax(dim=3) @ v.transpose(2, 3)  # [n, head, d, e]
        mixed = summary.transpose(2, 3) @ q  # [n, head, e, pixel]
        result: Tensor = x + self.out(mixed.reshape(n, NUM_HEADS * HEAD_DIM, h, w))
        return result


class FullAttention(_MultiHead):
    """Softmax attention between all pairs of pixels, with a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.out = nn.Conv2d(NUM_HEADS * HEAD_DIM, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, c, h, w]`` to the same shape."""
        n, _, h, w = x.shape
        q, k, v = self._project(x)
        attention = torch.softmax((q * HEAD_DIM**-0.5).transpose(2, 3) @ k, dim=-1)
        mixed = v @ attention.transpose(2, 3)  # [n, head, d, pixel]
        result: Tensor = x + self.out(mixed.reshape(n, NUM_HEADS * HEAD_DIM, h, w))
        return result


class Level(nn.Module):
    """Two ConvNeXt blocks and linear attention at one resolution."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int) -> None:
        super().__init__()
        self.block_1 = ConvNextBlock(in_channels, out_channels, time_dim)
        self.block_2 = ConvNextBlock(out_channels, out_channels, time_dim)
        self.attention = LinearAttention(out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``[n, in, h, w]`` to ``[n, out, h, w]``."""
        h = self.block_2(self.block_1(x, embedding), embedding)
        result: Tensor = self.attention(h)
        return result


class FedDiffuseBottleneck(nn.Module):
    """Block, full attention, block at the lowest resolution."""

    def __init__(self, channels: int, time_dim: int) -> None:
        super().__init__()
        self.block_1 = ConvNextBlock(channels, channels, time_dim)
        self.attention = FullAttention(channels)
        self.block_2 = ConvNextBlock(channels, channels, time_dim)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``[n, c, h, w]`` to the same shape."""
        h = self.attention(self.block_1(x, embedding))
        result: Tensor = self.block_2(h, embedding)
        return result


class FedDiffuseUNet(DenoisingNetwork):
    """The paper's UNet: predicts the noise in ``[n, channels, h, w]``.

    Any image size works: on the way up a level takes the size of its skip.
    """

    parts: ClassVar[Mapping[Part, tuple[str, ...]]] = {
        Part.ENCODER: (
            "init_conv",
            "time_embedding",
            "class_embedding",
            "down_levels",
            "downs",
        ),
        Part.BOTTLENECK: ("bottleneck",),
        Part.DECODER: ("up_levels", "ups", "final_block", "final_conv"),
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
        widths = [dim // 3 * 2, *(dim * multiple for multiple in dim_mults)]
        pairs = list(itertools.pairwise(widths))
        time_dim = 4 * dim
        self.init_conv = nn.Conv2d(channels, widths[0], 7, padding=3)
        self.time_embedding = TimeEmbedding(dim, nn.GELU())
        self.class_embedding = ClassEmbedding(num_classes, time_dim)
        self.down_levels = nn.ModuleList(
            Level(before, after, time_dim) for before, after in pairs
        )
        self.downs = nn.ModuleList(
            nn.Conv2d(after, after, 4, stride=2, padding=1) for _, after in pairs[:-1]
        )
        self.bottleneck = FedDiffuseBottleneck(widths[-1], time_dim)
        self.up_levels = nn.ModuleList(
            Level(2 * after, before, time_dim) for before, after in reversed(pairs[1:])
        )
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(before, before, 4, stride=2, padding=1)
            for before, _ in reversed(pairs[1:])
        )
        self.final_block = ConvNextBlock(widths[1], dim)
        self.final_conv = nn.Conv2d(dim, channels, 1)
        # Last, so that the other parameters are drawn as without classes.

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the predicted noise ``[n, c, h, w]`` at timesteps ``[n]``."""
        embedding = self.class_embedding(self.time_embedding(t), labels)
        h = self.init_conv(x_t)
        skips = []
        for index, level in enumerate(self.down_levels):
            h = level(h, embedding)
            skips.append(h)
            if index < len(self.downs):
                h = self.downs[index](h)
        h = self.bottleneck(h, embedding)
        for level, up in zip(self.up_levels, self.ups, strict=True):
            h = level(torch.cat([h, skips.pop()], dim=1), embedding)
            h = up(h, output_size=skips[-1].shape[-2:])
        predicted_noise: Tensor = self.final_conv(self.final_block(h))
        return predicted_noise
