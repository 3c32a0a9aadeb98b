"""The samplers against a slow, obvious reference on a toy model."""

import math

import pytest
import torch

from diffusion.config import SamplerConfig, ScheduleConfig, UNetConfig
from diffusion.model import make_model
from diffusion.sampling import (
    ancestral_step,
    ddim_step,
    image_generator,
    predict_x_0,
    sample,
    sampling_timesteps,
)
from diffusion.schedule import make_schedule

SHORT = make_schedule(ScheduleConfig(kind="linear", num_timesteps=20))


def toy(x_t, t):
    """Predict the noise as if every clean pixel were Gaussian, 0.1 ± 0.8."""
    alpha_bar = SHORT.alpha_bar[t].reshape(-1, 1, 1, 1)
    return expected_noise(x_t, alpha_bar)


def expected_noise(x, alpha_bar):
    variance = 0.64 * alpha_bar + 1 - alpha_bar
    return (1 - alpha_bar) ** 0.5 * (x - 0.1 * alpha_bar**0.5) / variance


class Toy(torch.nn.Module):
    def forward(self, x_t, t):
        assert not self.training
        assert not torch.is_grad_enabled()
        return toy(x_t, t)


def draw(config, model=None, schedule=SHORT, **changes):
    arguments = {
        "seed": 4,
        "first_index": 0,
        "count": 5,
        "image_shape": (1, 2, 2),
        "device": "cpu",
        "block_size": 2,
    }
    model = Toy() if model is None else model
    return list(sample(model, schedule, config, **{**arguments, **changes}))


def reference_image(config, index):
    """One image, pixel by pixel, in Python floats, straight from the papers."""
    generator = image_generator(4, index)
    pixels = torch.randn((1, 2, 2), generator=generator).flatten().tolist()
    steps = 20 if config.kind == "ancestral" else config.num_steps
    times = [19 - round(19 * i / (steps - 1)) for i in range(steps)]
    betas = [min(b * 50, 0.999) for b in torch.linspace(1e-4, 0.02, 20).tolist()]
    bars = [math.prod(1 - b for b in betas[: t + 1]) for t in range(20)]
    for step, t in enumerate(times):
        last = step == len(times) - 1
        ab = bars[t]
        before = 1.0 if last else bars[times[step + 1]]
        fresh = [0.0] * 4
        if not last:
            fresh = torch.randn((1, 2, 2), generator=generator).flatten().tolist()
        for i, x in enumerate(pixels):
            noise = expected_noise(x, ab)
            x_0 = (x - math.sqrt(1 - ab) * noise) / math.sqrt(ab)
            if config.clamp:
                x_0 = min(max(x_0, -1.0), 1.0)
                noise = (x - math.sqrt(ab) * x_0) / math.sqrt(1 - ab)
            if config.kind == "ancestral":
                beta = betas[t]
                mean = math.sqrt(before) * beta / (1 - ab) * x_0
                mean += math.sqrt(1 - beta) * (1 - before) / (1 - ab) * x
                variance = beta * (1 - before) / (1 - ab)
            else:
                variance = (1 - before) / (1 - ab) * (1 - ab / before)
                variance *= config.eta**2
                mean = math.sqrt(before) * x_0
                mean += math.sqrt(max(1 - before - variance, 0)) * noise
            pixels[i] = mean + math.sqrt(variance) * fresh[i]
    return torch.tensor(pixels).clamp(-1, 1).reshape(1, 2, 2)


@pytest.mark.parametrize(
    "config",
    [
        SamplerConfig(kind="ancestral", clamp=False),
        SamplerConfig(kind="ancestral", clamp=True),
        SamplerConfig(kind="ddim", num_steps=5, eta=0.0, clamp=False),
        SamplerConfig(kind="ddim", num_steps=5, eta=1.0, clamp=True),
        SamplerConfig(kind="ddim", num_steps=20, eta=0.5, clamp=True),
    ],
)
def test_every_sampler_follows_its_reference(config):
    images = torch.cat(draw(config))
    expected = torch.stack([reference_image(config, i) for i in range(5)])
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)
    inside = images.abs() < 1
    assert inside.float().mean() > 0.5


def test_ddim_with_all_timesteps_and_full_noise_is_ancestral_sampling():
    ddim = draw(SamplerConfig(kind="ddim", num_steps=20, eta=1.0))
    ancestral = draw(SamplerConfig(kind="ancestral"))
    torch.testing.assert_close(
        torch.cat(ddim), torch.cat(ancestral), rtol=1e-4, atol=1e-5
    )


