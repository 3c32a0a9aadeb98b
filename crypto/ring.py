"""Fields of b bits packed into 64-bit words, summed modulo 2^64.

The layout is planar: with k = floor(64 / b) fields in a word and W = ceil(d / k) words,
field j of word w holds element j·W + w, at bits j·b to (j + 1)·b - 1. Every plane is
contiguous in the vector and in memory. Bits above k·b, and fields whose element is
beyond d, are zero.

Words are summed whole. As long as every field of the sum stays below 2^b, no field
carries into the next: that is the headroom that :func:`field_bits_for` provides.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FIELD_BITS = (8, 10, 12, 16, 21, 32, 64)
"""The widths b that fill a word well: 8, 6, 5, 4, 3, 2 and 1 fields."""
WORD_BITS = 64
_LANE_BITS = (8, 16, 32, 64)
"""Fields as wide as a type are reached as strided views; words are little-endian."""
_BLOCK_WORDS = 1 << 15

Words: TypeAlias = npt.NDArray[np.uint64]
Fields: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
Fill: TypeAlias = Callable[[int, Fields], None]


def field_bits_for(value_bits: int, num_contributors: int) -> int:
    """Return the narrowest field that holds the sum of so many values.

    Guarantees: n · (2^q - 1) < 2^b for the returned b.

    Args:
        value_bits: bits q of one value, at least 1.
        num_contributors: the most values n that are summed, at least 1.

    Raises:
        ValueError: out of range, or no field is wide enough.

    Source: b ≥ q + ceil(log2 n).
    """
    if value_bits < 1 or num_contributors < 1:
        raise ValueError("value_bits and num_contributors: must be at least 1")
    needed = value_bits + (num_contributors - 1).bit_length()
    for field_bits in FIELD_BITS:
        if field_bits >= needed:
            return field_bits
    raise ValueError(
        f"value_bits: {value_bits} bits of {num_contributors} contributors need "
        f"{needed} bits, above {WORD_BITS}"
    )


def words_needed(length: int, field_bits: int) -> int:
    """Return the number of 64-bit words that hold ``length`` fields."""
    fields_per_word = _fields_per_word(field_bits)
    return -(-length // fields_per_word)


def pack_blocks(
    fill: Fill, length: int, field_bits: int, out: Words | None = None
) -> Words:
    """Pack fields that are made block by block, as each is needed.

    Guarantees: the words are those of :func:`pack` on the whole vector; every element
    is asked for once; every bit that holds no field is zero. Beside the words no memory
    of the vector's length is used.

    Args:
        fill: called as ``fill(start, target)`` to write the fields of the elements
            start … start + target.size - 1; ``target`` may be a strided view, its type
            the narrowest that holds a field.
        length: the number d of fields.
        field_bits: one of ``FIELD_BITS``.
        out: uint64 ``[W]`` to fill; a new array by default.

    Returns:
        uint64 ``[W]``, W = :func:`words_needed`.

    Raises:
        ValueError: wrong type or shape, or a value that does not fit; ``out`` is
            incomplete then. Fields of 8, 16, 32 and 64 bits have no type that could
            hold such a value: there ``fill`` itself must not cut one off.
    """
    num_words = words_needed(length, field_bits)
    words = np.empty(num_words, np.uint64) if out is None else out
    if words.shape != (num_words,) or words.dtype != np.uint64:
        raise ValueError(f"out: must be uint64 [{num_words}], is {words.shape}")
    size = min(_BLOCK_WORDS, num_words)
    fields: Fields = np.empty(size, _field_type(field_bits))
    wide = np.empty(size, np.uint64)
    for start, block in _blocks(words):
        block[:] = 0
        lanes = _lanes(block, field_bits)
        for plane, first, count in _planes(start, block.size, num_words, length):
            if lanes is not None:
                fill(first, lanes[:count, plane])
                continue
            fill(first, fields[:count])
            _check_fields(fields[:count], field_bits)
            np.copyto(wide[:count], fields[:count])
            wide[:count] <<= np.uint64(plane * field_bits)
            block[:count] |= wide[:count]
    return words


def unpack_blocks(
    words: Words, field_bits: int, length: int
) -> Iterator[tuple[int, Fields]]:
    """Yield (start, fields) of packed words, or of a sum of them, block by block.

    Guarantees: the elements 0 … length - 1 are yielded once each; blocks that lie
    within one plane follow the order of the words. Fields may be a view of the words,
    or a buffer that the next block overwrites.

    Args:
        length: the number of fields that were packed.

    Raises:
        ValueError: the number of words is not that of ``length`` fields.
    """
    _check_words(words, field_bits, length)
    size = min(_BLOCK_WORDS, words.size)
    fields: Fields = np.empty(size, _field_type(field_bits))
    wide, lowest = np.empty(size, np.uint64), np.uint64((1 << field_bits) - 1)
    for start, block in _blocks(words):
        lanes = _lanes(block, field_bits)
        for plane, first, count in _planes(start, block.size, words.size, length):
            if lanes is not None:
                yield first, lanes[:count, plane]
                continue
            part = wide[:count]
            np.right_shift(block[:count], np.uint64(plane * field_bits), out=part)
            part &= lowest
            fields[:count] = part
            yield first, fields[:count]


def pack(fields: Fields, field_bits: int, out: Words | None = None) -> Words:
    """Pack fields into words.

    Guarantees: ``unpack(pack(x)) == x``; every bit that holds no field is zero. No
    temporary is larger than a block, and nothing is written unless every value fits.

    Args:
        fields: unsigned integers ``[d]``, each below 2^field_bits.
        field_bits: one of ``FIELD_BITS``.
        out: uint64 ``[W]`` to fill; a new array by default.

    Returns:
        uint64 ``[W]``, W = :func:`words_needed`.

    Raises:
        ValueError: wrong type or shape, or a value that does not fit.
    """
    _check_fields(fields, field_bits)

    def copy(start: int, target: Fields) -> None:
        part = fields[start : start + target.size]
        np.copyto(target, part, casting="unsafe")

    return pack_blocks(copy, fields.size, field_bits, out)


def unpack(words: Words, field_bits: int, length: int) -> Fields:
    """Return the fields of packed words, or of a sum of them.

    Returns:
        ``[length]``: uint8 for fields of 8 bits, uint16 up to 16, uint32 up to 32,
        else uint64.

    Raises:
        ValueError: the number of words is not that of ``length`` fields.
    """
    _check_words(words, field_bits, length)
    fields: Fields = np.empty(length, _field_type(field_bits))
    for start, part in unpack_blocks(words, field_bits, length):
        fields[start : start + part.size] = part
    return fields


def add_into(total: Words, words: Words) -> None:
    """Add words to a running total, modulo 2^64, in place."""
    np.add(total, words, out=total)


def _fields_per_word(field_bits: int) -> int:
    """Return k, refusing widths that are not ours."""
    if field_bits not in FIELD_BITS:
        raise ValueError(f"field_bits: must be one of {FIELD_BITS}, is {field_bits}")
    return WORD_BITS // field_bits


def _field_type(field_bits: int) -> type[np.unsignedinteger[Any]]:
    """Return the narrowest type that holds one unpacked field."""
    if field_bits <= 16:
        return np.uint8 if field_bits <= 8 else np.uint16
    return np.uint32 if field_bits <= 32 else np.uint64


def _blocks(words: Words) -> Iterator[tuple[int, Words]]:
    """Cut words into blocks that stay in the processor's cache."""
    for start in range(0, words.size, _BLOCK_WORDS):
        yield start, words[start : start + _BLOCK_WORDS]


