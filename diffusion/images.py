"""Tensors to 8-bit images and grids."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from diffusion.errors import ImagesRejected
from diffusion.files import save_atomically

#: Distance between the cells of a grid, and its grey, both before enlargement.
GAP_PIXELS = 1
GAP_GREY = 128


def to_8_bit(images: Tensor) -> npt.NDArray[np.uint8]:
    """Return images as 8-bit values: -1 becomes 0, 1 becomes 255, rounded.

    Args:
        images: ``[n, c, h, w]`` with one or three channels. Values outside [-1, 1]
            are clamped.

    Returns:
        ``[n, h, w, c]``.

    Raises:
        ImagesRejected: the shape is another one, or a value is not finite.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ImagesRejected(
            f"images have shape {tuple(images.shape)}, not [n,1|3,h,w]"
        )
    if not bool(images.isfinite().all()):
        raise ImagesRejected("images contain a value that is not finite")
    values = (images.detach().cpu().clamp(-1.0, 1.0) + 1.0) * 127.5
    return values.round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def save_grid(
    path: Path, images: Tensor | Sequence[Tensor], columns: int, enlarge: int
) -> None:
    """Save images as one PNG, row by row, each enlarged bicubically.

    Args:
        path: the PNG file; written whole or not at all.
        images: ``[n, c, h, w]`` in [-1, 1], or a sequence of ``[c, h, w]``.
        columns: images per row.
        enlarge: factor of height and width, 1 for none.

    Raises:
        ImagesRejected: there is no image, or as ``to_8_bit``.
        ValueError: ``columns`` or ``enlarge`` is smaller than 1.
        OSError: the folder is missing or not writable.
    """
    save_atomically(path, grid_png(images, columns, enlarge))


def grid_png(images: Tensor | Sequence[Tensor], columns: int, enlarge: int) -> bytes:
    """Return the PNG that :func:`save_grid` writes; arguments and errors are its."""
    if columns < 1 or enlarge < 1:
        raise ValueError(f"columns and enlarge must be ≥ 1; got {columns}, {enlarge}")
    if len(images) == 0:
        raise ImagesRejected("a grid needs at least one image")
    cells = np.concatenate([to_8_bit(image[None]) for image in images])
    buffer = io.BytesIO()
    _compose(cells, columns, enlarge).save(buffer, format="PNG")
    return buffer.getvalue()


def _compose(cells: npt.NDArray[np.uint8], columns: int, enlarge: int) -> Image.Image:
    """Place enlarged cells [n, h, w, c] on a grey ground, with gaps between."""
    count, height, width, channels = cells.shape
    rows = math.ceil(count / columns)
    cell_height, cell_width = height * enlarge, width * enlarge
    gap = GAP_PIXELS * enlarge
    size = (
        columns * (cell_width + gap) + gap,
        rows * (cell_height + gap) + gap,
    )
    grid = Image.new("L" if channels == 1 else "RGB", size, _grey(channels))
    for index, cell in enumerate(cells):
        image = Image.fromarray(cell[:, :, 0] if channels == 1 else cell)
        image = image.resize((cell_width, cell_height), Image.Resampling.BICUBIC)
        row, column = divmod(index, columns)
        grid.paste(
            image, (gap + column * (cell_width + gap), gap + row * (cell_height + gap))
        )
    return grid


def _grey(channels: int) -> int | tuple[int, int, int]:
    """Return the ground's colour for grey or colour images."""
    return GAP_GREY if channels == 1 else (GAP_GREY, GAP_GREY, GAP_GREY)
