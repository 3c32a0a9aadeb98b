"""Packed words as slots of ciphertexts, and sums of slots as sums of words.

A stretch of the vector is W words of 64 bits, each of them ``floor(64 / b)`` digits of
b bits: the fields of ``crypto.ring``, or with b = 32 the halves of a word that is used
whole. A slot holds k digits side by side, each with room for its sum: k is as large as
fits into ``SLOT_BITS``. The layout is planar both times: digit e = j·W + w is at bits
j·b of word w, and at bits m·width of slot s for e = m·S + s.

A sum of words modulo 2^64 is Σ_j (sum of digits j) · 2^(j·b) modulo 2^64, whether the
digits' sums stay below 2^b or carry: masks and encryption sum to the same words.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from crypto.bfv.parameters import BLOCK_CHUNKS, POLY_DEGREE, SLOT_BITS, Slots
from crypto.bfv.tags import NUM_TAGS
from crypto.ring import WORD_BITS
from crypto.secagg.config import MAX_WORDS
from crypto.secagg.parts import Parts, check_parts

HALF_WORD_BITS = 32

Words: TypeAlias = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Digits:
    """How a stretch of words is read.

    Attributes:
        num_words: W, its length in words.
        digit_bits: b, at most ``SLOT_BITS``.
        sum_bits: bits of the largest sum that a digit can have.

    Raises:
        ValueError: out of range.
    """

    num_words: int
    digit_bits: int
    sum_bits: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 <= self.num_words <= MAX_WORDS:
            raise ValueError(f"num_words: must be 1 to {MAX_WORDS}")
        if not 1 <= self.digit_bits <= SLOT_BITS:
            raise ValueError(f"digit_bits: must be 1 to {SLOT_BITS}")
        if not 1 <= self.sum_bits <= SLOT_BITS:
            raise ValueError(
                f"sum_bits: {self.sum_bits} bits do not fit into a slot of {SLOT_BITS}"
            )

    @classmethod
    def of_whole_words(cls, num_words: int, num_silos: int) -> "Digits":
        """Return how words are read all 64 bits of which are summed, modulo 2^64."""
        return cls(
            num_words, HALF_WORD_BITS, HALF_WORD_BITS + (num_silos - 1).bit_length()
        )

    @property
    def num_digits(self) -> int:
        """Digits of all words."""
        return self.num_words * (WORD_BITS // self.digit_bits)

    @property
    def digits_per_slot(self) -> int:
        """k."""
        return SLOT_BITS // self.sum_bits

    @property
    def width(self) -> int:
        """Bits from one digit of a slot to the next."""
        return SLOT_BITS // self.digits_per_slot

    @property
    def num_slots(self) -> int:
        """S."""
        return -(-self.num_digits // self.digits_per_slot)


Layout: TypeAlias = tuple[Digits, ...]
"""How one part of a vector is read: its stretches, in a row."""
LayoutsOf: TypeAlias = Callable[[int, Parts], tuple[Layout, ...]]
"""By round number and parts: how each part is read. It follows from the plan."""


def check_layouts(layouts: Collection[Layout], parts: Parts) -> None:
    """Raise ``ValueError`` unless these read just these parts: the caller's bug."""
    check_parts(parts)
    if [words_in(layout) for layout in layouts] != [p.num_words for p in parts]:
        raise ValueError("layouts: are not those of the parts")


def words_in(layout: Layout) -> int:
    """Return the words of a part."""
    return sum(digits.num_words for digits in layout)


def values_in(layout: Layout) -> int:
    """Return the slots of a part that hold digits; its tags stand behind them."""
    return sum(digits.num_slots for digits in layout)


