import hashlib
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.config import UNetConfig
from diffusion.errors import (
    CorruptFile,
    DiffusionError,
    PartsIncomplete,
    ShapeMismatch,
)
from diffusion.model import make_model
from diffusion.parameters import (
    ParameterLayout,
    difference,
    flatten,
    load_parameters,
    load_safetensors,
    make_layout,
    parameters_digest,
    parameters_of,
    save_safetensors,
    selected_layout,
    unflatten,
)
from diffusion.parts import SELECTIONS, Part, part_of

LAYOUT = ParameterLayout(("b", "a"), ((2, 1), ()))
PARAMETERS = {"a": torch.tensor(3.0), "b": torch.tensor([[1.0], [2.0]])}


def model():
    config = UNetConfig(
        architecture="residual", dim=8, channels=1, dim_mults=(1, 2), image_size=8
    )
    return make_model(config, 0)


shapes = st.lists(
    st.lists(st.integers(1, 3), max_size=3).map(tuple), min_size=1, max_size=6
)


@given(shapes, st.data())
def test_flatten_and_unflatten_are_inverse(shapes, data):
    names = tuple(f"p{i}" for i in range(len(shapes)))
    layout = ParameterLayout(names, tuple(shapes))
    assert layout.size == sum(math.prod(shape) for shape in shapes)
    floats = st.floats(width=32, allow_nan=False)
    values = data.draw(st.lists(floats, min_size=layout.size, max_size=layout.size))
    vector = np.array(values, dtype=np.float32)
    parameters = unflatten(vector, layout)
    assert [tuple(parameters[n].shape) for n in names] == list(shapes)
    np.testing.assert_array_equal(flatten(parameters, layout), vector)


def test_a_layout_by_hand():
    assert (LAYOUT.segments, LAYOUT.offsets, LAYOUT.size) == ((2, 1), (0, 2), 3)
    np.testing.assert_array_equal(flatten(PARAMETERS, LAYOUT), [1.0, 2.0, 3.0])
    out = np.zeros(3, dtype=np.float32)
    assert flatten(PARAMETERS, LAYOUT, out) is out
    assert out[2] == 3.0


def test_unflattened_parameters_do_not_share_the_vectors_memory():
    vector = np.zeros(3, dtype=np.float32)
    parameters = unflatten(vector, LAYOUT)
    vector[:] = 1
    assert parameters["a"] == 0


