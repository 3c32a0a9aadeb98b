"""Exact discrete Gaussian noise on the integers, for sums of integers.

Every silo adds noise to the integers of its update before they are masked; the noise in
the sum is what protects. What it is worth is computed in ``privacy.distributed``; the
proofs and the assumptions are in docs/noise-inside-the-sum.md.

Noise is in grid steps, and variances are exact fractions.
"""

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from privacy.errors import Overflow
from privacy.rotation import RandomBytes

TAIL_BITS = 128
"""A sampler's law is cut off where at most 2^-128 of the discrete Gaussian lies."""
MIN_VARIANCE, MAX_VARIANCE = Fraction(1, 4), Fraction(1 << 48)
"""Grid steps squared: below, sums of discrete Gaussians have no proven law."""

_GUIDE_BITS = 16
_BLOCK = 1 << 15
_TIE = 2.0**-40
"""Relative; far above the error of an acceptance probability in float64, 2^-42."""
_LN2_ABOVE = Fraction(6931471806, 10**10)

Integers = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]


class DiscreteGaussian:
    """Noise on the integers: P(x) proportional to exp(-x² / 2σ²), cut off at a bound.

    Guarantees: given uniform random words, values are independent and have the law
    above **exactly** for |x| ≤ ``bound``, and are never beyond it. Nothing is lost
    to floating point: where float64 cannot decide an acceptance, integers do, with as
    many more random bits as it takes. The total variation distance to the discrete
    Gaussian without a bound is at most 2^-128 for each value. The variance is at most
    σ², and σ² to six digits from σ = 1 on.

    How: |x| is proposed by an envelope that is constant on blocks of 2^b integers, from
    a table of 2^16 entries; a proposal is accepted with probability
    c · exp(-x² / 2σ²) / w, w being the block's entries. One random word is a proposal:
    16 bits of the table, a sign, b bits within the block, the rest for acceptance.
    About 1.06 words are drawn for a value, more below σ = 30.

    Time depends on how often proposals are refused, hence on noise, never on data.

    Args:
        variance: σ² in grid steps squared, 1/4 to 2^48; a float is taken exactly.

    Raises:
        ValueError: the variance is out of its range.

    Source: acceptance by comparing bits as they are needed: Karney (2016), algorithm
    D; the law and its tail: Canonne, Kamath & Steinke (2020).
    """

    def __init__(self, variance: Fraction | int | float) -> None:
        self.variance = exact_variance(variance)
        self._shift = _block_bits(self.variance)
        self.bound = sampler_bound(self.variance)
        num_blocks = (self.bound + 1) >> self._shift
        self._fraction_bits = 47 - self._shift
        above = [self._weight(k << self._shift)[1] for k in range(num_blocks)]
        self._top = (((1 << _GUIDE_BITS) - num_blocks) << 64) // sum(above)
        self._entries = [((self._top * weight) >> 64) + 1 for weight in above]
        guide = np.full(1 << _GUIDE_BITS, num_blocks, np.int64)
        guide[: sum(self._entries)] = np.repeat(np.arange(num_blocks), self._entries)
        self._guide, self._num_blocks = guide, num_blocks
        self._surely = np.array([*map(self._smallest_chance, range(num_blocks)), 0])
        self._ratios = self._top / np.array(self._entries, np.float64)

    def fill(self, noise: Integers, random: RandomBytes) -> None:
        """Overwrite an int64 array ``[n]`` with fresh noise, in grid steps."""
        buffer, done = np.empty(_BLOCK + _BLOCK // 16 + 16, np.uint64), 0
        while done < noise.size:
            wanted = min(noise.size - done, _BLOCK)
            words = buffer[: wanted + wanted // 16 + 16]
            random(words)
            values = self._accepted(words, random)[:wanted]
            noise[done : done + values.size] = values
            done += values.size

    def _weight(self, x: int, bits: int = 64) -> tuple[int, int]:
        """Return bounds of 2^bits · exp(-x² / 2σ²)."""
        variance = self.variance
        top = x * x * variance.denominator
        return exp_bounds(Fraction(top, 2 * variance.numerator), bits)

    def _smallest_chance(self, block: int) -> int:
        """Return what every acceptance probability of a block exceeds, in fractions."""
        last = ((block + 1) << self._shift) - 1
        below = self._top * self._weight(last)[0] // self._entries[block]
        return below >> (64 - self._fraction_bits)

    def _accepted(self, words: _Words, random: RandomBytes) -> Integers:
        """Return the values that a buffer of random words stands for."""
        bits = words.view(np.int64)
        block = self._guide[bits & ((1 << _GUIDE_BITS) - 1)]
        sign = (bits >> _GUIDE_BITS) & 1
        low = (bits >> (_GUIDE_BITS + 1)) & ((1 << self._shift) - 1)
        x = (block << self._shift) + low
        fraction = (words >> np.uint64(17 + self._shift)).view(np.int64)
        keep = fraction < self._surely[block]
        unsure = np.flatnonzero(~keep & (block < self._num_blocks))
        keep[unsure] = self._decide(x[unsure], fraction[unsure], block[unsure], random)
        # Zero has one sign only, or it would come twice as often as it should.
        keep &= (x != 0) | (sign == 0)
        x, sign = x[keep], sign[keep]
        return np.asarray((x ^ -sign) + sign, np.int64)

    def _decide(
        self, x: Integers, fraction: Integers, block: Integers, random: RandomBytes
    ) -> npt.NDArray[np.bool_]:
        """Return which proposals are accepted, by float64 where that is certain."""
        exponent = x.astype(np.float64) ** 2 / (2 * float(self.variance))
        chance = np.ldexp(self._ratios[block] * np.exp(-exponent), self._fraction_bits)
        accepted = fraction < np.floor(chance * (1 - _TIE))
        is_tie = ~accepted & (fraction <= np.floor(chance * (1 + _TIE)))
        for index in np.flatnonzero(is_tie):
            accepted[index] = self._decide_exactly(
                int(x[index]), int(fraction[index]), int(block[index]), random
            )
        return np.asarray(accepted, np.bool_)

    def _decide_exactly(
        self, x: int, fraction: int, block: int, random: RandomBytes
    ) -> bool:
        """Draw bits of a uniform number until it is on one side of the probability."""
        bits, word = self._fraction_bits, np.empty(1, np.uint64)
        while True:
            random(word)
            fraction, bits = (fraction << 64) + int(word[0]), bits + 64
            low, high = self._weight(x, bits)
            if fraction < self._top * low // self._entries[block]:
                return True
            if fraction * self._entries[block] >= self._top * high:
                return False


def exp_bounds(exponent: Fraction, bits: int) -> tuple[int, int]:
    """Return integers low ≤ 2^bits · exp(-exponent) ≤ high, by integers alone.

    exp(z) for z = exponent / 2^h below 1/2 is a sum of positive terms, rounded down for
    one bound and up for the other, and squared h times. For an exponent up to 1,000 the
    bounds differ by 1, rarely by 2.

    Args:
        exponent: not negative.
    """
    halvings, precision = int(exponent).bit_length() + 1, bits + 64
    low_z = (exponent.numerator << precision) // (exponent.denominator << halvings)
    low = low_term = high = high_term = 1 << precision
    index = 0
    while high_term > 1:
        index += 1
        low_term = (low_term * low_z >> precision) // index
        high_term = -(-high_term * (low_z + 1) // (index << precision))
        low, high = low + low_term, high + high_term
    # The last term was rounded up to 1; those that follow are below 1/2, 1/4, …
    high += 2
    for _ in range(halvings):
        low, high = low * low >> precision, -(-high * high >> precision)
    whole = 1 << (bits + precision)
    return whole // high, -(-whole // low)


def exact_variance(variance: Fraction | int | float) -> Fraction:
    """Return a variance as an exact fraction.

    Raises:
        ValueError: it is not a number of 1/4 … 2^48.
    """
    if not math.isfinite(variance) or not MIN_VARIANCE <= variance <= MAX_VARIANCE:
        raise ValueError(
            f"variance: must be 1/4 to 2^48 grid steps squared, is {float(variance):g}"
        )
    return Fraction(variance)


def noise_bound(variance: Fraction | int | float, tail_bits: int = TAIL_BITS) -> int:
    """Return N with P(|x| ≥ N) ≤ 2^-tail_bits for a discrete Gaussian x.

    Source: P(|x| ≥ N) ≤ 2 exp(-N² / 2σ²), Canonne, Kamath & Steinke (2020); proven in
    docs/noise-inside-the-sum.md, section 5.
    """
    square = 2 * exact_variance(variance) * _LN2_ABOVE * (tail_bits + 1)
    return math.isqrt(math.ceil(square) - 1) + 1


def sampler_bound(variance: Fraction | int | float) -> int:
    """Return what no value of a :class:`DiscreteGaussian` exceeds: its ``bound``.

    At least :func:`noise_bound`, rounded up to whole blocks.
    """
    shift = _block_bits(exact_variance(variance))
    return (((noise_bound(variance) >> shift) + 1) << shift) - 1


def _block_bits(variance: Fraction) -> int:
    """Return b, blocks being of 2^b integers.

    The width decides how fast the sampler is; the law is the same.
    """
    return max(0, math.frexp(math.sqrt(variance) / 32)[1] - 1)


def check_noisy_headroom(
    max_level: int, bound: int, *, field_bits: int, num_contributors: int
) -> None:
    """Raise :class:`Overflow` if a sum of so many noisy fields could overflow.

    A noisy level is within ± (M + N), M the grid's ``max_level``, N the sampler's
    ``bound``, and stored with M + N added: the largest sum is 2 (M + N) n.
    """
    if 2 * (max_level + bound) * num_contributors >= 1 << field_bits:
        raise Overflow(
            f"{num_contributors} levels up to {max_level:,} with noise up to {bound:,} "
            f"do not fit a field of {field_bits} bits"
        )
