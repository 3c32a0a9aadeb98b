import math

import numpy as np
import pytest
import torch

from diffusion.config import ScheduleConfig
from diffusion.schedule import make_schedule


def test_linear_betas_of_a_thousand_timesteps_are_those_of_the_paper():
    schedule = make_schedule(ScheduleConfig(kind="linear", num_timesteps=1000))
    assert schedule.betas[0].item() == pytest.approx(1e-4)
    assert schedule.betas[-1].item() == pytest.approx(0.02)
    assert schedule.alpha_bar[0].item() == pytest.approx(0.9999)
    second_beta = 1e-4 + (0.02 - 1e-4) / 999
    assert schedule.alpha_bar[1].item() == pytest.approx(0.9999 * (1 - second_beta))
    assert schedule.alpha_bar_exact[-1] == pytest.approx(4.0358e-5, rel=1e-4)


def test_few_linear_timesteps_are_stretched_and_limited():
    # T = 10: the ends are 0.01 and 2.0; the second of them is limited.
    schedule = make_schedule(ScheduleConfig(kind="linear", num_timesteps=10))
    assert schedule.betas[0].item() == pytest.approx(0.01)
    assert schedule.betas[-1].item() == pytest.approx(0.999)


def test_cosine_alpha_bar_of_two_timesteps_by_hand():
    schedule = make_schedule(ScheduleConfig(kind="cosine", num_timesteps=2))
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    middle = math.cos(0.508 / 1.008 * math.pi / 2) ** 2
    assert schedule.alpha_bar[0].item() == pytest.approx(middle / start)
    assert schedule.betas[1].item() == pytest.approx(0.999)  # limited: it would be 1


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("num_timesteps", [2, 10, 1000])
def test_alpha_bar_falls_and_the_rates_are_its_roots(kind, num_timesteps):
    schedule = make_schedule(ScheduleConfig(kind=kind, num_timesteps=num_timesteps))
    exact = schedule.alpha_bar_exact
    assert exact.dtype == np.float64
    assert (np.diff(exact) < 0).all()
    assert 0 < exact[-1] < exact[0] < 1
    assert schedule.num_timesteps == num_timesteps
    for name in ("betas", "alpha_bar", "signal_rate", "noise_rate"):
        assert getattr(schedule, name).dtype == torch.float32
    np.testing.assert_allclose(schedule.signal_rate, np.sqrt(exact), rtol=1e-6)
    np.testing.assert_allclose(schedule.noise_rate, np.sqrt(1 - exact), rtol=1e-6)


def test_q_sample_mixes_each_example_at_its_own_timestep():
    schedule = make_schedule(ScheduleConfig(kind="linear", num_timesteps=1000))
    x_0 = torch.tensor([0.5, -1.0]).reshape(2, 1, 1, 1)
    noise = torch.tensor([2.0, 3.0]).reshape(2, 1, 1, 1)
    x_t = schedule.q_sample(x_0, torch.tensor([0, 999]), noise).flatten()
    last = schedule.alpha_bar_exact[-1]
    assert x_t[0].item() == pytest.approx(math.sqrt(0.9999) * 0.5 + 0.01 * 2.0)
    assert x_t[1].item() == pytest.approx(-math.sqrt(last) + math.sqrt(1 - last) * 3)
    moved = schedule.to("cpu").q_sample(x_0, torch.tensor([0, 999]), noise)
    assert torch.equal(moved.flatten(), x_t)
