"""Noisy fields of one silo: their law, their bounds, and what they never show."""

from dataclasses import replace

import numpy as np
import pytest

from crypto.prg import SecretRandom
from crypto.ring import unpack_blocks
from privacy.noise import sampler_bound
from privacy.quantization import dequantize_sum
from protocol.grids import first_numbers, round_grid
from silo.noisy_update import make_noisy_update, noisy_words
from tests.distributions import accepts, discrete_gaussian, rejects
from tests.protocol.test_noise_plan import RECORD, SILO, planned

LENGTH, VARIANCE = 40_000, 900


@pytest.fixture(scope="module")
def plan():
    made = planned(SILO)
    return replace(made, privacy=replace(made.privacy, share_variance=VARIANCE))


def grid_of(plan, length=LENGTH):
    return round_grid(plan, (length,), 1, first_numbers(plan, (length,)))


def levels(plan, words, length=LENGTH):
    """Return the noisy levels of packed fields, without their middle."""
    values = np.empty(length, np.int64)
    for start, fields in unpack_blocks(words, 32, length):
        values[start : start + fields.size] = fields
    return values - (1 << 23) + 1 - sampler_bound(plan.privacy.share_variance)


def test_zeros_come_out_as_the_noise_alone(plan):
    numbers = grid_of(plan)
    words = make_noisy_update(plan, numbers, np.zeros(LENGTH, np.float32))
    noise = levels(plan, words)
    assert accepts(noise, discrete_gaussian(VARIANCE))
    assert rejects(noise, discrete_gaussian(1.2 * VARIANCE))
    again = make_noisy_update(plan, numbers, np.zeros(LENGTH, np.float32))
    assert not np.array_equal(words, again)


def test_a_vector_is_in_it_to_the_rounding_of_the_grid(plan):
    random = np.random.default_rng(2)
    vector = random.normal(size=LENGTH).astype(np.float32)
    vector *= np.float32(1.9 / np.linalg.norm(vector))
    numbers, wanted = grid_of(plan), vector / float(grid_of(plan).grid.steps[0])
    seeds = {"dither": SecretRandom(bytes(32)), "noise": SecretRandom(b"1" * 32)}
    zeros = {"dither": SecretRandom(bytes(32)), "noise": SecretRandom(b"1" * 32)}
    noisy = levels(plan, noisy_words(plan, numbers, vector.copy(), **seeds))
    alone = levels(plan, noisy_words(plan, numbers, np.zeros_like(vector), **zeros))
    assert np.abs(noisy - alone - wanted).max() < 1 + 1e-6


def test_a_longer_vector_is_clipped_before_it_is_quantised(plan):
    vector = np.zeros(LENGTH, np.float32)
    vector[7] = 1000.0
    quiet = replace(plan, privacy=replace(plan.privacy, share_variance=1))
    noisy = levels(quiet, make_noisy_update(quiet, grid_of(quiet), vector))
    assert abs(noisy[7] - 2**15) < 20


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_counts_as_zero(plan, value):
    vector = np.full(LENGTH, 1e-3, np.float32)
    vector[3] = value
    noise = levels(plan, make_noisy_update(plan, grid_of(plan), vector))
    assert accepts(noise, discrete_gaussian(VARIANCE))


def test_the_mean_of_a_sum_is_not_cut_off_at_its_range():
    # A range of 0.5 * (2^16 - 1) / 2^15, just below 1, and noise that goes far beyond.
    plan = planned(RECORD | {"update.value_bits": 17, "update.clipping_norm": 1.0})
    wide = 10**11
    plan = replace(plan, privacy=replace(plan.privacy, share_variance=wide))
    numbers, total = grid_of(plan, 500), None
    for _ in range(4):
        words = make_noisy_update(plan, numbers, np.zeros(500, np.float32))
        total = words if total is None else total + words
    mean = dequantize_sum(
        unpack_blocks(total, 32, 500), numbers.grid, num_contributors=4,
        total_weight=4.0, noise_bound=sampler_bound(wide),
    )  # fmt: skip
    expected = float(numbers.grid.steps[0]) * (wide / 4) ** 0.5
    assert np.abs(mean).max() > 2 * float(numbers.grid.ranges[0])
    assert mean.std() == pytest.approx(expected, rel=0.15)
    assert abs(mean.mean()) < 5 * expected / 500**0.5
