"""Central images in the place of a network."""

from pathlib import Path

import pytest
import torch

from diffusion.checkpoint import Checkpoint
from diffusion.config import SamplerConfig, ScheduleConfig, UNetConfig
from diffusion.errors import NoDenoiser
from diffusion.initial import first_model
from diffusion.means import IMAGES_NAME, CentralImages
from diffusion.model import make_model
from diffusion.parameters import flatten, make_layout, parameters_of, unflatten
from diffusion.parts import SELECTIONS

CONFIG = UNetConfig(architecture="means", dim=3, channels=2, dim_mults=(), image_size=5)


def test_it_is_one_parameter_of_zeros_whatever_the_seed() -> None:
    model = make_model(CONFIG, 17)
    assert isinstance(model, CentralImages)
    named = parameters_of(model)
    assert list(named) == [IMAGES_NAME]
    assert named[IMAGES_NAME].shape == (3, 2, 5, 5)
    assert not named[IMAGES_NAME].any()
    assert first_model(CONFIG, 4, "", None).images.shape == (3, 2, 5, 5)


def test_all_of_it_is_federated() -> None:
    model = make_model(CONFIG, 0)
    layout = make_layout(model, SELECTIONS["full"])
    assert layout.segments == (150,)
    parameters = {IMAGES_NAME: torch.randn(3, 2, 5, 5)}
    again = unflatten(flatten(parameters, layout), layout)
    assert torch.equal(again[IMAGES_NAME], parameters[IMAGES_NAME])


def test_it_predicts_no_noise_and_cannot_be_sampled(tmp_path: Path) -> None:
    model = make_model(CONFIG, 0)
    with pytest.raises(NoDenoiser, match="warm-up"):
        model(torch.zeros(1, 2, 5, 5), torch.zeros(1, dtype=torch.int64))
    checkpoint = Checkpoint(
        model=CONFIG,
        schedule=ScheduleConfig(num_timesteps=4),
        sampler=SamplerConfig(num_steps=2),
        parameters=parameters_of(model),
    )
    with pytest.raises(NoDenoiser):
        checkpoint.images(seed=0, count=1, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("dim", 0), ("dim", 513), ("dim_mults", (1,)), ("image_size", 1), ("channels", 0)],
)
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    good = {
        "architecture": "means",
        "dim": 3,
        "channels": 1,
        "dim_mults": (),
        "image_size": 8,
    }
    UNetConfig(**good)
    with pytest.raises(ValueError, match=field):
        UNetConfig(**(good | {field: value}))


def test_other_architectures_are_no_central_images() -> None:
    assert CONFIG.is_central_images
    assert not UNetConfig(
        architecture="residual", dim=4, channels=1, dim_mults=(1,), image_size=8
    ).is_central_images
