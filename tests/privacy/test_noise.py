import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.prg import SecretRandom
from privacy.errors import Overflow
from privacy.noise import (
    TAIL_BITS,
    DiscreteGaussian,
    check_noisy_headroom,
    exact_variance,
    exp_bounds,
    noise_bound,
)
from tests.distributions import (
    SlowDiscreteGaussian,
    accepts,
    discrete_gaussian,
    discrete_laplace,
    rejects,
    rounded_gaussian,
)

VARIANCES = [Fraction(1, 4), 0.36, 1, Fraction(7, 3), 100, 64**2, 1000.5**2, 4e8, 1e10]


def draw(variance, size, seed=b"n"):
    noise = np.empty(size, np.int64)
    DiscreteGaussian(variance).fill(noise, SecretRandom(seed * 32))
    return noise


def nothing_more(words):
    raise AssertionError("more random words were drawn than expected")


def zeros(words):
    words[:] = 0


# The law


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_sampler_has_its_law(variance):
    noise = draw(variance, 300_000)
    assert accepts(noise, discrete_gaussian(variance))


@pytest.mark.parametrize("variance", [0.36, 1, 100, 4e8])
def test_wrong_laws_are_rejected(variance):
    noise = draw(variance, 300_000)
    assert rejects(noise, discrete_gaussian(1.1 * variance))
    assert rejects(noise, discrete_gaussian(variance / 1.1))
    assert rejects(noise, discrete_laplace(float(variance)))


@pytest.mark.parametrize("variance", [0.36, 1])
def test_a_rounded_continuous_gaussian_is_rejected(variance):
    noise = draw(variance, 300_000)
    assert rejects(noise, rounded_gaussian(variance))
    # Nor one of the same variance, where that differs in shape.
    if variance < 1:
        law = discrete_gaussian(variance)
        narrow = np.linspace(0.2, 0.36, 999)
        best = min(
            narrow, key=lambda v: abs(rounded_gaussian(v).variance - law.variance)
        )
        assert rejects(noise, rounded_gaussian(best))


def test_wrong_samples_are_rejected_by_the_right_law():
    generator, law = np.random.default_rng(1), discrete_gaussian(1)
    rounded = np.rint(generator.normal(0, 1, 300_000)).astype(np.int64)
    assert rejects(rounded, law)
    assert accepts(rounded, rounded_gaussian(1))
    more_zeros = draw(1, 300_000)
    more_zeros[:6000] = 0
    assert rejects(more_zeros, law)
    assert rejects(np.array([10**6]), law)


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(7, 3)])
def test_the_slow_reference_has_the_same_law(variance):
    slow = SlowDiscreteGaussian(variance, seed=5)
    sample = np.array([slow.draw() for _ in range(20_000)])
    assert accepts(sample, discrete_gaussian(variance))
    assert rejects(sample, discrete_laplace(float(variance)))


@pytest.mark.parametrize("stddev", [1000, 2.0**14 + 0.5, 1e6])
def test_low_digits_of_wide_noise_are_uniform(stddev):
    noise = draw(stddev**2, 400_000)
    for modulus in (2, 7, 32):
        counts = np.bincount(noise % modulus, minlength=modulus)
        square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert square < modulus + 6 * math.sqrt(2 * modulus)


@pytest.mark.parametrize("stddev", [2.0, 50.0, 3e4])
def test_moments_and_independence(stddev):
    n = 400_000
    z = draw(stddev**2, n) / stddev
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert abs((z[1:] * z[:-1]).mean()) < 4 / math.sqrt(n)
    assert abs((z[1:] ** 2 * z[:-1] ** 2).mean() - 1) < 4 * math.sqrt(8 / n)


def test_a_sum_of_shares_has_the_variance_of_the_total():
    shares = [draw(Fraction(4, 3), 200_000, seed) for seed in (b"1", b"2", b"3")]
    assert accepts(sum(shares), discrete_gaussian(4))
    assert rejects(shares[0] + shares[1], discrete_gaussian(4))


