import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.clipping import BLOCK, MARGIN, clip, norm
from privacy.errors import NotFinite

reals = st.floats(-(2.0**40), 2.0**40, width=32)
vectors = st.lists(reals, max_size=20).map(lambda values: np.array(values, np.float32))
norms = st.floats(1e-9, 1e9)


def vector(*values):
    return np.array(values, np.float32)


def exact_square(values):
    """Return the square of the norm, exactly."""
    return sum((Fraction(float(value)) ** 2 for value in values), Fraction(0))


def assert_within(clipped):
    assert exact_square(clipped.vector) <= Fraction(clipped.norm_bound) ** 2


def test_the_norm_of_3_and_4_is_5():
    assert norm(vector(3, 4)) == 5.0
    assert norm(vector(0, 0, 0)) == 0.0
    assert norm(vector()) == 0.0
    assert norm(vector(-2)) == 2.0


@given(vectors)
def test_the_norm_is_that_of_exact_arithmetic(values):
    square = exact_square(values)
    low, high = ((norm(values) * (1 + sign * MARGIN)) for sign in (-1, 1))
    assert Fraction(low) ** 2 <= square <= Fraction(high) ** 2


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_every_block_counts(length):
    values = np.random.default_rng(1).standard_normal(length).astype(np.float32)
    expected = math.sqrt(math.fsum(float(x) ** 2 for x in values))
    assert norm(values) == pytest.approx(expected, rel=MARGIN)
    assert norm(np.ones(length, np.float32)) == pytest.approx(length**0.5, rel=1e-15)


def test_the_largest_float32_does_not_overflow():
    largest = np.finfo(np.float32).max
    assert norm(vector(largest, largest)) == pytest.approx(float(largest) * 2**0.5)
    assert_within(clip(vector(largest, -largest), 1.0))


def test_clip_3_4_to_half_its_norm():
    update = vector(3, 4)
    clipped = clip(update, 2.5)
    assert clipped.vector is update
    np.testing.assert_allclose(update, [1.5, 2.0], rtol=1e-6)
    assert clipped.was_clipped
    assert clipped.norm_bound == 2.5
    assert_within(clipped)


def test_a_vector_within_the_bound_is_unchanged():
    update = vector(3, 4)
    clipped = clip(update, 5.001)
    assert clipped.vector is update
    assert not clipped.was_clipped
    assert update.tolist() == [3.0, 4.0]


@given(vectors, st.floats(1e-9, 1e15))
def test_within_means_bit_for_bit_unchanged(values, clipping_norm):
    before = values.copy()
    clipped = clip(values, clipping_norm)
    if Fraction(clipping_norm) ** 2 * Fraction(1 - 4 * MARGIN) >= exact_square(before):
        assert clipped.vector.tobytes() == before.tobytes()
        assert not clipped.was_clipped


@pytest.mark.parametrize("values", [(), (0.0,), (0.0, -0.0)])
def test_zero_and_empty_are_unchanged(values):
    clipped = clip(vector(*values), 1e-9)
    assert clipped.vector.tobytes() == vector(*values).tobytes()
    assert not clipped.was_clipped


@given(vectors, norms)
def test_the_bound_holds_in_exact_arithmetic(values, clipping_norm):
    clipped = clip(values, clipping_norm)
    assert clipped.norm_bound == clipping_norm
    assert_within(clipped)


@given(vectors, st.integers(-3, 3), st.sampled_from([1.0, 0.5, 1 / 3]))
def test_the_bound_holds_where_it_is_nearly_met(values, ulps, factor):
    bound = norm(values) * factor
    for _ in range(abs(ulps)):
        bound = math.nextafter(bound, math.inf if ulps > 0 else 0.0)
    if bound >= 1e-9:
        assert_within(clip(values, bound))


@pytest.mark.parametrize("tiny", [1e-8, 1e-9, 1e-12, 1e-20])
def test_what_float64_cannot_see_is_still_within(tiny):
    # In float64, 1 + tiny^2 is 1: measured alone, this vector would pass unchanged.
    update = vector(1.0, tiny)
    assert exact_square(update) > 1
    clipped = clip(update, 1.0)
    assert_within(clipped)


def test_a_long_vector_stays_within():
    rng = np.random.default_rng(2)
    for _ in range(20):
        update = rng.standard_normal(3 * BLOCK // 2).astype(np.float32)
        clipped = clip(update, 0.7)
        total = math.fsum(float(x) ** 2 for x in update)
        assert total <= 0.7**2 * (1 - 2**-50)
        assert total >= 0.7**2 * (1 - 2**-20)
        assert clipped.was_clipped


@given(vectors, norms)
def test_a_clipped_vector_keeps_its_direction_and_uses_the_bound(values, clipping_norm):
    before = values.astype(np.float64)
    length = norm(values)
    clipped = clip(values, clipping_norm)
    if clipped.was_clipped:
        assert norm(clipped.vector) >= clipping_norm * (1 - 2**-20)
        expected = before * (clipping_norm / length)
        np.testing.assert_allclose(
            clipped.vector, expected, rtol=1e-6, atol=1e-9 * clipping_norm
        )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, BLOCK - 1, BLOCK, BLOCK + 6])
def test_nan_and_infinity_are_refused_and_nothing_is_scaled(value, place):
    update = np.full(BLOCK + 7, 2.0, np.float32)
    update[place] = value
    before = update.tobytes()
    with pytest.raises(NotFinite, match="diverged"):
        clip(update, 1.0)
    assert update.tobytes() == before
