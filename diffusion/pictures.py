"""Samples of a checkpoint as one picture, for the commands that show them."""

from pathlib import Path

from diffusion.checkpoint import choose_device, load_checkpoint
from diffusion.config import UNetConfig
from diffusion.images import save_grid

MAX_COLUMNS = 20


def grid_columns(model: UNetConfig, otherwise: int) -> int:
    """Return the columns of a grid: one a class, as samples take turns by class.

    Args:
        otherwise: for a model without classes, or with more than fit beside each other.
    """
    fits = 0 < model.num_classes <= MAX_COLUMNS
    return model.num_classes if fits else otherwise


def draw_samples(
    checkpoint_path: Path,
    out: Path,
    *,
    count: int,
    columns: int,
    enlarge: int,
    seed: int,
    label: int | None,
    device: str,
) -> None:
    """Draw images from a checkpoint into one PNG grid.

    Args:
        columns: 0 for one a class, 8 where that does not fit.
        label: the one class of all of them; None: classes take turns, if there are any.

    Raises:
        DiffusionError: no checkpoint, no such class or device; one line.
        OSError: the folder is missing or not writable.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    images = checkpoint.images(
        seed=seed,
        count=count,
        device=choose_device(device),
        labels=None if label is None else [label] * count,
    )
    one_a_class = grid_columns(checkpoint.model, 8) if label is None else 8
    save_grid(out, images, columns or one_a_class, enlarge)
