import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.prg import SecretRandom
from crypto.ring import (
    FIELD_BITS,
    add_into,
    field_bits_for,
    pack,
    pack_blocks,
    unpack,
    unpack_blocks,
    words_needed,
)
from privacy.clipping import clip
from privacy.errors import GridTooCoarse, NotFinite, Overflow
from privacy.grids import Grid, first_grid
from privacy.quantization import (
    BLOCK,
    NARROW_VALUE_BITS,
    Quantizer,
    dequantize_sum,
    largest_deviation,
)


def floats(*values):
    return np.array(values, np.float32)


@dataclass(frozen=True)
class Quantized:
    fields: np.ndarray
    num_clamped: int


def quantize(values, grid, random, *, weight=1.0):
    """Return all fields of a vector at once."""
    vector = np.asarray(values, np.float32)
    quantizer = Quantizer(vector, grid, random, weight=weight)
    fields = np.empty(vector.size, np.uint32)
    quantizer.fill(0, fields)
    return Quantized(fields, quantizer.num_clamped)


def dequantize(total, grid, *, num_contributors, total_weight):
    """Return the mean of a sum that comes in one piece."""
    return dequantize_sum(
        [(0, total)], grid, num_contributors=num_contributors, total_weight=total_weight
    )


def exact_grid(value_bits, exponents, segments):
    """Return a grid whose steps are powers of two, so that nothing is rounded."""
    largest = (1 << (value_bits - 1)) - 1
    ranges = [math.ldexp(largest, exponent) for exponent in exponents]
    return Grid(value_bits, floats(*ranges), tuple(segments))


def levels_of(integers, grid):
    return [int(field) - grid.max_level for field in integers.fields]


def constant(dither, bits=16):
    """Return a source whose every dither is the same."""

    def fill(words):
        words.view(f"u{bits // 8}")[:] = dither

    return fill


def secret(seed):
    """Return the real source, under a seed that only tests may fix."""
    return SecretRandom(bytes([seed]) * 32)


# Headroom.


def test_an_empty_grid():
    grid = Grid(8, floats(), ())
    assert quantize([], grid, None).fields.size == 0
    none = np.zeros(0, np.uint32)
    mean = dequantize(none, grid, num_contributors=3, total_weight=3.0)
    assert mean.size == 0


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
    fields = quantize([1e6] * 7, grid, None).fields
    packed = pack(fields, field_bits)
    total = np.zeros_like(packed)
    for _ in range(most):
        add_into(total, packed)
    assert unpack(total, field_bits, 7).tolist() == [2 * grid.max_level * most] * 7


# To integers.


def test_nearest_by_hand():
    grid = Grid(3, floats(6.0), (9,))  # Levels -3 to 3, two apart.
    values = [0.0, 0.9, 1.1, -0.9, -1.1, 4.2, -6.0, 7.0, -100.0]
    integers = quantize(values, grid, None)
    assert levels_of(integers, grid) == [0, 0, 1, 0, -1, 2, -3, 3, -3]
    assert integers.fields.dtype == np.uint32
    assert integers.fields.tolist() == [3, 3, 4, 3, 2, 5, 0, 6, 0]
    assert integers.num_clamped == 2


def test_ties_go_to_even():
    grid = exact_grid(4, (0,), (8,))
    values = [0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5]
    integers = quantize(values, grid, None)
    assert levels_of(integers, grid) == [0, 2, 2, 4, 0, -2, -2, -4]


@pytest.mark.parametrize(("value_bits", "bits"), [(4, 16), (20, 32)])
def test_stochastic_by_hand(value_bits, bits):
    grid = exact_grid(value_bits, (0,), (6,))
    values = [0.25, 0.75, -0.25, -0.75, 2.0, -2.0]
    half = quantize(values, grid, constant(1 << (bits - 1), bits))
    assert levels_of(half, grid) == [0, 1, 0, -1, 2, -2]
    low = quantize(values, grid, constant(0, bits))  # u = 0: floor
    assert levels_of(low, grid) == [0, 0, -1, -1, 2, -2]
    high = quantize(values, grid, constant(2**bits - 1, bits))  # u just below 1: ceil
    assert levels_of(high, grid) == [1, 1, 0, 0, 2, -2]