def _planes(
    start: int, size: int, num_words: int, length: int
) -> Iterator[tuple[int, int, int]]:
    """Yield plane, first element and number of elements that a block of words holds."""
    for plane, first in enumerate(range(start, length, num_words)):
        yield plane, first, min(size, length - first)


def _lanes(block: Words, field_bits: int) -> Fields | None:
    """Return a view ``[words, planes]`` of fields as wide as a type, else None."""
    if field_bits not in _LANE_BITS:
        return None
    return block.view(_field_type(field_bits)).reshape(block.size, -1)


def _check_words(words: Words, field_bits: int, length: int) -> None:
    """Refuse words that are not those of so many fields."""
    if words.shape != (words_needed(length, field_bits),):
        raise ValueError(f"words: {words.shape} cannot hold {length} fields")


def _check_fields(fields: Fields, field_bits: int) -> None:
    """Refuse what cannot be packed without loss."""
    if fields.ndim != 1 or not np.issubdtype(fields.dtype, np.unsignedinteger):
        raise ValueError(
            f"fields: must be unsigned [d], are {fields.dtype} {fields.shape}"
        )
    if 8 * fields.dtype.itemsize <= field_bits or not fields.size:
        return
    if (largest := int(fields.max())) >= 1 << field_bits:
        raise ValueError(f"fields: {largest} does not fit in {field_bits} bits")
