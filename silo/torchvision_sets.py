"""Public data sets through torchvision: MNIST, Fashion-MNIST, CIFAR, CelebA.

The files of CIFAR are pickles, which torchvision's reader opens, and a pickle can run
anything. Each of them is compared with its published SHA-256 before: the one exception
to "no pickle" opens those bytes and no others.

CelebA is brought to 64×64 once: decoded, cut to its middle 178×178, resized. The result
is a file beside the images that is mapped into memory (2 GB for the training split), so
that nothing is decoded twice, and what is not used takes no memory.
"""

import contextlib
import fcntl
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from protocol.files import whole_folder
from silo.config import DataConfig
from silo.errors import DataError

Arrays: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[np.int64] | None]
"""Pixels ``[n, h, w, c]``, 8 bits a value, and labels ``[n]`` where there are any."""

CIFAR_SHA256: Mapping[str, Mapping[str, str]] = {
    "CIFAR10": {
        "data_batch_1": (
            "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd"
        ),
        "data_batch_2": (
            "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8"
        ),
        "data_batch_3": (
            "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9"
        ),
        "data_batch_4": (
            "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b"
        ),
        "data_batch_5": (
            "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154"
        ),
        "test_batch": (
            "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831"
        ),
        "batches.meta": (
            "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb"
        ),
    },
    "CIFAR100": {
        "train": "735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b",
        "test": "4b67687d9933c4db8f0831104447f15b93774f4f464bd0516f0f0f2ac83b7864",
        "meta": "a5d4786345c961390f865e93b434dbd5c6904ce880667e0cb888c97d449f28b9",
    },
}
"""The files that torchvision unpickles, as published with the data sets' archives."""

CELEBA_CROP, CELEBA_SIZE = 178, 64
CELEBA_HAIR = ("Black_Hair", "Brown_Hair", "Blond_Hair", "Gray_Hair")
CELEBA_NEEDED = ("Male", "Young", *CELEBA_HAIR)
CELEBA_MISSING = (
    "files of CelebA are missing or changed; Cloister does not fetch them, since their "
    "host limits downloads: put the four list_*.txt and identity_CelebA.txt there, and "
    "the images of img_align_celeba.zip into img_align_celeba below it"
)
CELEBA_SPLITS = {"train": "train", "test": "test", "val": "valid"}
DECODED = "cloister-decoded"
BLOCK = 1024
"""Images that are decoded at a time."""


def load_set(config: DataConfig, path: Path) -> Arrays:
    """Load a data set of torchvision's, downloaded only if the configuration says so.

    Raises:
        DataError: an unknown name, another split than the set has, missing or damaged
            files, no network; one line that says what to do.
    """
    loaders: Mapping[str, Callable[[DataConfig, Path], Arrays]] = {
        "MNIST": _load_grey,
        "FashionMNIST": _load_grey,
        "CIFAR10": _load_cifar,
        "CIFAR100": _load_cifar,
        "CelebA": _load_celeba,
        "CelebA16": _load_celeba,
    }
    if config.dataset not in loaders:
        raise DataError(
            f"dataset {config.dataset!r} is not known; choose one of "
            f"{', '.join(loaders)}"
        )
    if config.split == "val" and _load_celeba is not loaders[config.dataset]:
        raise DataError(f"{config.dataset} has no val images; choose train or test")
    return loaders[config.dataset](config, path)


@contextlib.contextmanager
def _one_line(config: DataConfig, path: Path, hint: str) -> Iterator[None]:
    """Turn whatever torchvision raises into one line."""
    try:
        yield
    except DataError:
        raise
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: {config.dataset} could not be loaded ({reason:.120}){hint}"
        ) from None
    except Exception:
        # A damaged file raises whatever torchvision's reader meets first.
        raise DataError(f"{path}: {config.dataset} is damaged") from None


def _kind(name: str) -> Any:
    """Return torchvision's class of a data set."""
    from diffusion.torchvision_compat import load_torchvision

    return getattr(load_torchvision().datasets, name)


def _hint(config: DataConfig) -> str:
    """Say how the files can be had, if they were not to be fetched."""
    return "" if config.download else "; set download = true to fetch it"


def _load_grey(config: DataConfig, path: Path) -> Arrays:
    """Load MNIST or Fashion-MNIST: 28×28, grey, ten classes."""
    kind, is_train = _kind(config.dataset), config.split == "train"
    with _one_line(config, path, _hint(config)):
        dataset = kind(str(path), train=is_train, download=config.download)
    return np.asarray(dataset.data)[..., np.newaxis], np.asarray(dataset.targets)


def _load_cifar(config: DataConfig, path: Path) -> Arrays:
    """Load CIFAR-10 or CIFAR-100 (with its 100 fine labels): 32×32, colour."""
    kind, is_train = _kind(config.dataset), config.split == "train"
    folder, digests = path / kind.base_folder, CIFAR_SHA256[config.dataset]
    with _one_line(config, path, _hint(config)):
        is_there = all((folder / name).is_file() for name in digests)
        if config.download and not is_there:
            _fetch(kind, path)
        for name, expected in digests.items():
            _check_digest(config, folder / name, expected)
        dataset = kind(str(path), train=is_train, download=False)
    return np.asarray(dataset.data), np.asarray(dataset.targets)


