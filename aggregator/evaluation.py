"""Samples of the global model from fixed seeds, and their Fréchet distance.

The reference is a file of published statistics; the aggregator opens no image. A
distance is always told with its extractor, the reference, and the number of samples.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from diffusion import evaluation
from diffusion.checkpoint import Checkpoint
from diffusion.evaluation import Evaluation
from diffusion.features import FeatureExtractor, load_extractor
from diffusion.fid import FeatureStatistics, load_statistics
from protocol.aggregation_settings import EvaluationConfig


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Published statistics, with the extractor that they were made with.

    ``content`` is the file itself, ``digest`` its SHA-256, hexadecimal.
    """

    extractor: FeatureExtractor
    statistics: FeatureStatistics
    digest: str
    content: bytes = field(repr=False)


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
    statistics, content = load_statistics(path, extractor), path.read_bytes()
    return Reference(
        extractor=extractor,
        statistics=statistics,
        digest=hashlib.sha256(content).hexdigest(),
        content=content,
    )


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
    return evaluation.evaluate(
        checkpoint,
        reference.extractor,
        reference.statistics,
        seed=seed,
        num_samples=num_samples,
        device=device,
    )
