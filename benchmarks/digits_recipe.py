"""The demo's recipe: digits that a person can name, within its share of two minutes.

    python -m benchmarks.digits_recipe            the chosen recipe, two seeds
    python -m benchmarks.digits_recipe --explore  the alternatives beside it

Three silos with 500 of scikit-learn's 8×8 digits each train a residual UNet by plain
averaging, in one process and on one thread, without protection: what is measured
here is the recipe, not the protocol. Seconds are CPU seconds of this process, so a
busy machine does not distort them. Results: ``benchmarks/results/digits_recipe.json``.
"""

import argparse
import datetime
import json
import platform
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sklearn.datasets
import sklearn.svm
import torch
from torch import Tensor, nn

from diffusion.config import LossKind, SamplerConfig, ScheduleConfig, UNetConfig
from diffusion.ema import ExponentialMovingAverage
from diffusion.fd_small import digits_split
from diffusion.features import load_fd_small_digits
from diffusion.fid import empty_statistics, frechet_distance
from diffusion.images import save_grid
from diffusion.loss import denoising_loss
from diffusion.model import make_model
from diffusion.parameters import load_parameters, parameters_of
from diffusion.sampling import sample
from diffusion.schedule import Schedule, make_schedule

ROOT = Path(__file__).resolve().parent.parent
RESULTS_FILE = ROOT / "benchmarks/results/digits_recipe.json"
NUM_SILOS = 3
NUM_SAMPLES = 500
Parameters = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that the demo's training may choose.

    The learning rate rises linearly over ``warm_up_rounds``, then falls linearly
    from ``learning_rate`` to ``last_share`` of it; it is constant within a round.
    """

    dim: int = 16
    dim_mults: tuple[int, ...] = (1, 2)
    schedule: ScheduleConfig = ScheduleConfig(kind="linear", num_timesteps=1000)
    sampler: SamplerConfig = SamplerConfig(kind="ddim", num_steps=50, eta=1.0)
    loss: LossKind = "mse"
    rounds: int = 40
    local_steps: int = 50
    physical_batch_size: int = 32
    learning_rate: float = 3e-3
    last_share: float = 0.05
    warm_up_rounds: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    ema_decay: float = 0.9

    def learning_rate_of(self, round_number: int) -> float:
        """Return the learning rate of a round, counted from 1."""
        progress = (round_number - 1) / max(self.rounds - 1, 1)
        falling = 1.0 - (1.0 - self.last_share) * progress
        rising = min(round_number / (self.warm_up_rounds + 1), 1.0)
        return self.learning_rate * falling * rising

    @property
    def model(self) -> UNetConfig:
        """Return the network's configuration."""
        return UNetConfig(
            architecture="residual",
            dim=self.dim,
            channels=1,
            dim_mults=self.dim_mults,
            image_size=8,
        )


CHOSEN = Recipe()

ALTERNATIVES: dict[str, Recipe] = {}


@dataclass
class Silo:
    """One silo of the simulation: its images, its model, its optimizer state."""

    images: Tensor
    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator

    def train(self, recipe: Recipe, schedule: Schedule, round_number: int) -> None:
        """Take the round's local steps on images drawn epoch by epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_of(round_number)
        batches = self._batches(recipe.physical_batch_size)
        for _ in range(recipe.local_steps):
            x_0 = self.images[next(batches)]
            t = torch.randint(
                schedule.num_timesteps, (len(x_0),), generator=self.generator
            )
            noise = torch.randn(x_0.shape, generator=self.generator)
            losses = denoising_loss(self.model, x_0, t, noise, schedule, recipe.loss)
            self.optimizer.zero_grad()
            losses.mean().backward()
            self.optimizer.step()

    def _batches(self, size: int) -> Iterator[Tensor]:
        """Yield row numbers for ever: a fresh permutation in each epoch."""
        while True:
            order = torch.randperm(len(self.images), generator=self.generator)
            yield from order[: len(order) // size * size].split(size)


def load_digits() -> tuple[Tensor, npt.NDArray[np.int64]]:
    """Return all digits [1797, 1, 8, 8] in [-1, 1] and their classes."""
    data = sklearn.datasets.load_digits()
    images = torch.tensor(data.images / 8.0 - 1.0, dtype=torch.float32)[:, None]
    return images, np.asarray(data.target, dtype=np.int64)


def make_silo(recipe: Recipe, images: Tensor, seed: int) -> Silo:
    """Return a silo whose Adam keeps its state over the rounds."""
    model = make_model(recipe.model, 0)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, fused=True
    )
    return Silo(images, model, optimizer, torch.Generator().manual_seed(seed))


def mean_of(models: list[nn.Module]) -> Parameters:
    """Return the plain mean of the silos' parameters."""
    all_parameters = [parameters_of(model) for model in models]
    return {
        name: torch.stack([p[name] for p in all_parameters]).mean(dim=0)
        for name in all_parameters[0]
    }


