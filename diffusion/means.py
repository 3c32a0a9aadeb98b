"""Central images in the place of a network: what a run of their own releases.

A central image is a noisy mean of private images. A run whose model is a stack of them
sums and averages them over the silos as any other parameters; a later run may begin
with a network that was trained on them (``diffusion/warm_up.py``).

Source: Li et al., 2025 (DP-FETA, arXiv 2504.01395), section 3.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffusion.errors import NoDenoiser
from diffusion.parts import DenoisingNetwork, Part

IMAGES_NAME = "stack.images"
"""The one parameter's name."""


class ImageStack(nn.Module):
    """Images ``[n, c, h, w]`` as one parameter."""

    def __init__(self, count: int, channels: int, image_size: int) -> None:
        super().__init__()
        self.images = nn.Parameter(torch.zeros(count, channels, image_size, image_size))


class CentralImages(DenoisingNetwork):
    """Central images, all zero (middle grey) at first; they predict no noise."""

    parts: ClassVar[Mapping[Part, tuple[str, ...]]] = {
        Part.ENCODER: (),
        Part.BOTTLENECK: (),
        Part.DECODER: ("stack",),
    }

    def __init__(self, count: int, channels: int, image_size: int) -> None:
        super().__init__()
        self.stack = ImageStack(count, channels, image_size)

    @property
    def images(self) -> nn.Parameter:
        """The images, float32 ``[n, c, h, w]``; not clamped, for the noise is in."""
        return self.stack.images

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Refuse.

        Raises:
            NoDenoiser: always.
        """
        raise NoDenoiser(
            "these are central images, not a network that can be trained or sampled; "
            "`aggregator warm-up` trains one on them"
        )
