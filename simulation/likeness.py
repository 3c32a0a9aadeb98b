"""How like an image is a reconstruction: PSNR, and which belongs to which."""

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

PEAK = 2.0
"""Images are in [-1, 1]."""

MOST_DECIBELS = 99.0
"""PSNR of what is equal: no number in JSON is infinite."""


def squared_errors(found: Tensor, originals: Tensor) -> npt.NDArray[np.float64]:
    """Return the mean squared error of each pair, ``[found, originals]``."""
    a = found.flatten(start_dim=1).to(torch.float64)
    b = originals.flatten(start_dim=1).to(torch.float64)
    errors: npt.NDArray[np.float64] = (
        (a[:, None] - b[None, :]).square().mean(dim=2).numpy()
    )
    return errors


def decibels(squared_error: float) -> float:
    """Return 10 log10(peak² / mean squared error), at most 99 dB.

    Source: the usual definition of the peak signal-to-noise ratio.
    """
    if squared_error <= 0:
        return MOST_DECIBELS
    return min(MOST_DECIBELS, float(10 * np.log10(PEAK**2 / squared_error)))


def best_match(found: Tensor, originals: Tensor) -> list[int]:
    """Return which reconstruction belongs to each original: none is used twice.

    Guarantees: the sum of the squared errors is the least of all permutations, which
    flatters an attack that found nothing a little.

    Args:
        found, originals: ``[n, c, h, w]``, as many of each.
    """
    if len(found) != len(originals):
        raise ValueError(f"{len(found)} reconstructions of {len(originals)} images")
    _, chosen = linear_sum_assignment(squared_errors(originals, found))
    return [int(index) for index in chosen]


def psnr(found: Tensor, originals: Tensor) -> tuple[float, ...]:
    """Return the PSNR of each reconstruction, in dB; pairs stand in the same place."""
    errors = squared_errors(found, originals).diagonal()
    return tuple(decibels(float(error)) for error in errors)
