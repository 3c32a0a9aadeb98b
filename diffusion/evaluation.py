"""How good a model is: its samples from a fixed seed, and their Fréchet distance."""

from dataclasses import dataclass

import numpy as np
import torch

from diffusion.checkpoint import Checkpoint
from diffusion.fd_small import FdSmall
from diffusion.features import FeatureExtractor
from diffusion.fid import FeatureStatistics, empty_statistics, frechet_distance

BLOCK = 100


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A Fréchet distance, and the shares of the extractor's classes, if it has any."""

    extractor: str
    frechet_distance: float
    num_samples: int
    class_shares: tuple[float, ...]


def evaluate(
    checkpoint: Checkpoint,
    extractor: FeatureExtractor,
    reference: FeatureStatistics,
    *,
    seed: int,
    num_samples: int,
    device: torch.device,
) -> Evaluation:
    """Measure samples of a model against reference statistics, block by block.

    Args:
        seed: the same one gives the same samples, in blocks of any size.

    Raises:
        DiffusionError: the extractor does not take images of this shape, or the
            statistics are another extractor's.
    """
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
        frechet_distance=frechet_distance(statistics, reference),
        num_samples=num_samples,
        class_shares=tuple((chosen / num_samples).tolist()),
    )
