"""The bound on the noise of a sum, against a slow reference and what was measured."""

import math

import numpy as np
import pytest

from crypto.bfv import noise
from crypto.bfv.parameters import COEFF_MODULUS, MIN_NOISE_BUDGET_BITS, PLAIN_MODULUS

MEASURED = {1: 10, 5: 9, 10: 8, 100: 7}
"""Bits that SEAL said were left of one ciphertext, by the number of silos in it."""


def bits_left(largest: float) -> float:
    return math.log2(COEFF_MODULUS / (2 * PLAIN_MODULUS * largest))


@pytest.mark.parametrize(("num_silos", "bits"), MEASURED.items())
def test_the_bound_of_one_ciphertext_is_just_below_what_was_measured(num_silos, bits):
    found = bits_left(noise.likely_noise(num_silos, 4096, 0.5))
    assert bits - 1 <= math.floor(found) <= bits


def test_the_most_silos_by_hand():
    """512 = sqrt(21 n ln(2^91)) + n / 2 has its root between 145 and 146."""
    assert noise.largest_noise() == pytest.approx(512, rel=1e-8)
    tail = 21 * 91 * math.log(2)
    assert math.sqrt(145 * tail) + 145 / 2 < 512 < math.sqrt(146 * tail) + 146 / 2
    assert noise.max_summed() == 145


def test_the_limit_is_kept_and_tight():
    most = noise.max_summed()
    args = (noise.RUN_COEFFICIENTS, noise.FAILURE)
    assert bits_left(noise.likely_noise(most, *args)) >= MIN_NOISE_BUDGET_BITS
    assert bits_left(noise.likely_noise(most + 1, *args)) < MIN_NOISE_BUDGET_BITS


@pytest.mark.parametrize("num_silos", [1, 5, 145])
def test_the_tail_is_that_of_the_distribution(num_silos):
    """By counting: the distribution of 42 n bits, less their mean, from binomials."""
    bits = 42 * num_silos
    logs = [
        math.lgamma(bits + 1) - math.lgamma(k + 1) - math.lgamma(bits - k + 1)
        for k in range(bits + 1)
    ]
    chances = np.exp(np.array(logs) - bits * math.log(2))
    away = np.abs(np.arange(bits + 1) - bits / 2)
    assert (chances * away**2).sum() == pytest.approx(10.5 * num_silos)
    for failure in (1e-3, 1e-9):
        bound = noise.likely_noise(num_silos, 1, failure) - num_silos / 2
        assert chances[away >= bound].sum() < failure
        assert chances[away >= 0.7 * bound].sum() > failure  # Not much too large.
