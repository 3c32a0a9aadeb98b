"""Secret weights: digits that are summed, and their sum."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.ring import field_bits_for
from privacy.errors import Overflow
from privacy.weights import check_headroom, decode_weights, encode_weight, num_digits


@pytest.mark.parametrize(
    ("max_weight", "value_bits", "digits"),
    [(0, 8, 0), (1, 8, 1), (255, 8, 1), (256, 8, 2), (65_535, 4, 4), (2**32, 24, 2)],
)
def test_the_number_of_digits_by_hand(max_weight, value_bits, digits):
    assert num_digits(max_weight, value_bits) == digits


def test_digits_by_hand():
    """0x2AF in base 16, the smallest digit first; three digits for up to 4095."""
    assert encode_weight(0x2AF, 4095, 4).tolist() == [0xF, 0xA, 0x2]
    assert encode_weight(5, 4095, 4).tolist() == [5, 0, 0]
    assert decode_weights([0xF + 5, 0xA, 0x2], 4095, 4, 2) == 0x2AF + 5


@st.composite
def cohorts(draw):
    max_weight = draw(st.integers(1, 2**32))
    value_bits = draw(st.integers(2, 24))
    weights = st.lists(st.integers(1, max_weight), min_size=1, max_size=12)
    return max_weight, value_bits, draw(weights)


@given(cohorts())
def test_the_sum_of_the_digits_tells_the_sum_of_the_weights(cohort):
    max_weight, value_bits, weights = cohort
    digits = [encode_weight(weight, max_weight, value_bits) for weight in weights]
    sums = np.sum(digits, axis=0, dtype=np.uint64).tolist()
    assert decode_weights(sums, max_weight, value_bits, len(weights)) == sum(weights)


@given(cohorts())
def test_no_sum_of_digits_leaves_its_field(cohort):
    max_weight, value_bits, weights = cohort
    field_bits = field_bits_for(value_bits, len(weights))
    check_headroom(value_bits, field_bits, len(weights))
    heaviest = [encode_weight(max_weight, max_weight, value_bits)] * len(weights)
    assert np.sum(heaviest, axis=0, dtype=np.uint64).max() < 1 << field_bits


def test_headroom_ends_exactly_where_a_digit_would_overflow():
    check_headroom(8, 10, 4)  # 4 · 255 = 1020
    with pytest.raises(Overflow, match="5 digits of 8 bits do not fit"):
        check_headroom(8, 10, 5)


@pytest.mark.parametrize("weight", [0, -1, 101])
def test_a_weight_out_of_range_is_refused_and_not_named(weight):
    with pytest.raises(Overflow) as refused:
        encode_weight(weight, 100, 8)
    assert not any(character.isdigit() for character in str(refused.value))


@pytest.mark.parametrize(
    "sums",
    [
        [1, 0],  # Three silos weigh at least 3.
        [0, 0],
        [0, 15],  # 240 of at most 3 · 70 = 210.
        [46, 0],  # A digit of three silos is at most 45.
        [30],
        [30, 0, 0],
    ],
)
def test_sums_that_cannot_be_are_refused(sums):
    assert decode_weights([18, 12], 70, 4, 3) == 210
    assert decode_weights([3, 0], 70, 4, 3) == 3
    assert decode_weights([45, 0], 70, 4, 3) == 45
    with pytest.raises(Overflow, match="the sum of the weights"):
        decode_weights(sums, 70, 4, 3)
