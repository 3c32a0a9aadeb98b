"""DPDM's own setting on one GPU, by the package's own private training.

    python -m benchmarks.dpdm short --epsilon 10     batch 1,024, K = 8
    python -m benchmarks.dpdm full --epsilon 1       batch 4,096, K = 32

Fashion-MNIST, all 60,000 images in one place, delta 1e-5, clip 1, Adam at 3e-4.
Training goes on from where the last call stopped, for at most ``--minutes``, and ends
with the Fréchet distance of 5,000 samples to the test images; so a machine that is lent
for ten minutes at a time will do. ``--speed`` times a few steps, and says how many fit
into 25 minutes; ``--steps`` sets the number, which has to be settled before the first
step: the noise depends on it.

The state between calls is saved after each round of ten steps, whole or not at all.
What is lost with a call that was killed was seen by nobody and is not counted; every
call draws secret randomness of its own. This is a measurement: there is no ledger, so
do not use it on data that need protection.

Differences from Dockhorn et al. (2023): the network and its loss (predicted noise on a
cosine schedule, not EDM), no classes and no guidance, DDIM with eta 1 for sampling, and
FD-small (fashion) beside FID, which needs Inception's weights (``--inception``).

Results: ``benchmarks/results/dpdm.json``. The images are looked for in the folder that
``CLOISTER_DATA`` names.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.private_digits import Results
from benchmarks.results_file import DATA
from diffusion.checkpoint import Checkpoint, choose_device
from diffusion.config import SamplerConfig, ScheduleConfig, UNetConfig
from diffusion.ema import ExponentialMovingAverage
from diffusion.features import FeatureExtractor, load_extractor
from diffusion.fid import FeatureStatistics, empty_statistics, frechet_distance
from diffusion.images import save_grid
from diffusion.model import make_model
from diffusion.parameters import (
    load_parameters,
    load_safetensors,
    parameters_of,
    save_safetensors,
)
from diffusion.schedule import make_schedule
from protocol.aggregation_settings import AggregationConfig, EvaluationConfig
from protocol.mechanism import calibrated, run_epsilon
from protocol.plan import PlanDraft
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig
from silo.config import DataConfig
from silo.data import ImageSet, load_images
from silo.private_training import train_privately
from silo.randomness import PrivateRandom
from silo.training import TrainingState
from silo.units import units_of

FASHION = DATA / "fashion_mnist" / "fashion_mnist.npz"
STEPS_PER_ROUND = 10
SPEED_STEPS = 3
SHORT_MINUTES = 25
SAMPLES_BLOCK = 500
PARTS = ("parameters", "average", "moments")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What distinguishes the settings.

    Attributes:
        batch_size: the expected number of images in a step.
        steps: of the whole training; rounded up to whole rounds of ten.
    """

    batch_size: int
    multiplicity: int
    steps: int
    model: UNetConfig
    num_samples: int = 5000


MODEL = UNetConfig(
    architecture="residual", dim=40, channels=1, dim_mults=(1, 2, 2), image_size=28
)
SETTINGS = {
    "full": Setting(batch_size=4096, multiplicity=32, steps=4394, model=MODEL),
    "short": Setting(batch_size=1024, multiplicity=8, steps=1000, model=MODEL),
    "tiny": Setting(
        batch_size=4,
        multiplicity=2,
        steps=20,
        model=replace(MODEL, dim=4, dim_mults=(1, 2)),
        num_samples=20,
    ),
}
"""``tiny`` takes seconds on a CPU: it says that the rest would run, nothing else."""


def draft_of(name: str, setting: Setting, epsilon: float, num_images: int) -> PlanDraft:
    """Return the draft of a setting, with its noise multiplier."""
    draft = PlanDraft(
        name=f"dpdm-{name}",
        num_rounds=math.ceil(setting.steps / STEPS_PER_ROUND),
        seed=0,
        model=setting.model,
        schedule=ScheduleConfig(kind="cosine"),
        training=TrainingConfig(
            local_steps=STEPS_PER_ROUND,
            examples_per_step=setting.batch_size,
            learning_rate=3e-4,
        ),
        privacy=PrivacyConfig(
            mechanism="dp-sgd",
            epsilon=epsilon,
            delta=1e-5,
            sample_rate=setting.batch_size / num_images,
            multiplicity=setting.multiplicity,
        ),
        # An average over rounds of ten steps: 0.999 a step.
        aggregation=AggregationConfig(ema_decay=0.99),
        evaluation=EvaluationConfig(
            sampler=SamplerConfig(kind="ddim", num_steps=100, eta=1.0)
        ),
    )
    return replace(draft, privacy=calibrated(draft))