# Exactness


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_envelope_is_one(variance):
    # That it is above the law everywhere makes what is accepted exact.
    sampler = DiscreteGaussian(variance)
    entries, num_blocks = sampler._entries, sampler._num_blocks
    counts = np.bincount(sampler._guide, minlength=num_blocks + 1)
    assert counts[:num_blocks].tolist() == entries
    assert counts.sum() == 1 << 16
    width = 1 << sampler._shift
    scale = 2.0**sampler._fraction_bits
    for block in range(0, num_blocks, 7):
        first, last = block * width, (block + 1) * width - 1
        low, _ = exp_bounds(Fraction(first**2) / (2 * sampler.variance), 200)
        assert entries[block] << 200 > sampler._top * low
        ratio = sampler._top / entries[block]
        least = ratio * math.exp(-(last**2) / (2 * float(variance)))
        assert sampler._surely[block] <= scale * least * (1 + 1e-12) + 1
        # Almost nothing needs more than a comparison.
        assert sampler._surely[block] >= scale * least * (1 - 1e-12) - 2


def crafted_sampler():
    """Return a sampler, and the acceptance probability of the value 4, as a decimal."""
    sampler = DiscreteGaussian(9)
    assert sampler._shift == 0
    with localcontext() as context:
        context.prec = 120
        weight = (Decimal(-16) / Decimal(18)).exp()
        chance = sampler._top * weight / sampler._entries[4]
    return sampler, chance


def digits_of(chance, num_words):
    """Return the first 47 bits of a probability, then so many words of 64 bits."""
    with localcontext() as context:
        context.prec = 120
        whole = int(chance * 2 ** (47 + 64 * num_words))
    words = [(whole >> (64 * i)) & (2**64 - 1) for i in range(num_words)]
    return whole >> (64 * num_words), words[::-1]


def proposal(sampler, value, fraction, negative=False):
    """Return the random word that proposes a value."""
    entry = sum(sampler._entries[:value])
    return entry | negative << 16 | fraction << 17


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize(
    ("change", "is_accepted"), [(-3, True), (3, False), (-(2**40), True)]
)
def test_a_tie_is_decided_by_more_bits(change, is_accepted, negative):
    sampler, chance = crafted_sampler()
    fraction, (word,) = digits_of(chance, 1)
    crafted = Tie(sampler, 4, fraction, negative, [word + change])
    assert crafted.is_accepted() == is_accepted
    assert crafted.num_words == 1


def test_a_tie_of_all_bits_asks_for_more():
    sampler, chance = crafted_sampler()
    fraction, words = digits_of(chance, 3)
    for change, is_accepted in ((-3, True), (3, False)):
        following = [*words[:2], words[2] + change]
        crafted = Tie(sampler, 4, fraction, False, following)
        assert crafted.is_accepted() == is_accepted
        assert crafted.num_words == 3


@pytest.mark.parametrize(("change", "is_accepted"), [(-300, True), (300, False)])
def test_away_from_a_tie_nothing_more_is_drawn(change, is_accepted):
    sampler, chance = crafted_sampler()
    fraction, _ = digits_of(chance, 0)
    sampler._surely[:] = 0  # Even where the quick comparison does not decide.
    crafted = Tie(sampler, 4, fraction + change, False, [])
    assert crafted.is_accepted() == is_accepted
    assert crafted.num_words == 0


@pytest.mark.parametrize("change", [-20, -1, 0, 1, 20])
def test_close_to_a_tie_integers_decide(change):
    # float64 may be right here, but is not asked; one word is always enough.
    sampler, chance = crafted_sampler()
    sampler._surely[:] = 0  # The table, made of integers, knows some of them already.
    fraction, _ = digits_of(chance, 0)
    crafted = Tie(sampler, 4, fraction + change, False, [2**63])
    exactly = (Decimal(fraction + change) + Decimal("0.5")) / 2**47 < chance
    assert crafted.is_accepted() == exactly
    assert crafted.num_words == 1