@pytest.mark.parametrize(("value_bits", "bits"), [(4, 16), (20, 32)])
def test_the_resolution_of_the_dither(value_bits, bits):
    """One part in 2^bits goes up for one dither in 2^bits; half a part is rounded."""
    grid = exact_grid(value_bits, (0,), (4,))
    tiny = 2.0**-bits
    values = [tiny, -tiny, tiny / 4, 0.0]
    lowest = quantize(values, grid, constant(0, bits))
    assert levels_of(lowest, grid) == [0, -1, 0, 0]
    second = quantize(values, grid, constant(1, bits))
    assert levels_of(second, grid) == [0, 0, 0, 0]
    highest = quantize(values, grid, constant(2**bits - 1, bits))
    assert levels_of(highest, grid) == [1, 0, 0, 0]


def fraction_bits(grid):
    return 16 if grid.value_bits <= NARROW_VALUE_BITS else 32


def reference(values, grid, weight, dither):
    """Return levels and clamped values in exact arithmetic, one at a time."""
    steps = [
        Fraction(float(range_)) / grid.max_level
        for range_, length in zip(grid.ranges, grid.segments, strict=True)
        for _ in range(length)
    ]
    levels, num_clamped, parts = [], 0, 1 << fraction_bits(grid)
    for index, (value, step) in enumerate(zip(values, steps, strict=True)):
        real = Fraction(float(value)) / step
        num_clamped += abs(real) > grid.max_level
        real = Fraction(weight) * max(-grid.max_level, min(grid.max_level, real))
        if dither is None:
            level = round(real)  # Python rounds ties to even.
        else:
            level = (round(real * parts) + int(dither[index])) // parts
        levels.append(level)
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
    integers = quantize(values, grid, None, weight=weight)
    expected = reference(values, grid, weight, None)
    assert (levels_of(integers, grid), integers.num_clamped) == expected


