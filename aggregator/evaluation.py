"""Samples of the global model from fixed seeds, and their Fréchet distance.

The reference is a file of published statistics; the aggregator opens no image. A
distance is always told with its extractor, the reference, and the number of samples.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffusion.checkpoint import Checkpoint
from diffusion.fd_small import FdSmall
from diffusion.features import FeatureExtractor, load_extractor
from diffusion.fid import (
    FeatureStatistics,
    empty_statistics,
    frechet_distance,
    load_statistics,
)
from protocol.aggregation_settings import EvaluationConfig

BLOCK = 100


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Published statistics, with the extractor that they were made with.

    ``digest`` is the SHA-256 of the file, hexadecimal.
    """

    extractor: FeatureExtractor
    statistics: FeatureStatistics
    digest: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A Fréchet distance, and the shares of the extractor's classes, if it has any."""

    extractor: str
    frechet_distance: float
    num_samples: int
    class_shares: tuple[float, ...]


def load_reference(
    config: EvaluationConfig,
    path: Path,
    *,
    weights: Path | None = None,
    allow_download: bool = False,
) -> Reference:
    """Load the reference statistics of a plan's extractor.

    Raises:
        DiffusionError: the weights or the statistics are missing, damaged, or do not
            belong together.
    """
    extractor = load_extractor(
        config.extractor,
        weights=weights,
        sha256=config.extractor_sha256 or None,
        allow_download=allow_download,
    )
    statistics = load_statistics(path, extractor)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Reference(extractor=extractor, statistics=statistics, digest=digest)


def evaluate(
    checkpoint: Checkpoint,
    reference: Reference,
    *,
    seed: int,
    num_samples: int,
    device: torch.device,
) -> Evaluation:
    """Measure samples of a model against the reference, block by block.

    Args:
        seed: follows from the plan, so that every round is measured on the same noise.

    Raises:
        DiffusionError: the extractor does not take images of this shape.
    """
    extractor = reference.extractor
    statistics, chosen = empty_statistics(extractor), np.zeros(0, dtype=np.int64)
    for images in checkpoint.blocks(
        seed=seed, count=num_samples, device=device, block_size=BLOCK
    ):
        statistics = statistics.update(extractor.features(images))
        if isinstance(extractor, FdSmall):
            probabilities = extractor.class_probabilities(images)
            classes, num_classes = probabilities.argmax(axis=1), probabilities.shape[1]
            counts = np.bincount(classes, minlength=num_classes)
            chosen = counts if not chosen.size else chosen + counts
    return Evaluation(
        extractor=extractor.name,
        frechet_distance=frechet_distance(statistics, reference.statistics),
        num_samples=num_samples,
        class_shares=tuple((chosen / num_samples).tolist()),
    )
