from typing import ClassVar

import pytest
from torch import nn

from diffusion.config import UNetConfig
from diffusion.errors import PartsIncomplete
from diffusion.model import make_model
from diffusion.parts import SELECTIONS, Part, part_of, shared_parts


class Toy(nn.Module):
    parts: ClassVar = {Part.ENCODER: ("a",), Part.BOTTLENECK: (), Part.DECODER: ("b",)}

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(1, 1)
        self.b = nn.Linear(1, 1, bias=False)


def toy(parts):
    model = Toy()
    model.parts = parts
    return model


@pytest.mark.parametrize("architecture", ["residual", "feddiffuse"])
@pytest.mark.parametrize("dim_mults", [(1,), (1, 2), (1, 2, 4)])
def test_every_parameter_of_both_networks_is_in_one_part(architecture, dim_mults):
    config = UNetConfig(
        architecture=architecture,
        dim=8,
        channels=1,
        dim_mults=dim_mults,
        image_size=8,
    )
    model = make_model(config, 0)
    owners = part_of(model)
    assert list(owners) == [name for name, _ in model.named_parameters()]
    assert owners["init_conv.weight"] is Part.ENCODER
    assert owners["time_embedding.layers.0.weight"] is Part.ENCODER
    finals = [n for n in owners if n.startswith("final")]
    assert {owners[n] for n in finals} == {Part.DECODER}
    assert set(owners.values()) == set(Part)


def test_a_toys_parts_by_hand():
    assert part_of(Toy()) == {
        "a.weight": Part.ENCODER,
        "a.bias": Part.ENCODER,
        "b.weight": Part.DECODER,
    }


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({Part.ENCODER: ("a",)}, "b.weight belongs to no part"),
        ({Part.ENCODER: ("a", "b"), Part.DECODER: ("b",)}, "two parts"),
        ({Part.ENCODER: ("a", "b", "c")}, "c is declared but does not exist"),
        (None, "declares no parts"),
    ],
)
def test_an_incomplete_declaration_is_refused(parts, message):
    with pytest.raises(PartsIncomplete, match=message):
        part_of(toy(parts))


def test_the_selections_are_the_papers():
    everything = {Part.ENCODER, Part.BOTTLENECK, Part.DECODER}
    assert dict(SELECTIONS) == {
        "full": everything,
        "usplit": everything,
        "ulatdec": {Part.BOTTLENECK, Part.DECODER},
        "udec": {Part.DECODER},
    }
    with pytest.raises(TypeError):
        SELECTIONS["usplit"] = frozenset()


def test_named_parts_are_a_selection():
    assert shared_parts("parts", ("decoder", "encoder")) == {Part.ENCODER, Part.DECODER}
    assert shared_parts("parts", [part.value for part in Part]) == shared_parts("full")
    assert shared_parts("ulatdec") == SELECTIONS["ulatdec"]
