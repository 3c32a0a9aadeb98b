import math

import pytest
import torch

from diffusion.config import UNetConfig
from diffusion.model import _initialise, make_model
from diffusion.parameters import parameters_of

ARCHITECTURES = ["residual", "feddiffuse"]


def config(architecture):
    return UNetConfig(
        architecture=architecture, dim=16, channels=1, dim_mults=(1, 2), image_size=8
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_seed_gives_bitwise_the_same_parameters_and_leaves_torch_alone(architecture):
    torch_state = torch.random.get_rng_state()
    first = parameters_of(make_model(config(architecture), 5))
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    torch.rand(7)  # whatever others do to the global state
    second = parameters_of(
        make_model(config(architecture), torch.Generator().manual_seed(5))
    )
    other = parameters_of(make_model(config(architecture), 6))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["init_conv.weight"], other["init_conv.weight"])


def test_a_generator_is_advanced():
    generator = torch.Generator().manual_seed(5)
    first = make_model(config("residual"), generator)
    second = make_model(config("residual"), generator)
    assert not torch.equal(first.init_conv.weight, second.init_conv.weight)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_start_within_their_bounds(architecture):
    model = make_model(config(architecture), 0)
    weight = model.bottleneck.block_1.get_submodule(
        "conv_1" if architecture == "residual" else "layers.1"
    ).weight
    bound = 1 / math.sqrt(weight[0].numel())
    assert 0.95 * bound < weight.abs().max() <= bound
    # A uniform variable on [-b, b] has the standard deviation b / sqrt(3).
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    for parameter in model.parameters():
        assert parameter.isfinite().all()


def test_the_residual_network_starts_by_predicting_nothing():
    model = make_model(config("residual"), 0)
    assert torch.equal(
        model(torch.ones(1, 1, 8, 8), torch.tensor([4])), torch.zeros(1, 1, 8, 8)
    )


def test_an_unknown_layer_is_not_left_uninitialised():
    with pytest.raises(TypeError, match="BatchNorm2d"):
        _initialise(torch.nn.BatchNorm2d(3), torch.Generator())
