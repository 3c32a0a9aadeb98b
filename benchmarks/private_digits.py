"""Private training on scikit-learn's digits, as the benchmarks of its quality need it.

One place that holds all the images, and no federation: rounds of DP-SGD, an average of
the parameters over rounds, samples of it. Sampling and noise have a debugging seed, so
that a run can be repeated; the models are not private for that reason alone.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats

from benchmarks.digits_recipe import NUM_SAMPLES, Judge
from benchmarks.results_file import RESULTS, Row, row, save
from diffusion.checkpoint import Checkpoint
from diffusion.ema import ExponentialMovingAverage
from diffusion.model import make_model
from diffusion.parameters import parameters_of
from diffusion.schedule import make_schedule
from protocol.mechanism import calibrated
from protocol.plan import PlanDraft
from silo.data import ImageSet
from silo.per_example import VmapEngine
from silo.private_training import train_privately
from silo.randomness import PrivateRandom
from silo.training import TrainingState
from silo.units import units_of
from simulation.settings import SimulationConfig
from simulation.sources import load_pool

DEVICE = torch.device("cpu")
CHUNK_SIZE = 64
"""A network for 8×8 images is all overhead unless many images share it."""

SAMPLES_SEED = 1


@dataclass
class Trained:
    """A model, and the CPU seconds that its training took."""

    model: Checkpoint
    seconds: float


def digits() -> ImageSet:
    """Return the 1,500 digits that are trained on."""
    return load_pool(SimulationConfig(), 0).dealt


def train_alone(draft: PlanDraft, images: ImageSet) -> Trained:
    """Train a draft's model with DP-SGD on images that lie in one place."""
    draft = replace(draft, privacy=calibrated(draft))
    units = units_of(images, draft.privacy.unit)
    model = make_model(draft.model, draft.seed_for("model"))
    schedule = make_schedule(draft.schedule)
    random = PrivateRandom(insecure_seed=draft.seed)
    average = ExponentialMovingAverage(
        decay=draft.aggregation.ema_decay, parameters=parameters_of(model)
    )
    state = TrainingState()
    began = time.process_time()
    for round_number in range(1, draft.num_rounds + 1):
        state = train_privately(
            model,
            images,
            units,
            schedule,
            draft,
            state,
            round_number=round_number,
            device=DEVICE,
            random=random,
            observe=lambda progress: None,
            keep=lambda kept: None,
            checkpoint_steps=draft.training.local_steps,
            engine=VmapEngine(CHUNK_SIZE),
        )
        average = average.updated(parameters_of(model))
    checkpoint = Checkpoint(
        model=draft.model,
        schedule=draft.schedule,
        sampler=draft.evaluation.sampler,
        parameters=average.parameters,
    )
    return Trained(checkpoint, time.process_time() - began)


def scores_of(judge: Judge, model: Checkpoint) -> dict[str, float]:
    """Return the judge's scores of 500 samples of a model."""
    return judge.scores(
        model.images(seed=SAMPLES_SEED, count=NUM_SAMPLES, device=DEVICE)
    )


class Results:
    """The rows of one benchmark on disk, saved as each of them is made.

    What is there already is not measured again, unless the rows are fresh.
    """

    def __init__(self, name: str, note: str, *, fresh: bool) -> None:
        self._name, self._note = name, note
        self._path = RESULTS / f"{name}.json"
        if fresh:
            self._path.unlink(missing_ok=True)
        self._rows: dict[str, Row] = {}
        self._load()

    def _load(self) -> None:
        """Read the rows on disk; another process may have added some."""
        if self._path.exists():
            rows = json.loads(self._path.read_text())["rows"]
            self._rows = {str(known["name"]): known for known in rows}

    def has(self, name: str) -> bool:
        """Return whether a row is there."""
        return name in self._rows

    def value(self, name: str) -> float:
        """Return the value of a row."""
        return float(self._rows[name]["value"])

    def add(self, name: str, value: float, unit: str, target: str = "") -> None:
        """Print, keep and save a row."""
        self._load()
        self._rows[name] = row(name, value, unit, target)
        save(self._name, list(self._rows.values()), self._note)

    def add_mean(
        self, name: str, values: Sequence[float], unit: str, target: str = ""
    ) -> None:
        """Add the mean of some values, and half the width of its 95 % interval."""
        unit = f"{unit}, n = {len(values)}"
        self.add(f"{name}, mean", float(np.mean(values)), unit, target)
        if len(values) > 1:
            self.add(f"{name}, ± (95 %)", half_width(values), unit)


def half_width(values: Sequence[float]) -> float:
    """Return half the width of Student's 95 % interval of a mean."""
    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return quantile * float(stats.sem(values))