def train(recipe: Recipe, images: Tensor, seed: int) -> tuple[nn.Module, float]:
    """Train the federation; return the averaged model and CPU seconds."""
    start = time.process_time()
    schedule = make_schedule(recipe.schedule)
    model = make_model(recipe.model, seed)
    order = np.random.RandomState(seed).permutation(len(images))
    silos = [
        make_silo(recipe, images[rows], 1000 * seed + i)
        for i, rows in enumerate(np.array_split(order, NUM_SILOS))
    ]
    parameters = parameters_of(model)
    average = ExponentialMovingAverage(decay=recipe.ema_decay, parameters=parameters)
    for round_number in range(1, recipe.rounds + 1):
        for silo in silos:
            load_parameters(silo.model, parameters)
            silo.train(recipe, schedule, round_number)
        parameters = mean_of([silo.model for silo in silos])
        average = average.updated(parameters)
    load_parameters(model, dict(average.parameters))
    return model, time.process_time() - start


def draw(recipe: Recipe, model: nn.Module, count: int) -> tuple[Tensor, float]:
    """Draw samples; return them and CPU seconds."""
    start = time.process_time()
    blocks = sample(
        model,
        make_schedule(recipe.schedule),
        recipe.sampler,
        seed=1,
        first_index=0,
        count=count,
        image_shape=(1, 8, 8),
        device="cpu",
        block_size=100,
    )
    return torch.cat(list(blocks)), time.process_time() - start


class Judge:
    """Scores samples against real digits; made once, used for every recipe."""

    def __init__(self) -> None:
        images, labels = load_digits()
        training, held_out = digits_split()
        self.training_images = images[training]
        self.held_out_images = images[held_out]
        self._machine = sklearn.svm.SVC(C=10, probability=True, random_state=0)
        with warnings.catch_warnings():  # deprecated in scikit-learn 1.9
            warnings.simplefilter("ignore", FutureWarning)
            self._machine.fit(_pixels(images[training]), labels[training])
        self._extractor = load_fd_small_digits()
        self._target = empty_statistics(self._extractor).update(
            self._extractor.features(self.training_images)
        )

    def scores(self, images: Tensor) -> dict[str, float]:
        """Return recognisability, classes, FD-small and copies of images."""
        probabilities = self._machine.predict_proba(_pixels(images))
        best = probabilities.max(axis=1)
        shares = np.bincount(probabilities.argmax(axis=1), minlength=10) / len(images)
        features = self._extractor.features(images)
        statistics = empty_statistics(self._extractor).update(features)
        nearest = _nearest_distances(images, self.training_images)
        return {
            "probability > 0.5": float((best > 0.5).mean()),
            "probability > 0.9": float((best > 0.9).mean()),
            "FD-small (digits)": frechet_distance(statistics, self._target),
            "classes present": float((shares > 0).sum()),
            "smallest class share": float(shares.min()),
            "copies": float((nearest[:, 0] < nearest[:, 1] / 3).sum()),
            "median nearest distance": float(np.median(nearest[:, 0])),
        }


def _pixels(images: Tensor) -> npt.NDArray[np.float64]:
    """Return images as rows of 64 values from 0 to 1."""
    return (images.flatten(start_dim=1).double().numpy() + 1.0) / 2.0


def _nearest_distances(images: Tensor, training: Tensor) -> npt.NDArray[np.float64]:
    """Return each image's two smallest distances to training images, [n, 2]."""
    distances = torch.cdist(images.flatten(start_dim=1), training.flatten(start_dim=1))
    return distances.topk(2, largest=False).values.double().numpy()
