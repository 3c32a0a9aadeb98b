from dataclasses import replace

import pytest
import torch

from diffusion.config import ScheduleConfig, UNetConfig
from diffusion.loss import denoising_loss
from diffusion.model import make_model
from diffusion.parameters import make_layout
from diffusion.parts import Part
from diffusion.schedule import make_schedule
from simulation.inversion import (
    Clues,
    Found,
    Held,
    _better,
    invert,
    likely_timesteps,
    softened,
)

T = 100


def model_of(architecture):
    """A tiny network whose layers of zeros are as after some training."""
    config = UNetConfig(
        architecture=architecture, dim=8, channels=1, dim_mults=(1,), image_size=6
    )
    model = make_model(config, 2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in model.zero_initialised():
            for parameter in module.parameters():
                parameter.normal_(0.0, 0.1, generator=generator)
    return model


def example(architecture, rule, timestep=30):
    """One example, its draws, and the update of one step on it."""
    model = model_of(architecture)
    schedule = make_schedule(ScheduleConfig(kind="cosine", num_timesteps=T))
    generator = torch.Generator().manual_seed(4)
    image = torch.rand((1, 1, 6, 6), generator=generator) * 2 - 1
    noise = torch.randn(image.shape, generator=generator)
    t = torch.tensor([timestep])
    denoising_loss(model, image, t, noise, schedule, "mse").sum().backward()
    layout = make_layout(model, Part)
    gradient = torch.cat([p.grad.flatten() for _, p in model.named_parameters()])
    update = -gradient
    if rule == "adam":
        update = -1e-3 * gradient / (gradient.abs() + 1e-8)
    held = Held(model, layout, schedule, "mse", update[None], rule)
    draws = (t.view(1, 1, 1), torch.ones(1, 1, 1), noise[None, None])
    return held, Clues(*draws), image


def decibels(found, image):
    return float(10 * torch.log10(4 / (found - image).square().mean()))


@pytest.mark.parametrize(
    ("architecture", "rule"), [("residual", "adam"), ("feddiffuse", "gradient")]
)
def test_an_image_is_read_off_one_step(architecture, rule):
    held, clues, image = example(architecture, rule)
    found = invert(held, clues, (1, 6, 6), seed=1, iterations=30, restarts=1)
    assert decibels(found.images[0], image) > 20
    assert found.mismatch < 0.2


def test_nothing_is_read_off_another_update():
    held, clues, image = example("feddiffuse", "adam")
    noise = torch.randn(held.updates.shape, generator=torch.Generator().manual_seed(1))
    other = replace(held, updates=noise)
    found = invert(other, clues, (1, 6, 6), seed=1, iterations=10, restarts=1)
    assert decibels(found.images[0], image) < 10
    assert found.mismatch > 0.6


def test_the_better_attempt_is_followed():
    held, clues, _ = example("feddiffuse", "gradient")
    twice = invert(held, clues, (1, 6, 6), seed=1, iterations=3, restarts=2)
    again = invert(held, clues, (1, 6, 6), seed=1, iterations=3, restarts=2)
    assert torch.equal(twice.images, again.images)


def test_of_each_update_the_better_images_are_chosen():
    """Two silos: the first attempt explains the first, the second one the second."""
    zeros, ones = torch.zeros(2, 1, 1, 1, 1), torch.ones(2, 1, 1, 1, 1)
    one = Found(zeros, zeros[:, None], torch.tensor([0.1, 0.9]))
    other = Found(ones, ones[:, None], torch.tensor([0.2, 0.3]))
    best = _better(one, other)
    assert best.images.flatten().tolist() == best.noise.flatten().tolist() == [0, 1]
    assert best.mismatch.tolist() == pytest.approx([0.1, 0.3])


@pytest.mark.parametrize("timestep", [0, 30, 97])
def test_the_timestep_stands_in_a_gradient(timestep):
    held, _, _ = example("residual", "gradient", timestep)
    assert likely_timesteps(held, 0).tolist() == [timestep]


@pytest.mark.parametrize("timestep", [1, 30, 97])
def test_signs_leave_a_few_timesteps(timestep):
    held, _, _ = example("residual", "adam", timestep)
    likely = likely_timesteps(held, 0).tolist()
    assert timestep in likely
    assert len(likely) < T / 2


def test_without_the_encoder_the_timestep_is_not_shown():
    held, _, _ = example("residual", "gradient")
    decoder = make_layout(held.model, [Part.DECODER])
    assert likely_timesteps(replace(held, layout=decoder), 0) is None


def test_softened_by_hand():
    """The median of |v| is 1, so s is 0.1: 1 / 1.1, and nearly the sign of 9.9."""
    values = softened(torch.tensor([[1.0, -9.9, 0.0]]))
    assert values[0].tolist() == pytest.approx([1 / 1.1, -0.99, 0.0])
