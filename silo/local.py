"""One silo alone: the same training, no federation, nothing leaves."""

from collections.abc import Callable
from pathlib import Path

import torch

from diffusion.checkpoint import Checkpoint, save_checkpoint
from diffusion.ema import ExponentialMovingAverage
from diffusion.initial import first_model
from diffusion.parameters import parameters_of
from diffusion.schedule import make_schedule
from protocol.plan import PlanDraft
from silo.data import ImageSet
from silo.private_round import PrivateRounds
from silo.training import Progress, TrainingState, train


def train_alone(
    draft: PlanDraft,
    images: ImageSet,
    out: Path,
    *,
    device: torch.device,
    observe: Callable[[Progress], None],
    initial: Path | None = None,
    private: PrivateRounds | None = None,
) -> None:
    """Train a draft's model on this silo's images alone; save it after each round.

    Args:
        initial: the file of the parameters that the draft begins with, if it names one.
        private: the mechanism, where the draft has one.

    Raises:
        DataError: the images do not fit the model.
        DiffusionError: the file of the first parameters is missing or another one.
        BudgetExceeded, TrainingDiverged: the last saved round stays.
    """
    images.check_fits(draft.model)
    seed = draft.seed_for("model")
    model = first_model(draft.model, seed, draft.initial.sha256, initial)
    model.to(device)
    schedule = make_schedule(draft.schedule).to(device)
    state = TrainingState()
    average = ExponentialMovingAverage(
        decay=draft.aggregation.ema_decay, parameters=parameters_of(model)
    )
    for round_number in range(1, draft.num_rounds + 1):
        if private is not None:
            state = private.train(model, schedule, state, round_number=round_number)
        else:
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
