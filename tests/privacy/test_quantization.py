import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.prg import SecretRandom
from crypto.ring import FIELD_BITS, add_into, field_bits_for, pack, unpack, words_needed
from privacy.clipping import ClippedUpdate, clip
from privacy.errors import GridTooCoarse, NotFinite, Overflow
from privacy.quantization import (
    BLOCK,
    Grid,
    dequantize_sum,
    first_grid,
    next_ranges,
    quantize,
)


def floats(*values):
    return np.array(values, np.float32)


def clipped(values):
    """Return a vector as if it had been clipped; its bound does not matter here."""
    return ClippedUpdate(np.asarray(values, np.float32), math.inf, False)


def exact_grid(value_bits, exponents, segments):
    """Return a grid whose steps are powers of two, so that nothing is rounded."""
    largest = (1 << (value_bits - 1)) - 1
    ranges = [math.ldexp(largest, exponent) for exponent in exponents]
    return Grid(value_bits, floats(*ranges), tuple(segments))


def levels_of(integers, grid):
    return [int(field) - grid.max_level for field in integers.fields]


def constant(word):
    """Return a source whose every 32-bit word is the same."""

    def fill(words):
        words.view(np.uint32)[:] = word

    return fill


def secret(seed):
    """Return the real source, under a seed that only tests may fix."""
    return SecretRandom(bytes([seed]) * 32)


# The grid.


def test_the_levels_of_a_grid():
    grid = Grid(3, floats(6.0), (2,))
    assert grid.max_level == 3
    assert list(grid.blocks()) == [(slice(0, 2), 2.0)]


def test_the_blocks_cover_the_vector_once_with_their_steps():
    segments = (BLOCK + 5, 0, 3, 2 * BLOCK)
    grid = exact_grid(4, (0, 1, 2, 3), segments)
    covered = np.zeros(sum(segments))
    for block, step in grid.blocks():
        assert block.stop - block.start <= BLOCK
        covered[block] += step
    expected = np.repeat([1.0, 2.0, 4.0, 8.0], segments)
    assert (covered == expected).all()


