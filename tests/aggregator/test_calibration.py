"""Training after the mean: as a plain loop says, and lowering what it should lower."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from aggregator.auxiliary import LabelledImages
from aggregator.calibration import auxiliary_loss, calibrate
from aggregator.errors import CalibrationFailed
from aggregator.state import RoundState, initial_state
from diffusion.ema import ExponentialMovingAverage
from diffusion.loss import denoising_loss
from diffusion.model import make_model
from diffusion.parameters import load_parameters
from diffusion.schedule import make_schedule
from protocol.calibration_settings import CalibrationConfig
from protocol.plan import RunPlan
from tests.aggregator.test_averaging import make

CPU = torch.device("cpu")


def plan_with(**changes: Any) -> RunPlan:
    fields = {
        "when": "every-round",
        "images": "aggregate",
        "num_images": 6,
        "source_round": 1,
        "steps": 5,
        "learning_rate": 1e-2,
        "examples_per_step": 4,
    }
    config = CalibrationConfig(**(fields | changes))
    plan = make([1.0, 1.0, 1.0])
    aggregation = replace(plan.aggregation, ema_decay=0.5)
    return replace(plan, calibration=config, aggregation=aggregation, num_rounds=3)


def some_images(plan: RunPlan) -> Tensor:
    size = plan.model.image_size
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(
        0, 256, (6, size, size, plan.model.channels), generator=generator
    ).byte()
    return LabelledImages(label="aggregate", pixels=pixels.numpy()).tensor()


def later(state: RoundState, number: int) -> RoundState:
    parameters = {name: 1.5 * value for name, value in state.parameters.items()}
    average = state.average.updated(parameters)
    return replace(state, round_number=number, parameters=parameters, average=average)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_it_equals_a_plain_loop() -> None:
    plan, number = plan_with(), 2
    images, before = some_images(plan), initial_state(plan)
    state = later(before, number)
    trained = calibrate(plan, state, before.average, images, device=CPU)

    network = make_model(plan.model, 0)
    load_parameters(network, state.parameters)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, fused=True)
    schedule = make_schedule(plan.schedule)
    generator = torch.Generator().manual_seed(plan.seed_for("calibration", number))
    for _ in range(5):
        chosen = torch.randint(6, (4,), generator=generator)
        x_0 = images[chosen]
        t = torch.randint(schedule.num_timesteps, (4,), generator=generator)
        noise = torch.randn(x_0.shape, generator=generator)
        kind = plan.training.loss
        optimizer.zero_grad()
        denoising_loss(network, x_0, t, noise, schedule, kind).mean().backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(
            trained.parameters[name], parameter.detach(), rtol=0, atol=1e-6
        )
    average = before.average.updated(trained.parameters)
    for name, value in average.parameters.items():
        assert torch.equal(trained.average.parameters[name], value)
    assert trained.average.num_updates == 1
    assert trained.round_number == number


def test_it_lowers_the_auxiliary_loss_and_repeats_itself() -> None:
    plan = plan_with(steps=60)
    images, before = some_images(plan), initial_state(plan)
    state = later(before, 2)
    first = calibrate(plan, state, before.average, images, device=CPU)
    again = calibrate(plan, state, before.average, images, device=CPU)
    other = calibrate(plan, later(before, 3), before.average, images, device=CPU)
    for name, value in first.parameters.items():
        assert torch.equal(again.parameters[name], value)
    assert any(
        not torch.equal(other.parameters[name], value)
        for name, value in first.parameters.items()
    )
    losses = [
        auxiliary_loss(plan, each.parameters, images, device=CPU)
        for each in (state, first)
    ]
    assert losses[1] < 0.9 * losses[0]


def test_the_auxiliary_loss_has_the_same_draws_in_every_round() -> None:
    plan = plan_with()
    images, state = some_images(plan), initial_state(plan)
    loss = auxiliary_loss(plan, state.parameters, images, device=CPU)
    assert loss == auxiliary_loss(plan, state.parameters, images, device=CPU)
    other = replace(plan, seed=plan.seed + 1)
    assert loss != auxiliary_loss(other, state.parameters, images, device=CPU)


def test_a_loss_that_is_not_finite_is_an_error_of_the_aggregator() -> None:
    plan = plan_with()
    state = initial_state(plan)
    spoilt = {name: value * float("nan") for name, value in state.parameters.items()}
    average = ExponentialMovingAverage(decay=0.0, parameters=spoilt)
    with pytest.raises(CalibrationFailed, match=r"calibration\.learning_rate"):
        calibrate(
            plan,
            replace(state, parameters=spoilt, round_number=2),
            average,
            some_images(plan),
            device=CPU,
        )