def test_difference_is_local_minus_global():
    local = {"a": torch.tensor(5.0), "b": torch.tensor([[1.5], [0.0]])}
    update = difference(local, PARAMETERS, LAYOUT)
    assert update.dtype == np.float32
    np.testing.assert_array_equal(update, [0.5, -2.0, 2.0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"a": torch.tensor(0.0)}, "b is missing"),
        ({**PARAMETERS, "a": torch.zeros(1)}, "a has shape"),
        ({**PARAMETERS, "a": torch.tensor(0.0).double()}, "not float32"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(wrong, message):
    for function in (
        lambda: flatten(wrong, LAYOUT),
        lambda: difference(PARAMETERS, wrong, LAYOUT),
        lambda: parameters_digest(wrong, LAYOUT),
    ):
        with pytest.raises(ShapeMismatch, match=message):
            function()


def test_vectors_that_do_not_fit_are_refused():
    for wrong in (np.zeros(4, np.float32), np.zeros(3), np.zeros((3, 1), np.float32)):
        with pytest.raises(ShapeMismatch, match="float32"):
            unflatten(wrong, LAYOUT)
        with pytest.raises(ShapeMismatch, match="float32"):
            flatten(PARAMETERS, LAYOUT, wrong)


def test_a_layout_names_each_parameter_once():
    with pytest.raises(ValueError, match="twice"):
        ParameterLayout(("a", "a"), ((), ()))
    with pytest.raises(ValueError, match="shapes"):
        ParameterLayout(("a",), ())


@pytest.mark.parametrize("selection", ["full", "ulatdec", "udec"])
def test_a_selections_layout_holds_exactly_its_parts(selection):
    network = model()
    layout = make_layout(network, SELECTIONS[selection])
    owners = part_of(network)
    expected = [n for n in owners if owners[n] in SELECTIONS[selection]]
    assert list(layout.names) == expected
    vector = flatten(parameters_of(network), layout)
    assert len(vector) == layout.size == sum(layout.segments)


def test_parameters_are_copied_out_and_loaded_back():
    network = model()
    before = parameters_of(network)
    name = "init_conv.weight"
    load_parameters(network, {name: torch.full_like(before[name], 2.0)})
    assert (network.init_conv.weight == 2).all()
    assert not (before[name] == 2).any()
    assert torch.equal(network.final[2].bias, before["final.2.bias"])
    load_parameters(network, before)
    assert torch.equal(network.init_conv.weight, before[name])


def test_nothing_is_loaded_unless_everything_fits():
    network = model()
    before = parameters_of(network)
    good = {"init_conv.bias": torch.full((8,), 9.0)}
    for bad in ({"nobody": torch.zeros(1)}, {"init_conv.weight": torch.zeros(1)}):
        with pytest.raises(ShapeMismatch):
            load_parameters(network, {**good, **bad})
    assert torch.equal(network.init_conv.bias, before["init_conv.bias"])


def test_the_digest_is_that_of_the_documented_bytes():
    def framed(content):
        return struct.pack("<I", len(content)) + content

    header = struct.pack("<I", 2)
    header += framed(b"b") + struct.pack("<IQQ", 2, 2, 1)
    header += framed(b"a") + struct.pack("<I", 0)
    values = struct.pack("<fff", 1, 2, 3)
    expected = hashlib.sha256(framed(b"cloister/parameters/1") + header + values)
    assert parameters_digest(PARAMETERS, LAYOUT) == expected.digest()
    layout = hashlib.sha256(framed(b"cloister/parameter-layout/1") + header)
    assert LAYOUT.digest() == layout.digest()


def test_the_digest_changes_with_the_last_bit_of_a_value():
    nudged = {**PARAMETERS, "a": torch.nextafter(PARAMETERS["a"], torch.tensor(4.0))}
    assert parameters_digest(nudged, LAYOUT) != parameters_digest(PARAMETERS, LAYOUT)


def test_a_saved_file_comes_back_with_its_metadata(tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors(path, PARAMETERS, {"round": "3"})
    parameters, metadata = load_safetensors(path)
    assert metadata == {"round": "3"}
    assert parameters.keys() == PARAMETERS.keys()
    assert all(torch.equal(parameters[n], PARAMETERS[n]) for n in parameters)
    save_safetensors(path, {"a": torch.ones(1)}, {})
    assert load_safetensors(path) == ({"a": torch.ones(1)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert torch.equal(parameters["b"], PARAMETERS["b"])  # independent of the file


@pytest.mark.parametrize("metadata", [{}, {"round": "3"}])
def test_no_parameters_at_all_come_back(tmp_path, metadata):
    save_safetensors(tmp_path / "none.safetensors", {}, metadata)
    assert load_safetensors(tmp_path / "none.safetensors") == ({}, metadata)


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_a_cut_file_is_one_clear_line(tmp_path, kept):
    path = tmp_path / "model.safetensors"
    save_safetensors(path, PARAMETERS, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptFile, match=r"model\.safetensors is cut off") as caught:
        load_safetensors(path)
    assert isinstance(caught.value, DiffusionError)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_not_a_corrupt_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load_safetensors(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("architecture", ["residual", "feddiffuse"])
def test_the_parts_of_usplit_follow_each_other(architecture):
    config = UNetConfig(
        architecture=architecture, dim=12, channels=1, dim_mults=(1, 2), image_size=8
    )
    network = make_model(config, 0)
    layout = selected_layout(network, "usplit")
    whole = selected_layout(network, "full")
    assert (layout.names, layout.shapes) == (whole.names, whole.shapes)
    assert whole.stretches == (whole,)
    parts = [selected_layout(network, "parts", (part.value,)) for part in Part]
    assert list(layout.stretches) == parts
    assert sum(stretch.size for stretch in layout.stretches) == layout.size


def test_parts_out_of_order_cannot_be_dealt():
    class Backwards(torch.nn.Module):
        def __init__(self):
            super().__init__()
            names = {Part.ENCODER: "b", Part.BOTTLENECK: "c", Part.DECODER: "a"}
            self.parts = {part: (name,) for part, name in names.items()}
            self.a, self.b, self.c = (torch.nn.Linear(1, 1) for _ in range(3))

    with pytest.raises(PartsIncomplete, match="order of its parts"):
        selected_layout(Backwards(), "usplit")
    assert selected_layout(Backwards(), "full").size == 6


def test_stretches_hold_all_parameters():
    with pytest.raises(ValueError, match="stretches"):
        ParameterLayout(("a", "b"), ((), ()), (1,))
