"""Does a model repeat its training images? Its samples beside their nearest images.

Two questions. Is a sample nearer to what the model was trained on than to images that
it never saw? If nothing is memorised, it is so half of the time. And is a sample a
*copy* of one image: nearer to it than a third of the distance to the second nearest?
The same is counted among the held-out images, where only chance makes copies.

Distances are L2 in pixels. Only counts leave this module for a report; the pairs that
look most alike are a picture for the silo's operator.

Sources: Gu et al., 2023 (the ratio test); Carlini et al., 2023.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privacy.attack_statistics import CONFIDENCE, proportion_interval
from protocol.probe_report import Memorisation, Share, Target
from silo.data import ImageSet

MEMORISED_RATIO = 1 / 3
BLOCK_IMAGES = 512
HISTOGRAM_EDGES = tuple(round(-2.0 + edge / 10, 1) for edge in range(41))
"""Of log(distance to training / distance to held-out); the same for all data."""
PAIRS_SHOWN = 20

Vectors = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Neighbours:
    """The distances of samples to their two nearest images, and which is nearest.

    ``nearest`` and ``second`` are float64 ``[k]``, ``index`` int64 ``[k]``.
    """

    nearest: Vectors
    second: Vectors
    index: Indices

    @property
    def is_copy(self) -> npt.NDArray[np.bool_]:
        """Which samples are copies, by the ratio test; bool ``[k]``."""
        result: npt.NDArray[np.bool_] = self.nearest < MEMORISED_RATIO * self.second
        return result

    @property
    def ratio(self) -> Vectors:
        """Return nearest over second nearest, 1 where both are zero."""
        is_zero = self.second == 0
        return np.where(is_zero, 1.0, self.nearest / np.where(is_zero, 1, self.second))


def neighbours(samples: Vectors, blocks: Iterable[Vectors]) -> Neighbours:
    """Return the two nearest images of each sample, one block of images at a time.

    The products of a block choose the two candidates; their distances are then taken
    from the differences, so that equal images have equal distances.

    Args:
        samples: float64 ``[k, pixels]``.
        blocks: float64 ``[b, pixels]`` each; at least two images in all.

    Raises:
        ValueError: there are fewer than two images.
    """
    distances = np.full((len(samples), 2), np.inf)
    indices = np.zeros((len(samples), 2), dtype=np.int64)
    first = 0
    for block in blocks:
        products = (block * block).sum(axis=1) - 2 * samples @ block.T
        count = min(2, len(block))
        chosen = np.argpartition(products, count - 1, axis=1)[:, :count]
        exact = np.stack(
            [np.linalg.norm(samples - block[column], axis=1) for column in chosen.T],
            axis=1,
        )
        distances = np.concatenate([distances, exact], axis=1)
        indices = np.concatenate([indices, chosen + first], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :2]
        distances = np.take_along_axis(distances, order, axis=1)
        indices = np.take_along_axis(indices, order, axis=1)
        first += len(block)
    if first < 2:
        raise ValueError("the ratio test needs two images")
    return Neighbours(distances[:, 0], distances[:, 1], indices[:, 0])


def count_copies(samples: Vectors, training: Vectors) -> int:
    """Return how many samples are memorised training images, by the ratio test.

    Args:
        samples, training: float64 ``[n, pixels]``.
    """
    starts = range(0, len(training), BLOCK_IMAGES)
    blocks = (training[start : start + BLOCK_IMAGES] for start in starts)
    return int(neighbours(samples, blocks).is_copy.sum())


def vector_blocks(images: ImageSet, indices: Indices) -> Iterator[Vectors]:
    """Yield some of the images in [-1, 1] as float64 ``[b, pixels]``, in order."""
    for start in range(0, len(indices), BLOCK_IMAGES):
        batch = images.batch(indices[start : start + BLOCK_IMAGES])
        yield batch.flatten(start_dim=1).numpy().astype(np.float64)


@dataclass(frozen=True)
class Found:
    """What was measured, and the neighbours among all training images."""

    result: Memorisation
    everywhere: Neighbours


def memorisation(
    target: Target,
    samples: Tensor,
    training: ImageSet,
    held_out: ImageSet,
    *,
    chosen: Indices,
    chosen_held_out: Indices,
) -> Found:
    """Compare samples of a model with its training images and with held-out ones.

    Args:
        samples: ``[k, c, h, w]`` in [-1, 1]; k should be at least the number chosen.
        training: all that the model was trained on here.
        chosen, chosen_held_out: the images compared, as many of each.

    Raises:
        ValueError: another number of each, or fewer than two.
    """
    if len(chosen) != len(chosen_held_out):
        raise ValueError("as many training images as held-out ones are compared")
    vectors = samples.flatten(start_dim=1).numpy().astype(np.float64)
    of_training = neighbours(vectors, vector_blocks(training, chosen))
    of_held_out = neighbours(vectors, vector_blocks(held_out, chosen_held_out))
    every = np.arange(len(training))
    everywhere = neighbours(vectors, vector_blocks(training, every))
    nearer = of_training.nearest < of_held_out.nearest
    count = len(samples)
    result = Memorisation(
        target=target,
        num_samples=count,
        num_training=len(chosen),
        num_held_out=len(chosen_held_out),
        num_searched=len(training),
        confidence=CONFIDENCE,
        distance="L2 in pixels",
        nearer_to_training=share(int(nearer.sum()), count),
        copies=share(int(of_training.is_copy.sum()), count),
        copies_of_held_out=share(int(of_held_out.is_copy.sum()), count),
        copies_of_any=share(int(everywhere.is_copy.sum()), count),
        histogram_edges=HISTOGRAM_EDGES,
        histogram_counts=_histogram(of_training.nearest, of_held_out.nearest),
    )
    return Found(result, everywhere)


def share(count: int, total: int) -> Share:
    """Return a share with its Clopper–Pearson interval."""
    interval = proportion_interval(count, total, CONFIDENCE)
    return Share(count=count, total=total, low=interval.low, high=interval.high)


def likest_pairs(samples: Tensor, training: ImageSet, found: Neighbours) -> Tensor:
    """Return sample and nearest image of the pairs with the smallest ratios, in turn.

    ``[2 p, c, h, w]``, p at most :data:`PAIRS_SHOWN`. For the silo's operator alone.
    """
    worst = np.argsort(found.ratio, kind="stable")[:PAIRS_SHOWN]
    images = training.batch(found.index[worst])
    return torch.stack([samples[torch.from_numpy(worst)], images], dim=1).flatten(0, 1)


def _histogram(to_training: Vectors, to_held_out: Vectors) -> tuple[int, ...]:
    """Return counts of log(to_training / to_held_out) between the fixed edges."""
    tiny = np.finfo(np.float64).tiny
    logs = np.log(np.maximum(to_training, tiny)) - np.log(np.maximum(to_held_out, tiny))
    inside = np.clip(logs, HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
    counts, _ = np.histogram(inside, bins=np.array(HISTOGRAM_EDGES))
    return tuple(int(count) for count in counts)
