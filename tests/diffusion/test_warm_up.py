"""Training on central images alone."""

import math

import pytest
import torch

from diffusion.checkpoint import Checkpoint
from diffusion.config import SamplerConfig, ScheduleConfig, UNetConfig
from diffusion.errors import CorruptFile, WarmUpFailed
from diffusion.loss import denoising_loss
from diffusion.means import IMAGES_NAME
from diffusion.model import make_model
from diffusion.parameters import parameters_of
from diffusion.schedule import make_schedule
from diffusion.warm_up import (
    WarmUpConfig,
    central_images_of,
    shifted,
    trained_timesteps,
    warm_up,
)

NETWORK = UNetConfig(
    architecture="residual", dim=4, channels=1, dim_mults=(1,), image_size=4
)
MEANS = UNetConfig(architecture="means", dim=2, channels=1, dim_mults=(), image_size=4)
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=20))
CONFIG = WarmUpConfig(
    num_steps=60,
    learning_rate=1e-2,
    examples_per_step=8,
    max_signal_to_noise=math.inf,
)


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(config: WarmUpConfig = CONFIG, seed: int = 1):
    model = make_model(NETWORK, 3)
    images = torch.full((2, 1, 4, 4), -1.0)
    images[:, :, 1:3, 1:3] = 1.0
    loss = warm_up(model, images, SCHEDULE, config, generator(seed))
    return model, images, loss


def mean_loss(model, images) -> float:
    made = generator(9)
    x_0 = images[:1].expand(64, -1, -1, -1)
    t = torch.randint(20, (64,), generator=made)
    noise = torch.randn(x_0.shape, generator=made)
    with torch.no_grad():
        return float(denoising_loss(model, x_0, t, noise, SCHEDULE, "mse").mean())


def test_the_network_learns_the_central_images() -> None:
    model, images, loss = trained()
    before = mean_loss(make_model(NETWORK, 3), images)
    assert before == pytest.approx(1.0, abs=0.1)
    assert mean_loss(model, images) < 0.7 * before
    assert loss < 0.7 * before


def test_it_can_be_repeated_and_ignores_global_randomness() -> None:
    short = WarmUpConfig(num_steps=3, learning_rate=1e-2, max_shift_pixels=1)
    torch.manual_seed(1)
    first = parameters_of(trained(short)[0])
    torch.manual_seed(2)
    second, third = (parameters_of(trained(short, seed)[0]) for seed in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_a_loss_that_is_not_finite_is_one_line() -> None:
    model = make_model(NETWORK, 3)
    images = torch.full((1, 1, 4, 4), math.nan)
    short = WarmUpConfig(num_steps=2, learning_rate=1e-2)
    with pytest.raises(WarmUpFailed, match=r"learning rate 0\.01"):
        warm_up(model, images, SCHEDULE, short, generator())


class TestTimesteps:
    def test_all_of_them_by_default(self) -> None:
        assert trained_timesteps(SCHEDULE, math.inf).tolist() == list(range(20))

    def test_only_the_noisy_ones_under_a_limit(self) -> None:
        chosen = trained_timesteps(SCHEDULE, 2.0)
        ratios = SCHEDULE.alpha_bar / (1 - SCHEDULE.alpha_bar)
        expected = [t for t in range(20) if ratios[t] <= 2.0]
        assert 0 < len(expected) < 20
        assert chosen.tolist() == expected

    def test_the_noisiest_one_is_always_there(self) -> None:
        assert trained_timesteps(SCHEDULE, 1e-30).tolist() == [19]


class TestShifts:
    def test_none_returns_the_images(self) -> None:
        images = torch.randn(3, 1, 4, 4)
        assert shifted(images, 0, generator()) is images

    def test_each_is_moved_and_its_border_repeated(self) -> None:
        image = torch.arange(16.0).reshape(1, 1, 4, 4)
        padded = torch.nn.functional.pad(image, (1,) * 4, mode="replicate")[0]
        every = {
            (down, right): padded[:, down : down + 4, right : right + 4]
            for down in range(3)
            for right in range(3)
        }
        seen = set()
        for one in shifted(image.expand(200, -1, -1, -1), 1, generator()):
            (place,) = (p for p, e in every.items() if torch.equal(one, e))
            seen.add(place)
        assert seen == set(every)


class TestImages:
    def checkpoint(self, images, model=MEANS) -> Checkpoint:
        return Checkpoint(
            model=model,
            schedule=ScheduleConfig(),
            sampler=SamplerConfig(),
            parameters={IMAGES_NAME: images},
        )

    def test_they_are_clamped(self) -> None:
        images = torch.zeros(2, 1, 4, 4)
        images[0, 0, 0, :2] = torch.tensor([3.0, -1.5])
        found = central_images_of(self.checkpoint(images))
        assert found[0, 0, 0].tolist() == [1.0, -1.0, 0.0, 0.0]

    @pytest.mark.parametrize(
        ("images", "model"),
        [
            (torch.zeros(2, 1, 4, 4), NETWORK),
            (torch.zeros(3, 1, 4, 4), MEANS),
            (torch.full((2, 1, 4, 4), math.nan), MEANS),
        ],
    )
    def test_anything_else_is_refused(self, images, model) -> None:
        with pytest.raises(CorruptFile):
            central_images_of(self.checkpoint(images, model))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("examples_per_step", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("max_shift_pixels", -1),
        ("max_signal_to_noise", 0.0),
        ("max_signal_to_noise", math.nan),
    ],
)
def test_a_wrong_number_is_named(field: str, value: float) -> None:
    good = {"num_steps": 1, "learning_rate": 1e-3}
    WarmUpConfig(**good)
    with pytest.raises(ValueError, match=field):
        WarmUpConfig(**(good | {field: value}))