class Training:
    """A training that goes on where its file says; without one it begins afresh."""

    def __init__(self, draft: PlanDraft, images: ImageSet, path: Path | None) -> None:
        self._draft, self._images, self._path = draft, images, path
        self._device = choose_device("auto")
        self._model = make_model(draft.model, draft.seed_for("model"))
        self._average = ExponentialMovingAverage(
            decay=draft.aggregation.ema_decay, parameters=parameters_of(self._model)
        )
        self._state = TrainingState()
        self._round, self._seconds = 0, 0.0
        if path is not None and path.exists():
            self._load(path)
        self._model.to(self._device)
        self._schedule = make_schedule(draft.schedule).to(self._device)
        self._random = PrivateRandom()

    @property
    def is_over(self) -> bool:
        """Whether all rounds are done."""
        return self._round == self._draft.num_rounds

    @property
    def steps(self) -> int:
        """The steps that are done and saved."""
        return self._round * self._draft.training.local_steps

    @property
    def seconds(self) -> float:
        """Wall seconds of all rounds that are done and saved."""
        return self._seconds

    @property
    def model(self) -> Checkpoint:
        """The average so far."""
        return Checkpoint(
            model=self._draft.model,
            schedule=self._draft.schedule,
            sampler=self._draft.evaluation.sampler,
            parameters=self._average.parameters,
        )

    def go_on(self, minutes: float) -> None:
        """Train rounds, at least one, until the time is up or all are done."""
        began, longest = time.monotonic(), 0.0
        while not self.is_over:
            if longest and time.monotonic() - began + longest > 60 * minutes:
                return
            started = time.monotonic()
            self.train_round()
            longest = max(longest, time.monotonic() - started)
            self._seconds += time.monotonic() - started
            self._save()

    def train_round(self) -> None:
        """Train the next round, and take it into the average."""
        draft = self._draft
        self._state = train_privately(
            self._model,
            self._images,
            units_of(self._images, draft.privacy.unit),
            self._schedule,
            draft,
            self._state,
            round_number=self._round + 1,
            device=self._device,
            random=self._random,
            observe=lambda progress: None,
            keep=lambda kept: None,
            checkpoint_steps=draft.training.local_steps,
        )
        self._round += 1
        named = parameters_of(self._model)
        named = {name: parameter.cpu() for name, parameter in named.items()}
        self._average = self._average.updated(named)

    def _save(self) -> None:
        """Write everything that the next call needs."""
        if self._path is None:
            return
        parts = (
            parameters_of(self._model),
            self._average.parameters,
            self._state.moments,
        )
        tensors = {
            f"{part}/{name}": tensor
            for part, named in zip(PARTS, parts, strict=True)
            for name, tensor in named.items()
        }
        notes = {
            "round": str(self._round),
            "seconds": str(self._seconds),
            "noise_multiplier": str(self._draft.privacy.noise_multiplier),
            "rounds": str(self._draft.num_rounds),
        }
        save_safetensors(self._path, tensors, notes)

    def _load(self, path: Path) -> None:
        """Read what the last call wrote, if it was for the same mechanism."""
        tensors, notes = load_safetensors(path)
        wanted = (self._draft.privacy.noise_multiplier, self._draft.num_rounds)
        if (float(notes["noise_multiplier"]), int(notes["rounds"])) != wanted:
            sys.exit(f"{path}: belongs to another mechanism; choose another --folder")
        parts = {
            part: {
                name.removeprefix(f"{part}/"): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{part}/")
            }
            for part in PARTS
        }
        self._round, self._seconds = int(notes["round"]), float(notes["seconds"])
        load_parameters(self._model, parts["parameters"])
        self._average = replace(
            self._average, parameters=parts["average"], num_updates=self._round
        )
        self._state = TrainingState(parts["moments"])