@given(exact_cases(), st.integers(0, 255))
def test_stochastic_is_the_definition(case, seed):
    grid, values, weight = case
    integers = quantize(values, grid, secret(seed), weight=weight)
    num_bytes = fraction_bits(grid) // 8
    words = np.zeros(-(-values.size * num_bytes // 8), np.uint64)
    secret(seed)(words)
    dither = words.view(f"u{num_bytes}")[: values.size]
    expected = reference(values, grid, weight, dither)
    assert (levels_of(integers, grid), integers.num_clamped) == expected


def test_every_block_gets_its_own_randomness():
    length = 2 * BLOCK + 7
    grid = exact_grid(8, (0,), (length,))
    integers = quantize(np.full(length, 0.5), grid, secret(1))
    up = integers.fields - grid.max_level
    blocks = [up[:BLOCK], up[BLOCK : 2 * BLOCK]]
    assert (blocks[0] != blocks[1]).any()
    for block in (*blocks, up[:BLOCK:2], up[1:BLOCK:2]):
        assert abs(block.mean() - 0.5) < 5 * 0.5 / block.size**0.5
    again = quantize(np.full(length, 0.5), grid, secret(1))
    assert (again.fields == integers.fields).all()


def is_unbiased(random, fraction, value_bits=8, num_values=200_000):
    """Return whether the levels are the two neighbours, in the right proportion.

    Six standard errors: chance alone would reject one seed in 500 million.
    """
    grid = exact_grid(value_bits, (0,), (num_values,))
    integers = quantize(np.full(num_values, 10 + fraction), grid, random)
    levels = integers.fields.astype(np.int64) - grid.max_level
    stddev = (fraction * (1 - fraction)) ** 0.5
    error = abs(levels.mean() - 10 - fraction)
    neighbours = set(levels.tolist()) <= {10, 11}
    return neighbours and error <= 6 * stddev / num_values**0.5


@pytest.mark.parametrize("value_bits", [8, 12, 16, 20])
@pytest.mark.parametrize("fraction", [1 / 1024, 0.25, 0.5, 0.75, 1023 / 1024])
def test_stochastic_rounding_is_unbiased(fraction, value_bits):
    assert is_unbiased(secret(3), fraction, value_bits)


def shifted(random, by):
    """Return a source whose dithers are a little too large."""

    def fill(words):
        random(words)
        dithers = words.view(np.uint16).astype(np.uint32) + np.uint32(by)
        words.view(np.uint16)[:] = np.minimum(dithers, np.uint32(2**16 - 1))

    return fill


@pytest.mark.parametrize(
    "random",
    [
        pytest.param(constant(0), id="floor"),
        pytest.param(constant(2**16 - 1), id="ceil"),
        pytest.param(None, id="nearest"),
        pytest.param(shifted(secret(3), 2**16 // 100), id="one in a hundred too large"),
    ],
)
def test_biased_rounding_is_rejected(random):
    assert not is_unbiased(random, 0.25)


@pytest.mark.parametrize("value_bits", [8, 12, 14, 16, 17, 24])
def test_the_expectation_is_within_the_stated_bias(value_bits):
    """All dithers of 16 bits in turn, or the exact fraction of 32, on awkward ranges.

    For one value floor(t + u) over all u has the expectation t exactly; so it is
    enough to find t, the number of dithers that round up.
    """
    rng, num_values = np.random.default_rng(value_bits), 500
    values = (rng.standard_normal(num_values) * 1e-3).astype(np.float32)
    grid = Grid(value_bits, floats(np.abs(values).max() * np.float32(1.0001)), (500,))
    bits = fraction_bits(grid)
    low, high = np.zeros(num_values, np.int64), np.full(num_values, 1 << bits)
    floor = quantize(values, grid, constant(0, bits)).fields.astype(np.int64)
    while (high - low).max() > 1:  # Bisection: the smallest dither that rounds up.
        middle = (low + high) // 2

        def fill(words, middle=middle):
            words.view(f"u{bits // 8}")[:num_values] = middle

        is_up = quantize(values, grid, fill).fields > floor
        high, low = np.where(is_up, middle, high), np.where(is_up, low, middle)
    expectation = floor - grid.max_level + (2**bits - high) / 2**bits
    exact = values.astype(np.float64) / grid.steps[0]
    gain, tiny = (2**-22, 2**-17) if bits == 16 else (2**-51, 2**-33)
    assert (np.abs(expectation - exact) <= tiny + gain * np.abs(exact)).all()


def test_a_whole_number_of_steps_is_never_rounded():
    # In float64, 2^22 plus u just below 1 is the next whole number.
    grid = exact_grid(24, (0,), (5,))
    values = [0, 1, -1, (1 << 22) + 1, -grid.max_level]
    for word in (0, 1 << 31, 2**32 - 1):
        integers = quantize(values, grid, constant(word, 32))
        assert levels_of(integers, grid) == values


def test_clamped_values_are_counted():
    grid = exact_grid(8, (-7,), (6,))
    edge = float(grid.ranges[0])
    beyond = float(np.nextafter(np.float32(edge), np.float32(1e9)))
    values = [edge, -edge, beyond, -beyond, 1e30, -1e30]
    for random in (None, secret(1)):
        integers = quantize(values, grid, random)
        assert integers.num_clamped == 4
        most = grid.max_level
        assert levels_of(integers, grid) == [most, -most] * 3


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("value_bits", [8, 24])
def test_what_is_not_finite_is_refused(value, value_bits):
    grid = Grid(value_bits, floats(1.0), (BLOCK + 2,))
    for place in (0, BLOCK + 1):
        values = np.zeros(BLOCK + 2)
        values[place] = value
        for random in (None, secret(1)):
            with pytest.raises(NotFinite):
                quantize(values, grid, random)


@pytest.mark.parametrize("value_bits", [8, 24])
def test_a_huge_value_on_a_tiny_grid_is_clamped(value_bits):
    """Its product with the factor is infinite; the value is not."""
    grid = Grid(value_bits, floats(2.0**-90), (2,))
    integers = quantize([3e38, -3e38], grid, secret(1))
    assert integers.num_clamped == 2
    assert levels_of(integers, grid) == [grid.max_level, -grid.max_level]


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_vector_of_another_length_is_refused(length):
    grid = Grid(8, floats(1.0), (2,))
    with pytest.raises(GridTooCoarse, match=f"{length} values on a grid for 2"):
        quantize([0.0] * length, grid, None)
    with pytest.raises(GridTooCoarse, match="a sum of"):
        dequantize(
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
    for random in (None, constant(0, 32), constant(2**32 - 1, 32)):
        integers = quantize(clip(update.copy(), bound).vector, grid, random)
        assert integers.num_clamped == 0


@pytest.mark.parametrize("bound", [0.7, 0.3, 5.0, 1e-9, 1e9, 0.1, 2 / 3])
@pytest.mark.parametrize("value_bits", [8, 16, 22, 29, 30, 31])
def test_a_value_at_its_range_is_not_beyond_it(bound, value_bits):
    grid = first_grid(value_bits, bound, [1])
    for value in (grid.ranges, -grid.ranges):
        integers = quantize(value, grid, None)
        assert integers.num_clamped == 0
        assert abs(levels_of(integers, grid)[0]) == grid.max_level


# Sums, and back.


def test_a_sum_by_hand():
    grid = Grid(3, floats(6.0), (3,))
    total = np.array([0, 6, 12], np.uint32)  # Two silos: -3-3, 0+0, 3+3.
    mean = dequantize(total, grid, num_contributors=2, total_weight=2.0)
    assert mean.tolist() == [-6.0, 0.0, 6.0]
    assert mean.dtype == np.float32


def test_an_impossible_sum_is_refused():
    grid = Grid(3, floats(6.0), (2,))
    for kind in (np.uint16, np.uint32, np.uint64):
        most = np.array([0, 12], kind)
        dequantize(most, grid, num_contributors=2, total_weight=2.0)
        with pytest.raises(Overflow, match="larger than"):
            dequantize(most + kind(1), grid, num_contributors=2, total_weight=2.0)
    with pytest.raises(Overflow):
        dequantize(
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
        add_into(total, pack(quantize(update, grid, random).fields, field_bits))
    mean = dequantize(
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
    integers = [quantize(update, grid, None) for update in every]
    total = sum(integer.fields.astype(np.uint64) for integer in integers)
    mean = dequantize(
        total, grid, num_contributors=num_silos, total_weight=float(num_silos)
    )
    steps = np.repeat(grid.ranges.astype(np.float64) / grid.max_level, grid.segments)
    levels = np.array([levels_of(integer, grid) for integer in integers]).sum(axis=0)
    expected = (levels * steps / num_silos).astype(np.float32)
    np.testing.assert_allclose(mean, expected, rtol=2**-22, atol=0)


def test_weights_give_the_weighted_mean():
    grid = Grid(16, floats(4.0), (3,))
    updates = [floats(1.0, -2.0, 4.0), floats(3.0, 2.0, 4.0), floats(-1.0, 0.0, 4.0)]
    weights = [1.0, 0.5, 0.25]
    total = sum(
        quantize(update, grid, None, weight=weight).fields.astype(np.uint64)
        for update, weight in zip(updates, weights, strict=True)
    )
    mean = dequantize(total, grid, num_contributors=3, total_weight=sum(weights))
    expected = np.average(updates, axis=0, weights=weights)
    step = 4.0 / grid.max_level
    assert np.abs(mean - expected).max() <= 1.5 * step / sum(weights) + 1e-6


def test_a_light_silo_clamps_at_the_range_and_not_at_the_largest_level():
    """Weight 1/4: a value of four ranges counts as one range, in a quarter of M."""
    grid = exact_grid(6, (0,), (6,))  # M = 31; one step is 1.
    values = [31.0, -31.0, 32.0, -124.0, 8.0, 1e30]
    floor, ceil = constant(0), constant(2**16 - 1)
    for random, low, high in ((None, -8, 8), (floor, -8, 7), (ceil, -7, 8)):
        integers = quantize(values, grid, random, weight=0.25)  # 31 / 4 = 7.75
        assert levels_of(integers, grid) == [high, low, high, low, 2, high]
        assert integers.num_clamped == 3


def extremes(grid):
    """Return every value at, or far beyond, an end of its range, and in between."""
    ends = np.array([-1, 1, -1e9, 1e9, 0, 1 - 2**-24, -0.3, 0.7], np.float32)
    return (np.repeat(grid.ranges, grid.segments).reshape(-1, 8) * ends).ravel()


@st.composite
def weighted_cohorts(draw):
    """A grid, relative weights, a rounding; weights as the plan and secret ones are."""
    value_bits = draw(st.sampled_from([2, 3, 4, 8, 12, 15, 16, 17, 20, 24, 30]))
    ranges = draw(st.lists(st.floats(1e-20, 1e6), min_size=1, max_size=3))
    grid = Grid(value_bits, floats(*ranges), (8,) * len(ranges))
    num_silos, kind = draw(st.integers(1, 40)), draw(st.sampled_from("esdw"))
    if kind == "e":
        weights = [1.0] * num_silos
    elif kind == "d":  # As declared: numbers of any size, over the heaviest.
        numbers = draw(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=40))
        weights = [number / max(numbers) for number in numbers]
    elif kind == "s":  # As secret: whole numbers over a number that is not theirs.
        most = draw(st.integers(1, 2**32))
        numbers = draw(st.lists(st.integers(1, most), min_size=1, max_size=40))
        weights = [number / most for number in numbers]
    else:  # w M a whole number but for float64's last bit, or a little beside one.
        levels = st.integers(1, grid.max_level).map(lambda level: level - 1e-9)
        weights = [
            draw(levels) / grid.max_level if index % 2 else 1 / draw(st.integers(1, 50))
            for index in range(num_silos)
        ]
    return grid, weights, draw(st.sampled_from(["nearest", "up", "down", "dithered"]))


def source(rounding, grid, seed):
    bits = fraction_bits(grid)
    return {
        "nearest": None,
        "up": constant(2**bits - 1, bits),
        "down": constant(0, bits),
        "dithered": secret(seed % 256),
    }[rounding]


@given(weighted_cohorts())
def test_a_level_is_at_most_its_weight_rounded_up(cohort):
    grid, weights, rounding = cohort
    for silo, weight in enumerate(weights[:5]):
        integers = quantize(
            extremes(grid), grid, source(rounding, grid, silo), weight=weight
        )
        most = math.ceil(weight * grid.max_level)
        if rounding == "nearest":
            most = round(weight * grid.max_level)
        levels = levels_of(integers, grid)
        assert -most <= min(levels)
        assert max(levels) <= most


@given(weighted_cohorts())
def test_no_honest_sum_is_refused(cohort):
    """Whatever the weights: all silos at an end of the range, all rounded outwards."""
    grid, weights, rounding = cohort
    total = sum(
        quantize(
            extremes(grid), grid, source(rounding, grid, silo), weight=weight
        ).fields.astype(np.uint64)
        for silo, weight in enumerate(weights)
    )
    mean = dequantize(
        total, grid, num_contributors=len(weights), total_weight=sum(weights)
    )
    excess = len(weights) / sum(weights) * np.repeat(grid.steps, grid.segments)
    ranges = np.repeat(grid.ranges, grid.segments).astype(np.float64)
    assert (np.abs(mean) <= (ranges + excess) * (1 + 2**-22)).all()


@given(weighted_cohorts(), st.booleans())
def test_one_step_beyond_what_the_weights_permit_is_refused(cohort, is_above):
    grid, weights, _ = cohort
    num_silos = len(weights)
    exact = sum(Fraction(weight) for weight in weights)
    most = min(
        num_silos * grid.max_level, math.floor(grid.max_level * exact) + num_silos
    )
    assert most <= largest_deviation(grid, num_silos, sum(weights)) <= most + 1
    most = largest_deviation(grid, num_silos, sum(weights))
    if set(weights) == {1.0}:
        assert most == num_silos * grid.max_level
    sign = 1 if is_above else -1
    arguments = {"num_contributors": num_silos, "total_weight": sum(weights)}
    sums = np.full(grid.length, num_silos * grid.max_level, np.int64)
    sums[3] += sign * most
    dequantize(sums.astype(np.uint64), grid, **arguments)
    sums[3] += sign
    if sums[3] >= 0:  # A field of -1 would be the largest of all.
        with pytest.raises(Overflow, match="larger than"):
            dequantize(sums.astype(np.uint64), grid, **arguments)


def test_the_bound_by_hand():
    """M = 127. Weights 1, 1/2, 1/4: 222.25 and a step for each, of at most 381."""
    grid = exact_grid(8, (0,), (1,))
    assert largest_deviation(grid, 3, 1.75) == 222 + 3
    assert largest_deviation(grid, 3, 3.0) == 381
    assert largest_deviation(grid, 3, 2.999) == 380 + 1
    assert largest_deviation(grid, 3, 3e-9) == 3


def test_the_bound_allows_for_the_rounding_of_the_weights():
    """Each w M is a bit more than a whole number; float64 loses it in their sum."""
    grid = exact_grid(30, (0,), (1,))
    weights = [0.9944054782286389, 0.08366767332640976, 0.05238097543340359]
    levels = [
        levels_of(
            quantize(grid.ranges, grid, constant(2**32 - 1, 32), weight=weight), grid
        )[0]
        for weight in weights
    ]
    assert levels == [533_867_376, 44_918_741, 28_121_823]
    assert int(grid.max_level * sum(weights)) + 3 < sum(levels)
    assert largest_deviation(grid, 3, sum(weights)) >= sum(levels)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_lightest_silo_cannot_use_the_whole_range(sign):
    """w = 1 of W = 1000 with full fields, two others of 10: the mean was 47 ranges."""
    grid = exact_grid(8, (0,), (4,))
    sums = np.full(4, 3 * grid.max_level + sign * grid.max_level, np.uint64)
    with pytest.raises(Overflow, match="larger than"):
        dequantize(sums, grid, num_contributors=3, total_weight=21 / 1000)
    dequantize(sums, grid, num_contributors=3, total_weight=1000 / 1000)


def test_a_weight_cannot_make_a_value_leave_the_first_grid():
    grid = first_grid(8, 1.0, [2])
    update = clip(floats(9.0, 9.0), 1.0).vector
    for weight in (1.0, 0.5, 1e-12):
        assert quantize(update, grid, secret(1), weight=weight).num_clamped == 0


# Block by block, through the ring.


@pytest.mark.parametrize("value_bits", [6, 12, 20])
def test_any_blocks_in_any_order_give_the_same_fields(value_bits):
    rng, segments = np.random.default_rng(3), (5, 0, 40_000, 1, 60_000)
    values = rng.standard_normal(sum(segments)).astype(np.float32)
    grid = Grid(value_bits, floats(1.0, 2.0, 3.0, 0.5, 4.0), segments)
    whole = quantize(values, grid, None).fields
    steps = np.repeat(grid.steps, segments)
    levels = np.clip(np.rint(values / steps), -grid.max_level, grid.max_level)
    assert (np.abs(whole - (levels + grid.max_level)) <= 1).all()
    assert (whole == levels + grid.max_level).mean() > 0.999
    cuts = [0, *sorted(rng.integers(0, whole.size, 9).tolist()), whole.size]
    quantizer = Quantizer(values, grid, None)
    parts = np.empty(whole.size, np.uint32)
    for place in rng.permutation(len(cuts) - 1):
        start, stop = cuts[place], cuts[place + 1]
        strided = np.zeros((stop - start, 3), np.uint32)
        quantizer.fill(start, strided[:, 1])
        parts[start:stop] = strided[:, 1]
        assert not strided[:, ::2].any()
    assert (parts == whole).all()
    assert quantizer.num_clamped == quantize(values, grid, None).num_clamped > 0


@pytest.mark.parametrize("field_bits", FIELD_BITS)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_fused_with_the_ring_it_is_the_same_sum(field_bits, rounding):
    """Fused quantise and pack, sum of three, unpack and dequantise."""
    value_bits, segments = min(24, field_bits - 2), (70_000, 3, 200_000)
    grid = Grid(value_bits, floats(3.0, 0.1, 1e-3), segments)
    rng, length = np.random.default_rng(field_bits), sum(segments)
    ranges, steps = np.repeat(grid.ranges, segments), np.repeat(grid.steps, segments)
    total = np.zeros(words_needed(length, field_bits), np.uint64)
    updates = [(rng.uniform(-1, 1, length) * ranges).astype("f4") for _ in range(3)]
    for silo, update in enumerate(updates):
        random = secret(silo) if rounding == "stochastic" else None
        quantizer = Quantizer(update, grid, random)
        packed = pack_blocks(quantizer.fill, length, field_bits)
        if random is None:
            fields = quantize(update, grid, None).fields
            assert (packed == pack(fields, field_bits)).all()
        add_into(total, packed)
    mean = dequantize_sum(
        unpack_blocks(total, field_bits, length),
        grid,
        num_contributors=3,
        total_weight=3.0,
    )
    bound = steps * (0.5 if rounding == "nearest" else 1.0) + 2**-22 * ranges
    assert (np.abs(mean - np.mean(updates, axis=0, dtype=np.float64)) <= bound).all()


@given(
    st.integers(2, 24), st.integers(1, 40), st.floats(1e-20, 1e6), st.integers(0, 255)
)
def test_fields_are_never_above_twice_the_largest_level(
    value_bits, length, range_, seed
):
    """So n of them are at most 2 M n, which the headroom covers."""
    grid = Grid(value_bits, floats(range_), (length,))
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(length) * range_ * generator.choice([0.1, 1, 9])
    values[: length // 2] = generator.choice([-1, 1]) * float(grid.ranges[0])
    for random in (
        None,
        secret(seed),
        constant(2**16 - 1),
        constant(2**32 - 1, 32),
    ):
        fields = quantize(values, grid, random).fields
        assert fields.max() <= 2 * grid.max_level


@pytest.mark.parametrize("value_bits", [2, 12, 16])
def test_two_bytes_of_randomness_a_value(value_bits):
    drawn = 0

    def fill(words):
        nonlocal drawn
        drawn += words.nbytes
        words[:] = 0

    grid = exact_grid(value_bits, (0,), (4 * BLOCK,))
    quantize(np.zeros(4 * BLOCK), grid, fill)
    assert drawn == 2 * 4 * BLOCK


def test_a_sum_in_pieces_must_be_the_vector_once():
    grid = exact_grid(8, (0,), (4,))
    piece = np.zeros(2, np.uint32)
    arguments = {"num_contributors": 1, "total_weight": 1.0}
    dequantize_sum([(2, piece), (0, piece)], grid, **arguments)
    for blocks in ([(0, piece)], [(3, piece), (0, piece)], [(0, piece)] * 3):
        with pytest.raises(GridTooCoarse, match="a sum of"):
            dequantize_sum(blocks, grid, **arguments)


def test_the_vector_is_only_read():
    values = floats(0.5, -0.5)
    values.flags.writeable = False
    quantize(values, exact_grid(8, (-7,), (2,)), secret(1))


def test_a_false_weight_does_not_blow_up_the_mean():
    """Three silos; one says so small a weight that a step of the sum is worth 157 r."""
    grid, largest = Grid(8, floats(0.5), (4,)), 60_000
    middle = 3 * grid.max_level
    sums = np.array([middle + 3, middle + 1, middle, middle - 3], np.uint16)
    mean = dequantize_sum(
        [(0, sums)], grid, num_contributors=3, total_weight=3 / largest
    )
    assert mean.tolist() == [0.5, 0.5, 0.0, -0.5]
