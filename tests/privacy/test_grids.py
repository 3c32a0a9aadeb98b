"""The public grid of a round, and the numbers that follow from a mean update."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.errors import GridTooCoarse, NotFinite
from privacy.grids import (
    MIN_RANGE,
    Grid,
    even_range,
    first_grid,
    next_clipping_norm,
    next_ranges,
    rotated_range,
    rounded_down,
)


def floats(*values):
    return np.array(values, np.float32)


def test_the_levels_of_a_grid():
    grid = Grid(3, floats(6.0, 3.0), (2, 5))
    assert grid.max_level == 3
    assert grid.steps.tolist() == [2.0, 1.0]
    assert grid.length == 7
    assert list(grid.parts(0, 7)) == [(slice(0, 2), 0), (slice(2, 7), 1)]
    assert list(grid.parts(1, 4)) == [(slice(1, 2), 0), (slice(2, 4), 1)]
    assert list(grid.parts(2, 3)) == [(slice(2, 3), 1)]
    assert list(grid.parts(2, 2)) == []


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_parts_cover_their_elements_once_with_their_segment(segments, data):
    grid = Grid(8, np.ones(len(segments), np.float32), tuple(segments))
    stop = data.draw(st.integers(0, sum(segments)))
    start = data.draw(st.integers(0, stop))
    owner = np.repeat(np.arange(len(segments)), segments)
    found = [
        (element, segment)
        for part, segment in grid.parts(start, stop)
        for element in range(part.start, part.stop)
    ]
    assert found == [(element, owner[element]) for element in range(start, stop)]


@pytest.mark.parametrize(
    ("value_bits", "ranges", "segments"),
    [
        (8, (1.0,), (1, 1)),
        (8, (1.0, 1.0), (2,)),
        (8, (0.0,), (1,)),
        (8, (MIN_RANGE / 2,), (1,)),
        (8, (-1.0,), (1,)),
        (8, (math.nan,), (1,)),
        (8, (math.inf,), (1,)),
        (1, (1.0,), (1,)),
        (33, (1.0,), (1,)),
    ],
)
def test_a_grid_that_cannot_be_is_refused(value_bits, ranges, segments):
    with pytest.raises(GridTooCoarse):
        Grid(value_bits, floats(*ranges), segments)


def test_the_first_grid_by_hand():
    grid = first_grid(16, 5.0, [3, 0, 2])
    assert (grid.value_bits, grid.segments) == (16, (3, 0, 2))
    assert grid.ranges.tolist() == [5.0, 5.0, 5.0]
    assert grid.ranges.dtype == np.float32


def test_next_ranges_by_hand():
    mean = floats(1.0, -2.0, 0.0, 0.0)  # norm sqrt(5); three times the RMS: 3.354
    floor = 3 * 5**0.5 / 2
    ranges = next_ranges(mean, [2, 2], 100.0)
    np.testing.assert_allclose(ranges, [6.0, floor], rtol=1e-7)
    assert ranges.dtype == np.float32
    np.testing.assert_allclose(next_ranges(mean, [2, 2], 5.0), [5.0, floor], rtol=1e-7)
    np.testing.assert_allclose(next_ranges(mean, [2, 2], 2.0), [2.0, 2.0])
    np.testing.assert_allclose(
        next_ranges(mean, [0, 4, 0], 100.0), [floor, 6.0, floor], rtol=1e-7
    )


def test_a_mean_at_rest_gives_even_ranges():
    assert next_ranges(np.zeros(144, np.float32), [2, 142], 4.0).tolist() == [2.0, 2.0]
    assert next_ranges(np.zeros(5, np.float32), [2, 3], 4.0).tolist() == [4.0, 4.0]
    assert next_ranges(floats(), [], 4.0).tolist() == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_mean_that_is_not_finite_gives_no_ranges(value):
    with pytest.raises(NotFinite):
        next_ranges(floats(1.0, value), [1, 1], 1.0)


def test_ranges_do_not_depend_on_the_order_of_a_float32_sum():
    mean = np.random.default_rng(1).standard_normal(300_000).astype(np.float32)
    square = math.fsum(float(value) ** 2 for value in mean)
    expected = np.float32(3 * math.sqrt(square) / math.sqrt(mean.size))
    ranges = next_ranges(np.concatenate([mean]), [mean.size, 0], 1e6)
    assert ranges[1] == expected
    backwards = np.ascontiguousarray(mean[::-1])
    assert next_ranges(backwards, [0, mean.size], 1e6)[0] == expected


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20),
    st.floats(1e-3, 10.0),
    st.data(),
)
def test_next_ranges_always_make_a_grid(values, clipping_norm, data):
    cut = data.draw(st.integers(0, len(values)))
    segments = [cut, len(values) - cut]
    ranges = next_ranges(floats(*values), segments, clipping_norm)
    Grid(8, ranges, tuple(segments))
    assert (ranges <= np.float32(clipping_norm)).all()


@pytest.mark.parametrize(
    ("value_bits", "margin"), [(2, 2.5), (4, 3), (8, 4), (12, 5), (16, 6), (24, 6)]
)
def test_a_rotated_range_by_hand(value_bits, margin):
    assert rotated_range(1.0, 4096, value_bits) == np.float32(margin / 64)
    assert rotated_range(2.0, 4, value_bits) == 2.0  # Never above the clipping norm.
    assert rotated_range(1.0, 4096, value_bits).dtype == np.float32


@pytest.mark.parametrize("value_bits", [4, 8, 12, 16])
def test_a_rotated_range_costs_little_more_than_the_best(value_bits):
    """Rounding and clamping of normal values, against the best of all margins."""

    def error(margin):
        step = margin / (2 ** (value_bits - 1) - 1)
        tail = (1 + margin**2) * stats.norm.sf(margin) - margin * stats.norm.pdf(margin)
        return (step**2 / 6 + 2 * tail) ** 0.5

    margin = float(rotated_range(1.0, 2**20, value_bits)) * 2**10
    best = min(error(each) for each in np.linspace(1, 8, 701))
    assert error(margin) < 1.2 * best
    assert value_bits > 8 or error(6.0) > 1.4 * best


def test_an_even_range_by_hand():
    assert even_range(2.0, 144) == 1.0
    assert even_range(2.0, 36) == 2.0
    assert even_range(2.0, 4) == 2.0  # Never above the clipping norm.
    assert even_range(1.0, 4096) == np.float32(6 / 64)
    assert even_range(1.0, 4096).dtype == np.float32


def test_the_next_clipping_norm_by_hand():
    mean = floats(3.0, 4.0)
    assert next_clipping_norm(mean, 100.0) == 15.0
    assert next_clipping_norm(mean, 10.0) == 10.0
    assert next_clipping_norm(0 * mean, 10.0) == 10.0
    assert next_clipping_norm(floats(), 10.0) == 10.0
    with pytest.raises(NotFinite):
        next_clipping_norm(floats(math.nan), 10.0)


@given(st.floats(1e-30, 1e30))
def test_rounded_down_is_the_largest_float32_that_is_not_above(value):
    down = rounded_down(value)
    assert down.dtype == np.float32
    assert Fraction(float(down)) <= Fraction(value)
    assert float(np.nextafter(down, np.float32(np.inf))) > value


@given(st.floats(1e-9, 1e9))
def test_the_first_range_is_not_below_the_clipping_norm(clipping_norm):
    grid = first_grid(8, clipping_norm, [1])
    assert float(grid.ranges[0]) >= clipping_norm
    assert float(np.nextafter(grid.ranges[0], np.float32(0))) < clipping_norm
