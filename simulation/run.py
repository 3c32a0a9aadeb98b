"""A whole federation on one machine: all three roles, from a draft to the report."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from aggregator.checkpoints import CheckpointStore
from aggregator.said import Measured
from aggregator.serve import RunSettings, run_plan
from audits.audit import Audit, run_audit
from audits.evidence import load_evidence
from audits.report.inputs import load_inputs
from audits.report.page import write_report
from audits.report.samples import load_samples
from diffusion.checkpoint import Checkpoint, choose_device, load_checkpoint
from diffusion.class_embedding import balanced_labels
from diffusion.images import save_grid
from diffusion.pictures import grid_columns
from diffusion.warm_up import central_images_of
from protocol.files import load_identity, locked
from protocol.model_records import Evaluated
from protocol.plan import RunPlan
from protocol.records import Traffic
from protocol.transcript import read_records
from protocol.transport import Transport
from silo.data import ImageSet
from simulation.display import Display
from simulation.encryption import check_encryption
from simulation.errors import SettingsRejected
from simulation.federation import Federation
from simulation.settings import SimulationConfig
from simulation.transport import Observe, in_memory, silo_processes

GRID_COLUMNS, GRID_SIZE = 10, 100
GRID_CELL_PIXELS = 64
SAMPLES_FILE = "samples.png"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run left: the audit, the distances by round, and the bytes.

    ``measured`` is what the silos measured together, where the plan asks for that.
    """

    audit: Audit
    report: Path
    samples: Path
    distances: Mapping[int, Evaluated]
    measured: Measured | None
    sent_bytes: int
    received_bytes: int
    vector_bytes: int


def run_federation(
    federation: Federation,
    config: SimulationConfig,
    console: Console,
    *,
    device: str = "auto",
    weights: Path | None = None,
    resume: bool = False,
) -> Outcome:
    """Run a federation, or what is left of it; write samples and report.

    Raises:
        SimulationError, AggregatorError, SiloError, ProtocolError, DiffusionError: one
            line; what is finished is saved, ``resume`` goes on from there.
    """
    if resume and not federation.plan_path.exists():
        raise SettingsRejected(f"{federation.root}: holds no run to resume")
    plan = federation.load_plan()
    torch.set_num_threads(config.aggregator_threads)
    with locked(federation.root):
        folder = federation.aggregator.run(plan)
        if not CheckpointStore(folder, plan).model.exists():
            _train(federation, plan, config, console, device, weights)
        return finish(federation, plan, device)


def _train(
    federation: Federation,
    plan: RunPlan,
    config: SimulationConfig,
    console: Console,
    device: str,
    weights: Path | None,
) -> None:
    """Carry out the rounds that are left, with a display.

    Raises:
        EncryptionFailed: the plan encrypts, and this machine cannot.
    """
    if plan.protection.is_encrypted:
        check_encryption()
    display = Display(plan, console)
    settings = RunSettings(
        device=choose_device(device),
        reference=federation.reference if plan.evaluation.needs_published else None,
        weights=weights,
        initial=federation.aggregator.initial,
        auxiliary=federation.aggregator.auxiliary,
        on_stage=display.stage,
        on_bytes=display.count,
        watcher=display.watcher(),
    )
    with (
        display.shown(),
        _silos(federation, plan, config, display.training, device) as transport,
    ):
        run_plan(
            plan,
            load_identity(federation.aggregator.identity),
            federation.aggregator.run(plan),
            transport,
            settings,
        )


@contextmanager
def _silos(
    federation: Federation,
    plan: RunPlan,
    config: SimulationConfig,
    observe: Observe,
    device: str,
) -> Iterator[Transport]:
    """Lend the transport that the settings ask for."""
    if config.transport == "memory":
        with in_memory(federation, plan, observe, device) as transport:
            yield transport
    else:
        with silo_processes(federation, plan, observe, device) as sockets:
            yield sockets


def finish(federation: Federation, plan: RunPlan, device: str) -> Outcome:
    """Draw the samples, audit the run, write the report."""
    store = CheckpointStore(federation.aggregator.run(plan), plan)
    samples = federation.root / SAMPLES_FILE
    if not samples.exists() and plan.update.is_complete:
        images = _grid_images(plan, load_checkpoint(store.model), device)
        enlarge = max(1, GRID_CELL_PIXELS // plan.model.image_size)
        columns = grid_columns(plan.model, GRID_COLUMNS)
        save_grid(samples, images, min(columns, len(images)), enlarge)
    evidence = load_evidence(federation.root, None)
    audit = run_audit(evidence)
    picture = load_samples(samples) if samples.exists() else None
    inputs = load_inputs(evidence, samples=picture)
    report = write_report(audit, inputs, federation.root)[0]
    records = [entry.record for entry in read_records(store.transcript)]
    traffic = [record for record in records if isinstance(record, Traffic)]
    return Outcome(
        audit=audit,
        report=report,
        samples=samples,
        distances={
            record.round_number: record
            for record in records
            if isinstance(record, Evaluated)
        },
        measured=next((r for r in records if isinstance(r, Measured)), None),
        sent_bytes=sum(record.sent_bytes for record in traffic),
        received_bytes=sum(record.received_bytes for record in traffic),
        vector_bytes=sum(record.vector_bytes for record in traffic),
    )


def _grid_images(plan: RunPlan, model: Checkpoint, device: str) -> Tensor:
    """Return what the picture of a run shows: samples, or its central images."""
    if plan.model.is_central_images:
        return central_images_of(model)
    return model.images(
        seed=plan.seed_for("samples"), count=GRID_SIZE, device=choose_device(device)
    )


def draw_samples(federation: Federation, count: int, device: str) -> ImageSet:
    """Return samples of a finished run's model, float32 ``[n, h, w, c]`` in [-1, 1].

    Those of a model with classes have the class that was asked for as their label.
    """
    plan = federation.load_plan()
    store = CheckpointStore(federation.aggregator.run(plan), plan)
    images = load_checkpoint(store.model).images(
        seed=plan.seed_for("quality"), count=count, device=choose_device(device)
    )
    num_classes = plan.model.num_classes
    labels = balanced_labels(num_classes, count).numpy() if num_classes else None
    return ImageSet(images.permute(0, 2, 3, 1).numpy(), (-1.0, 1.0), labels)
