"""Laws on the integers, and tests that accept the right one and reject wrong ones.

The test is Pearson's chi-square over cells of neighbouring integers, each expected to
hold at least ``MIN_EXPECTED`` values. ``accepts`` wrongly says no to a sampler of the
right law with probability ``FALSE_ALARM``; ``rejects`` wrongly says yes with
probability ``FALSE_REJECTION``. Tests fix their seeds: they pass always or never.
"""

import random
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy import stats

FALSE_ALARM = 1e-4
FALSE_REJECTION = 1e-9
MIN_EXPECTED = 50
NUM_CELLS = 400


@dataclass(frozen=True)
class Law:
    """Probabilities of the integers from ``first`` on; the rest is negligible."""

    first: int
    probabilities: np.ndarray

    @property
    def values(self):
        return self.first + np.arange(self.probabilities.size)

    @property
    def mean(self):
        return float(self.values @ self.probabilities)

    @property
    def variance(self):
        return float((self.values - self.mean) ** 2 @ self.probabilities)

    def plus(self, other):
        """Return the law of the sum of two independent values."""
        together = np.convolve(self.probabilities, other.probabilities)
        return Law(self.first + other.first, together)


def discrete_gaussian(variance, spread=10.0):
    bound = int(spread * float(variance) ** 0.5) + 3
    x = np.arange(-bound, bound + 1, dtype=float)
    weights = np.exp(-(x**2) / (2 * float(variance)))
    return Law(-bound, weights / weights.sum())


def rounded_gaussian(variance, spread=10.0):
    """Return the law of a continuous Gaussian rounded to the nearest integer."""
    stddev = float(variance) ** 0.5
    bound = int(spread * stddev) + 3
    edges = np.arange(-bound, bound + 2) - 0.5
    return Law(-bound, np.diff(stats.norm.cdf(edges / stddev)))


def discrete_laplace(variance, spread=30.0):
    """Return the two-sided geometric law, P(x) ~ r^|x|, of a variance 2r / (1 - r)²."""
    r = 1 + 1 / variance - ((1 + 1 / variance) ** 2 - 1) ** 0.5
    bound = int(spread * variance**0.5) + 3
    weights = r ** np.abs(np.arange(-bound, bound + 1, dtype=float))
    return Law(-bound, weights / weights.sum())


def p_value(sample, law):
    """Return the chi-square p-value of a sample of integers."""
    beyond = (sample < law.first) | (sample >= law.first + law.probabilities.size)
    if beyond.any():
        return 0.0
    expected = sample.size * law.probabilities
    counts = np.bincount(sample - law.first, minlength=expected.size)
    least = max(MIN_EXPECTED, sample.size / NUM_CELLS)
    cells = (np.cumsum(expected) / least).astype(int)
    observed = np.bincount(cells, counts)
    wanted = np.bincount(cells, expected)
    full = wanted >= MIN_EXPECTED / 2
    observed = np.append(observed[full], observed[~full].sum())
    wanted = np.append(wanted[full], wanted[~full].sum())
    if wanted[-1] < MIN_EXPECTED / 2:  # too few for a cell of their own
        last = np.argmax(wanted)
        observed[last] += observed[-1]
        wanted[last] += wanted[-1]
        observed, wanted = observed[:-1], wanted[:-1]
    square = ((observed - wanted) ** 2 / wanted).sum()
    return float(stats.chi2.sf(square, observed.size - 1))


def accepts(sample, law):
    return p_value(sample, law) >= FALSE_ALARM


def rejects(sample, law):
    return p_value(sample, law) < FALSE_REJECTION


class SlowDiscreteGaussian:
    """Canonne, Kamath & Steinke (2020), algorithms 1 to 3, one value at a time.

    Exact fractions throughout; a reference as unlike the fast sampler as can be.
    """

    def __init__(self, variance, seed):
        self.variance = Fraction(variance)
        self.random = random.Random(seed)

    def bernoulli(self, chance):
        return self.random.randrange(chance.denominator) < chance.numerator

    def bernoulli_exp_below_1(self, exponent):
        k = 1
        while self.bernoulli(exponent / k):
            k += 1
        return k % 2 == 1

    def bernoulli_exp(self, exponent):
        while exponent > 1:
            if not self.bernoulli_exp_below_1(Fraction(1)):
                return False
            exponent -= 1
        return self.bernoulli_exp_below_1(exponent)

    def laplace(self, width):
        while True:
            u = self.random.randrange(width)
            if not self.bernoulli_exp(Fraction(u, width)):
                continue
            v = 0
            while self.bernoulli_exp(Fraction(1)):
                v += 1
            x, negative = u + width * v, self.bernoulli(Fraction(1, 2))
            if not (negative and x == 0):
                return -x if negative else x

    def draw(self):
        width = int(float(self.variance) ** 0.5) + 1
        while True:
            x = self.laplace(width)
            off = (abs(x) - self.variance / width) ** 2
            if self.bernoulli_exp(off / (2 * self.variance)):
                return x
