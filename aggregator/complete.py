"""A sampler for the aggregator of its own, where a run leaves parts in the silos.

It trains the parts that it lacks on public images, from the plan's first parameters;
what the silos share stays frozen. The run's privacy is not touched: shared parameters
are post-processed, and no silo's own parts or images are seen. Neither are they in the
result: it samples what public images and the shared parts make of each other.
"""

import dataclasses
from pathlib import Path

import torch

from aggregator.auxiliary import LabelledImages
from aggregator.checkpoints import MODEL_FILE
from aggregator.errors import ConfigRejected
from aggregator.state import shared_layout
from diffusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffusion.model import make_model
from diffusion.parameters import ParameterLayout, load_parameters, parameters_of
from diffusion.parts import part_of
from diffusion.schedule import make_schedule
from diffusion.warm_up import WarmUpConfig, warm_up
from protocol.plan import RunPlan

COMPLETED_FILE = "completed.safetensors"
COMPLETED_ON = "completed_on"
"""The note of a completed model: the public images, as its operator names them."""
MAX_NAME_LENGTH = 200


def missing_parts(plan: RunPlan, layout: ParameterLayout) -> tuple[str, ...]:
    """Return the parts with parameters that stay in the silos, in the model's order."""
    shared = set(layout.names)
    parts = part_of(make_model(plan.model, 0))
    return tuple(dict.fromkeys(p.value for n, p in parts.items() if n not in shared))


def load_finished(run: Path) -> Checkpoint:
    """Return the model of a finished run: the moving average, at the aggregator.

    Raises:
        ConfigRejected: there is no such run here, or it is not over.
        CorruptFile: the file is damaged.
    """
    path = run / MODEL_FILE
    if not path.exists():
        raise ConfigRejected(
            f"{path}: does not exist: there is no such run here, or it is not over"
        )
    return load_checkpoint(path)


def complete_model(
    plan: RunPlan,
    run: Path,
    images: LabelledImages,
    out: Path,
    config: WarmUpConfig,
    *,
    device: torch.device,
) -> float:
    """Train what a run left in the silos; write a complete model; return the loss.

    Guarantees: the shared parameters of the result are those of the run, bit for bit.
    The same input gives the same parameters on the same machine.

    Args:
        images: public ones; their name is noted in the result.
        out: written whole or not at all.

    Raises:
        ConfigRejected: ``out`` exists, nothing is missing, or the run is not over.
        WarmUpFailed: the loss is not finite; nothing is written then.
    """
    if out.exists():
        raise ConfigRejected(f"{out}: exists; nothing was changed")
    name = images.name
    if images.label != "public":
        raise ConfigRejected(f"{images.label}: only public images complete a model")
    if not (name.strip() and name.isprintable() and len(name) <= MAX_NAME_LENGTH):
        raise ConfigRejected(
            f"--name: must be 1 to {MAX_NAME_LENGTH} printable characters"
        )
    layout = shared_layout(plan)
    if not missing_parts(plan, layout):
        raise ConfigRejected("nothing is missing: the aggregator has the whole model")
    finished = load_finished(run)
    network = make_model(plan.model, plan.seed_for("model"))
    load_parameters(network, finished.parameters)
    shared = set(layout.names)
    for parameter_name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter_name not in shared)
    loss = warm_up(
        network.to(device),
        images.tensor(),
        make_schedule(plan.schedule).to(device),
        config,
        torch.Generator().manual_seed(plan.seed_for("complete")),
    )
    notes = {
        **finished.notes,
        COMPLETED_ON: name,
        "completed_with": f"{len(images.pixels)} images, {config.num_steps} steps",
    }
    parameters = {n: p.cpu() for n, p in parameters_of(network).items()}
    completed = dataclasses.replace(finished, parameters=parameters, notes=notes)
    save_checkpoint(out, completed)
    return loss
