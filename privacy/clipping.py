"""The L2 clip of one contribution. A clipped update keeps its bound."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.errors import NotFinite

BLOCK = 1 << 16
MARGIN = 2.0**-36
"""Relative; above the error of :func:`norm` for up to 2^32 values.

A float64 sum of m squares is off by a factor of at most 1 + m · 2^-53, in any order;
m = 2^16 in a block and 2^16 blocks make 2^-36, of which the root halves.
"""
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ClippedUpdate:
    """An update whose L2 norm is at most ``norm_bound``.

    ``vector`` is float32 ``[d]``; ``was_clipped`` depends on data and stays in the
    silo.
    """

    vector: Vector
    norm_bound: float
    was_clipped: bool


def norm(vector: Vector) -> float:
    """Return the L2 norm of a float32 vector ``[d]``, summed in float64 by blocks.

    Raises:
        NotFinite: an element is NaN or infinite.
    """
    total = 0.0
    for start in range(0, vector.size, BLOCK):
        block = vector[start : start + BLOCK].astype(np.float64)
        total += float(block @ block)
    if not np.isfinite(total):
        raise NotFinite("the update holds NaN or infinity; training has diverged")
    return float(np.sqrt(total))


def clip(update: Vector, clipping_norm: float) -> ClippedUpdate:
    """Scale an update down, in place, so that its L2 norm is at most the bound.

    Guarantees: the norm of the returned vector, in exact arithmetic, is at most
    ``clipping_norm``: a measured norm has to stay below it by more than float64's
    rounding can hide (``MARGIN``), and after scaling it is measured again and, where
    float32 rounding left it above, scaled by the next smaller factor. A vector whose
    measured norm is within the bound less that margin is returned unchanged, bit for
    bit; the zero and the empty vector too.

    Args:
        update: float32 ``[d]``, contiguous; consumed.
        clipping_norm: the bound, positive.

    Raises:
        NotFinite: an element is NaN or infinite; nothing is scaled then.
    """
    before, limit = norm(update), clipping_norm * (1 - MARGIN)
    if before <= limit:
        return ClippedUpdate(update, clipping_norm, False)
    update *= np.float32(limit / before)
    while norm(update) > limit:
        update *= np.float32(1 - 2**-22)
    return ClippedUpdate(update, clipping_norm, True)
