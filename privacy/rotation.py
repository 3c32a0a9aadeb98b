"""Random signs and a Hadamard rotation: every value of an update alike in size.

With d values padded with zeros to P = 4096 · C, element k is (i, j, c) of the array
``[64, 64, C]``, k = (64 i + j) · C + c. The rotation multiplies every value by a random
sign and the 4096 values of every column c by the orthonormal Hadamard matrix
H₄₀₉₆ = H₆₄ ⊗ H₆₄, entries ± 1/64. A column takes its values from the whole vector, so
that large and small tensors are mixed. What was a tensor ten times larger than the rest
becomes noise of one size everywhere, for which one grid range is enough.

The signs are public: they need not be secret, only independent of honest updates, so
that none happens to be the one that a rotation concentrates on few values.

Source: A. T. Suresh et al., Distributed mean estimation with limited communication
(2017), section 3; for the factored transform, vec(A X Aᵀ) = (A ⊗ A) vec(X).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from privacy.clipping import Vector
from privacy.errors import NotFinite

ROOT = 64
COLUMN = ROOT * ROOT
"""Values that are mixed with one another."""
_COLUMNS = 256
"""Columns of one block; the temporary is 4 MiB."""
_SIGNS = 1 << 16
"""Values whose signs are drawn at a time; the last block may be shorter."""
_TOP_BIT = np.uint32(1 << 31)

RandomBytes = Callable[[npt.NDArray[np.uint64]], None]
"""Fills a buffer with the next random words of a stream."""


def padded_length(length: int) -> int:
    """Return the length of a vector padded to whole columns: 4096 · ceil(d / 4096)."""
    return COLUMN * -(-length // COLUMN)


def rotate(vector: Vector, random: RandomBytes) -> None:
    """Rotate a padded vector, in place.

    Guarantees: linear and orthonormal, so that norms, sums and means are kept, up to
    float32 rounding of a relative 10⁻⁶; the only temporary is one block of columns. Of
    ``random`` one bit a value is used, in the vector's order.

    Args:
        vector: float32 ``[P]``, contiguous, P = :func:`padded_length`; consumed.
        random: the signs' stream, the same for all whose vectors are summed.

    Raises:
        NotFinite: an element is NaN, infinite or above 10³⁶; the vector is spoilt.
        ValueError: the vector has another type, layout or length.
    """
    _check_vector(vector)
    _flip(vector, random)
    _transform(vector)


def rotate_back(vector: Vector, random: RandomBytes) -> None:
    """Undo :func:`rotate`, in place, with a stream of the same seed.

    Guarantees, arguments and errors are those of :func:`rotate`: the transform is its
    own inverse, and so is a sign.
    """
    _check_vector(vector)
    _transform(vector)
    _flip(vector, random)


def hadamard_root() -> npt.NDArray[np.float32]:
    """Return the orthonormal Hadamard matrix ``[64, 64]``, entries ± 1/8, exact.

    Source: Sylvester's construction; entry (i, j) is -1 to the number of bits that i
    and j have in common.
    """
    indices = np.arange(ROOT, dtype=np.uint8)
    common = np.bitwise_count(indices[:, None] & indices[None, :])
    signs = 1.0 - 2.0 * (common % 2)
    root: npt.NDArray[np.float32] = (signs / ROOT**0.5).astype(np.float32)
    return root


def _flip(vector: Vector, random: RandomBytes) -> None:
    """Multiply every value by a random sign: exclusive or with its top bit.

    Bit 31 - s of word w of a block's n words is the sign of its value s · n + w.
    """
    words = np.empty(_SIGNS // 64, np.uint64)
    signs, shifts = np.empty(_SIGNS, np.uint32), np.arange(32, dtype=np.uint32)[:, None]
    for start in range(0, vector.size, _SIGNS):
        block = vector[start : start + _SIGNS].view(np.uint32).reshape(32, -1)
        random(words[: block.size // 64])
        part = signs[: block.size].reshape(32, -1)
        np.left_shift(words.view(np.uint32)[: block.shape[1]], shifts, out=part)
        part &= _TOP_BIT
        block ^= part


def _transform(vector: Vector) -> None:
    """Multiply every column by H₆₄ ⊗ H₆₄: one matrix product for each axis."""
    root = hadamard_root()
    values = vector.reshape(ROOT, ROOT, -1)
    half = np.empty((ROOT, ROOT, min(_COLUMNS, values.shape[2])), np.float32)
    for first in range(0, values.shape[2], _COLUMNS):
        block = values[:, :, first : first + _COLUMNS]
        part = half[:, :, : block.shape[2]]
        with np.errstate(over="ignore", invalid="ignore"):
            np.matmul(root, block.transpose(1, 0, 2), out=part)
            np.matmul(root, part.transpose(1, 0, 2), out=block)
        # A value that is not finite spoils its whole column of ``part``, axis 1.
        if not np.isfinite(part[:, 0]).all():
            raise NotFinite("a vector to be rotated holds NaN or infinity")


def _check_vector(vector: Vector) -> None:
    """Refuse what cannot be rotated in place."""
    if vector.dtype != np.float32 or vector.ndim != 1 or vector.size % COLUMN:
        raise ValueError(
            f"vector: must be float32 [4096 · C], is {vector.dtype} {vector.shape}"
        )
    if not (vector.flags.c_contiguous and vector.flags.writeable):
        raise ValueError("vector: must be contiguous and writeable")
