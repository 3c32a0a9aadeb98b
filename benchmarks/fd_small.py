"""FD-small: train its two extractors, and measure what their distance is worth.

    python -m benchmarks.fd_small            measure with the package's weights
    python -m benchmarks.fd_small --train    train them first (about two minutes)

Fashion-MNIST is looked for where ``CLOISTER_DATA`` says and left out with a message
where it is absent. Results: ``benchmarks/results/fd_small.json``.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import sklearn.datasets
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.results_file import DATA, Row, row, save
from diffusion.fd_small import FdSmall, SmallClassifier, digits_split
from diffusion.features import (
    WEIGHTS_FOLDER,
    load_fd_small_digits,
    load_fd_small_fashion,
)
from diffusion.fid import FeatureStatistics, empty_statistics, frechet_distance
from diffusion.parameters import save_safetensors

FASHION_FILE = DATA / "fashion_mnist" / "fashion_mnist.npz"
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelledImages:
    """Grey images [n, 1, h, w] in [-1, 1] and their classes [n]."""

    images: Tensor
    labels: Labels

    def rows(self, indices: Labels) -> "LabelledImages":
        """Return some rows."""
        return LabelledImages(self.images[indices], self.labels[indices])


def load_digits() -> tuple[LabelledImages, LabelledImages]:
    """Return scikit-learn's digits: the 1,500 for training and the 297 held out."""
    data = sklearn.datasets.load_digits()
    images = torch.tensor(data.images / 8.0 - 1.0, dtype=torch.float32)[:, None]
    everything = LabelledImages(images, np.asarray(data.target, dtype=np.int64))
    training, held_out = digits_split()
    return everything.rows(training), everything.rows(held_out)


def load_fashion() -> tuple[LabelledImages, LabelledImages] | None:
    """Return Fashion-MNIST's 60,000 and 10,000 images, or none where absent."""
    if not FASHION_FILE.is_file():
        return None
    with np.load(FASHION_FILE, allow_pickle=False) as file:
        sets = []
        for split in ("train", "test"):
            images = torch.from_numpy(file[f"x_{split}"]).float()[:, None] / 127.5 - 1.0
            sets.append(LabelledImages(images, file[f"y_{split}"].astype(np.int64)))
    return sets[0], sets[1]


def train_classifier(
    data: LabelledImages, widths: tuple[int, int, int], epochs: int, seed: int
) -> SmallClassifier:
    """Train with Adam, 128 images a step, learning rate falling linearly to 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallClassifier(widths, num_classes=10)
    order = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(data.labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    num_steps = epochs * (len(labels) // 128)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_steps)
    for _ in range(epochs):
        permutation = torch.randperm(len(labels), generator=order)
        for rows in permutation[: len(labels) // 128 * 128].split(128):
            loss = F.cross_entropy(
                model(data.images[rows]), labels[rows], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def save_classifier(model: SmallClassifier, path: Path, about: dict[str, str]) -> None:
    """Save the parameters and running averages as float16."""
    state = model.state_dict()
    tensors = {n: v.half() for n, v in state.items() if v.is_floating_point()}
    save_safetensors(path, tensors, about)


def accuracy(extractor: FdSmall, data: LabelledImages) -> float:
    """Return the share of images whose most probable class is the right one."""
    guesses = extractor.class_probabilities(data.images).argmax(axis=1)
    return float((guesses == data.labels).mean())


def statistics_of(extractor: FdSmall, images: Tensor) -> FeatureStatistics:
    """Return the feature statistics of images."""
    return empty_statistics(extractor).update(extractor.features(images))


def with_noise(images: Tensor, noise_stddev: float) -> Tensor:
    """Add Gaussian noise and clamp to [-1, 1]."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(images.shape, generator=generator)
    return (images + noise_stddev * noise).clamp(-1.0, 1.0)


def with_blur(images: Tensor, stddev_pixels: float) -> Tensor:
    """Blur each image with a Gaussian."""
    stddevs = (0, 0, stddev_pixels, stddev_pixels)
    blurred = scipy.ndimage.gaussian_filter(images.numpy(), stddevs)
    return torch.from_numpy(blurred).clamp(-1.0, 1.0)


