"""The two partitions of FedDiffuse's figures with five silos, as fixed tables.

They were drawn once, from Dirichlet distributions with parameter 0.5, for the 60,000
training images of Fashion-MNIST. With other numbers of images the shares are kept:
rounded by the largest remainder, and a silo that would get nothing gets one image of
the silo with the most. Which images a silo gets follows from the generator.

Source: de Goede et al. 2024 (FedDiffuse), the partitions in the plots of its code.
"""

import numpy as np
import numpy.typing as npt

from simulation.errors import SettingsRejected

Indices = npt.NDArray[np.int64]

NUM_SILOS = 5

LABEL_SKEW = (
    (4888, 1316, 378, 936, 146, 1177, 96, 2944, 1565, 0),
    (1, 259, 225, 244, 2378, 72, 44, 919, 728, 3043),
    (243, 121, 2622, 4584, 1010, 2481, 3, 1293, 0, 0),
    (2, 3979, 1959, 149, 0, 2265, 5484, 0, 0, 0),
    (866, 325, 816, 87, 2466, 5, 373, 844, 3707, 2957),
)
"""Images of each of ten classes, for each silo; 6,000 of every class in all."""

QUANTITY_SKEW = (529, 14, 46_087, 11_898, 1_473)
"""Images of each silo, as published: 60,001 in all, one more than there are."""


def scaled(table: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """Return whole numbers in the proportions of a table that add up to a total.

    Rounded by the largest remainder; of equal ones, the first.
    """
    exact = table * (total / table.sum())
    counts: npt.NDArray[np.int64] = np.floor(exact).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def published_quantity_skew(
    num_images: int, num_silos: int, generator: np.random.Generator
) -> list[Indices]:
    """Deal IID images in the published shares; at least one to every silo.

    60,000 images give the published sizes, but for one image less in the largest.

    Raises:
        SettingsRejected: not five silos, or fewer images than silos.
    """
    _check(num_images, num_silos, "published-quantity-skew")
    sizes = scaled(np.array(QUANTITY_SKEW), num_images)
    while not sizes.all():
        sizes[np.argmin(sizes)] += 1
        sizes[np.argmax(sizes)] -= 1
    order = generator.permutation(num_images)
    return list(np.split(order, np.cumsum(sizes)[:-1]))


def published_label_skew(
    labels: npt.NDArray[np.int64], num_silos: int, generator: np.random.Generator
) -> list[Indices]:
    """Deal every class in the shares of its column; at least one image to every silo.

    Raises:
        SettingsRejected: not five silos, fewer images than silos, or labels that are
            not 0 to 9.
    """
    _check(labels.size, num_silos, "published-label-skew")
    table = np.array(LABEL_SKEW)
    if not np.isin(labels, np.arange(table.shape[1])).all():
        raise SettingsRejected(
            "partition.kind: published-label-skew is a table of the classes 0 to 9; "
            "the images have others"
        )
    hands: list[list[Indices]] = [[] for _ in range(num_silos)]
    for label, column in enumerate(table.T):
        members = generator.permutation(np.flatnonzero(labels == label))
        cuts = np.cumsum(scaled(column, members.size))[:-1]
        for hand, part in zip(hands, np.split(members, cuts), strict=True):
            hand.append(part)
    parts = [generator.permutation(np.concatenate(hand)) for hand in hands]
    while min(part.size for part in parts) == 0:
        sizes = [part.size for part in parts]
        most, least = int(np.argmax(sizes)), int(np.argmin(sizes))
        parts[least], parts[most] = parts[most][:1], parts[most][1:]
    return parts


def _check(num_images: int, num_silos: int, kind: str) -> None:
    """Refuse what a published table has no place for."""
    if num_silos != NUM_SILOS:
        raise SettingsRejected(
            f"partition.kind: {kind} is a table for {NUM_SILOS} silos, not {num_silos}"
        )
    if num_images < num_silos:
        raise SettingsRejected(f"{num_images} images are too few for {num_silos} silos")
