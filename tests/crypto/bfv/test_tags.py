"""Linear tags against Python's integers."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.bfv.parameters import PLAIN_MODULUS, POLY_DEGREE
from crypto.bfv.tags import pads, residuals, weight_words

N, T = POLY_DEGREE, PLAIN_MODULUS
SEED = bytes(range(32))


def slow_residuals(slots, seed, first_chunk, num_values):
    """Slot by slot, in Python's integers."""
    words = weight_words(seed, first_chunk, len(slots)).reshape(-1, 2)
    sums = [0, 0]
    for index, value in enumerate(slots.reshape(-1)):
        j = first_chunk * N + index
        for tag in range(2):
            word = int(words[index, tag])
            if j < num_values:
                sums[tag] += ((word >> 42) * 2**22 + word % 2**22) * int(value)
            elif j == num_values + tag:
                sums[tag] -= int(value)
    return sums[0] % T, sums[1] % T


def draw_slots(num, seed=1):
    return np.random.default_rng(seed).integers(0, T, (num, N), dtype=np.uint64)


@settings(max_examples=10, deadline=None)
@given(
    num=st.integers(1, 3),
    seed=st.integers(0, 2**32),
    first_chunk=st.integers(0, 2**32),
    num_values=st.integers(-1, 3 * N + 1),
    is_maximal=st.booleans(),
)
def test_residuals_are_the_slow_ones(num, seed, first_chunk, num_values, is_maximal):
    slots = draw_slots(num, seed)
    if is_maximal:
        slots[:] = T - 1
    total = max(0, first_chunk * N + num_values)
    assert residuals(slots, SEED, first_chunk, total) == slow_residuals(
        slots, SEED, first_chunk, total
    )


@pytest.mark.parametrize("num_values", [5 * N - 2, 4 * N - 1, 4 * N, 5 * N])
def test_blocks_in_any_grouping_add_up(num_values):
    slots = draw_slots(5)
    whole = residuals(slots, SEED, 0, num_values)
    for cuts in ([0, 5], [0, 1, 5], [0, 2, 4, 5], [0, 1, 2, 3, 4, 5]):
        parts = [residuals(slots[a:b], SEED, a, num_values) for a, b in pairwise(cuts)]
        assert tuple(sum(tag) % T for tag in zip(*parts, strict=True)) == whole


def test_a_tagged_sum_leaves_the_pads_and_another_one_does_not():
    num_values, keys = N - 2, [bytes([k]) * 32 for k in range(3)]
    vectors = [draw_slots(1, k) for k in range(3)]
    for vector, key in zip(vectors, keys, strict=True):
        vector[0, num_values:] = 0
        tags = zip(residuals(vector, SEED, 0, num_values), pads(key), strict=True)
        vector[0, num_values:] = [(a + b) % T for a, b in tags]
    expected = tuple(-sum(tag) % T for tag in zip(*map(pads, keys), strict=True))

    def seen(*coefficients):
        total = sum(
            c * v.astype(object) for c, v in zip(coefficients, vectors, strict=True)
        )
        return residuals((total % T).astype(np.uint64), SEED, 0, num_values)

    assert seen(1, 1, 1) == expected
    for wrong in [(1, 1, 0), (2, 1, 1), (1, 1, T - 1), (3, 0, 0), (0, 0, 0)]:
        for tag in range(2):
            assert seen(*wrong)[tag] != expected[tag]
    vectors[0][0, 7] = (vectors[0][0, 7] + 1) % T
    assert all(a != b for a, b in zip(seen(1, 1, 1), expected, strict=True))


def test_keystreams_and_pads_differ_by_key_chunk_and_tag():
    words = weight_words(SEED, 3, 2)
    assert (words[1] == weight_words(SEED, 4, 1)[0]).all()
    assert len(np.unique(words)) == words.size
    assert not np.isin(weight_words(bytes(32), 3, 1), words).any()
    numbers = {*pads(SEED), *pads(bytes(32))}
    assert len(numbers) == 4
    assert all(0 <= number < T for number in numbers)
    assert pads(SEED) == pads(SEED)


def test_what_no_caller_should_pass_is_refused():
    slots = draw_slots(1)
    for bad in (slots[:, :8], slots[0], slots.astype(np.int64)):
        with pytest.raises(ValueError, match="slots"):
            residuals(bad, SEED, 0, 5)
    slots[0, 9] = T
    with pytest.raises(ValueError, match="t or more"):
        residuals(slots, SEED, 0, 5)
    for seed, chunk, num in [(b"", 0, 1), (SEED, -1, 1), (SEED, 0, -1)]:
        with pytest.raises(ValueError, match=r"seed|negative"):
            residuals(draw_slots(1), seed, chunk, num)
    with pytest.raises(ValueError, match="key"):
        pads(b"short")