def _fetch(kind: Any, path: Path) -> None:
    """Download and unpack a data set's archive; nothing in it is opened."""
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(
        kind.url, str(path), filename=kind.filename, md5=kind.tgz_md5
    )


def _check_digest(config: DataConfig, path: Path, expected: str) -> None:
    """Refuse a file that is missing, or is not the published one."""
    if not path.is_file():
        raise DataError(f"{path}: is missing{_hint(config)}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise DataError(
            f"{path}: is not the published file of {config.dataset} (SHA-256 "
            f"{found[:16]}…, not {expected[:16]}…); it is a pickle, and is not opened"
        )


def _load_celeba(config: DataConfig, path: Path) -> Arrays:
    """Load CelebA, aligned and cropped, at 64×64 in colour.

    "CelebA" is every image of the split, without labels. "CelebA16" is those with one
    of four colours of hair, in FedDiffuse's 16 classes: 8 where Male, plus 4 where
    Young, plus 0 to 3 for black, brown, blond and grey hair.

    Source: Liu et al. 2015; FedDiffuse (de Goede et al. 2024) for size and classes.
    """
    folder = path / "celeba"
    with _one_line(config, path, ""):
        try:
            dataset = _kind("CelebA")(str(path), split=CELEBA_SPLITS[config.split])
        except RuntimeError:
            raise DataError(f"{folder}: {CELEBA_MISSING}") from None
        names = np.array(dataset.filename)
        labels = None
        if config.dataset == "CelebA16":
            labels = celeba_classes(np.asarray(dataset.attr), dataset.attr_names)
            names, labels = names[labels >= 0], labels[labels >= 0]
    files = [folder / "img_align_celeba" / name for name in names]
    try:
        kept = f"{DECODED}-{config.dataset}-{config.split}-{CELEBA_SIZE}"
        return _decoded(files, folder / kept), labels
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or 'cannot be used'}") from None


def celeba_classes(
    attributes: npt.NDArray[np.int64], names: Sequence[str]
) -> npt.NDArray[np.int64]:
    """Return each image's class, 0 to 15; -1 without exactly one colour of hair.

    Args:
        attributes: ``[n, 40]``, 0 or 1.
        names: of the attributes, in the order of the columns.
    """
    columns = {name: attributes[:, list(names).index(name)] for name in CELEBA_NEEDED}
    hair = np.stack([columns[name] for name in CELEBA_HAIR], axis=1)
    classes = 8 * columns["Male"] + 4 * columns["Young"] + hair.argmax(axis=1)
    return np.where(hair.sum(axis=1) == 1, classes, -1).astype(np.int64)


def _decoded(files: Sequence[Path], kept: Path) -> npt.NDArray[np.uint8]:
    """Return images at 64×64, mapped from a file; it is made the first time.

    The file belongs to images of these names, sizes and times of change; when any is
    another, it is made anew. Processes that need it at once wait for one of them.

    Args:
        kept: the beginning of the name of the folder that holds the file.
    """
    stats = [(file.name, file.stat()) for file in files]
    known = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
    folder = kept.with_name(
        f"{kept.name}-{hashlib.sha256(known.encode()).hexdigest()[:16]}"
    )
    pixels = folder / "pixels.npy"
    with kept.with_name(f".{kept.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        if not pixels.is_file():
            for old in kept.parent.glob(f"{kept.name}-*"):
                shutil.rmtree(old)
            with whole_folder(folder) as partial:
                _decode(files, partial / pixels.name)
    mapped: npt.NDArray[np.uint8] = np.load(pixels, mmap_mode="r", allow_pickle=False)
    return mapped


def _decode(files: Sequence[Path], target: Path) -> None:
    """Write all images to one array, on disk when this returns."""
    shape = (len(files), CELEBA_SIZE, CELEBA_SIZE, 3)
    made = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), BLOCK):
            stop = min(start + BLOCK, len(files))
            numbers = itertools.count(start + 1)
            made[start:stop] = list(pool.map(_small, files[start:stop], numbers))
    made.flush()
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _small(path: Path, number: int) -> npt.NDArray[np.uint8]:
    """Return an image's middle 178×178 at 64×64, ``[h, w, 3]``."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            if min(width, height) < CELEBA_CROP:
                raise DataError(
                    f"image {number} is {width}×{height}, smaller than {CELEBA_CROP}"
                )
            left = round((width - CELEBA_CROP) / 2)
            top = round((height - CELEBA_CROP) / 2)
            box = (left, top, left + CELEBA_CROP, top + CELEBA_CROP)
            small = image.convert("RGB").crop(box)
            size = (CELEBA_SIZE, CELEBA_SIZE)
            return np.asarray(small.resize(size, Image.Resampling.BILINEAR))
    except DataError:
        raise
    except Exception:
        # A damaged image raises whatever its decoder meets first.
        raise DataError(f"image {number} in {path.parent} cannot be read") from None