def test_the_true_noise_leads_back_to_the_clean_image():
    schedule = make_schedule(ScheduleConfig())
    x_0 = torch.tensor([0.25, -0.75]).reshape(1, 1, 1, 2)
    noise = torch.tensor([1.5, -0.5]).reshape(1, 1, 1, 2)
    x_t = schedule.q_sample(x_0, torch.tensor([700]), noise)
    alpha_bar = float(schedule.alpha_bar_exact[700])
    found = predict_x_0(x_t, noise, alpha_bar, clamp=False)
    torch.testing.assert_close(found, x_0, rtol=1e-4, atol=1e-5)
    # Without fresh noise DDIM walks along q_sample with the same noise.
    zeros = torch.zeros_like(x_t)
    x = ddim_step(x_t, noise, 700, 300, schedule, 0.0, zeros, False)
    expected = schedule.q_sample(x_0, torch.tensor([300]), noise)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)
    last = ddim_step(x_t, noise, 700, None, schedule, 1.0, zeros, False)
    torch.testing.assert_close(last, x_0, rtol=1e-4, atol=1e-5)


def test_the_last_ancestral_step_is_the_predicted_image():
    x_t = torch.tensor([0.3]).reshape(1, 1, 1, 1)
    noise = torch.tensor([0.2]).reshape(1, 1, 1, 1)
    ignored = torch.full_like(x_t, 1e6)
    found = ancestral_step(x_t, noise, 0, SHORT, ignored, clamp=False)
    alpha_bar = float(SHORT.alpha_bar_exact[0])
    torch.testing.assert_close(found, predict_x_0(x_t, noise, alpha_bar, False))


def test_timesteps_run_from_the_last_to_the_first():
    ddim = SamplerConfig(kind="ddim", num_steps=4)
    assert sampling_timesteps(ddim, 10) == [9, 6, 3, 0]
    assert sampling_timesteps(SamplerConfig(kind="ddim", num_steps=1), 10) == [9]
    assert sampling_timesteps(SamplerConfig(kind="ancestral"), 3) == [2, 1, 0]
    with pytest.raises(ValueError, match="num_steps is 4, but T is only 3"):
        sampling_timesteps(ddim, 3)


@pytest.mark.parametrize("architecture", ["residual", "feddiffuse"])
def test_an_image_does_not_depend_on_its_block(architecture):
    # Up to rounding: convolutions may sum in another order for another batch size.
    unet = UNetConfig(
        architecture=architecture, dim=8, channels=1, dim_mults=(1, 2), image_size=8
    )
    model = make_model(unet, 0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    config = SamplerConfig(kind="ddim", num_steps=6)
    shape = {"image_shape": (1, 8, 8)}
    whole = torch.cat(draw(config, model, block_size=5, **shape))
    singly = torch.cat(draw(config, model, block_size=1, **shape))
    tail = torch.cat(draw(config, model, first_index=3, count=2, **shape))
    torch.testing.assert_close(singly, whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(tail, whole[3:], rtol=1e-3, atol=1e-4)
    again = torch.cat(draw(config, model, block_size=5, **shape))
    assert torch.equal(again, whole)
    assert model.training  # as before
    assert not torch.allclose(whole[0], whole[1], atol=0.05)


def test_blocks_are_ordinary_tensors_of_the_right_size():
    blocks = draw(SamplerConfig(kind="ddim", num_steps=2))
    assert [len(block) for block in blocks] == [2, 2, 1]
    for block in blocks:
        assert block.dtype == torch.float32
        assert not block.is_inference()
        assert block.abs().max() <= 1
    assert torch.is_grad_enabled()


def test_blocks_are_made_one_by_one():
    calls = []

    class Counting(Toy):
        def forward(self, x_t, t):
            calls.append(len(x_t))
            return toy(x_t, t)

    blocks = sample(
        Counting(),
        SHORT,
        SamplerConfig(kind="ddim", num_steps=1),
        seed=0,
        first_index=0,
        count=10**9,
        image_shape=(1, 1, 1),
        device="cpu",
        block_size=3,
    )
    next(blocks)
    assert calls == [3]
    assert torch.is_grad_enabled()


def test_the_models_mode_is_restored_even_after_an_error():
    class Broken(torch.nn.Module):
        def forward(self, x_t, t):
            raise RuntimeError("broken")

    model = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        draw(SamplerConfig(kind="ddim", num_steps=2), model)
    assert model.training


def test_seeds_and_indices_have_their_own_streams():
    first = [
        torch.randn(1, generator=image_generator(seed, index)).item()
        for seed in (0, 1, 11)
        for index in (0, 1, 11, 111)
    ]
    assert len(set(first)) == len(first)
    same = torch.randn(1, generator=image_generator(0, 0)).item()
    assert same == first[0]
    with pytest.raises(ValueError, match="image_index"):
        image_generator(0, -1)


@pytest.mark.parametrize(
    "changes", [{"first_index": -1}, {"count": -1}, {"block_size": 0}]
)
def test_numbers_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match="must be"):
        draw(SamplerConfig(), **changes)
    assert draw(SamplerConfig(kind="ddim", num_steps=1), count=0) == []
