"""The model of a finished run in a folder of its own, with a model card."""

import dataclasses
import hashlib
from pathlib import Path

from aggregator.checkpoints import CheckpointStore
from aggregator.complete import COMPLETED_ON, load_finished, missing_parts
from aggregator.errors import ConfigRejected
from aggregator.model_card import ModelFile, model_card
from aggregator.state import shared_layout
from diffusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from protocol.files import save_bytes, whole_folder
from protocol.plan import RunPlan

CARD_FILE = "README.md"
AVERAGE_FILE = "model.safetensors"
LATEST_FILE = "latest.safetensors"
COMPLETED_FILE = "completed.safetensors"


def export_run(
    plan: RunPlan,
    run: Path,
    out: Path,
    *,
    with_latest: bool = False,
    completed: Path | None = None,
) -> list[Path]:
    """Write a finished run's model and its card; return the paths.

    Guarantees: the folder appears whole or not at all. Of a model that is incomplete
    at the aggregator the shared parameters alone are written: what stands for the
    missing ones there was never trained.

    Args:
        run: the aggregator's folder of the run.
        with_latest: also the latest parameters; the average is that over the rounds.
        completed: also what ``aggregator complete`` made of the run's model.

    Raises:
        ConfigRejected: ``out`` exists, the run is not over, or ``completed`` is not of
            this run.
        StateBroken, DiffusionError, TranscriptBroken: what is on disk is damaged.
    """
    if out.exists():
        raise ConfigRejected(f"{out}: exists; nothing was changed")
    if not out.absolute().parent.is_dir():
        raise ConfigRejected(f"--out: the folder {out.parent} does not exist")
    average, store = load_finished(run), CheckpointStore(run, plan)
    state = store.load()
    if state is None:
        raise ConfigRejected(f"{run}: the checkpoint of the last round is missing")
    layout = shared_layout(plan)
    models = {
        AVERAGE_FILE: (average, "the moving average over the rounds, to sample from")
    }
    if with_latest:
        latest = dataclasses.replace(average, parameters=state.parameters)
        models[LATEST_FILE] = (latest, "the parameters after the last round")
    missing = missing_parts(plan, layout)
    for name, (model, what) in models.items():
        if missing:
            parts = f"{what}; without {' and '.join(missing)}"
            models[name] = (_only(model, layout.names), parts)
    if completed is not None:
        models[COMPLETED_FILE] = (
            _load_completed(completed, plan),
            "completed on public images",
        )
    with whole_folder(out.absolute()) as folder:
        files = []
        for name, (model, what) in models.items():
            save_checkpoint(folder / name, model)
            files.append(_described(folder / name, what, model))
        card = model_card(plan, store.transcript, files, missing, state.round_number)
        save_bytes(folder / CARD_FILE, card.encode())
    return [out / name for name in (*models, CARD_FILE)]


def _only(model: Checkpoint, names: tuple[str, ...]) -> Checkpoint:
    """Return a model with some of its parameters."""
    kept = {name: model.parameters[name] for name in names}
    return dataclasses.replace(model, parameters=kept)


def _load_completed(path: Path, plan: RunPlan) -> Checkpoint:
    """Return a completed model of this run.

    Raises:
        ConfigRejected: it is another run's, or was not completed.
    """
    model = load_checkpoint(path)
    if model.notes.get("plan") != plan.digest.hex() or COMPLETED_ON not in model.notes:
        raise ConfigRejected(
            f"--completed {path}: `aggregator complete` did not make it of this run"
        )
    return model


def _described(path: Path, what: str, model: Checkpoint) -> ModelFile:
    """Return what the card says of a file."""
    content = path.read_bytes()
    return ModelFile(
        name=path.name,
        content=what,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        notes=model.notes,
    )
