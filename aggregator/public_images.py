"""Images that the aggregator's operator says may be seen by all: the label "public".

One function, so that there is one place where such images come in. They are read from
an .npz file: the aggregator decodes no picture.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aggregator.errors import ConfigRejected
from diffusion.config import UNetConfig

ARRAY_NAMES = ("images", "train", "train_images", "x_train")


def load_public_images(
    path: Path, model: UNetConfig, value_range: tuple[float, float]
) -> Tensor:
    """Return the images of an .npz file, float32 ``[n, c, h, w]`` in [-1, 1].

    Args:
        path: holds numbers ``[n, h, w]`` or ``[n, h, w, c]`` in one of
            :data:`ARRAY_NAMES`.
        model: what they are for: their channels and size must be its.
        value_range: what becomes -1 and 1.

    Raises:
        ConfigRejected: unreadable, of another shape, or values outside the range.
    """
    low, high = value_range
    if not -math.inf < low < high < math.inf:
        raise ConfigRejected("--value-range: must be two numbers, the smaller first")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            name = next((each for each in ARRAY_NAMES if each in file), "")
            pixels = np.asarray(file[name]) if name else None
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise ConfigRejected(f"--data {path}: {reason}") from None
    except Exception:
        # A damaged archive raises whatever zipfile, zlib or numpy meet first.
        raise ConfigRejected(f"--data {path}: is not a readable .npz file") from None
    if pixels is None:
        raise ConfigRejected(
            f"--data {path}: holds none of the arrays {', '.join(ARRAY_NAMES)}"
        )
    if pixels.ndim == 3:
        pixels = pixels[..., np.newaxis]
    wanted = (model.image_size, model.image_size, model.channels)
    if pixels.ndim != 4 or pixels.shape[1:] != wanted or not len(pixels):
        raise ConfigRejected(
            f"--data {path}: array {name} has shape {pixels.shape}, the plan's model "
            f"takes (n, {', '.join(map(str, wanted))})"
        )
    if pixels.dtype.kind not in "uif" or not (
        low <= float(pixels.min()) and float(pixels.max()) <= high
    ):
        raise ConfigRejected(
            f"--data {path}: array {name} holds values outside [{low:g}, {high:g}]"
        )
    scaled = (pixels.astype(np.float32) - low) * (2 / (high - low)) - 1
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).copy())
