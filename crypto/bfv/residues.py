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
_56 = np.uint64(56)
_Q = np.uint64(COEFF_MODULUS)
_BLOCK_POLYS = 4
"""Polynomials that are worked on together: 128 KiB, which stay in the cache."""

Packed = npt.NDArray[np.uint8]


def pack_residues(residues: Residues) -> Packed:
    """Return polynomials as bytes.

    Args:
        residues: uint64 ``[..., N]``.

    Returns:
        uint8 ``[..., POLY_BYTES]``.

    Raises:
        ValueError: another shape or type, or a residue of q or more.
    """
    _check_residues(residues)
    packed = np.empty((*residues.shape[:-1], POLY_BYTES), np.uint8)
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
    residues = np.empty((num_polys, POLY_DEGREE), np.uint64)
    for block in _blocks(num_polys):
        _unpack(packed.reshape(-1, POLY_BYTES)[block], residues[block])
    return residues


def add_residues(total: Residues, residues: Residues) -> None:
    """Add polynomials to a sum modulo q, in place.

    Args:
        total, residues: uint64 ``[..., N]`` of one shape, each below q; ``total`` is
            contiguous and writeable.

    Raises:
        ValueError: other shapes, types or layouts.
    """
    if total.shape != residues.shape or residues.dtype != np.uint64:
        raise ValueError("residues: must have the sum's shape and type")
    if total.dtype != np.uint64 or not total.flags.c_contiguous:
        raise ValueError("total: must be uint64 and contiguous")
    sums, terms = total.reshape(-1, POLY_DEGREE), residues.reshape(-1, POLY_DEGREE)
    less = np.empty((_BLOCK_POLYS, POLY_DEGREE), np.uint64)
    for block in _blocks(len(sums)):
        part = sums[block]
        part += terms[block]
        # Below q, the difference wraps to a number far above the sum.
        np.subtract(part, _Q, out=less[: len(part)])
        np.minimum(part, less[: len(part)], out=part)


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
    words = residues & _LOW_MASK
    words[:, :-1] |= residues[:, 1:] << _56
    _low_words(packed)[:] = words
    top = (residues >> _56).astype(np.uint8)
    np.bitwise_or(top[:, 0::2], top[:, 1::2] << 4, out=packed[:, _LOW_BYTES:])


def _unpack(packed: Packed, residues: Residues) -> None:
    """Unpack a block; the shared byte is cut off."""
    np.bitwise_and(_low_words(packed), _LOW_MASK, out=residues)
    top = packed[:, _LOW_BYTES:].astype(np.uint64)
    residues[:, 1::2] |= (top >> np.uint64(4)) << _56
    top &= np.uint64(15)
    top <<= _56
    residues[:, 0::2] |= top
    check_range(residues)


def _check_residues(residues: Residues) -> None:
    """Refuse what is not residues: our bug, not a peer's."""
    if residues.dtype != np.uint64 or residues.shape[-1:] != (POLY_DEGREE,):
        raise ValueError(f"residues: {residues.dtype} {residues.shape}")
    if residues.size and residues.max() >= _Q:
        raise ValueError("residues: one is q or more")
