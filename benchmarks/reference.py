"""The federation's own reference: how exact, how many bytes, how long.

    python -m benchmarks reference

Silos of uneven size measure their images with FD-small (digits), 64 features; a made-up
extractor of 2,048 features, random and not negative as Inception's are, stands for the
cost of a large one (no weights are needed, and the network's own time is not in it).
Everything from the sums to the pooled statistics is the software's own; the
masks are left out, for they cancel and are measured by ``secagg``. What noise does is
measured on the digits and, where ``CLOISTER_DATA`` has it, on Fashion-MNIST.

Results: ``benchmarks/results/reference.json``.
"""

import time
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from benchmarks.federation import FASHION
from benchmarks.results_file import Row, row, save
from diffusion.features import ExtractorKind, FeatureExtractor, load_extractor
from diffusion.fid import FeatureStatistics, empty_statistics, frechet_distance
from privacy.events import SampledGaussian
from privacy.pricing import epsilon
from protocol.reference_words import (
    from_vector,
    from_words,
    num_words,
    to_vector,
    to_words,
)
from silo.data import ImageSet
from silo.randomness import PrivateRandom
from silo.reference_share import BLOCK, exact_moments, noisy_vector
from silo.units import units_of
from simulation.settings import SimulationConfig
from simulation.sources import load_pool, subset

SHARES = (0.05, 0.1, 0.15, 0.3, 0.4)
"""Five silos of uneven size."""
NOISE_MULTIPLIERS = (1.0, 4.0, 8.0)
DELTA = 1e-5
REPEATS = 5


@dataclass(frozen=True)
class Projection:
    """An extractor of any length: pixels times fixed random numbers, rectified."""

    dims: int
    name: str = "random projection"
    digest: str = "00" * 32
    image_shapes: tuple[tuple[int, int, int], ...] | None = None

    def features(self, images: Tensor) -> np.ndarray:
        """Return features float64 ``[n, dims]``."""
        flat = images.flatten(1).double().numpy()
        weights = np.random.default_rng(1).normal(size=(flat.shape[1], self.dims))
        result: np.ndarray = np.maximum(flat @ weights / flat.shape[1] ** 0.5, 0)
        return result


def merged(extractor: FeatureExtractor, images: ImageSet) -> FeatureStatistics:
    """Return the statistics of pooled images, as the software merges them."""
    result = empty_statistics(extractor)
    for start in range(0, len(images), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(images)))
        result = result.update(extractor.features(images.batch(block)))
    return result


def statistics(extractor: FeatureExtractor, vector: np.ndarray) -> FeatureStatistics:
    """Return the statistics of a total vector."""
    moments = from_vector(vector, extractor.dims)
    total, count = moments.total, moments.count
    scatter = moments.second - np.outer(total, total) / count
    values, vectors = np.linalg.eigh(scatter)
    return FeatureStatistics(
        extractor=extractor.name,
        extractor_digest=extractor.digest,
        count=round(count),
        mean=total / count,
        scatter=(vectors * np.maximum(values, 0)) @ vectors.T,
    )


def measure(extractor: FeatureExtractor, pool: ImageSet) -> list[Row]:
    """Return exactness, bytes and seconds of one extractor."""
    dims, silos = extractor.dims, deal(pool)
    began, words = time.process_time(), []
    for images in silos:
        moments = exact_moments(extractor, images)
        words.append(to_words(to_vector(moments), len(silos)))
    summed = time.process_time()
    found = statistics(extractor, from_words(np.add.reduce(words), len(silos)))
    pooled = merged(extractor, pool)
    return [
        row(f"{dims} features: images pooled", len(pool), "images"),
        row(f"{dims} features: error of a mean",
            float(np.abs(found.mean - pooled.mean).max()) * 1e9, "1e-9", "<= 500"),
        row(f"{dims} features: error of a covariance",
            float(np.abs(found.covariance - pooled.covariance).max()) * 1e9,
            "1e-9", "<= 500"),
        row(f"{dims} features: words of a silo", num_words(dims), "words"),
        row(f"{dims} features: bytes of a silo's vector", 8 * num_words(dims), "bytes"),
        row(f"{dims} features: CPU of a silo's sums, mean of five",
            (summed - began) / len(silos), "seconds"),
    ]  # fmt: skip


def deal(pool: ImageSet) -> list[ImageSet]:
    """Return the images of five silos of uneven size."""
    ends = np.cumsum((np.array(SHARES) * len(pool)).astype(int))[:-1]
    return [subset(pool, part) for part in np.split(np.arange(len(pool)), ends)]


def measure_noise(
    kind: ExtractorKind, pool: ImageSet, held_out: ImageSet, clipping_norm: float
) -> list[Row]:
    """Return what noise makes of a distance, beside the exact reference."""
    extractor, silos = load_extractor(kind), deal(pool)
    judged = merged(extractor, held_out)
    exact = frechet_distance(judged, merged(extractor, pool))
    what = f"{kind}, {len(pool):,} images"
    rows = [row(f"{what}: held-out images, exact", exact, "FD-small")]
    clipped = [
        noisy_vector(
            extractor,
            images,
            units_of(images, "example"),
            clipping_norm=clipping_norm,
            noise_multiplier=0.0,
            max_images=1,
            random=PrivateRandom(0),
        )
        for images in silos
    ]
    for multiplier in NOISE_MULTIPLIERS:
        distances = []
        for seed in range(REPEATS):
            total = np.sum(clipped, axis=0)
            for silo in range(len(silos)):
                random = PrivateRandom(1 + 100 * seed + silo)
                random.add_noise_(total, multiplier * clipping_norm)
            distances.append(frechet_distance(judged, statistics(extractor, total)))
        name = f"{what}: noise multiplier {multiplier:g}, mean of {REPEATS}"
        rows.append(row(name, float(np.mean(distances)), "FD-small"))
    return rows


def prices() -> list[Row]:
    """Return what one noisy reference costs by itself."""
    rows = []
    for multiplier in NOISE_MULTIPLIERS:
        event = SampledGaussian(
            sample_rate=1.0, noise_multiplier=multiplier, clipping_norm=1.0, steps=1
        )
        price = epsilon([event], DELTA)
        rows.append(row(f"noise multiplier {multiplier:g}, alone", price, "epsilon"))
    return rows


def main() -> None:
    """Measure everything and keep the results."""
    pool = load_pool(SimulationConfig(), 0)
    rows = measure(load_extractor("fd-small-digits"), pool.dealt)
    rows += measure(Projection(2048), pool.dealt)
    rows += prices()
    rows += measure_noise("fd-small-digits", pool.dealt, pool.held_out, 40.0)
    if FASHION.is_file():
        with np.load(FASHION) as file:
            train, test = (
                ImageSet(file[name][..., None], (0.0, 255.0))
                for name in ("x_train", "x_test")
            )
        rows += measure_noise("fd-small-fashion", train, test, 60.0)
    else:
        print(f"left out: Fashion-MNIST: {FASHION.name} is not there")
    print(save("reference", rows))


if __name__ == "__main__":
    main()
