"""One run of ``benchmarks/papers.py``, in a process of its own.

    python -m benchmarks.papers_worker CELL SEED SCALE DEVICE FOLDER

writes ``FOLDER/result.json`` when the run is over; killed or interrupted, it goes on
where it was.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import tomli_w
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

import aggregator.rounds
import silo.trainer
from aggregator.checkpoints import CheckpointStore
from benchmarks.papers_grid import Cell, Scale, Table, cells, draft_of
from benchmarks.results_file import DATA, ROOT
from diffusion.checkpoint import Checkpoint, choose_device, load_checkpoint
from diffusion.features import FeatureExtractor, load_extractor
from diffusion.fid import empty_statistics, frechet_distance
from diffusion.parameters import difference
from privacy.clipping import clip
from protocol.plan import RunPlan
from protocol.plan_files import load_draft
from protocol.records import Traffic
from protocol.transcript import read_records
from silo.local import train_alone
from silo.store import RunStore
from simulation.federation import Federation, make_federation
from simulation.run import run_federation
from simulation.settings import load_settings
from simulation.sources import load_pool

FASHION = DATA / "fashion_mnist" / "fashion_mnist.npz"
MOBILENET = DATA / "mobilenet_v2"
NUM_SAMPLES: Mapping[Scale, int] = {"small": 500, "paper": 10_000}
SAMPLES_SEED = 20240611
BLOCK = 250


def images_file(scale: Scale) -> Path:
    """Return Fashion-MNIST at a scale, with the test images; made where it is missing.

    The small one is the mean over blocks of 2×2 pixels.
    """
    if scale == "paper":
        return FASHION
    path = ROOT / "build" / "papers" / "fashion_14.npz"
    if not path.exists():
        with np.load(FASHION) as full:
            arrays = {name: full[name] for name in ("y_train", "y_test")}
            for name in ("x_train", "x_test"):
                blocks = full[name].reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
                arrays[name] = np.rint(blocks).astype(np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{time.monotonic_ns()}.npz")
        np.savez(temporary, **arrays)
        temporary.replace(path)
    return path


class Judge:
    """Measures models against the 10,000 test images.

    Images of 14×14 pixels are enlarged to the 28×28 of the features, both sides alike.
    """

    def __init__(self, scale: Scale, device: torch.device) -> None:
        self._scale, self._device = scale, device
        self._extractor: FeatureExtractor = load_extractor("fd-small-fashion")
        with np.load(images_file(scale)) as arrays:
            pixels = torch.from_numpy(arrays["x_test"])[:, None]
        self._reference = empty_statistics(self._extractor)
        for block in pixels.split(BLOCK):
            self._reference = self._reference.update(self._features(block / 127.5 - 1))

    def distance(self, model: Checkpoint) -> float:
        """Return the Fréchet distance of samples of a model."""
        statistics = empty_statistics(self._extractor)
        for block in model.blocks(
            seed=SAMPLES_SEED,
            count=NUM_SAMPLES[self._scale],
            device=self._device,
            block_size=BLOCK,
        ):
            statistics = statistics.update(self._features(block))
        return frechet_distance(statistics, self._reference)

    def _features(self, images: Tensor) -> Any:
        """Return the features of images ``[n, 1, h, w]`` in [-1, 1]."""
        if images.shape[-1] != 28:
            images = F.interpolate(images, size=28, mode="bilinear")
        return self._extractor.features(images)


def federated(cell: Cell, draft: Table, folder: Path, scale: Scale, device: str) -> Any:
    """Run a federation, or what is left of it; return what was measured."""
    path = folder / "draft.toml"
    path.write_text(tomli_w.dumps(draft))
    run, data = folder / "run", images_file(scale)
    federation = Federation(run)
    settings = load_settings(draft["simulation"], path, data)
    if not run.exists():
        federation = make_federation(run, load_draft(path)[0], settings)
    errors: dict[int, float] = {}
    norms: dict[int, list[float]] = {}
    with comparing(errors, norms) if cell.exact else nothing():
        outcome = run_federation(
            federation,
            settings,
            Console(quiet=True),
            device=device,
            resume=True,
        )
    plan = federation.load_plan()
    judge = Judge(scale, choose_device(device))
    distances = [judge.distance(model) for model in models_of(federation, plan)]
    result = {
        "distances": distances,
        "sent_bytes": outcome.sent_bytes,
        "received_bytes": outcome.received_bytes,
        "vector_bytes": outcome.vector_bytes,
        "protection": plan.protection.method,
        "audit": outcome.audit.verdict.value,
        "bytes_by_round": bytes_by_round(federation, plan),
    }
    if cell.exact:
        result |= {"relative_errors": errors, "norms": norms}
    return result


def models_of(federation: Federation, plan: RunPlan) -> Iterator[Checkpoint]:
    """Yield the model of a run, or those of its silos where it has no single one."""
    if plan.update.selection in ("full", "usplit"):
        folder = federation.aggregator.run(plan)
        yield load_checkpoint(CheckpointStore(folder, plan).model)
        return
    for party in plan.silos:
        files = federation.silo(party.name)
        yield load_checkpoint(RunStore(files.run(plan), files.journal(plan)).model)


def bytes_by_round(federation: Federation, plan: RunPlan) -> dict[str, int]:
    """Return the bytes of both directions by round; 0 stands for keys and the end."""
    folder = CheckpointStore(federation.aggregator.run(plan), plan).transcript
    totals: dict[str, int] = {}
    for entry in read_records(folder):
        record = entry.record
        if isinstance(record, Traffic):
            both = record.sent_bytes + record.received_bytes
            number = str(record.round_number)
            totals[number] = totals.get(number, 0) + both
    return totals


@contextmanager
def nothing() -> Iterator[None]:
    """Do nothing around a run."""
    yield


@contextmanager
def comparing(
    errors: dict[int, float], norms: dict[int, list[float]]
) -> Iterator[None]:
    """Note the relative error of every round's mean against that of exact updates.

    And norms: of the clipping, of the mean, and of each silo's update.

    The silos' own updates are clipped as theirs are, and averaged in float64 with
    equal or declared weights. All silos are in this process.
    """
    bounds: dict[int, float] = {}
    exact: dict[int, dict[int, np.ndarray[Any, np.dtype[np.float64]]]] = {}
    make, mean = silo.trainer.make_update, aggregator.rounds.mean_update

    def making(plan: RunPlan, layout: Any, *args: Any, **more: Any) -> Any:
        update = difference(more["local"], more["global_"], layout)
        numbers = next(a for a in args if hasattr(a, "clipping_norm"))
        clip(update, numbers.clipping_norm)
        number = more["round_number"]
        bounds[number] = numbers.clipping_norm
        exact.setdefault(number, {})[more["silo"]] = update.astype(np.float64)
        return make(plan, layout, *args, **more)

    def averaging(plan: RunPlan, *args: Any, **more: Any) -> Any:
        result = mean(plan, *args, **more)
        number = max(exact)
        weights = plan.relative_weights()
        updates = exact.pop(number)
        total = sum(weights[silo] * update for silo, update in updates.items())
        true = total / sum(weights[silo] for silo in updates)
        lengths = [float(np.linalg.norm(u)) for u in (true, *updates.values())]
        norms[number] = [bounds[number], *lengths]
        errors[number] = float(np.linalg.norm(result - true) / np.linalg.norm(true))
        return result

    with (
        mock.patch.object(silo.trainer, "make_update", making),
        mock.patch.object(aggregator.rounds, "mean_update", averaging),
    ):
        yield


def central(cell: Cell, draft: Table, folder: Path, scale: Scale, device: str) -> Any:
    """Train on all images in one place; return what was measured.

    A round of the federation has as many optimizer steps as one of its silos takes, or
    as many images as all of them see.
    """
    path = folder / "draft.toml"
    path.write_text(tomli_w.dumps(draft))
    plan, simulation = load_draft(path)
    settings = load_settings(simulation, path, images_file(scale))
    pool = load_pool(settings, plan.seed_for("partition"))
    training = plan.training
    a_silo = -(-len(pool.dealt) // cell.num_silos)
    steps = training.local_epochs * -(-a_silo // training.examples_per_step)
    training = replace(training, local_epochs=0, local_steps=cell.central * steps)
    out = folder / "central.safetensors"
    train_alone(
        replace(plan, training=training),
        pool.dealt,
        out,
        device=choose_device(device),
        observe=lambda progress: None,
    )
    distance = Judge(scale, choose_device(device)).distance(load_checkpoint(out))
    return {"distances": [distance], "steps": training.local_steps * plan.num_rounds}


def main() -> None:
    """Carry out one run."""
    name, seed, scale_name, device, folder_name = sys.argv[1:]
    (cell,) = [cell for cell in cells() if cell.name == name]
    scale, folder = cast("Scale", scale_name), Path(folder_name)
    torch.set_num_threads(1)
    draft = draft_of(cell, int(seed), scale)
    began = time.monotonic()
    carry_out = central if cell.central else federated
    result = carry_out(cell, draft, folder, scale, device)
    result["seconds"] = round(time.monotonic() - began, 1)
    result["device"] = device
    result["num_samples"] = NUM_SAMPLES[scale]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    result["commit"] = commit.stdout.strip()
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
