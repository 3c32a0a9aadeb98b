"""The demo's recipe: digits that a person can name, within its share of two minutes.

    python -m benchmarks.digits_recipe            the chosen recipe, two seeds
    python -m benchmarks.digits_recipe --explore  the alternatives beside it

Three silos with 500 of scikit-learn's 8×8 digits each train a residual UNet by plain
averaging, in one process and on one thread, without protection: what is measured
here is the recipe, not the protocol. Seconds are CPU seconds of this process, so a
busy machine does not distort them. Results: ``benchmarks/results/digits_recipe.json``.
"""

import argparse
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

from benchmarks.results_file import Row, save
from diffusion.config import (
    Architecture,
    LossKind,
    SamplerConfig,
    ScheduleConfig,
    UNetConfig,
)
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

NUM_SILOS = 3
NUM_SAMPLES = 500
Parameters = dict[str, Tensor]
Rows = list[Row]

UNITS = {
    "probability > 0.5": "share",
    "probability > 0.9": "share",
    "FD-small (digits)": "distance",
    "classes present": "classes",
    "smallest class share": "share",
    "copies": "samples",
    "median nearest distance": "L2 of [-1, 1] pixels",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that the demo's training may choose.

    The learning rate rises linearly over ``warm_up_rounds``, then falls linearly
    from ``learning_rate`` to ``last_share`` of it; it is constant within a round.
    """

    dim: int = 16
    dim_mults: tuple[int, ...] = (1, 2)
    schedule: ScheduleConfig = ScheduleConfig(kind="cosine", num_timesteps=1000)
    sampler: SamplerConfig = SamplerConfig(kind="ddim", num_steps=100)
    loss: LossKind = "mse"
    rounds: int = 20
    local_steps: int = 150
    physical_batch_size: int = 32
    learning_rate: float = 5e-3
    last_share: float = 0.05
    warm_up_rounds: int = 2
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


#: The demo's recipe. With the cosine schedule 100 sampling steps are worth their
#: time; with the linear one 50 do.
CHOSEN = Recipe()
LINEAR = replace(
    CHOSEN,
    schedule=ScheduleConfig(kind="linear", num_timesteps=1000),
    sampler=SamplerConfig(kind="ddim", num_steps=50),
    local_steps=100,
    learning_rate=3e-3,
    warm_up_rounds=0,
)
SHORT = replace(CHOSEN, local_steps=100)

#: About equally long trainings, 85 to 90 CPU seconds each.
ALTERNATIVES: dict[str, Recipe] = {
    "linear, 20 x 100": LINEAR,
    "linear, 40 x 50": replace(LINEAR, rounds=40, local_steps=50),
    "linear, lr 5e-3": replace(LINEAR, learning_rate=5e-3, warm_up_rounds=2),
    "linear, 16 per step": replace(LINEAR, local_steps=130, physical_batch_size=16),
    "cosine, lr 3e-3": replace(SHORT, learning_rate=3e-3, warm_up_rounds=0),
    "cosine, 20 x 100": SHORT,
    "cosine, 12 x 170": replace(SHORT, rounds=12, local_steps=170, warm_up_rounds=1),
    "cosine, lr 8e-3": replace(SHORT, learning_rate=8e-3, warm_up_rounds=3),
    "cosine, Adam 0.99": replace(
        SHORT, learning_rate=3e-3, warm_up_rounds=0, betas=(0.9, 0.99)
    ),
    "cosine, (1, 1)": replace(
        SHORT,
        dim_mults=(1, 1),
        local_steps=130,
        learning_rate=3e-3,
        warm_up_rounds=0,
    ),
    "cosine, dim 24": replace(SHORT, dim=24, local_steps=62),
    "cosine, no EMA": replace(SHORT, ema_decay=0.0),
    "cosine, Huber": replace(SHORT, loss="huber"),
}


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


TARGETS = {
    "CPU seconds of training": "<= 220",
    "probability > 0.5": ">= 0.9",
    "FD-small (digits)": "< 1",
    "classes present": "== 10",
    "copies": "== 0",
}


def run(
    name: str, recipe: Recipe, seed: int, judge: Judge, folder: Path | None
) -> Rows:
    """Train, sample and score one recipe; save a grid of 64 where asked."""
    model, training_seconds = train(recipe, judge.training_images, seed)
    images, sampling_seconds = draw(recipe, model, NUM_SAMPLES)
    scores = {
        "CPU seconds of training": training_seconds,
        f"CPU seconds of {NUM_SAMPLES} samples": sampling_seconds,
        **judge.scores(images),
    }
    if folder is not None:
        save_grid(folder / f"digits_{seed}.png", images[:64], columns=8, enlarge=7)
    return _rows(f"{name}, seed {seed}", scores)


def _rows(name: str, scores: dict[str, float]) -> Rows:
    """Return scores as rows of the results file, printed as they are made."""
    rows: Rows = []
    for score, value in scores.items():
        target = TARGETS.get(score, "")
        print(f"{name:28s} {score:28s} {value:9.4g} {target}", flush=True)
        row = {"name": f"{name}: {score}", "value": round(value, 4)}
        rows.append({**row, "unit": UNITS.get(score, "s"), "target": target})
    return rows


def training_speed(architecture: Architecture, num_steps: int) -> float:
    """Return training images per CPU second of a 28×28 network, 32 per step."""
    dim = 28 if architecture == "feddiffuse" else 16
    mults = (1, 2, 4) if architecture == "feddiffuse" else (1, 2, 2)
    config = UNetConfig(
        architecture=architecture, dim=dim, channels=1, dim_mults=mults, image_size=28
    )
    return _images_per_second(config, num_steps)


def _images_per_second(config: UNetConfig, num_steps: int) -> float:
    """Time whole steps of Adam on random images, after two steps of warming up."""
    model = make_model(config, 0)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images = torch.zeros(32, 1, config.image_size, config.image_size)
    recipe = replace(CHOSEN, local_steps=2, loss="huber")
    silo = Silo(images, model, optimizer, torch.Generator().manual_seed(0))
    schedule = make_schedule(recipe.schedule)
    silo.train(recipe, schedule, 1)
    start = time.process_time()
    silo.train(replace(recipe, local_steps=num_steps), schedule, 1)
    return 32 * num_steps / (time.process_time() - start)


def speeds() -> Rows:
    """Measure training images per CPU second for the sizes that the docs name."""
    rows: Rows = []
    for name, value in (
        ("residual, dim 16, (1, 2), 8×8", _images_per_second(CHOSEN.model, 40)),
        ("residual, dim 16, (1, 2, 2), 28×28", training_speed("residual", 12)),
        ("FedDiffuse, dim 28, (1, 2, 4), 28×28", training_speed("feddiffuse", 6)),
    ):
        print(f"{name:40s} {value:7.1f} images per CPU second", flush=True)
        rows.append(
            {"name": name, "value": round(value, 1), "unit": "images/s", "target": ""}
        )
    return rows


def main() -> None:
    """Measure the chosen recipe, or the alternatives, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--explore", action="store_true", help="the alternatives too")
    parser.add_argument("--grid", type=Path, help="folder for a grid of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judge = Judge()
    rows = _rows("real, held out", judge.scores(judge.held_out_images)) + speeds()
    for seed in arguments.seeds:
        rows += run("chosen", CHOSEN, seed, judge, arguments.grid)
    for name, recipe in ALTERNATIVES.items() if arguments.explore else ():
        rows += run(name, recipe, 0, judge, None)
    print(save("digits_recipe", rows, "1 thread"))


if __name__ == "__main__":
    main()
