"""The images of a simulated federation: a pool to deal, and a reference to hold out."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffusion.fd_small import digits_split
from silo.data import ImageSet, check_values, load_images
from silo.errors import DataError
from simulation.errors import SettingsRejected
from simulation.settings import SimulationConfig

DIGITS_RANGE = (0.0, 16.0)


@dataclass(frozen=True)
class Pool:
    """Images to be dealt to silos, and held-out ones that belong to no silo."""

    dealt: ImageSet
    held_out: ImageSet


def load_pool(config: SimulationConfig, seed: int) -> Pool:
    """Load the images of a simulation; which ones are dealt follows from the seed.

    Raises:
        DataError: missing or unusable images.
        SettingsRejected: more images are asked for than there are.
    """
    is_digits = config.data.source == "digits"
    pool = _digits() if is_digits else _from_files(config, seed)
    if config.num_images > len(pool.dealt):
        raise SettingsRejected(
            f"simulation.num_images: {config.num_images:,} of only "
            f"{len(pool.dealt):,} images"
        )
    if config.num_images:
        order = np.random.default_rng(seed).permutation(len(pool.dealt))
        dealt = subset(pool.dealt, order[: config.num_images])
        pool = replace(pool, dealt=dealt)
    return pool


def subset(
    images: ImageSet, indices: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> ImageSet:
    """Return some of the images, with their labels."""
    labels = None if images.labels is None else images.labels[indices]
    return replace(images, pixels=images.pixels[indices], labels=labels)


def _digits() -> Pool:
    """Return scikit-learn's handwritten digits, 8×8 and grey, in their fixed split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = digits.images.astype(np.uint8)[..., np.newaxis]
    images = ImageSet(pixels, DIGITS_RANGE, digits.target.astype(np.int64))
    train, held_out = digits_split()
    return Pool(subset(images, train), subset(images, held_out))


def _from_files(config: SimulationConfig, seed: int) -> Pool:
    """Load a source's training images, and its test images or some held out."""
    images = load_images(config.data.silo_config("train"), Path())
    if not config.held_out_images:
        return Pool(images, _test_images(config))
    if config.held_out_images >= len(images):
        raise SettingsRejected(
            f"simulation.held_out_images: {config.held_out_images:,} of only "
            f"{len(images):,} images"
        )
    order = np.random.default_rng(seed).permutation(len(images))
    held_out, dealt = np.split(order, [config.held_out_images])
    return Pool(subset(images, dealt), subset(images, held_out))


def _test_images(config: SimulationConfig) -> ImageSet:
    """Return a source's own test split."""
    if config.data.source == "folder":
        raise SettingsRejected(
            "simulation.held_out_images: must be positive for a folder of images, "
            "which has no test split"
        )
    try:
        images = load_images(config.data.silo_config("test"), Path())
    except DataError as error:
        raise DataError(
            f"{error}; set simulation.held_out_images to hold some out"
        ) from None
    check_values(images, "test images")
    return images
