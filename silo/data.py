"""This silo's images: loaded, checked, and brought to [-1, 1].

No path, name, count or pixel leaves this module but to the training beside it.
Everything that is read is checked whole before anything is used: one size, one number
of channels, no NaN, nothing outside the declared range.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diffusion.config import UNetConfig
from silo.classes import check_labels, folder_labels
from silo.config import DataConfig
from silo.errors import DataError
from silo.torchvision_sets import load_set

ARRAY_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("images", "x_train", "train_images"),
    "test": ("x_test", "test_images"),
    "val": ("val_images", "x_val"),
}
LABEL_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("labels", "y_train", "train_labels"),
    "test": ("y_test", "test_labels"),
    "val": ("val_labels", "y_val"),
}
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
GREY_MODES = frozenset({"1", "L", "LA"})
DEEP_MODES = ("I", "F")
"""How Pillow's modes of 16-bit, 32-bit and real values begin."""

NO_PATIENT = frozenset({"", "nan", "nat", "none", "null", "<na>"})
"""How a missing identifier reads once a table was turned into text."""


@dataclass(frozen=True)
class ImageSet:
    """A silo's examples as they lie in memory: ``[n, h, w, c]`` of some range.

    ``pixels`` keeps the type of the file (8-bit images stay 8-bit); :meth:`batch`
    brings the chosen ones to [-1, 1]. ``labels`` are there where the source has any;
    ``class_names``, where it names classes, are the names of labels 0, 1, ….
    ``patients`` ``[n]``, where given, are indices into ``patient_names``, the sorted
    identifiers; every patient has an image.
    """

    pixels: npt.NDArray[Any]
    value_range: tuple[float, float]
    labels: npt.NDArray[np.int64] | None = None
    patients: npt.NDArray[np.int64] | None = None
    patient_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """The number of examples; secret unless the plan says otherwise."""
        return len(self.pixels)

    def batch(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return examples as float32 ``[n, c, h, w]`` in [-1, 1]."""
        low, high = self.value_range
        chosen = torch.from_numpy(self.pixels[indices].astype(np.float32))
        scaled = (chosen - low) * (2.0 / (high - low)) - 1.0
        return scaled.clamp_(-1.0, 1.0).permute(0, 3, 1, 2).contiguous()

    def labels_of(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the labels of examples, int64 ``[n]``.

        Raises:
            DataError: there are none.
        """
        if self.labels is None:
            raise DataError("these images have no labels")
        return torch.from_numpy(self.labels[indices])

    def check_fits(self, model: UNetConfig) -> None:
        """Raise :class:`DataError` unless the model takes such images, and labels."""
        shape = self.pixels.shape[1:]
        wanted = (model.image_size, model.image_size, model.channels)
        if shape != wanted:
            raise DataError(
                f"images are {_words(shape)}, the plan's model takes {_words(wanted)}"
            )
        if model.num_classes:
            check_labels(self.labels, self.class_names, model.num_classes)


def load_images(config: DataConfig, folder: Path) -> ImageSet:
    """Load a silo's images.

    Args:
        folder: where relative paths begin.

    Raises:
        DataError: missing, unreadable, empty, of mixed sizes or channels, NaN, or out
            of the declared range; one line that says what is wrong and where.
    """
    path = folder / config.path
    loaders: Mapping[str, Callable[[DataConfig, Path], ImageSet]] = {
        "npz": _load_npz,
        "folder": _load_folder,
        "torchvision": _load_torchvision,
    }
    images = loaders[config.source](config, path)
    check_values(images, str(path))
    return images


def check_values(images: ImageSet, where: str) -> None:
    """Raise :class:`DataError` for no images, NaN, or values out of their range."""
    if not images.pixels.size:
        raise DataError(f"{where}: holds no images")
    low, high = images.value_range
    smallest, largest = float(images.pixels.min()), float(images.pixels.max())
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        raise DataError(f"{where}: holds NaN or infinite values")
    if smallest < low or largest > high:
        raise DataError(
            f"{where}: values from {smallest:g} to {largest:g} are outside the "
            f"declared value_range [{low:g}, {high:g}]"
        )


def _load_npz(config: DataConfig, path: Path) -> ImageSet:
    """Load images, and labels where there are any, from an .npz file."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            name = _first(ARRAY_NAMES[config.split], file)
            if name is None:
                raise DataError(
                    f"{path}: none of the arrays {', '.join(file.files) or '(none)'} "
                    f"holds {config.split} images; expected "
                    f"{' or '.join(ARRAY_NAMES[config.split])}"
                )
            pixels = np.asarray(file[name])
            label_name = _first(LABEL_NAMES[config.split], file)
            labels = None if label_name is None else np.asarray(file[label_name])
            patients = _npz_patients(config, path, file)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except Exception:
        # A damaged archive raises whatever zipfile, zlib or numpy meet first.
        raise DataError(f"{path}: is not a readable .npz file") from None
    if pixels.ndim == 3:
        pixels = pixels[..., np.newaxis]
    if pixels.ndim != 4 or pixels.dtype.kind not in "uif":
        raise DataError(
            f"{path}: array {name} is {pixels.dtype} {pixels.shape}; expected numbers "
            "[n, h, w] or [n, h, w, channels]"
        )
    return _image_set(config, path, pixels, labels, patients)


def _npz_patients(config: DataConfig, path: Path, file: Any) -> list[str] | None:
    """Return the patient of each image from the array that the configuration names."""
    if not config.patients:
        return None
    if config.patients not in file.files:
        raise DataError(f"{path}: has no array {config.patients!r} of patients")
    try:
        array = np.asarray(file[config.patients])
    except ValueError:  # Objects would have to be unpickled, which runs their code.
        raise DataError(
            f"{path}: array {config.patients} holds Python objects; expected text or "
            "whole numbers"
        ) from None
    if array.dtype.kind not in "uiUS":
        raise DataError(
            f"{path}: array {config.patients} is {array.dtype}; expected text or whole "
            "numbers"
        )
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        place = int(np.argmax(array.reshape(-1) < 0)) + 1
        raise DataError(f"{path}: image {place} has a negative number for a patient")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    return [str(identifier) for identifier in array.reshape(-1)]


def _load_folder(config: DataConfig, path: Path) -> ImageSet:
    """Load every image below a folder; its sub-folders, if any, are the labels.

    Where they are the patients, they are no labels.
    """
    if not path.is_dir():
        raise DataError(f"{path}: is not a folder")
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )
    if not files:
        raise DataError(f"{path}: holds no images")
    first = _read_image(files[0], 1)
    pixels = np.empty((len(files), *first.shape), dtype=np.uint8)
    for number, file in enumerate(files, start=1):
        image = _read_image(file, number)
        if image.shape != first.shape:
            raise DataError(
                f"{path}: image {number} of {len(files)} is {_words(image.shape)}, "
                f"the first is {_words(first.shape)}; all must be alike"
            )
        pixels[number - 1] = image
    if config.patients:
        return _image_set(config, path, pixels, None, _owners(path, files))
    labels, names = folder_labels(path, files, config.classes)
    return replace(_image_set(config, path, pixels, labels), class_names=names)


def _owners(path: Path, files: Sequence[Path]) -> list[str]:
    """Return the patient of each file: the folder that it lies in, just below the root.

    Deeper folders are refused: whether the inner or the outer one is a person cannot be
    known, and a person in two units would be protected half as well as it says.

    Raises:
        DataError: an image in no folder, or in a folder of a folder.
    """
    for number, file in enumerate(files, start=1):
        depth = len(file.relative_to(path).parts) - 1
        if depth != 1:
            where = "in no patient's folder" if not depth else "deeper than that"
            raise DataError(
                f"{path}: image {number} of {len(files)} in sorted order lies {where}; "
                "each must lie in its patient's folder, just below the root"
            )
    return [file.parent.name for file in files]


def _read_image(path: Path, number: int) -> npt.NDArray[np.uint8]:
    """Return an image as 8-bit ``[h, w, c]``, grey or colour.

    The file's own name may be a patient's: messages give its place in the sorted list.
    """
    try:
        with Image.open(path) as image:
            is_deep = image.mode.startswith(DEEP_MODES)
            grey = image.mode in GREY_MODES
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except Exception:
        # A damaged image raises whatever its decoder meets first.
        raise DataError(
            f"image {number} in sorted order cannot be read; remove or repair it"
        ) from None
    if is_deep:
        raise DataError(
            f"image {number} in sorted order has more than 8 bits a value, which would "
            "be cut off; give such images as arrays in an .npz file"
        )
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels


def _load_torchvision(config: DataConfig, path: Path) -> ImageSet:
    """Load one of torchvision's data sets."""
    return _image_set(config, path, *load_set(config, path))


def _image_set(
    config: DataConfig,
    path: Path,
    pixels: npt.NDArray[Any],
    labels: npt.NDArray[Any] | None,
    patients: Sequence[str] | None = None,
) -> ImageSet:
    """Return an image set; labels and patients are checked for kind and length."""
    low, high = config.value_range
    if labels is not None:
        if labels.dtype.kind not in "uib":
            raise DataError(
                f"{path}: labels are {labels.dtype}; expected whole numbers"
            )
        labels = labels.astype(np.int64).reshape(-1)
        if len(labels) != len(pixels):
            raise DataError(
                f"{path}: {len(pixels):,} images but {len(labels):,} labels"
            )
    images = ImageSet(pixels, (low, high), labels)
    return images if patients is None else with_patients(images, patients, str(path))


def with_patients(images: ImageSet, patients: Sequence[str], where: str) -> ImageSet:
    """Return the images with the patient of each.

    Identifiers that differ in white space around them, or in how Unicode composes an
    accent, are one patient: to join two people is safe, to split one is not.

    Raises:
        DataError: another number of patients than of images, or an image without one;
            its place is named, and no identifier.
    """
    if len(patients) != len(images):
        raise DataError(
            f"{where}: {len(images):,} images but {len(patients):,} patients"
        )
    cleaned = [unicodedata.normalize("NFC", name).strip() for name in patients]
    for number, name in enumerate(cleaned, start=1):
        if name.casefold() in NO_PATIENT:
            raise DataError(
                f"{where}: image {number} of {len(images):,} has no patient"
            )
    names, indices = np.unique(np.array(cleaned, dtype=np.str_), return_inverse=True)
    return replace(
        images,
        patients=indices.reshape(-1).astype(np.int64),
        patient_names=tuple(str(name) for name in names),
    )


def _first(names: tuple[str, ...], file: Any) -> str | None:
    """Return the first of the names that a file has."""
    return next((name for name in names if name in file.files), None)


def _words(shape: tuple[int, ...]) -> str:
    """Return the shape ``(h, w, c)`` of an image in words."""
    height, width, channels = shape
    return f"{height}×{width} with {channels} channel{'s' if channels > 1 else ''}"
