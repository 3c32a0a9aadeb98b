"""Training after the mean: the global model is optimised further on auxiliary images.

The same loss as in the silos, Adam begun afresh; all randomness follows from the plan's
seed and the round, so that a round that is repeated after a crash ends alike.

Source: Peng et al., 2025 (FedDDPM, arXiv 2503.06426), by its abstract; optimizer,
numbers of steps and learning rate are ours (docs/calibration.md).
"""

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from aggregator.errors import CalibrationFailed
from aggregator.state import RoundState
from diffusion.ema import ExponentialMovingAverage
from diffusion.errors import WarmUpFailed
from diffusion.loss import denoising_loss
from diffusion.model import make_model
from diffusion.parameters import load_parameters, parameters_of
from diffusion.parts import DenoisingNetwork
from diffusion.schedule import make_schedule
from diffusion.warm_up import WarmUpConfig, warm_up
from protocol.plan import RunPlan

LOSS_IMAGES = 512
"""The auxiliary loss is measured on so many of the images, or on all there are."""

BLOCK = 128


def calibrate(
    plan: RunPlan,
    state: RoundState,
    average_before: ExponentialMovingAverage,
    images: Tensor,
    *,
    device: torch.device,
) -> RoundState:
    """Return the state after a round, its parameters trained on auxiliary images.

    The moving average takes in the trained parameters in the place of the mean's.

    Args:
        state: after the mean was applied.
        average_before: the moving average before the round.
        images: ``[n, c, h, w]`` in [-1, 1].

    Raises:
        CalibrationFailed: the loss is not finite.
    """
    config = plan.calibration
    network = _network(plan, state.parameters, device)
    training = WarmUpConfig(
        num_steps=config.steps,
        learning_rate=config.learning_rate,
        loss=plan.training.loss,
        examples_per_step=config.examples_per_step,
        max_signal_to_noise=math.inf,
    )
    seed = plan.seed_for("calibration", state.round_number)
    try:
        warm_up(
            network,
            images,
            make_schedule(plan.schedule).to(device),
            training,
            torch.Generator().manual_seed(seed),
        )
    except WarmUpFailed:
        raise CalibrationFailed(
            f"calibration after round {state.round_number}: the loss is not finite "
            f"after {config.steps:,} steps (calibration.learning_rate "
            f"{config.learning_rate:g}); a smaller one may help, in a new run"
        ) from None
    parameters = {name: p.cpu() for name, p in parameters_of(network).items()}
    return with_parameters(state, average_before, parameters)


def with_parameters(
    state: RoundState,
    average_before: ExponentialMovingAverage,
    parameters: Mapping[str, Tensor],
) -> RoundState:
    """Return a state with other parameters at the end of its round."""
    average = average_before.updated(parameters)
    return dataclasses.replace(state, parameters=parameters, average=average)


def auxiliary_loss(
    plan: RunPlan,
    parameters: Mapping[str, Tensor],
    images: Tensor,
    *,
    device: torch.device,
) -> float:
    """Return a model's mean loss on auxiliary images, on the same draws in every round.

    Images, timesteps and noise follow from the plan's seed alone.
    """
    network = _network(plan, parameters, device).eval()
    schedule = make_schedule(plan.schedule).to(device)
    generator = torch.Generator().manual_seed(plan.seed_for("auxiliary-loss"))
    chosen = torch.randperm(len(images), generator=generator)[:LOSS_IMAGES]
    t = torch.randint(schedule.num_timesteps, (len(chosen),), generator=generator)
    noise = torch.randn((len(chosen), *images.shape[1:]), generator=generator)
    losses = []
    with torch.no_grad():
        for start in range(0, len(chosen), BLOCK):
            block = slice(start, start + BLOCK)
            losses.append(
                denoising_loss(
                    network,
                    images[chosen[block]].to(device),
                    t[block].to(device),
                    noise[block].to(device),
                    schedule,
                    plan.training.loss,
                )
            )
    return float(torch.cat(losses).double().mean())


def _network(
    plan: RunPlan, parameters: Mapping[str, Tensor], device: torch.device
) -> DenoisingNetwork:
    """Return the plan's network with some parameters."""
    network = make_model(plan.model, 0)
    load_parameters(network, parameters)
    return network.to(device)
