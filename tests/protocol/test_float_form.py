"""Unquantised updates: their words, and a mean that is the same in any order."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import EnvelopeRejected
from protocol.float_form import (
    floats_to_words,
    mean_of,
    weighted_sum,
    words_to_floats,
)


def test_by_hand():
    words = floats_to_words(np.array([1.0, -2.0, 0.5], np.float32))
    assert words.tolist() == [0xC00000003F800000, 0x3F000000]
    assert words_to_floats(words, 3).tolist() == [1.0, -2.0, 0.5]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_inverse(values):
    vector = np.array(values, np.float32)
    words = floats_to_words(vector)
    assert words.size == -(-vector.size // 2)
    assert words_to_floats(words, vector.size).tobytes() == vector.tobytes()


def test_the_mean_does_not_depend_on_the_order():
    random = np.random.default_rng(1)
    vectors = [random.normal(0, 10.0**e, 101).astype("f4") for e in (-6, 0, 6)]
    weights = (1.0, 0.3, 0.7)
    exact = sum(w * v.astype("f8") for w, v in zip(weights, vectors, strict=True)) / 2
    found = set()
    for order in itertools.permutations(range(3)):
        updates = {silo: floats_to_words(vectors[silo]) for silo in order}
        total = weighted_sum(updates, weights, 101)
        assert np.allclose(total.view(np.float64), 2 * exact, rtol=2**-50)
        assert np.allclose(mean_of(total, 2.0), exact, rtol=2**-23)
        found.add(total.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value):
    words = floats_to_words(np.array([1.0, value], np.float32))
    with pytest.raises(EnvelopeRejected, match="NaN or infinity"):
        words_to_floats(words, 2)
