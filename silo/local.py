"""One silo alone: the same training, no federation, nothing leaves."""

from collections.abc import Callable
from pathlib import Path

import torch

from diffusion.checkpoint import Checkpoint, save_checkpoint
from diffusion.ema import ExponentialMovingAverage
from diffusion.model import make_model
from diffusion.parameters import parameters_of
from diffusion.schedule import make_schedule
from protocol.plan import PlanDraft
from silo.data import ImageSet
from silo.training import Progress, TrainingState, train


def train_alone(
    draft: PlanDraft,
    images: ImageSet,
    out: Path,
    *,
    device: torch.device,
    observe: Callable[[Progress], None],
) -> None:
    """Train a draft's model on this silo's images alone; save it after each round.

    Raises:
        DataError: the images do not fit the model.
        TrainingDiverged: the last saved round stays.
    """
    images.check_fits(draft.model)
    model = make_model(draft.model, draft.seed_for("model"))
    model.to(device)
    schedule = make_schedule(draft.schedule).to(device)
    state = TrainingState()
    average = ExponentialMovingAverage(
        decay=draft.aggregation.ema_decay, parameters=parameters_of(model)
    )
    for round_number in range(1, draft.num_rounds + 1):
        state = train(
            model,
            images,
            schedule,
            draft,
            state,
            silo=0,
            round_number=round_number,
            device=device,
            observe=observe,
        )
        average = average.updated(parameters_of(model))
        checkpoint = Checkpoint(
            model=draft.model,
            schedule=draft.schedule,
            sampler=draft.evaluation.sampler,
            parameters=average.parameters,
            notes={"trained": f"alone, round {round_number} of {draft.num_rounds}"},
        )
        save_checkpoint(out, checkpoint)
