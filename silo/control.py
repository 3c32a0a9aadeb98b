"""The positive control: a model overfitted on purpose, on which the attacks succeed.

An attack that finds no members may be a bad attack. So this silo trains the plan's
network on a few of its own images, for much longer than so few deserve, and attacks
that, too. The control never leaves the silo, and is a memory of its images: its file is
readable by its owner alone.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from diffusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffusion.errors import CorruptFile
from diffusion.model import make_model
from diffusion.parameters import load_parameters, parameters_of
from diffusion.schedule import make_schedule
from protocol.encoding import encode, to_table
from protocol.files import SECRET_MODE
from protocol.plan import PlanDraft
from protocol.settings import TrainingConfig
from silo.data import ImageSet
from silo.training import Progress, TrainingState, train

EXAMPLES_PER_STEP = 64
LEARNING_RATE = 3e-3
_NOTE = "control"


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """How a control is trained; ``num_steps`` decides how much it overfits."""

    num_steps: int
    seed: int
    learning_rate: float = LEARNING_RATE


def control_draft(plan: PlanDraft, config: ControlConfig, count: int) -> PlanDraft:
    """Return the plan's model and schedule with the training of a control."""
    return PlanDraft(
        name="control",
        num_rounds=1,
        seed=config.seed,
        model=plan.model,
        schedule=plan.schedule,
        training=TrainingConfig(
            local_steps=config.num_steps,
            examples_per_step=min(EXAMPLES_PER_STEP, count),
            learning_rate=config.learning_rate,
            warm_up_fraction=0.05,
            final_learning_rate_fraction=0.05,
            loss=plan.training.loss,
            label_dropout=plan.training.label_dropout,
        ),
    )


def train_control(
    plan: PlanDraft,
    images: ImageSet,
    config: ControlConfig,
    *,
    device: torch.device,
    observe: Callable[[Progress], None],
) -> Checkpoint:
    """Return a model of the plan's architecture, overfitted on some images.

    Raises:
        DataError: there are no images.
        TrainingDiverged: the loss is not finite.
    """
    draft = control_draft(plan, config, len(images))
    model = make_model(draft.model, draft.seed_for("model")).to(device)
    train(
        model,
        images,
        make_schedule(draft.schedule).to(device),
        draft,
        TrainingState(),
        silo=0,
        round_number=1,
        device=device,
        observe=observe,
    )
    return Checkpoint(
        model=draft.model,
        schedule=draft.schedule,
        sampler=plan.evaluation.sampler,
        parameters={name: each.cpu() for name, each in parameters_of(model).items()},
    )


def load_or_train_control(
    path: Path,
    plan: PlanDraft,
    images: ImageSet,
    config: ControlConfig,
    *,
    device: torch.device,
    observe: Callable[[Progress], None],
) -> Checkpoint:
    """Return the control of a file if it was made from just this, else train it.

    Raises:
        DataError, TrainingDiverged: as :func:`train_control`.
        OSError: the file cannot be written.
    """
    digest = _digest(plan, images, config)
    if path.exists():
        try:
            kept = load_checkpoint(path)
        except CorruptFile:
            kept = None
        if kept is not None and kept.notes.get(_NOTE) == digest:
            return kept
    made = train_control(plan, images, config, device=device, observe=observe)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    save_checkpoint(path, replace(made, notes={_NOTE: digest}))
    path.chmod(SECRET_MODE)
    return made


def network_of(checkpoint: Checkpoint, device: torch.device) -> torch.nn.Module:
    """Return the network of a checkpoint, ready to be asked.

    Raises:
        CorruptFile: a parameter of the model is missing.
        ShapeMismatch: one is not the model's.
    """
    network = make_model(checkpoint.model, 0)
    missing = {name for name, _ in network.named_parameters()} - set(
        checkpoint.parameters
    )
    if missing:
        raise CorruptFile(f"{len(missing)} parameters of the model are missing")
    load_parameters(network, checkpoint.parameters)
    network.requires_grad_(False)
    return network.to(device).eval()


def _digest(plan: PlanDraft, images: ImageSet, config: ControlConfig) -> str:
    """Return what a control's file must have been made from."""
    draft = control_draft(plan, config, len(images))
    pixels: npt.NDArray[np.float32] = images.batch(np.arange(len(images))).numpy()
    labels = b"" if images.labels is None else images.labels.tobytes()
    content = encode(to_table(draft)) + encode(to_table(plan.evaluation.sampler))
    parts = (content, pixels.tobytes(), labels)
    return hashlib.sha256(
        b"".join(hashlib.sha256(p).digest() for p in parts)
    ).hexdigest()
