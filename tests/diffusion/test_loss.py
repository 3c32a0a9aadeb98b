import pytest
import torch

from diffusion.config import ScheduleConfig, UNetConfig
from diffusion.loss import denoising_loss
from diffusion.model import make_model
from diffusion.schedule import make_schedule

SCHEDULE = make_schedule(ScheduleConfig())


def silent(x_t, t):
    return torch.zeros_like(x_t)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("mse", [(0.25 + 9) / 2, 0.0]), ("huber", [(0.125 + 2.5) / 2, 0.0])],
)
def test_losses_by_hand(kind, expected):
    # A model that always answers zero errs by the noise itself.
    noise = torch.tensor([[[[0.5, -3.0]]], [[[0.0, 0.0]]]])
    x_0 = torch.ones(2, 1, 1, 2)
    t = torch.tensor([0, 999])
    losses = denoising_loss(silent, x_0, t, noise, SCHEDULE, kind)
    assert losses.shape == (2,)
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_the_model_sees_the_noised_image_and_its_timestep():
    seen = []

    def spy(x_t, t):
        seen.append((x_t, t))
        return x_t

    x_0 = torch.full((1, 1, 1, 1), 0.5)
    noise = torch.full((1, 1, 1, 1), 2.0)
    denoising_loss(spy, x_0, torch.tensor([0]), noise, SCHEDULE, "mse")
    assert seen[0][0].item() == pytest.approx(0.9999**0.5 * 0.5 + 0.01 * 2)
    assert seen[0][1].tolist() == [0]


@pytest.mark.parametrize("architecture", ["residual", "feddiffuse"])
@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_one_value_per_example_whatever_the_others_are(architecture, kind):
    config = UNetConfig(
        architecture=architecture, dim=8, channels=1, dim_mults=(1, 2), image_size=8
    )
    model = make_model(config, 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():  # nothing stays at its initial zero
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    x_0 = torch.rand(5, 1, 8, 8, generator=generator) * 2 - 1
    noise = torch.randn(5, 1, 8, 8, generator=generator)
    t = torch.tensor([0, 10, 200, 600, 999])
    with torch.no_grad():
        together = denoising_loss(model, x_0, t, noise, SCHEDULE, kind)
        alone = [
            denoising_loss(model, x_0[[i]], t[[i]], noise[[i]], SCHEDULE, kind)
            for i in range(5)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_an_unknown_loss_is_refused():
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="loss"):
        denoising_loss(silent, x, torch.tensor([0]), x, SCHEDULE, "l2")
