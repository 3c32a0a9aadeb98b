"""Both networks: sizes, parts, and that examples never meet."""

from collections import Counter

import pytest
import torch
from torch import nn

from diffusion.config import UNetConfig
from diffusion.model import make_model
from diffusion.parts import Part, part_of

ARCHITECTURES = ["residual", "feddiffuse"]


def config(architecture, dim=8, channels=1, dim_mults=(1, 2), image_size=8):
    return UNetConfig(
        architecture=architecture,
        dim=dim,
        channels=channels,
        dim_mults=dim_mults,
        image_size=image_size,
    )


def counts(unet_config):
    with torch.device("meta"):  # sizes only
        from diffusion.model import _build

        model = _build(unet_config)
    owners = part_of(model)
    counter = Counter()
    for name, parameter in model.named_parameters():
        counter[owners[name]] += parameter.numel()
    return counter


def test_the_papers_network_has_the_papers_parameters():
    counted = counts(config("feddiffuse", 28, 1, (1, 2, 4), 28))
    assert counted[Part.ENCODER] == 1_280_642
    assert counted[Part.BOTTLENECK] == 999_376
    assert counted[Part.DECODER] == 716_297
    assert counted.total() == 2_996_315


def test_the_papers_network_for_faces_has_the_papers_parameters():
    assert counts(config("feddiffuse", 64, 3, (1, 2, 4), 64)).total() == 14_892_477


def test_the_demos_network_has_its_parameters():
    counted = counts(config("residual", 16, 1, (1, 2), 8))
    assert counted.total() == 163_985
    assert [counted[part] for part in Part] == [30_080, 45_696, 88_209]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("size", "dim_mults"),
    [
        (8, (1, 2)),
        (14, (1, 2)),
        (14, (1, 2, 4)),
        (28, (1, 2, 4)),
        (32, (1, 2, 2)),
        (64, (1, 2)),
        (8, (1,)),
        (8, (2, 1)),
    ],
)
def test_the_answer_has_the_images_shape(architecture, size, dim_mults):
    model = make_model(config(architecture, 8, 3, dim_mults, size), 0)
    with torch.no_grad():
        answer = model(torch.zeros(2, 3, size, size), torch.tensor([0, 999]))
    assert answer.shape == (2, 3, size, size)
    assert answer.isfinite().all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_group_normalisation_and_no_buffers(architecture):
    model = make_model(config(architecture), 0)
    assert not list(model.buffers())
    kinds = {type(m) for m in model.modules() if "Norm" in type(m).__name__}
    assert kinds == {nn.GroupNorm}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_example_does_not_see_the_rest_of_its_batch(architecture):
    model = perturbed(make_model(config(architecture), 0))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 1, 8, 8, generator=generator)
    other = x.clone()
    other[1:] = torch.randn(3, 1, 8, 8, generator=generator)
    t = torch.tensor([3, 5, 700, 999])
    with torch.no_grad():
        first, second = model(x, t), model(other, torch.tensor([3, 1, 2, 4]))
    torch.testing.assert_close(first[0], second[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(first[1], second[1], atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_answer_depends_on_the_timestep_and_on_every_parameter(architecture):
    model = perturbed(make_model(config(architecture), 0))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    early, late = model(x, torch.tensor([1, 1])), model(x, torch.tensor([900, 900]))
    assert not torch.allclose(early, late, atol=1e-3)
    early.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def perturbed(model):
    """Move every parameter, so that layers that start at zero pass something on."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model
