"""What a Fréchet distance is measured on: Inception, or a small classifier of ours."""

from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from diffusion.errors import ImagesRejected
from diffusion.fd_small import FdSmall, load_fd_small
from diffusion.inception import load_inception

ExtractorKind = Literal["fd-small-digits", "fd-small-fashion", "inception"]

WEIGHTS_FOLDER = Path(__file__).parent / "weights"


class FeatureExtractor(Protocol):
    """A fixed network that maps images to features."""

    @property
    def name(self) -> str:
        """Return what a distance on these features is called."""

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the weights file, hexadecimal."""

    @property
    def dims(self) -> int:
        """Return the length of a feature vector."""

    @property
    def image_shapes(self) -> tuple[tuple[int, int, int], ...] | None:
        """Return the accepted ``(c, h, w)``; none if any size is accepted."""

    def features(self, images: Tensor) -> npt.NDArray[np.float64]:
        """Return features ``[n, dims]`` of images ``[n, c, h, w]`` in [-1, 1].

        Raises:
            ImagesRejected: another shape, not finite, or not in [-1, 1].
        """


def check_takes(extractor: FeatureExtractor, shape: tuple[int, int, int]) -> None:
    """Raise :class:`ImagesRejected` unless an extractor takes images ``(c, h, w)``."""
    shapes = extractor.image_shapes
    if shapes is not None and shape not in shapes:
        taken = " or ".join(" × ".join(map(str, one)) for one in shapes)
        raise ImagesRejected(
            f"{extractor.name} takes images of {taken}, the model makes "
            f"{' × '.join(map(str, shape))}"
        )


def load_fd_small_digits(
    weights: Path | None = None, sha256: str | None = None
) -> FdSmall:
    """Load ``FD-small (digits)`` for grey 8×8 images; the package's file by default.

    Raises:
        WeightsUnavailable: the file is missing or has another digest.
        CorruptFile: the file is cut off or holds something else.
    """
    path = weights or WEIGHTS_FOLDER / "fd_small_digits.safetensors"
    return load_fd_small("FD-small (digits)", ((1, 8, 8),), path, sha256)


def load_fd_small_fashion(
    weights: Path | None = None, sha256: str | None = None
) -> FdSmall:
    """Load ``FD-small (fashion)`` for grey 28×28 images; the package's by default.

    Raises:
        WeightsUnavailable: the file is missing or has another digest.
        CorruptFile: the file is cut off or holds something else.
    """
    path = weights or WEIGHTS_FOLDER / "fd_small_fashion.safetensors"
    return load_fd_small("FD-small (fashion)", ((1, 28, 28),), path, sha256)


def load_extractor(
    kind: ExtractorKind,
    *,
    weights: Path | None = None,
    sha256: str | None = None,
    allow_download: bool = False,
) -> FeatureExtractor:
    """Load the feature extractor that a plan or a command names.

    Args:
        kind: ``fd-small-digits``, ``fd-small-fashion`` or ``inception``.
        weights: the weights file; if none, the package's own, or torch hub's cache.
        sha256: the digest that the file must have, hexadecimal.
        allow_download: whether Inception's weights may be fetched. Nothing else is
            ever fetched.

    Raises:
        ValueError: the kind is unknown.
        WeightsUnavailable: no file, or another digest.
        CorruptFile: the file is cut off or holds something else.
    """
    if kind == "fd-small-digits":
        return load_fd_small_digits(weights, sha256)
    if kind == "fd-small-fashion":
        return load_fd_small_fashion(weights, sha256)
    if kind == "inception":
        return load_inception(weights, sha256, allow_download)
    raise ValueError(f"unknown feature extractor {kind!r}")
