"""How images are dealt to silos: IID, label skew, quantity skew, shards.

Each function returns one array of indices a silo; every index is in exactly one.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from simulation.errors import SettingsRejected
from simulation.published import published_label_skew, published_quantity_skew
from simulation.settings import PartitionConfig

Indices = npt.NDArray[np.int64]

MIN_IMAGES = 10
"""No silo is left with fewer images (FedDiffuse's code)."""

MAX_TRIES = 1000


def partition(
    config: PartitionConfig,
    num_images: int,
    labels: npt.NDArray[np.int64] | None,
    num_silos: int,
    seed: int,
) -> list[Indices]:
    """Deal images to silos as a configuration says, reproducibly.

    Raises:
        SettingsRejected: too few images, no labels where the kind needs them, or
            another number of silos or classes than a published table has.
    """
    generator = np.random.default_rng(seed)
    if config.kind == "published-quantity-skew":
        return published_quantity_skew(num_images, num_silos, generator)
    if config.kind == "published-label-skew":
        return published_label_skew(_needed(labels, config), num_silos, generator)
    needed = MIN_IMAGES * num_silos
    if num_images < needed:
        raise SettingsRejected(
            f"{num_images} images are too few for {num_silos} silos; at least {needed}"
        )
    if config.kind == "iid":
        return iid(num_images, num_silos, generator)
    if config.kind == "quantity-skew":
        return quantity_skew(num_images, num_silos, config.concentration, generator)
    labels = _needed(labels, config)
    if config.kind == "shards":
        return shards(labels, num_silos, config.shards_per_silo, generator)
    return label_skew(labels, num_silos, config.concentration, generator)


def iid(
    num_images: int, num_silos: int, generator: np.random.Generator
) -> list[Indices]:
    """Deal a random permutation in equal shares; sizes differ by one at most."""
    return list(np.array_split(generator.permutation(num_images), num_silos))


def quantity_skew(
    num_images: int,
    num_silos: int,
    concentration: float,
    generator: np.random.Generator,
) -> list[Indices]:
    """Deal IID images in shares from one Dirichlet draw.

    Drawn again until every silo has at least :data:`MIN_IMAGES`.

    Source: Li et al. 2022 (NIID-Bench), quantity skew; FedDiffuse's code.
    """
    for _ in range(MAX_TRIES):
        shares = generator.dirichlet([concentration] * num_silos)
        cuts = (np.cumsum(shares) * num_images).astype(np.int64)[:-1]
        parts = np.split(generator.permutation(num_images), cuts)
        if _smallest(parts) >= MIN_IMAGES:
            return list(parts)
    raise SettingsRejected(_hopeless(num_silos, concentration))


def label_skew(
    labels: npt.NDArray[np.int64],
    num_silos: int,
    concentration: float,
    generator: np.random.Generator,
) -> list[Indices]:
    """Deal each class in shares from a Dirichlet draw of its own.

    A silo that already holds its even share of all images gets no more of the class.
    Drawn again until every silo has at least :data:`MIN_IMAGES`.

    Source: Li et al. 2022 (NIID-Bench), distribution-based label skew; FedDiffuse's
    code, with its cap.
    """
    for _ in range(MAX_TRIES):
        hands: list[list[Indices]] = [[] for _ in range(num_silos)]
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            shares = generator.dirichlet([concentration] * num_silos)
            held = np.array([sum(map(len, hand)) for hand in hands])
            capped = np.where(held < labels.size / num_silos, shares, 0.0)
            shares = capped if capped.any() else shares
            cuts = (np.cumsum(shares / shares.sum()) * members.size).astype(np.int64)
            for hand, part in zip(hands, np.split(members, cuts[:-1]), strict=True):
                hand.append(part)
        parts = [generator.permutation(np.concatenate(hand)) for hand in hands]
        if _smallest(parts) >= MIN_IMAGES:
            return parts
    raise SettingsRejected(_hopeless(num_silos, concentration))


def shards(
    labels: npt.NDArray[np.int64],
    num_silos: int,
    shards_per_silo: int,
    generator: np.random.Generator,
) -> list[Indices]:
    """Sort images by label, cut them into shards of one size, deal these at random.

    Shards differ by one image at most. Images of one label are in random order before
    the cut, so that a shard is not a stretch of the file.

    Raises:
        SettingsRejected: there are more shards than images.

    Source: McMahan et al. 2017 (arXiv 1602.05629), section 3: 200 shards of 300 images,
    two for each of 100 clients.
    """
    count = num_silos * shards_per_silo
    if count > labels.size:
        raise SettingsRejected(
            f"partition.shards_per_silo: {count:,} shards of only {labels.size:,} "
            "images"
        )
    mixed = generator.permutation(labels.size)
    by_label = mixed[np.argsort(labels[mixed], kind="stable")]
    pieces = np.array_split(by_label, count)
    hands = np.split(generator.permutation(count), num_silos)
    return [
        generator.permutation(np.concatenate([pieces[shard] for shard in hand]))
        for hand in hands
    ]


def _needed(
    labels: npt.NDArray[np.int64] | None, config: PartitionConfig
) -> npt.NDArray[np.int64]:
    """Return the labels, or say which kind of partition needs them."""
    if labels is None:
        raise SettingsRejected(
            f"partition.kind: {config.kind} needs images with labels"
        )
    return labels


def _smallest(parts: Sequence[Indices]) -> int:
    """Return the size of the smallest part."""
    return min(part.size for part in parts)


def _hopeless(num_silos: int, concentration: float) -> str:
    """Say that no draw gave every silo enough."""
    return (
        f"partition.concentration: {concentration:g} gives some of {num_silos} silos "
        f"fewer than {MIN_IMAGES} images in {MAX_TRIES:,} draws; use a larger one"
    )
