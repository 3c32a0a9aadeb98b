import hashlib

import pytest
import torch

from diffusion.config import UNetConfig
from diffusion.errors import CorruptFile, ShapeMismatch, WeightsUnavailable
from diffusion.initial import first_model
from diffusion.model import make_model
from diffusion.parameters import parameters_of, save_safetensors

TINY = UNetConfig(
    architecture="residual", dim=4, channels=1, dim_mults=(1,), image_size=8
)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def trained(tmp_path):
    """Return a file of other parameters than any seed of these tests gives."""
    path = tmp_path / "initial.safetensors"
    save_safetensors(path, parameters_of(make_model(TINY, 99)), {})
    return path


def test_without_a_file_the_seed_decides():
    model, same = first_model(TINY, 7, "", None), make_model(TINY, 7)
    for own, other in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(own, other)


def test_the_files_parameters_are_all_taken(trained):
    model = first_model(TINY, 7, digest(trained), trained)
    for own, other in zip(
        model.parameters(), make_model(TINY, 99).parameters(), strict=True
    ):
        assert torch.equal(own, other)


def test_a_missing_file_says_what_belongs_there(tmp_path):
    path = tmp_path / "initial.safetensors"
    with pytest.raises(WeightsUnavailable, match=r"put it at .*initial\.safetensors"):
        first_model(TINY, 7, "ab" * 32, path)
    with pytest.raises(WeightsUnavailable, match="in this folder"):
        first_model(TINY, 7, "ab" * 32, None)


def test_another_file_is_refused(trained):
    with pytest.raises(WeightsUnavailable, match="the plan begins with abab"):
        first_model(TINY, 7, "ab" * 32, trained)


def test_a_file_of_another_model_is_refused(tmp_path):
    path = tmp_path / "initial.safetensors"
    parameters = parameters_of(make_model(TINY, 1))
    name = next(iter(parameters))
    save_safetensors(path, {n: v for n, v in parameters.items() if n != name}, {})
    with pytest.raises(ShapeMismatch, match="lacks 1 parameters"):
        first_model(TINY, 7, digest(path), path)
    save_safetensors(path, parameters | {"more": torch.zeros(1)}, {})
    with pytest.raises(ShapeMismatch, match="no parameter more"):
        first_model(TINY, 7, digest(path), path)


def test_no_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "initial.safetensors"
    path.write_bytes(b"not a model")
    with pytest.raises(CorruptFile):
        first_model(TINY, 7, digest(path), path)