@pytest.mark.parametrize(
    ("value_bits", "ranges", "segments"),
    [
        (8, (1.0,), (1, 1)),
        (8, (1.0, 1.0), (2,)),
        (8, (0.0,), (1,)),
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


def test_an_empty_grid():
    grid = Grid(8, floats(), ())
    assert quantize(clipped([]), grid, None).fields.size == 0
    none = np.zeros(0, np.uint32)
    mean = dequantize_sum(none, grid, num_contributors=3, total_weight=3.0)
    assert mean.size == 0


# Headroom.


@pytest.mark.parametrize("value_bits", range(2, 25))
def test_the_narrowest_field_of_the_ring_has_headroom(value_bits):
    grid = Grid(value_bits, floats(1.0), (1,))
    for num_silos in range(2, 101):
        field_bits = field_bits_for(value_bits, num_silos)
        grid.check_headroom(field_bits, num_silos)
        assert 2 * grid.max_level * num_silos < 1 << field_bits


@pytest.mark.parametrize("field_bits", FIELD_BITS)
def test_headroom_ends_exactly_where_a_sum_would_overflow(field_bits):
    for value_bits in range(2, min(field_bits, 32) + 1):
        grid = Grid(value_bits, floats(1.0), (1,))
        largest_field = 2 * grid.max_level
        most = ((1 << field_bits) - 1) // largest_field
        grid.check_headroom(field_bits, most)
        with pytest.raises(Overflow, match="do not fit"):
            grid.check_headroom(field_bits, most + 1)


@pytest.mark.parametrize("field_bits", [8, 10, 12, 16, 21])
def test_the_largest_sum_that_is_permitted_does_not_carry(field_bits):
    grid = exact_grid(6, (0,), (7,))
    most = ((1 << field_bits) - 1) // (2 * grid.max_level)
    grid.check_headroom(field_bits, most)
    fields = quantize(clipped([1e6] * 7), grid, None).fields
    packed = pack(fields, field_bits)
    total = np.zeros_like(packed)
    for _ in range(most):
        add_into(total, packed)
    assert unpack(total, field_bits, 7).tolist() == [2 * grid.max_level * most] * 7


# To integers.


def test_nearest_by_hand():
    grid = Grid(3, floats(6.0), (9,))  # Levels -3 to 3, two apart.
    values = [0.0, 0.9, 1.1, -0.9, -1.1, 4.2, -6.0, 7.0, -100.0]
    integers = quantize(clipped(values), grid, None)
    assert levels_of(integers, grid) == [0, 0, 1, 0, -1, 2, -3, 3, -3]
    assert integers.fields.dtype == np.uint32
    assert integers.fields.tolist() == [3, 3, 4, 3, 2, 5, 0, 6, 0]
    assert integers.num_clamped == 2


def test_ties_go_to_even():
    grid = exact_grid(4, (0,), (8,))
    values = [0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5]
    integers = quantize(clipped(values), grid, None)
    assert levels_of(integers, grid) == [0, 2, 2, 4, 0, -2, -2, -4]


def test_stochastic_by_hand():
    grid = exact_grid(4, (0,), (6,))
    values = [0.25, 0.75, -0.25, -0.75, 2.0, -2.0]
    half = quantize(clipped(values), grid, constant(1 << 31))  # u just above 1/2
    assert levels_of(half, grid) == [0, 1, 0, -1, 2, -2]
    low = quantize(clipped(values), grid, constant(0))  # u just above 0: floor
    assert levels_of(low, grid) == [0, 0, -1, -1, 2, -2]
    high = quantize(clipped(values), grid, constant(2**32 - 1))  # u just below 1: ceil
    assert levels_of(high, grid) == [1, 1, 0, 0, 2, -2]


def test_the_dither_lies_in_the_middle_of_its_interval():
    grid = exact_grid(4, (0,), (4,))
    values = [2.0**-34, -(2.0**-34), 2.0**-32, -(2.0**-32)]
    lowest = quantize(clipped(values), grid, constant(0))  # u = 2^-33
    assert levels_of(lowest, grid) == [0, 0, 0, -1]
    highest = quantize(clipped(values), grid, constant(2**32 - 1))  # u = 1 - 2^-33
    assert levels_of(highest, grid) == [0, 0, 1, 0]


def reference(values, grid, weight, dither):
    """Return levels and clamped values in exact arithmetic, one at a time."""
    steps = [
        Fraction(float(range_)) / grid.max_level
        for range_, length in zip(grid.ranges, grid.segments, strict=True)
        for _ in range(length)
    ]
    levels, num_clamped = [], 0
    for index, (value, step) in enumerate(zip(values, steps, strict=True)):
        real = Fraction(float(value)) * Fraction(weight) / step
        num_clamped += abs(real) > grid.max_level
        if dither is None:
            level = round(real)  # Python rounds ties to even.
        else:
            u = (Fraction(int(dither[index])) + Fraction(1, 2)) / 2**32
            level = math.floor(real + u)
        levels.append(max(-grid.max_level, min(grid.max_level, level)))
    return levels, num_clamped


@st.composite
def exact_cases(draw):
    value_bits = draw(st.integers(2, 24))
    segments = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    exponents = [draw(st.integers(-30, 3)) for _ in segments]
    grid = exact_grid(value_bits, exponents, segments)
    values = [
        draw(st.floats(-1.25, 1.25, width=32)) * float(range_)
        for range_, length in zip(grid.ranges, segments, strict=True)
        for _ in range(length)
    ]
    return grid, np.array(values, np.float32), draw(st.sampled_from([1.0, 0.5, 0.125]))


@given(exact_cases())
def test_nearest_is_the_definition(case):
    grid, values, weight = case
    integers = quantize(clipped(values), grid, None, weight=weight)
    expected = reference(values, grid, weight, None)
    assert (levels_of(integers, grid), integers.num_clamped) == expected


@given(exact_cases(), st.integers(0, 255))
def test_stochastic_is_the_definition(case, seed):
    grid, values, weight = case
    integers = quantize(clipped(values), grid, secret(seed), weight=weight)
    random, dither = secret(seed), []
    for length in grid.segments:  # Every block begins with a fresh word.
        words = np.zeros((length + 1) // 2, np.uint64)
        random(words)
        dither += words.view(np.uint32)[:length].tolist()
    expected = reference(values, grid, weight, dither)
    assert (levels_of(integers, grid), integers.num_clamped) == expected


def test_every_block_gets_its_own_randomness():
    length = 2 * BLOCK + 7
    grid = exact_grid(8, (0,), (length,))
    integers = quantize(clipped(np.full(length, 0.5)), grid, secret(1))
    up = integers.fields - grid.max_level
    blocks = [up[:BLOCK], up[BLOCK : 2 * BLOCK]]
    assert (blocks[0] != blocks[1]).any()
    for block in (*blocks, up[:BLOCK:2], up[1:BLOCK:2]):
        assert abs(block.mean() - 0.5) < 5 * 0.5 / block.size**0.5
    again = quantize(clipped(np.full(length, 0.5)), grid, secret(1))
    assert (again.fields == integers.fields).all()


def is_unbiased(random, fraction, *, num_values=200_000):
    """Return whether the levels are the two neighbours, in the right proportion.

    Five standard errors: chance alone would reject one seed in a million.
    """
    grid = exact_grid(8, (0,), (num_values,))
    integers = quantize(clipped(np.full(num_values, 10 + fraction)), grid, random)
    levels = integers.fields.astype(np.int64) - grid.max_level
    stddev = (fraction * (1 - fraction)) ** 0.5
    error = abs(levels.mean() - 10 - fraction)
    neighbours = set(levels.tolist()) <= {10, 11}
    return neighbours and error <= 5 * stddev / num_values**0.5


@pytest.mark.parametrize("fraction", [1 / 1024, 0.25, 0.5, 0.75, 1023 / 1024])
def test_stochastic_rounding_is_unbiased(fraction):
    assert is_unbiased(secret(3), fraction)


def shifted(random, by):
    """Return a source whose words are a little too large."""

    def fill(words):
        random(words)
        halves = words.view(np.uint32).astype(np.uint64) + np.uint64(by)
        words.view(np.uint32)[:] = np.minimum(halves, np.uint64(2**32 - 1))

    return fill


@pytest.mark.parametrize(
    "random",
    [
        pytest.param(constant(0), id="floor"),
        pytest.param(constant(2**32 - 1), id="ceil"),
        pytest.param(None, id="nearest"),
        pytest.param(shifted(secret(3), 2**32 // 100), id="one in a hundred too large"),
    ],
)
def test_biased_rounding_is_rejected(random):
    assert not is_unbiased(random, 0.25)


def test_a_whole_number_of_steps_is_never_rounded():
    # In float64, 2^22 plus u just below 1 is the next whole number.
    grid = exact_grid(24, (0,), (5,))
    values = [0, 1, -1, (1 << 22) + 1, -grid.max_level]
    for word in (0, 1 << 31, 2**32 - 1):
        integers = quantize(clipped(values), grid, constant(word))
        assert levels_of(integers, grid) == values


def test_clamped_values_are_counted():
    grid = exact_grid(8, (-7,), (6,))
    edge = float(grid.ranges[0])
    beyond = float(np.nextafter(np.float32(edge), np.float32(1e9)))
    values = [edge, -edge, beyond, -beyond, 1e30, -1e30]
    for random in (None, secret(1)):
        integers = quantize(clipped(values), grid, random)
        assert integers.num_clamped == 4
        most = grid.max_level
        assert levels_of(integers, grid) == [most, -most] * 3


def test_infinity_is_clamped_and_counted_but_nan_is_refused():
    grid = Grid(8, floats(1.0), (2,))
    integers = quantize(clipped([math.inf, -math.inf]), grid, None)
    assert (integers.num_clamped, integers.fields.tolist()) == (2, [254, 0])
    with pytest.raises(NotFinite):
        quantize(clipped([0.0, math.nan]), grid, None)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_vector_of_another_length_is_refused(length):
    grid = Grid(8, floats(1.0), (2,))
    with pytest.raises(GridTooCoarse, match=f"{length} values on a grid for 2"):
        quantize(clipped([0.0] * length), grid, None)
    with pytest.raises(GridTooCoarse, match=f"{length} values on a grid for 2"):
        dequantize_sum(
            np.zeros(length, np.uint32), grid, num_contributors=1, total_weight=1.0
        )


# The first grid, and those after it.


@given(
    st.floats(1e-9, 1e9),
    st.integers(2, 31),
    st.floats(1e-3, 1e3),
    st.sampled_from([1, 2, 7]),
)
def test_no_clipped_value_leaves_the_first_grid(bound, value_bits, factor, length):
    update = np.full(length, bound * factor / length**0.5, np.float32)
    grid = first_grid(value_bits, bound, [length])
    for random in (None, constant(0), constant(2**32 - 1)):
        integers = quantize(clip(update.copy(), bound), grid, random)
        assert integers.num_clamped == 0


@pytest.mark.parametrize("bound", [0.7, 0.3, 5.0, 1e-9, 1e9, 0.1, 2 / 3])
@pytest.mark.parametrize("value_bits", [8, 16, 22, 29, 30, 31])
def test_a_value_at_its_range_is_not_beyond_it(bound, value_bits):
    grid = first_grid(value_bits, bound, [1])
    for value in (grid.ranges, -grid.ranges):
        integers = quantize(clipped(value), grid, None)
        assert integers.num_clamped == 0
        assert abs(levels_of(integers, grid)[0]) == grid.max_level


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


def test_a_mean_at_rest_gives_the_first_grid_again():
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


# Sums, and back.


def test_a_sum_by_hand():
    grid = Grid(3, floats(6.0), (3,))
    total = np.array([0, 6, 12], np.uint32)  # Two silos: -3-3, 0+0, 3+3.
    mean = dequantize_sum(total, grid, num_contributors=2, total_weight=2.0)
    assert mean.tolist() == [-6.0, 0.0, 6.0]
    assert mean.dtype == np.float32


def test_an_impossible_sum_is_refused():
    grid = Grid(3, floats(6.0), (2,))
    for kind in (np.uint16, np.uint32, np.uint64):
        most = np.array([0, 12], kind)
        dequantize_sum(most, grid, num_contributors=2, total_weight=2.0)
        with pytest.raises(Overflow, match="larger than"):
            dequantize_sum(most + kind(1), grid, num_contributors=2, total_weight=2.0)
    with pytest.raises(Overflow):
        dequantize_sum(
            np.array([0, 2**64 - 1], np.uint64),
            grid,
            num_contributors=2,
            total_weight=2.0,
        )


def field_cases():
    """Yield every field width with the value bits and silos that just fit it."""
    for field_bits in FIELD_BITS:
        for num_silos in (2, 3, 5):
            value_bits = min(24, field_bits - (num_silos - 1).bit_length())
            yield field_bits, value_bits, num_silos


@pytest.mark.parametrize(("field_bits", "value_bits", "num_silos"), list(field_cases()))
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_from_updates_through_the_ring_to_their_mean(
    field_bits, value_bits, num_silos, rounding
):
    rng = np.random.default_rng(field_bits)
    segments = (40, 1, 0, 60)
    grid = Grid(value_bits, floats(3.0, 0.1, 1.0, 1e-3), segments)
    steps = np.repeat(grid.ranges.astype(np.float64) / grid.max_level, segments)
    ranges = np.repeat(grid.ranges, segments)
    updates = [(rng.uniform(-1, 1, 101) * ranges) for _ in range(num_silos)]
    grid.check_headroom(field_bits, num_silos)
    total = np.zeros(words_needed(101, field_bits), np.uint64)
    for silo, update in enumerate(updates):
        random = secret(silo) if rounding == "stochastic" else None
        add_into(
            total, pack(quantize(clipped(update), grid, random).fields, field_bits)
        )
    mean = dequantize_sum(
        unpack(total, field_bits, 101),
        grid,
        num_contributors=num_silos,
        total_weight=float(num_silos),
    )
    expected = np.mean([update.astype(np.float32) for update in updates], axis=0)
    bound = steps * (0.5 if rounding == "nearest" else 1.0) + 2**-22 * ranges
    assert (np.abs(mean - expected) <= bound).all()
    assert (mean != expected).any()


@given(exact_cases(), st.integers(2, 5))
def test_the_mean_is_that_of_the_levels_exactly(case, num_silos):
    grid, values, _ = case
    every = [np.roll(values, shift) for shift in range(num_silos)]
    integers = [quantize(clipped(update), grid, None) for update in every]
    total = sum(integer.fields.astype(np.uint64) for integer in integers)
    mean = dequantize_sum(
        total, grid, num_contributors=num_silos, total_weight=float(num_silos)
    )
    steps = np.repeat(grid.ranges.astype(np.float64) / grid.max_level, grid.segments)
    levels = np.array([levels_of(integer, grid) for integer in integers]).sum(axis=0)
    expected = (levels * steps / num_silos).astype(np.float32)
    np.testing.assert_allclose(mean, expected, rtol=2**-23, atol=0)


def test_weights_give_the_weighted_mean():
    grid = Grid(16, floats(4.0), (3,))
    updates = [floats(1.0, -2.0, 4.0), floats(3.0, 2.0, 4.0), floats(-1.0, 0.0, 4.0)]
    weights = [1.0, 0.5, 0.25]
    total = sum(
        quantize(clipped(update), grid, None, weight=weight).fields.astype(np.uint64)
        for update, weight in zip(updates, weights, strict=True)
    )
    mean = dequantize_sum(total, grid, num_contributors=3, total_weight=sum(weights))
    expected = np.average(updates, axis=0, weights=weights)
    step = 4.0 / grid.max_level
    assert np.abs(mean - expected).max() <= 1.5 * step / sum(weights) + 1e-6


def test_a_weight_cannot_make_a_value_leave_the_first_grid():
    grid = first_grid(8, 1.0, [2])
    update = clip(floats(9.0, 9.0), 1.0)
    for weight in (1.0, 0.5, 1e-12):
        assert quantize(update, grid, secret(1), weight=weight).num_clamped == 0
