"""Checkpoints: what is saved can be sampled from; anything else is refused."""

import json
from pathlib import Path

import pytest
import torch

from diffusion.checkpoint import (
    Checkpoint,
    choose_device,
    load_checkpoint,
    save_checkpoint,
)
from diffusion.config import SamplerConfig, ScheduleConfig, UNetConfig
from diffusion.errors import CorruptFile, DeviceUnavailable
from diffusion.model import make_model
from diffusion.parameters import parameters_of, save_safetensors

MODEL = UNetConfig(
    architecture="residual", dim=4, channels=1, dim_mults=(1, 2), image_size=8
)
CPU = torch.device("cpu")


def make(**changes) -> Checkpoint:
    fields = {
        "model": MODEL,
        "schedule": ScheduleConfig(kind="cosine", num_timesteps=20),
        "sampler": SamplerConfig(num_steps=2, eta=0.5),
        "parameters": parameters_of(make_model(MODEL, 1)),
        "notes": {"plan": "abc"},
    }
    return Checkpoint(**(fields | changes))


def test_what_is_saved_is_loaded(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, make())
    loaded = load_checkpoint(path)
    assert loaded.model == MODEL
    assert loaded.schedule == make().schedule
    assert loaded.sampler == make().sampler
    assert loaded.notes == {"plan": "abc"}
    for name, value in make().parameters.items():
        assert torch.equal(loaded.parameters[name], value)


def test_the_same_seed_draws_the_same_images():
    images = make().images(seed=3, count=5, device=CPU)
    assert images.shape == (5, 1, 8, 8)
    assert torch.equal(images, make().images(seed=3, count=5, device=CPU))
    assert not torch.equal(images, make().images(seed=4, count=5, device=CPU))
    blocks = list(make().blocks(seed=3, count=5, device=CPU, block_size=2))
    assert [len(block) for block in blocks] == [2, 2, 1]
    assert torch.allclose(torch.cat(blocks), images, atol=1e-5)


def test_other_parameters_draw_other_images():
    moved = {name: value + 0.1 for name, value in make().parameters.items()}
    other = make(parameters=moved)
    mine = make().images(seed=3, count=2, device=CPU)
    assert not torch.allclose(mine, other.images(seed=3, count=2, device=CPU))


def test_a_missing_parameter_is_refused_not_drawn_at_random():
    parameters = dict(make().parameters)
    parameters.popitem()
    with pytest.raises(CorruptFile, match="1 parameters of the model are missing"):
        make(parameters=parameters).images(seed=0, count=1, device=CPU)


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"model": "{}", "schedule": "{}", "sampler": "{}"},
        {"model": "[]", "schedule": "{}", "sampler": "{}"},
        {"model": "no JSON", "schedule": "{}", "sampler": "{}"},
        {"model": json.dumps({"dim_mults": 3}), "schedule": "{}", "sampler": "{}"},
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, texts):
    path = tmp_path / "other.safetensors"
    save_safetensors(path, make().parameters, texts)
    with pytest.raises(CorruptFile, match="not a checkpoint"):
        load_checkpoint(path)


def test_the_device_by_name():
    assert choose_device("cpu") == CPU
    if torch.cuda.is_available():
        assert choose_device("auto") == choose_device("cuda")
    else:
        assert choose_device("auto") == CPU
        with pytest.raises(DeviceUnavailable, match="no usable GPU"):
            choose_device("cuda")
