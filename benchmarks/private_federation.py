"""What a federation's privacy costs: with DP, with DP in one place, and without DP.

1. ``examples/private_digits.toml`` through the real command: five silos, epsilon 10
   each, secure aggregation, audit.
2. The same epsilon with all images in one place: same steps, sample rate and noise
   multiplier, five times the images a step. Whoever held all the images could do this.
3. The same federation without DP: the plan's ``[privacy]`` table left out.

Models are compared by the Fréchet distance of 500 samples to the training images, as
``benchmarks/digits_recipe.py`` measures it. The noise of the first comes from the
operating system, so that its rows change from run to run; the second has a debugging
seed. The recipe was found in a handful of trials on the same images, whose privacy
cost nobody counted.

Results: ``benchmarks/results/private_federation.json``. A run that was broken off goes
on where it was; ``--fresh`` measures everything anew.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import tomli_w
import torch

from aggregator.checkpoints import CheckpointStore
from aggregator.config import AggregatorFolder
from audits.evidence import load_evidence
from benchmarks.digits_recipe import NUM_SAMPLES, Judge
from benchmarks.federation import cloister
from benchmarks.private_digits import (
    DEVICE,
    SAMPLES_SEED,
    Results,
    digits,
    train_alone,
)
from benchmarks.results_file import ROOT
from diffusion.checkpoint import Checkpoint, load_checkpoint
from diffusion.images import save_grid
from protocol.encoding import to_table
from protocol.plan import PlanDraft, RunPlan
from protocol.plan_files import load_draft, load_plan
from protocol.privacy_settings import PrivacyConfig
from protocol.records import PrivacySpent
from protocol.transcript import read_records

EXAMPLE = ROOT / "examples" / "private_digits.toml"
SEEDS = (7, 8, 9)
KINDS = ("federated DP", "central DP", "federated, no DP")


class Comparison:
    """Trains and scores models of one draft, and keeps the rows."""

    def __init__(self, results: Results, folder: Path, grids: Path | None) -> None:
        self._results, self._folder, self._grids = results, folder, grids
        self._draft, self._simulation = load_draft(EXAMPLE)
        self._judge = Judge()

    def seed(self, seed: int) -> None:
        """Measure one seed of the three kinds, what is not there already."""
        draft = replace(self._draft, seed=seed)
        measures: Mapping[str, Callable[[str, PlanDraft], Checkpoint]] = {
            KINDS[0]: self._federated,
            KINDS[1]: self._central,
            KINDS[2]: self._federated_without,
        }
        for kind, measure in measures.items():
            name = f"{kind}, seed {seed}"
            if self._results.has(f"{name}: FD-small"):
                continue
            self._score(name, measure(name, draft))

    def _federated(self, name: str, draft: PlanDraft) -> Checkpoint:
        """Run the draft through the command; keep what was spent, and the audit."""
        run, plan = self._simulate(name, draft)
        spent = [
            record.epsilon
            for transcript in load_evidence(run).silos.values()
            for record in (e.record for e in read_records(transcript.folder))
            if isinstance(record, PrivacySpent)
        ]
        wanted = f"<= {plan.privacy.epsilon:g}"
        self._results.add(f"{name}: largest epsilon spent", max(spent), "", wanted)
        multiplier = plan.privacy.noise_multiplier
        self._results.add(f"{name}: noise multiplier", multiplier, "")
        audit = subprocess.run(
            [sys.executable, "-m", "audits", "verify", str(run)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if audit.returncode:
            print(audit.stdout, audit.stderr)
        status = f"{name}: exit status of `audits verify`"
        self._results.add(status, audit.returncode, "", "== 0")
        return model_of(run, plan)

    def _federated_without(self, name: str, draft: PlanDraft) -> Checkpoint:
        """Run the draft without its mechanism."""
        run, plan = self._simulate(name, replace(draft, privacy=PrivacyConfig()))
        return model_of(run, plan)

    def _central(self, name: str, draft: PlanDraft) -> Checkpoint:
        """Train the draft on all images in one place, with the same noise multiplier.

        A step draws from all of them at the same rate and is divided accordingly.
        """
        silos = int(self._simulation["num_silos"])
        size = silos * draft.training.examples_per_step
        training = replace(draft.training, examples_per_step=size)
        trained = train_alone(replace(draft, training=training), digits())
        self._results.add(f"{name}: training", trained.seconds, "CPU s")
        return trained.model

    def _simulate(self, name: str, draft: PlanDraft) -> tuple[Path, RunPlan]:
        """Run a draft through the command; return its folder and its plan."""
        stem = name.replace(", ", "-").replace(" ", "-")
        path, run = self._folder / f"{stem}.toml", self._folder / stem
        table = {**to_table(draft), "simulation": self._simulation}
        path.write_bytes(tomli_w.dumps(table).encode())
        seconds, _, _ = cloister("simulate", path, "--out", run)
        self._results.add(f"{name}: wall time of `cloister simulate`", seconds, "s")
        return run, load_plan(run / "plan.toml")

    def _score(self, name: str, model: Checkpoint) -> None:
        """Keep the scores of a model, the distance last, and perhaps a grid."""
        images = model.images(seed=SAMPLES_SEED, count=NUM_SAMPLES, device=DEVICE)
        if self._grids is not None:
            path = self._grids / f"{name.replace(', ', '-').replace(' ', '-')}.png"
            save_grid(path, images[:64], columns=8, enlarge=7)
        scores = self._judge.scores(images)
        share = scores["probability > 0.5"]
        self._results.add(f"{name}: probability > 0.5", share, "share")
        classes = scores["smallest class share"]
        self._results.add(f"{name}: smallest class share", classes, "share")
        distance = scores["FD-small (digits)"]
        self._results.add(f"{name}: FD-small", distance, "500 samples")


def model_of(run: Path, plan: RunPlan) -> Checkpoint:
    """Return the model that a run ended with."""
    folder = AggregatorFolder(run / "aggregator").run(plan)
    return load_checkpoint(CheckpointStore(folder, plan).model)


def add_means(results: Results) -> None:
    """Add the mean over seeds of each kind, and two comparisons of them."""
    means = {}
    for kind in KINDS:
        names = [f"{kind}, seed {seed}: FD-small" for seed in SEEDS]
        distances = [results.value(name) for name in names if results.has(name)]
        results.add_mean(f"{kind}: FD-small", distances, "500 samples")
        means[kind] = sum(distances) / len(distances)
    federated, central, without = (means[kind] for kind in KINDS)
    results.add("federated DP / central DP", federated / central, "ratio")
    results.add("federated DP / no DP", federated / without, "ratio")


def main() -> None:
    """Measure all seeds, keeping every row as it is made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--grids", type=Path, help="folder for a grid of each model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = Results("private_federation", "", fresh=arguments.fresh)
    with tempfile.TemporaryDirectory() as name:
        comparison = Comparison(results, Path(name), arguments.grids)
        for seed in arguments.seeds:
            comparison.seed(seed)
    add_means(results)


if __name__ == "__main__":
    main()