class Tie:
    """One proposal among others that the table refuses, and words that follow it."""

    def __init__(self, sampler, value, fraction, negative, following):
        self.sampler, self.following, self.num_words = sampler, following, 0
        self.word = proposal(sampler, value, fraction, negative)
        self.expected = -value if negative else value

    def __call__(self, words):
        words[:] = self.following[self.num_words]
        self.num_words += 1

    def is_accepted(self):
        words = np.full(5, 0xFFFF, np.uint64)
        assert sum(self.sampler._entries) <= 0xFFFF  # The last entry is nobody's.
        words[2] = self.word
        values = self.sampler._accepted(words, self)
        assert values.tolist() in ([], [self.expected])
        return values.size == 1


def test_zero_has_one_sign():
    sampler = DiscreteGaussian(9)
    for negative, expected in ((False, [0]), (True, [])):
        words = np.array([proposal(sampler, 0, 0, negative)], np.uint64)
        assert sampler._accepted(words, nothing_more).tolist() == expected


def test_the_largest_proposal_is_the_bound():
    sampler = DiscreteGaussian(1000**2)
    last = sum(sampler._entries) - 1
    low = (1 << sampler._shift) - 1
    for sign in (0, 1):
        word = last | sign << 16 | low << 17
        # So far out even the smallest fraction is a tie, until 64 bits more decide it.
        values = sampler._accepted(np.array([word], np.uint64), zeros)
        assert np.abs(values).tolist() == [sampler.bound]


@settings(deadline=None)
@given(st.fractions(0, 200, max_denominator=10**6), st.integers(1, 300))
def test_exp_bounds_are_bounds(exponent, bits):
    low, high = exp_bounds(exponent, bits)
    with localcontext() as context:
        context.prec = 250
        quotient = Decimal(exponent.numerator) / Decimal(exponent.denominator)
        exact = (-quotient).exp() * 2**bits
        assert low <= exact <= high
    assert high - low <= 2


# Use


def test_any_size_is_filled_and_the_seed_decides():
    for size in (0, 1, 2, 32_768, 32_769, 100_003):
        noise = draw(25, size)
        assert noise.size == size
        assert (noise == draw(25, size)).all()
    assert (draw(25, 100) != draw(25, 100, b"m")).any()


@pytest.mark.parametrize("variance", [30**2, 1e8])
def test_few_random_words_are_used(variance):
    used, stream = [], SecretRandom(b"w" * 32)

    def counting(words):
        used.append(words.size)
        stream(words)

    DiscreteGaussian(variance).fill(np.empty(200_000, np.int64), counting)
    assert sum(used) <= 1.07 * 200_000


@pytest.mark.parametrize("variance", [Fraction(1, 4), 1, 12.5, 400])
def test_the_tail_beyond_the_bound_is_negligible(variance):
    for tail_bits in (1, 10, TAIL_BITS):
        bound = noise_bound(variance, tail_bits)
        inside = np.arange(1, 400, dtype=float)
        weights = np.exp(-(inside**2) / (2 * float(variance)))
        total = 1 + 2 * weights.sum()
        assert 2 * weights[bound - 1 :].sum() / total <= 2.0**-tail_bits
        # And not by a wide margin: four bits more would not hold.
        assert 2 * math.exp(-((bound - 1) ** 2) / (2 * float(variance))) > (
            2.0**-tail_bits
        )
    sampler = DiscreteGaussian(variance)
    assert bound <= sampler.bound <= bound + 1 + math.sqrt(variance) / 16


def test_a_float_is_taken_exactly():
    assert exact_variance(0.36) == Fraction(0.36) != Fraction(36, 100)


@pytest.mark.parametrize("variance", [0, -1, 0.2, 2.0**49, math.nan, math.inf])
def test_variances_out_of_range_are_refused(variance):
    with pytest.raises(ValueError, match="variance: must be 1/4 to 2\\^48"):
        DiscreteGaussian(variance)


def test_headroom_counts_noise():
    # 3 silos, levels to 1000, noise to 365: 2 · 1365 · 3 = 8190 fits 13 bits.
    check_noisy_headroom(1000, 365, field_bits=13, num_contributors=3)
    with pytest.raises(Overflow, match="3 levels up to 1,000 with noise up to 366"):
        check_noisy_headroom(1000, 366, field_bits=13, num_contributors=3)