def speed(draft: PlanDraft, images: ImageSet) -> float:
    """Return seconds for a step, after a round of one that warms up."""
    seconds = []
    for steps in (1, SPEED_STEPS):
        training = replace(draft.training, local_steps=steps)
        short = Training(replace(draft, training=training), images, None)
        began = time.monotonic()
        short.train_round()
        seconds.append((time.monotonic() - began) / steps)
    return seconds[-1]


def distance(
    model: Checkpoint, setting: Setting, extractor: FeatureExtractor
) -> tuple[float, torch.Tensor]:
    """Return the distance of samples to the test images, and the first block."""
    test = load_images(
        DataConfig(source="npz", path=FASHION.name, split="test"), FASHION.parent
    )
    real = empty_statistics(extractor)
    rows = units_of(test, "example").order
    for start in range(0, len(rows), SAMPLES_BLOCK):
        block = test.batch(rows[start : start + SAMPLES_BLOCK])
        real = real.update(extractor.features(block))
    made: FeatureStatistics = empty_statistics(extractor)
    first = torch.empty(0)
    blocks = model.blocks(
        seed=1,
        count=setting.num_samples,
        device=choose_device("auto"),
        block_size=SAMPLES_BLOCK,
    )
    for images in blocks:
        first = first if len(first) else images.cpu()
        made = made.update(extractor.features(images.cpu()))
    return frechet_distance(made, real), first


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("setting", choices=tuple(SETTINGS))
    parser.add_argument("--epsilon", type=float, default=10.0)
    parser.add_argument("--steps", type=int, help="instead of the setting's own")
    parser.add_argument("--minutes", type=float, default=8.0, help="for this call")
    parser.add_argument("--folder", type=Path, default=Path("runs/dpdm"))
    parser.add_argument("--inception", type=Path, help="weights, for FID as well")
    parser.add_argument("--speed", action="store_true", help="time a few steps")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train for a while; when the training is over, measure it."""
    options = parse(arguments)
    if not FASHION.is_file():
        sys.exit(f"{FASHION.name} is not in {FASHION.parent}")
    setting = SETTINGS[options.setting]
    if options.steps:
        setting = replace(setting, steps=options.steps)
    config = DataConfig(source="npz", path=FASHION.name)
    images = load_images(config, FASHION.parent)
    draft = draft_of(options.setting, setting, options.epsilon, len(images))
    name = f"{options.setting}, epsilon {options.epsilon:g}"
    if options.speed:
        each = speed(draft, images)
        rate = setting.batch_size / each
        fits = int(60 * SHORT_MINUTES / each)
        print(
            f"{each:.3f} s a step, {rate:.0f} images/s; {fits} in {SHORT_MINUTES} min"
        )
        return
    stem = f"{options.setting}-{options.epsilon:g}"
    options.folder.mkdir(parents=True, exist_ok=True)
    training = Training(draft, images, options.folder / f"{stem}.safetensors")
    training.go_on(options.minutes)
    planned = draft.num_rounds * draft.training.local_steps
    print(f"{name}: {training.steps} of {planned} steps, {training.seconds:.0f} s")
    if not training.is_over:
        return
    results = Results("dpdm", draft.name, fresh=False)
    spent, privacy = run_epsilon(draft, draft.privacy.delta), draft.privacy
    wanted = f"<= {options.epsilon:g}"
    results.add(f"{name}: epsilon spent (delta 1e-5)", spent, "", wanted)
    results.add(f"{name}: noise multiplier", privacy.noise_multiplier, "")
    results.add(f"{name}: steps", planned, "steps")
    results.add(f"{name}: wall time of training", training.seconds, "s")
    rate = planned * setting.batch_size / training.seconds
    results.add(f"{name}: images a second, each {setting.multiplicity} draws", rate, "")
    extractors = {"FD-small (fashion)": load_extractor("fd-small-fashion")}
    if options.inception:
        weights = options.inception
        extractors["FID"] = load_extractor("inception", weights=weights)
    for kind, extractor in extractors.items():
        value, first = distance(training.model, setting, extractor)
        results.add(f"{name}: {kind}", value, f"{setting.num_samples} samples")
        save_grid(options.folder / f"{stem}.png", first[:64], columns=8, enlarge=3)


if __name__ == "__main__":
    main()
