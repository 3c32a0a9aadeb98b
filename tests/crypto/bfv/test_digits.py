"""Packed words as slots, and their sums back: the same words as masks would give."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.bfv.digits import (
    Digits,
    Layout,
    check_layouts,
    chunks_in,
    slot_blocks,
    sum_words,
    values_in,
    words_in,
)
from crypto.bfv.parameters import BLOCK_CHUNKS, PLAIN_MODULUS, POLY_DEGREE, SLOT_BITS
from crypto.ring import FIELD_BITS, pack, unpack
from crypto.secagg.parts import Part

WIDTHS = [bits for bits in FIELD_BITS if bits <= 32]


def slots_of(words: np.ndarray, layout: Layout) -> np.ndarray:
    """All slots of a part in a row, its blocks in order."""
    blocks = list(slot_blocks(words, layout))
    firsts = np.cumsum([0, *(len(block) for _, block in blocks)])
    assert [first for first, _ in blocks] == firsts[:-1].tolist()
    assert all(len(block) <= BLOCK_CHUNKS for _, block in blocks)
    slots = np.concatenate([block for _, block in blocks])
    assert slots.shape == (chunks_in(layout), POLY_DEGREE)
    return slots


def slow_slots(words: list[int], digits: Digits) -> list[int]:
    """The formula of ``crypto.bfv.digits``, digit by digit."""
    slots = [0] * digits.num_slots
    per_word = 64 // digits.digit_bits
    for plane in range(per_word):
        for w, word in enumerate(words):
            digit = word >> (plane * digits.digit_bits) & ((1 << digits.digit_bits) - 1)
            m, s = divmod(plane * len(words) + w, digits.num_slots)
            slots[s] += digit << (m * digits.width)
    return slots


def draw_words(digits: Digits, rng: np.random.Generator, num_silos: int) -> np.ndarray:
    """Words of digits as large as the sum of so many of them may be."""
    largest = min((1 << digits.sum_bits) // num_silos, 1 << digits.digit_bits)
    total = np.zeros(digits.num_words, np.uint64)
    for plane in range(64 // digits.digit_bits):
        fields = rng.integers(0, largest, digits.num_words).astype(np.uint64)
        fields[rng.random(digits.num_words) < 0.2] = largest - 1
        total |= fields << np.uint64(plane * digits.digit_bits)
    return total


@st.composite
def stretches(draw) -> Digits:
    num_words = draw(st.integers(1, 60) | st.sampled_from([1364, 2046, 2047, 2048]))
    if draw(st.booleans()):
        return Digits.of_whole_words(num_words, draw(st.integers(2, 1000)))
    bits = draw(st.sampled_from(WIDTHS))
    return Digits(
        num_words, bits, draw(st.integers(max(3, bits - 6), min(44, bits + 4)))
    )


@given(st.lists(stretches(), min_size=1, max_size=3), st.integers(2, 8), st.integers(0))
def test_sums_through_slots_are_sums_of_words(layout, num_silos, seed):
    rng, layout = np.random.default_rng(seed), tuple(layout)
    vectors = [
        np.concatenate([draw_words(digits, rng, num_silos) for digits in layout])
        for _ in range(num_silos)
    ]
    total = sum(slots_of(words, layout) for words in vectors)
    assert int(total.max()) < 1 << SLOT_BITS < PLAIN_MODULUS
    assert not total.reshape(-1)[values_in(layout) :].any()
    words = sum_words(np.array_split(total, range(1, len(total), 2)), layout)
    expected = [sum(column) % 2**64 for column in np.array(vectors, object).T]
    assert words.tolist() == expected


@given(stretches(), st.integers(0))
def test_slots_follow_the_formula(digits, seed):
    words = draw_words(digits, np.random.default_rng(seed), 1)
    slots = slots_of(words, (digits,)).reshape(-1)
    assert slots[: digits.num_slots].tolist() == slow_slots(words.tolist(), digits)


@pytest.mark.parametrize("bits", WIDTHS)
def test_fields_are_summed_as_their_packed_words(bits):
    """Updates of 5 silos, as masks pack and sum them."""
    rng = np.random.default_rng(bits)
    value_bits = bits - 3
    fields = rng.integers(0, 1 << value_bits, (5, 501)).astype(np.uint64)
    packed = [pack(row, bits) for row in fields]
    layout = (Digits(packed[0].size, bits, value_bits + 3),)
    total = sum_words([sum(slots_of(words, layout) for words in packed)], layout)
    assert (total == sum(packed)).all()
    assert (unpack(total, bits, 501) == fields.sum(0)).all()


def test_whole_words_carry_as_masks_do():
    """2 (2^64 - 1) modulo 2^64, through halves of 32 bits whose sums have 33."""
    layout = (Digits.of_whole_words(2, 2),)
    assert layout[0].sum_bits == 33 and layout[0].digits_per_slot == 1
    words = np.array([2**64 - 1, 2**63 + 5], np.uint64)
    total = sum_words([2 * slots_of(words, layout)], layout)
    assert total.tolist() == [2**64 - 2, 10]


def test_by_hand():
    """Two words of 4 digits of 16 bits with sums of 14: k = 3, 14 bits apart."""
    digits = Digits(2, 16, 14)
    assert (digits.digits_per_slot, digits.width, digits.num_slots) == (3, 14, 3)
    words = np.array([4 << 48 | 3 << 32 | 2 << 16 | 1, 8 << 48 | 7 << 32 | 6 << 16 | 5])
    slots = slots_of(words.astype(np.uint64), (digits,)).reshape(-1)
    # Digits by plane: 1 5 | 2 6 | 3 7 | 4 8; the first three in the lowest fields.
    assert slots[:4].tolist() == [
        1 | 6 << 14 | 4 << 28,
        5 | 3 << 14 | 8 << 28,
        2 | 7 << 14,
        0,
    ]


@pytest.mark.parametrize("num_values", [4093, 4094, 4095, 4096, 4097, 8190, 8191])
def test_tags_may_stand_in_the_next_ciphertext(num_values):
    """4094 slots of values leave room for both tags, 4095 for one, 4096 for none."""
    halves, one = divmod(num_values, 2)
    layout = (Digits.of_whole_words(halves, 5), *[Digits(1, 44, 44)] * one)
    assert values_in(layout) == num_values
    assert chunks_in(layout) == {0: 1, 1: 2, 2: 3}[(num_values + 1) // POLY_DEGREE]
    words = np.arange(words_in(layout), dtype=np.uint64)
    assert (sum_words([slots_of(words, layout)], layout) == words).all()


def test_blocks_of_32_ciphertexts():
    layout = (Digits.of_whole_words(33 * 2048 - 3, 5), Digits(30, 16, 14))
    rng = np.random.default_rng(3)
    words = np.concatenate([draw_words(digits, rng, 5) for digits in layout])
    assert [len(block) for _, block in slot_blocks(words, layout)] == [32, 2]
    assert (sum_words([slots_of(words, layout)], layout) == words).all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0, 16, 16), "num_words"),
        ((1 << 29, 16, 16), "num_words"),
        ((1, 0, 16), "digit_bits"),
        ((1, 64, 16), "digit_bits"),
        ((1, 16, 0), "sum_bits"),
        ((1, 16, 45), "45 bits do not fit into a slot of 44"),
    ],
)
def test_ranges(arguments, match):
    with pytest.raises(ValueError, match=match):
        Digits(*arguments)


def test_words_that_do_not_fit_their_layout_are_our_bug():
    layout = (Digits(2, 16, 14),)
    assert list(slot_blocks(np.array([2**14 - 1, 0], np.uint64), layout))
    with pytest.raises(ValueError, match="a digit above 14 bits"):
        list(slot_blocks(np.array([2**14, 0], np.uint64), layout))
    for words in (np.zeros(3, np.uint64), np.zeros(2, np.int64)):
        with pytest.raises(ValueError, match="words"):
            list(slot_blocks(words, layout))
    check_layouts([layout], (Part(2, (0, 1, 2)),))
    for parts in ((), (Part(3, ()),), (Part(2, ()),) * 2):
        with pytest.raises(ValueError, match=r"layouts|parts"):
            check_layouts([layout], parts)