def measure(
    extractor: FdSmall,
    reference: LabelledImages,
    fresh: LabelledImages,
    counts: tuple[int, ...],
) -> list[Row]:
    """Measure accuracy, bias, noise, blur and missing classes for one extractor.

    Args:
        extractor: what is measured.
        reference: the images behind the reference statistics.
        fresh: other real images of the same kind.
        counts: sizes of the sets whose bias is measured.
    """
    target = statistics_of(extractor, reference.images)

    def distance(images: Tensor) -> float:
        return frechet_distance(statistics_of(extractor, images), target)

    name = extractor.name
    rows = []
    for count in counts:
        values = _repeated(distance, fresh.images, count)
        rows.append(row(f"{name}, real, n={count}, mean", values.mean(), "distance"))
        rows.append(row(f"{name}, real, n={count}, sd", values.std(), "distance"))
    for stddev in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
        value = distance(with_noise(fresh.images, stddev))
        rows.append(row(f"{name}, noise sd {stddev}", value, "distance"))
    for stddev in (0.3, 0.5, 0.7, 1.0, 1.5, 2.0):
        value = distance(with_blur(fresh.images, stddev))
        rows.append(row(f"{name}, blur sd {stddev} px", value, "distance"))
    uniform = torch.rand(fresh.images.shape, generator=torch.Generator().manual_seed(3))
    rows.append(row(f"{name}, uniform noise", distance(uniform * 2 - 1), "distance"))
    for kept in (9, 8, 5, 1):
        images = fresh.images[fresh.labels < kept]
        rows.append(
            row(f"{name}, only {kept} of 10 classes", distance(images), "distance")
        )
    return rows


def _repeated(
    distance: Callable[[Tensor], float], images: Tensor, count: int
) -> npt.NDArray[np.float64]:
    """Return the distances of up to 20 random subsets of a size."""
    draws = 1 if count == len(images) else 20
    generator = torch.Generator().manual_seed(11)
    rows = [torch.randperm(len(images), generator=generator) for _ in range(draws)]
    return np.array([distance(images[r[:count]]) for r in rows])


def train_all() -> list[Row]:
    """Train both extractors, or digits alone where Fashion-MNIST is absent."""
    rows = []
    fashion = load_fashion()
    jobs = [("digits", load_digits()[0], (32, 64, 64), 60)]
    if fashion is not None:
        jobs.append(("fashion", fashion[0], (32, 64, 128), 6))
    for name, data, widths, epochs in jobs:
        start = time.process_time()
        model = train_classifier(data, widths, epochs, seed=1)
        about = {"training_data": name, "epochs": str(epochs), "format": "1"}
        save_classifier(model, WEIGHTS_FOLDER / f"fd_small_{name}.safetensors", about)
        seconds = time.process_time() - start
        rows.append(row(f"FD-small ({name}), training", seconds, "CPU s"))
    return rows


def measure_all() -> list[Row]:
    """Measure both extractors, or digits alone where Fashion-MNIST is absent."""
    training, held_out = load_digits()
    digits = load_fd_small_digits()
    rows = [row("FD-small (digits), accuracy", accuracy(digits, held_out), "share")]
    rows += measure(digits, training, held_out, (50, 100, 200, 297))
    fashion = load_fashion()
    if fashion is None:
        print(f"Fashion-MNIST is not at {FASHION_FILE.name}: left out")
        return rows
    extractor = load_fd_small_fashion()
    value = accuracy(extractor, fashion[1])
    rows.append(row("FD-small (fashion), accuracy", value, "share"))
    fresh = fashion[0].rows(np.arange(10_000))
    return rows + measure(extractor, fashion[1], fresh, (100, 500, 1000, 2000, 10_000))


def sizes() -> list[Row]:
    """Return the sizes of the weights files."""
    files = sorted(WEIGHTS_FOLDER.glob("fd_small_*.safetensors"))
    rows = [
        row(f"size of {f.name}", f.stat().st_size, "bytes", "< 500000") for f in files
    ]
    total = sum(f.stat().st_size for f in files)
    return [*rows, row("size of both", total, "bytes", "<= 500000")]


def main() -> None:
    """Train if asked, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="store_true", help="train the weights first")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = train_all() if arguments.train else []
    rows += sizes() + measure_all()
    print(save("fd_small", rows, "1 thread"))


if __name__ == "__main__":
    main()
