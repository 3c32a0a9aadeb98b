"""Membership inference on Fashion-MNIST: without DP, with epsilon 10, and overfitted.

Images are the means over blocks of 2×2 pixels, 14×14.

    python -m benchmarks.membership [--size small|full] [CELL …]

Cells, each in a process of its own, kept below ``build/membership/`` and not measured
twice:

- ``control``: the network overfitted on a few images, as ``silo probe`` does it. Half
  of its images find the attacks' timesteps, for all cells; the other half is attacked;
- ``plain``: five silos train a model together under secure aggregation, without DP;
- ``epsilon-10``: the same federation, same number of steps, with DP-SGD of epsilon 10
  for each silo;
- ``gsa``: per-layer gradient norms and a classifier trained on shadow models (GSA1,
  Pang et al., 2023, with gradient boosting in the place of XGBoost), on the control
  alone: it needs a shadow model for each that it learns from.

Members of a federation are images of all silos; the others are test images. The noise
of ``epsilon-10`` comes from the operating system. A silo has few images and sees them
often, so that there is something to be found: with thousands of images and short
training all attacks come near to 0.5. Without Fashion-MNIST (``CLOISTER_DATA``) there
is nothing to measure. Results: ``benchmarks/results/membership.json``.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aggregator.checkpoints import CheckpointStore
from benchmarks.papers_worker import FASHION, images_file
from benchmarks.results_file import ROOT, Row, row, save
from diffusion.checkpoint import Checkpoint, load_checkpoint
from diffusion.config import SamplerConfig, ScheduleConfig, UNetConfig
from diffusion.loss import denoising_loss
from diffusion.schedule import make_schedule
from privacy.attack_statistics import at_false_positive_rate, auc, auc_interval
from protocol.aggregation_settings import AggregationConfig, EvaluationConfig
from protocol.encoding import decode, encode, from_table, to_table
from protocol.plan import PlanDraft
from protocol.privacy_settings import PrivacyConfig
from protocol.probe_report import AttackResult, Target
from protocol.settings import TrainingConfig
from silo.attacks import ATTACKS, Scores
from silo.control import ControlConfig, load_or_train_control, network_of
from silo.data import ImageSet
from silo.memorisation import share
from silo.probe_attacks import (
    FALSE_POSITIVE_RATES,
    Guarantee,
    Sides,
    attack_model,
    tune,
)
from simulation.federation import Federation, make_federation
from simulation.run import run_federation
from simulation.settings import SimulationConfig, SourceConfig
from simulation.sources import Pool, load_pool, subset

CPU = torch.device("cpu")
CELLS = ("control", "plain", "epsilon-10", "gsa")
NUM_SILOS, SEED, EPSILON, DELTA = 5, 11, 10.0, 1e-3
GSA_TIMESTEPS = 10
TARGETS = {"gsa": ">= 0.8"}
"""Of the four attacks on the control one is to reach it, and GSA."""
RATE = 0.15

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Size:
    """How much is trained; ``full`` takes a quarter of an hour of one core."""

    images_per_silo: int
    num_rounds: int
    local_steps: int
    control_images: int
    control_steps: int
    num_shadows: int
    num_attacked: int


SIZES = {
    "small": Size(60, 2, 10, 32, 120, 1, 100),
    "full": Size(200, 12, 50, 64, 3000, 3, 1000),
}


class Bench:
    """The images, the network, and the control, at one size."""

    def __init__(self, size: Size, folder: Path) -> None:
        self.size, self.folder = size, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.settings = SimulationConfig(
            num_silos=NUM_SILOS,
            num_images=NUM_SILOS * size.images_per_silo,
            transport="memory",
            data=SourceConfig(source="npz", path=str(images_file("small"))),
        )
        self.draft = PlanDraft(
            name="membership",
            num_rounds=size.num_rounds,
            seed=SEED,
            model=UNetConfig(
                architecture="residual",
                dim=16,
                channels=1,
                dim_mults=(1, 2),
                image_size=14,
            ),
            schedule=ScheduleConfig(kind="cosine", num_timesteps=1000),
            training=TrainingConfig(
                local_steps=size.local_steps,
                examples_per_step=round(RATE * size.images_per_silo),
                learning_rate=4e-3,
                warm_up_fraction=0.05,
                final_learning_rate_fraction=0.1,
            ),
            aggregation=AggregationConfig(ema_decay=0.5),
            evaluation=EvaluationConfig(
                sampler=SamplerConfig(kind="ddim", num_steps=50)
            ),
        )
        self.pool: Pool = load_pool(self.settings, self.draft.seed_for("partition"))
        self.sides = Sides(self.pool.dealt, self.pool.held_out, False, CPU)

    def control(self, index: int = 0) -> Checkpoint:
        """Return the control (0), or a shadow model like it on images of its own."""
        return load_or_train_control(
            self.folder / f"control-{index}.safetensors",
            self.draft,
            subset(self.pool.dealt, self.control_members(index)),
            ControlConfig(num_steps=self.size.control_steps, seed=SEED + index),
            device=CPU,
            observe=lambda progress: None,
        )

    def control_members(self, index: int = 0) -> Indices:
        """Return the images that the control or a shadow model is trained on."""
        count = self.size.control_images
        return np.arange(index * count, (index + 1) * count)

    def control_test(self) -> tuple[Indices, Indices]:
        """Return the half of the control's images that is attacked, and others."""
        half = self.size.control_images // 2
        return self.control_members()[half:], np.arange(
            half, half + self.size.num_attacked
        )

    def attacked(
        self,
        target: Target,
        model: Checkpoint,
        members: Indices,
        others: Indices,
        guarantee: Guarantee,
    ) -> list[AttackResult]:
        """Return all four attacks on a model, tuned on the control's other half."""
        half = np.arange(self.size.control_images // 2)
        control, found = self.control(), []
        for name in ATTACKS:
            setting = tune(name, control, self.sides, half, half, SEED)
            found.append(
                attack_model(
                    setting, target, model, self.sides, members, others, guarantee, SEED
                )
            )
        return found

    def federation(self, cell: str) -> list[AttackResult]:
        """Train the silos together, or what is left of that; attack their model."""
        draft = self.draft
        if cell == "epsilon-10":
            privacy = PrivacyConfig(
                mechanism="dp-sgd",
                epsilon=EPSILON,
                delta=DELTA,
                sample_rate=RATE,
                multiplicity=1,
                spare_steps=2 * self.size.local_steps,
            )
            draft = replace(draft, privacy=privacy)
        root = self.folder / cell
        federation = Federation(root)
        if not root.exists():
            federation = make_federation(root, draft, self.settings)
        run_federation(
            federation, self.settings, Console(stderr=True), device="cpu", resume=True
        )
        plan = federation.load_plan()
        store = CheckpointStore(federation.aggregator.run(plan), plan)
        count = min(self.size.num_attacked, len(self.pool.dealt))
        chosen = np.arange(count)
        guarantee = (EPSILON, DELTA) if cell == "epsilon-10" else (0.0, 0.0)
        model = load_checkpoint(store.model)
        return self.attacked("global", model, chosen, chosen, guarantee)

    def gsa(self) -> list[AttackResult]:
        """Return GSA1 on the control, learnt on shadow models."""
        features, labels = [], []
        for index in range(1, self.size.num_shadows + 1):
            shadow, count = self.control(index), self.size.control_images
            outside = 2 * self.size.num_attacked + self.control_members(index)
            for images, chosen, label in (
                (self.pool.dealt, self.control_members(index), 1),
                (self.pool.held_out, outside, 0),
            ):
                features.append(gradient_norms(shadow, images, chosen))
                labels.append(np.full(count, label))
        classifier = make_pipeline(
            StandardScaler(), GradientBoostingClassifier(random_state=SEED)
        )
        classifier.fit(np.concatenate(features), np.concatenate(labels))
        control = self.control()
        inside, outside_scores = (
            np.asarray(
                classifier.decision_function(gradient_norms(control, images, chosen))
            )
            for images, chosen in zip(
                (self.pool.dealt, self.pool.held_out), self.control_test(), strict=True
            )
        )
        settings = f"GSA1, {GSA_TIMESTEPS} timesteps, {self.size.num_shadows} shadows"
        return [result_of("GSA", "control", settings, inside, outside_scores)]


def gradient_norms(model: Checkpoint, images: ImageSet, chosen: Indices) -> Scores:
    """Return the logarithms of each image's gradient norms, ``[n, tensors]``.

    The gradient is that of the mean loss over fixed timesteps and noises.
    """
    network = network_of(model, CPU).requires_grad_(True)
    schedule = make_schedule(model.schedule)
    parameters = list(network.parameters())
    generator = torch.Generator().manual_seed(SEED)
    last = schedule.num_timesteps - 1
    t = torch.linspace(0, last, GSA_TIMESTEPS).round().long()
    rows = []
    for index in chosen:
        image = images.batch(np.array([index])).expand(GSA_TIMESTEPS, -1, -1, -1)
        noise = torch.randn(image.shape, generator=generator.manual_seed(SEED))
        loss = denoising_loss(network, image, t, noise, schedule, "mse").mean()
        gradients = torch.autograd.grad(loss, parameters)
        rows.append([float(gradient.norm()) for gradient in gradients])
    return np.log(np.maximum(np.array(rows), 1e-12))


def result_of(
    attack: str, target: Target, settings: str, inside: Scores, outside: Scores
) -> AttackResult:
    """Return the figures of scores; without a curve."""
    area = auc(inside, outside)
    interval = auc_interval(inside, outside, np.random.default_rng(SEED))
    counts = [at_false_positive_rate(inside, outside, r) for r in FALSE_POSITIVE_RATES]
    return AttackResult(
        attack=attack,
        target=target,
        settings=settings,
        num_members=len(inside),
        num_held_out=len(outside),
        confidence=0.95,
        auc=area,
        auc_low=min(area, interval.low),
        auc_high=max(area, interval.high),
        at_fpr=FALSE_POSITIVE_RATES,
        tpr_at=tuple(share(one.true_positives, len(inside)) for one in counts),
        false_positives_at=tuple(one.false_positives for one in counts),
        roc_fpr=(),
        roc_tpr=(),
    )


def measure(cell: str, size: str, folder: Path) -> None:
    """Measure one cell and keep it."""
    torch.set_num_threads(1)
    began, bench = time.process_time(), Bench(SIZES[size], folder)
    if cell == "control":
        found = bench.attacked(
            "control", bench.control(), *bench.control_test(), (0.0, 0.0)
        )
    elif cell == "gsa":
        found = bench.gsa()
    else:
        found = bench.federation(cell)
    seconds = time.process_time() - began
    table = {"attacks": [to_table(one) for one in found], "seconds": seconds}
    (folder / f"{cell}.json").write_bytes(encode(table))


def rows_of(folder: Path) -> list[Row]:
    """Return the rows of all cells that were measured."""
    rows: list[Row] = []
    for cell in CELLS:
        path = folder / f"{cell}.json"
        if not path.exists():
            continue
        table = decode(path.read_bytes())
        for each in table["attacks"]:
            one = from_table(AttackResult, each)
            name = f"{cell}, {one.attack} ({one.settings})"
            rows.append(row(f"{name}: AUC", one.auc, "", TARGETS.get(cell, "")))
            rows.append(row(f"{name}: AUC, 95 % from", one.auc_low, ""))
            rows.append(row(f"{name}: AUC, 95 % to", one.auc_high, ""))
            for rate, right, wrong in zip(
                one.at_fpr, one.tpr_at, one.false_positives_at, strict=True
            ):
                counts = f"{right.count} of {right.total}; {wrong} others"
                what = f"{name}: TPR at {rate:.1%} FPR ({counts})"
                rows.append(row(what, right.count / right.total, "share"))
        rows.append(row(f"{cell}: this cell", table["seconds"], "CPU s"))
    return rows


def main() -> None:
    """Measure what is missing, each cell in a process; write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="*", metavar="CELL", help=", ".join(CELLS))
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.cells) - set(CELLS):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(CELLS)}")
    if not FASHION.exists():
        print(f"skipped: {FASHION.name} is not there; set CLOISTER_DATA")
        return
    folder = ROOT / "build" / "membership" / options.size
    if options.only:
        measure(options.cells[0], options.size, folder)
        return
    for cell in options.cells or CELLS:
        if not (folder / f"{cell}.json").exists():
            print(f"== {cell}", flush=True)
            this = [sys.executable, "-m", "benchmarks.membership", "--only", cell]
            subprocess.run([*this, f"--size={options.size}"], check=True, cwd=ROOT)
    size = json.dumps(vars(SIZES[options.size]))
    print(save("membership", rows_of(folder), f"1 thread; size {options.size}: {size}"))


if __name__ == "__main__":
    main()
