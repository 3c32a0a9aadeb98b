"""The one door for images: labels, files, and no other way in."""

import ast
import io
import typing
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from aggregator.auxiliary import (
    LabelledImages,
    load_images,
    public_images,
    save_images,
)
from aggregator.errors import ConfigRejected, StateBroken
from protocol.calibration_settings import AuxiliaryLabel, CalibrationConfig
from tests.protocol.examples import make_example

ROOT = Path(__file__).parents[2] / "aggregator"
PIXELS = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)

MAY_TAKE_IMAGES = {"auxiliary.py", "calibration.py", "calibrator.py", "complete.py"}
"""The door itself, and what is handed the labelled images that came through it."""


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def public_plan(content: bytes):
    digest = sha256(content).hexdigest()
    return make_example(
        {
            "calibration.when": "every-round",
            "calibration.images": "public",
            "calibration.name": "dots",
            "calibration.sha256": digest,
            "calibration.steps": 1,
            "calibration.learning_rate": 0.1,
        }
    )


@pytest.mark.parametrize("label", ["", "private", "Public"])
def test_nothing_comes_in_without_a_label(label: str) -> None:
    with pytest.raises(ValueError, match="label"):
        LabelledImages(label=label, pixels=PIXELS)


@pytest.mark.parametrize(
    "pixels", [PIXELS.astype(np.float32), PIXELS[..., 0], PIXELS[:0]]
)
def test_images_are_8_bit_and_some(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pixels"):
        LabelledImages(label="public", pixels=pixels)


def test_black_is_minus_one_and_white_is_one() -> None:
    pixels = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
    tensor = LabelledImages(label="public", pixels=pixels).tensor()
    assert tensor.tolist() == [[[[-1.0, 1.0]]]]


def test_what_is_kept_is_loaded_and_damage_is_found(tmp_path: Path) -> None:
    assert load_images(tmp_path) is None
    images = LabelledImages(
        label="silo-samples", pixels=PIXELS, silos=("a", "b"), source_round=0
    )
    save_images(tmp_path, images)
    loaded = load_images(tmp_path)
    assert loaded is not None
    assert loaded.record() == images.record()
    assert np.array_equal(loaded.pixels, PIXELS)
    path = tmp_path / "auxiliary.safetensors"
    data = path.read_bytes()
    for damaged in (data[:-3], data[:-1] + bytes([data[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(StateBroken, match="damaged"):
            load_images(tmp_path)


def test_the_digest_tells_shape_and_content_apart() -> None:
    digests = {
        LabelledImages(label="public", pixels=pixels).record().digest
        for pixels in (PIXELS, PIXELS.reshape(2, 16, 4, 1), PIXELS[::-1])
    }
    assert len(digests) == 3


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[..., 0]])
def test_a_public_file(tmp_path: Path, pixels: np.ndarray) -> None:
    content = npz(images=pixels)
    path = tmp_path / "public.npz"
    path.write_bytes(content)
    images = public_images(public_plan(content), path)
    assert np.array_equal(images.pixels, PIXELS)
    assert (images.label, images.name) == ("public", "dots")
    assert images.source == sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not an archive", "not a readable .npz"),
        (npz(other=PIXELS), "none of the arrays"),
        (npz(images=PIXELS + 300.0), "outside"),
        (npz(images=PIXELS[:, :4]), "the plan's model takes"),
        (npz(images=PIXELS[:0]), "the plan's model takes"),
        (npz(images=np.array([object()])), "not a readable .npz"),
    ],
)
def test_a_public_file_that_does_not_fit(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "public.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigRejected, match=words):
        public_images(public_plan(content), path)


def test_every_label_is_permitted_or_refused_by_a_policy() -> None:
    from silo.policy import AUXILIARY_LABELS

    assert set(AUXILIARY_LABELS) == set(typing.get_args(AuxiliaryLabel))
    assert CalibrationConfig().images in AUXILIARY_LABELS


def parameters_of(path: Path) -> list[tuple[str, str, str]]:
    """Return every function of a file, its parameters, and their annotations."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            name = getattr(node, "name", "lambda")
            arguments = node.args
            for each in (
                *arguments.posonlyargs,
                *arguments.args,
                *arguments.kwonlyargs,
                *filter(None, (arguments.vararg, arguments.kwarg)),
            ):
                hint = ast.unparse(each.annotation) if each.annotation else ""
                found.append((name, each.arg, hint))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append(("field", node.target.id, ast.unparse(node.annotation)))
    return found


def is_image(name: str, hint: str) -> bool:
    """Return whether a parameter could hold images: by its name, or by its type."""
    words = {"images", "image", "pixels", "x_0", "samples", "batch", "dataset"}
    is_tensor = hint.strip("'\"").split(" | ")[0] in ("Tensor", "torch.Tensor")
    kinds = ("LabelledImages", "ImageSet", "uint8", "Pixels")
    return name in words or is_tensor or any(kind in hint for kind in kinds)


def test_no_other_module_of_the_aggregator_takes_images() -> None:
    for path in sorted(ROOT.glob("*.py")):
        taken = [
            (function, name)
            for function, name, hint in parameters_of(path)
            if is_image(name, hint)
        ]
        if path.name in MAY_TAKE_IMAGES:
            assert taken, f"{path.name} need not be in the list"
        else:
            assert taken == [], path.name


def test_the_walk_finds_images(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "def good(parameters: Mapping[str, Tensor], num_images: int): ...\n"
        "def bad(x: Tensor, *, pixels: object, y: NDArray[np.uint8]): ...\n"
    )
    taken = [name for _, name, hint in parameters_of(path) if is_image(name, hint)]
    assert taken == ["x", "pixels", "y"]
