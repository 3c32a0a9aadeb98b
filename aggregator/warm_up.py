"""From released central images to the parameters that the next run begins with."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from aggregator.errors import ConfigRejected
from diffusion.checkpoint import load_checkpoint
from diffusion.images import save_grid
from diffusion.model import make_model
from diffusion.parameters import parameters_of, save_safetensors
from diffusion.schedule import make_schedule
from diffusion.warm_up import WarmUpConfig, central_images_of, warm_up
from protocol.plan import PlanDraft


@dataclass(frozen=True, kw_only=True)
class WarmedUp:
    """What a warm-up made: the file's digest, and what its images are called."""

    sha256: str
    name: str
    num_images: int
    loss: float

    @property
    def table(self) -> str:
        """The ``[initial]`` table of the next draft."""
        return (
            f'[initial]\nname = "{self.name}"\nsha256 = "{self.sha256}"\norigin = "run"'
        )


def warm_up_draft(
    central: Path,
    draft: PlanDraft,
    out: Path,
    config: WarmUpConfig,
    *,
    device: torch.device,
    picture: Path | None = None,
) -> WarmedUp:
    """Train a draft's model on central images alone; write all its parameters.

    Guarantees: it reads no other data, so the parameters are post-processing of what
    the run of the central images released. The same input gives the same parameters
    on the same machine.

    Args:
        central: the finished model of the run that released the images.
        out: the file that is written, whole or not at all.
        picture: where the central images are shown as a PNG grid; not at all if none.

    Raises:
        ConfigRejected: ``out`` exists; the draft begins with a file already, or is for
            central images itself.
        DiffusionError: no central images, or of another size; or training failed.
    """
    if out.exists():
        raise ConfigRejected(f"{out}: exists; nothing was changed")
    if draft.model.is_central_images:
        raise ConfigRejected(
            "the draft is for central images itself; give that of the training after it"
        )
    if draft.initial.name:
        raise ConfigRejected(
            f'the draft begins with "{draft.initial.name}" already; leave out its '
            "[initial] table"
        )
    checkpoint = load_checkpoint(central)
    images = central_images_of(checkpoint)
    model = draft.model
    wanted = (model.channels, model.image_size, model.image_size)
    if images.shape[1:] != wanted:
        shapes = [" × ".join(map(str, s)) for s in (images.shape[1:], wanted)]
        raise ConfigRejected(
            f"the central images are {shapes[0]}, the draft's model takes {shapes[1]}"
        )
    if picture is not None:
        columns, enlarge = min(10, len(images)), max(1, 64 // model.image_size)
        save_grid(picture, images, columns, enlarge)
    network = make_model(model, draft.seed_for("model")).to(device)
    loss = warm_up(
        network,
        images,
        make_schedule(draft.schedule).to(device),
        config,
        torch.Generator().manual_seed(draft.seed_for("warm-up")),
    )
    parameters = {n: p.cpu() for n, p in parameters_of(network).items()}
    run = checkpoint.notes.get("plan", "")
    save_safetensors(out, parameters, {"central_images_of_plan": run})
    return WarmedUp(
        sha256=hashlib.sha256(out.read_bytes()).hexdigest(),
        name=f"central images of run {run[:16] or 'unknown'}",
        num_images=len(images),
        loss=loss,
    )