def chunks_in(layout: Layout) -> int:
    """Return the ciphertexts of a part, its tags included."""
    return -(-(values_in(layout) + NUM_TAGS) // POLY_DEGREE)


def slot_blocks(words: Words, layout: Layout) -> Iterator[tuple[int, Slots]]:
    """Yield the slots of a part, block by block, with the index of the first chunk.

    Slots behind the digits are zero.

    Args:
        words: uint64 ``[W]`` of all stretches.

    Returns:
        Pairs of chunk and ``[c, N]``, c at most ``BLOCK_CHUNKS``; each a new array.

    Raises:
        ValueError: not W words, or a digit that does not fit beside the next one.
    """
    if words.dtype != np.uint64 or words.shape != (words_in(layout),):
        raise ValueError(f"words: {words.dtype} {words.shape}")
    num_chunks = chunks_in(layout)
    for first in range(0, num_chunks, BLOCK_CHUNKS):
        size = min(BLOCK_CHUNKS, num_chunks - first)
        block = np.zeros((size, POLY_DEGREE), np.uint64)
        flat = block.reshape(-1)
        for digits, own, place, begin in _overlaps(layout, first, flat.size):
            _write_slots(words[own], digits, flat[place], begin)
        yield first, block


def sum_words(blocks: Iterable[Slots], layout: Layout) -> Words:
    """Return the words of a sum from its slots, the inverse of :func:`slot_blocks`.

    Args:
        blocks: ``[c, N]`` each, all chunks of the part in order.
    """
    words = np.zeros(words_in(layout), np.uint64)
    add_words(words, blocks, layout)
    return words


def add_words(words: Words, blocks: Iterable[Slots], layout: Layout) -> None:
    """Add what :func:`sum_words` returns to words, modulo 2^64, in place.

    Args:
        words: uint64 ``[W]`` of all stretches.
        blocks: as for :func:`sum_words`.
    """
    first = 0
    for block in blocks:
        flat = block.reshape(-1)
        for digits, own, place, begin in _overlaps(layout, first, flat.size):
            _add_digits(words[own], digits, flat[place], begin)
        first += len(block)


def _overlaps(
    layout: Layout, first_chunk: int, num_slots: int
) -> Iterator[tuple[Digits, slice, slice, int]]:
    """Yield the stretches in a block of so many slots.

    Each is: how it is read, its words, its place in the block, its first slot there.
    """
    begin = first_chunk * POLY_DEGREE
    word, slot = 0, 0
    for digits in layout:
        start, stop = max(begin, slot), min(begin + num_slots, slot + digits.num_slots)
        if start < stop:
            own = slice(word, word + digits.num_words)
            yield digits, own, slice(start - begin, stop - begin), start - slot
        word, slot = word + digits.num_words, slot + digits.num_slots


def _pieces(
    digits: Digits, begin: int, size: int
) -> Iterator[tuple[int, int, slice, slice]]:
    """Yield the runs of digits in ``size`` slots of a stretch, from one slot on.

    Each is: shift in the slot, shift in the word, place among the slots, words.
    """
    for m in range(digits.digits_per_slot):
        element, at = m * digits.num_slots + begin, 0
        last = min(element + size, digits.num_digits)
        while element < last:
            plane, word = divmod(element, digits.num_words)
            count = min(last - element, digits.num_words - word)
            yield (
                m * digits.width,
                plane * digits.digit_bits,
                slice(at, at + count),
                slice(word, word + count),
            )
            element, at = element + count, at + count


def _write_slots(words: Words, digits: Digits, slots: Slots, begin: int) -> None:
    """Write the digits of a stretch's words into slots that are zero."""
    lowest = np.uint64((1 << digits.digit_bits) - 1)
    for in_slot, in_word, place, source in _pieces(digits, begin, slots.size):
        part = words[source] >> np.uint64(in_word)
        part &= lowest
        if int(part.max()) >> digits.sum_bits:
            raise ValueError(f"words: a digit above {digits.sum_bits} bits")
        part <<= np.uint64(in_slot)
        slots[place] |= part


def _add_digits(words: Words, digits: Digits, slots: Slots, begin: int) -> None:
    """Add the sums of digits in slots to a stretch's words, modulo 2^64."""
    lowest = np.uint64((1 << digits.width) - 1)
    for in_slot, in_word, place, target in _pieces(digits, begin, slots.size):
        part = slots[place] >> np.uint64(in_slot)
        part &= lowest
        part <<= np.uint64(in_word)
        words[target] += part
