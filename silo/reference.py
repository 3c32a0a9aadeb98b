"""Reference statistics of images that may be described in public."""

from pathlib import Path

import numpy as np

from diffusion.features import ExtractorKind, load_extractor
from diffusion.fid import empty_statistics, save_statistics
from silo.data import ImageSet

BLOCK = 500


def save_reference(
    path: Path,
    images: ImageSet,
    kind: ExtractorKind,
    weights: Path | None,
    *,
    sha256: str | None = None,
) -> int:
    """Measure images block by block, save their statistics; return their number.

    Guarantees: none about privacy: means and covariances of features describe the
    images. They are for images that belong to no silo.

    Raises:
        DiffusionError: the extractor is missing, or does not take these images.
    """
    extractor = load_extractor(kind, weights=weights, sha256=sha256)
    statistics = empty_statistics(extractor)
    for start in range(0, len(images), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(images)))
        statistics = statistics.update(extractor.features(images.batch(block)))
    save_statistics(path, statistics)
    return len(images)
