"""The benchmark of DPDM's setting goes on where it stopped, and under one mechanism."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import dpdm
from diffusion.config import UNetConfig
from diffusion.parameters import load_safetensors
from silo.data import ImageSet

SETTING = dpdm.Setting(
    batch_size=2,
    multiplicity=1,
    steps=2,
    model=UNetConfig(
        architecture="residual", dim=4, channels=1, dim_mults=(1,), image_size=8
    ),
)


@pytest.fixture
def images(monkeypatch):
    monkeypatch.setattr(dpdm, "STEPS_PER_ROUND", 1)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    return ImageSet(pixels, (0.0, 255.0))


def test_a_training_goes_on_where_it_stopped(images, tmp_path):
    draft, path = dpdm.draft_of("tiny", SETTING, 10.0, 20), tmp_path / "x.safetensors"
    dpdm.Training(draft, images, path).go_on(0)
    saved, notes = load_safetensors(path)
    assert notes["round"] == "1"
    again = dpdm.Training(draft, images, path)
    assert (again.steps, again.is_over) == (1, False)
    for name, average in again.model.parameters.items():
        assert torch.equal(average, saved[f"average/{name}"])
    again.go_on(0)
    assert (again.steps, again.is_over) == (2, True)
    saved, _ = load_safetensors(path)
    # Adam has counted both steps.
    counts = {name: value for name, value in saved.items() if "moments/step" in name}
    assert counts and all(float(value) == 2 for value in counts.values())


def test_another_mechanism_does_not_go_on(images, tmp_path):
    path = tmp_path / "x.safetensors"
    dpdm.Training(dpdm.draft_of("tiny", SETTING, 10.0, 20), images, path).go_on(0)
    longer = dpdm.draft_of("tiny", replace(SETTING, steps=3), 10.0, 20)
    with pytest.raises(SystemExit, match="another mechanism"):
        dpdm.Training(longer, images, path)


def test_the_settings_are_those_of_the_paper():
    full, short = dpdm.SETTINGS["full"], dpdm.SETTINGS["short"]
    assert (full.batch_size, full.multiplicity, full.steps) == (4096, 32, 4394)
    assert (short.batch_size, short.multiplicity) == (1024, 8)
