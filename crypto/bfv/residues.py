"""Polynomials on the wire: residues of 60 bits, packed without a gap.

Of each residue the seven low bytes, little-endian, one residue after the other; then
the four bits that are left of each, two residues to a byte, the first in the low half:
``N * 7 + N / 2`` bytes. Every residue has one encoding, and none of q or more is read,
so that the engine below never sees a number out of its range.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from crypto.bfv.parameters import (
    COEFF_MODULUS,
    POLY_BYTES,
    POLY_DEGREE,
    Residues,
)
from crypto.encoding import BytesLike
from crypto.errors import MalformedMessage

_LOW_BYTES = 7 * POLY_DEGREE
_LOW_MASK = np.uint64((1 << 56) - 1)
_Q = np.uint64(COEFF_MODULUS)
_BLOCK_POLYS = 4
"""Polynomials that are worked on together: 128 KiB, which stay in the cache."""

Packed = npt.NDArray[np.uint8]


def pack_residues(residues: Residues, out: Packed | None = None) -> Packed:
    """Return polynomials as bytes.

    Args:
        residues: uint64 ``[..., N]``.
        out: contiguous, of the shape that is returned, to fill; a new array by default.

    Returns:
        uint8 ``[..., POLY_BYTES]``.

    Raises:
        ValueError: another shape or type, or a residue of q or more; ``out`` is
            incomplete then.
    """
    if residues.dtype != np.uint64 or residues.shape[-1:] != (POLY_DEGREE,):
        raise ValueError(f"residues: {residues.dtype} {residues.shape}")
    shape = (*residues.shape[:-1], POLY_BYTES)
    packed = np.empty(shape, np.uint8) if out is None else out
    if packed.shape != shape or not packed.flags.c_contiguous:
        raise ValueError(f"out: {packed.shape} instead of {shape}")
    rows = np.ascontiguousarray(residues).reshape(-1, POLY_DEGREE)
    for block in _blocks(len(rows)):
        _pack(rows[block], packed.reshape(-1, POLY_BYTES)[block])
    return packed


def unpack_residues(data: BytesLike, num_polys: int) -> Residues:
    """Return the polynomials that stand in ``data``.

    Returns:
        uint64 ``[num_polys, N]``, every one below q.

    Raises:
        MalformedMessage: the length is not that of ``num_polys`` polynomials, or a
            residue is q or more.
    """
    packed = np.frombuffer(data, np.uint8)
    if packed.size != num_polys * POLY_BYTES:
        raise MalformedMessage(
            f"{packed.size} bytes instead of {num_polys * POLY_BYTES} of residues"
        )
    return unpack_rows(packed.reshape(num_polys, POLY_BYTES))


def unpack_rows(packed: Packed) -> Residues:
    """Return the polynomials in rows of bytes, between which other bytes may stand.

    Args:
        packed: uint8 ``[c, POLY_BYTES]``.

    Returns:
        uint64 ``[c, N]``, every one below q.

    Raises:
        MalformedMessage: a residue is q or more.
    """
    residues = np.empty((len(packed), POLY_DEGREE), np.uint64)
    for block in _blocks(len(packed)):
        _unpack(np.ascontiguousarray(packed[block]), residues[block])
    return residues


def add_residues(total: Residues, residues: Residues) -> None:
    """Add polynomials to a sum modulo q, in place.

    Args:
        total, residues: uint64 ``[..., N]`` of one shape, each below q; ``total`` is
            contiguous, or ``[c, N]`` with any distance between polynomials.

    Raises:
        ValueError: other shapes, types or layouts.
    """
    sums, terms = _rows(total, residues)
    less = np.empty((_BLOCK_POLYS, POLY_DEGREE), np.uint64)
    for block in _blocks(len(sums)):
        part = sums[block]
        part += terms[block]
        # Below q, the difference wraps to a number far above the sum.
        np.subtract(part, _Q, out=less[: len(part)])
        np.minimum(part, less[: len(part)], out=part)


def subtract_residues(total: Residues, residues: Residues) -> None:
    """Undo :func:`add_residues` of the same residues."""
    sums, terms = _rows(total, residues)
    for block in _blocks(len(sums)):
        part = sums[block]
        part -= terms[block]
        # Below zero it has wrapped far above q, and so the sum with q is smaller.
        np.minimum(part, part + _Q, out=part)


def check_range(residues: Residues) -> None:
    """Check that every residue is below q.

    Raises:
        MalformedMessage: one is not.
    """
    if residues.size and residues.max() >= _Q:
        raise MalformedMessage("a residue of q or more")


def _blocks(num_polys: int) -> Iterator[slice]:
    """Cut polynomials into blocks that stay in the processor's cache."""
    for start in range(0, num_polys, _BLOCK_POLYS):
        yield slice(start, start + _BLOCK_POLYS)


def _low_words(packed: Packed) -> npt.NDArray[np.uint64]:
    """View the low parts as words of eight bytes that begin at every seventh."""
    words: npt.NDArray[np.uint64] = np.ndarray(
        (len(packed), POLY_DEGREE), "<u8", packed.data, 0, (POLY_BYTES, 7)
    )
    return words


def _pack(residues: Residues, packed: Packed) -> None:
    """Pack a block; neighbours agree on the byte they share, whichever comes last."""
    if residues.max() >= _Q:
        raise ValueError("residues: one is q or more")
    words, tops = residues.copy(), residues.view(np.uint8)[:, 7::8]
    words.view(np.uint8)[:, 7:-1:8] = residues.view(np.uint8)[:, 8::8]
    words[:, -1] &= _LOW_MASK
    _low_words(packed)[:] = words
    np.bitwise_or(tops[:, 0::2], tops[:, 1::2] << 4, out=packed[:, _LOW_BYTES:])


def _unpack(packed: Packed, residues: Residues) -> None:
    """Unpack a block; the shared byte is replaced by the four highest bits."""
    np.copyto(residues, _low_words(packed))
    tops = residues.view(np.uint8)[:, 7::8]
    tops[:, 0::2] = packed[:, _LOW_BYTES:] & 15
    tops[:, 1::2] = packed[:, _LOW_BYTES:] >> 4
    check_range(residues)


def _rows(total: Residues, residues: Residues) -> tuple[Residues, Residues]:
    """Return both as ``[c, N]``, the first one as a view; our bug where that fails."""
    if total.shape != residues.shape or residues.dtype != np.uint64:
        raise ValueError("residues: must have the sum's shape and type")
    if total.dtype != np.uint64 or not (total.ndim == 2 or total.flags.c_contiguous):
        raise ValueError("total: must be uint64, and contiguous or [c, N]")
    return total.reshape(-1, POLY_DEGREE), residues.reshape(-1, POLY_DEGREE)
