"""Are hidden words uniform? Three statistical tests; packed updates fail the first two.

A test that passes proves nothing: that masks hide an update follows from the pseudo-
random generator and the key agreement (docs/secure-aggregation.md), that encryption
does, from learning with errors (docs/homomorphic-encryption.md). A test that fails
proves a mistake.

Ciphertexts are read as words of eight bytes. Their residues are below a prime that is
2^60 but for two parts in 10^14, which no test of this size sees.
"""

import numpy as np
import numpy.typing as npt
from scipy import stats

from protocol.rehearsal import Tested, Uniformity

Words = npt.NDArray[np.uint64]

MIN_WORDS = 160
"""1,280 bytes: five of each value are expected, as the chi-square law needs."""


def uniformity(words: Words, which: Tested = "masked") -> tuple[Uniformity, ...]:
    """Return three tests of words ``[w]`` against independent uniform ones.

    Bytes by their counts, words by their distribution function, and neighbouring words
    by their correlation. Each p-value is uniform on [0, 1] for uniform words, up to
    the approximation by the law for many.

    Raises:
        ValueError: fewer than ``MIN_WORDS`` words.
    """
    if words.size < MIN_WORDS:
        raise ValueError(f"words: must be at least {MIN_WORDS}, are {words.size}")
    octets = words.view(np.uint8)
    shares = words.astype(np.float64) / 2.0**64
    tests = (
        ("bytes, chi-square of 256 counts", octets.size, _chi_square(octets)),
        ("64-bit words, Kolmogorov–Smirnov", shares.size, _smirnov(shares)),
        ("neighbouring words, correlation", shares.size - 1, _correlation(shares)),
    )
    return tuple(
        Uniformity(test=name, num_values=count, statistic=value, p_value=p, words=which)
        for name, count, (value, p) in tests
    )


def _chi_square(octets: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Return Pearson's statistic of the counts of byte values, and its p-value."""
    counts = np.bincount(octets, minlength=256)
    statistic = float(((counts - octets.size / 256) ** 2).sum() * 256 / octets.size)
    return statistic, float(stats.chi2.sf(statistic, 255))


def _smirnov(shares: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the largest distance of distribution functions, and its p-value."""
    result = stats.kstest(shares, "uniform", method="asymp")
    return float(result.statistic), float(result.pvalue)


def _correlation(shares: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the correlation r of neighbours; r √n is about standard normal."""
    before, after = shares[:-1] - shares.mean(), shares[1:] - shares.mean()
    spread = float(np.mean((shares - shares.mean()) ** 2))
    if spread == 0:
        return 1.0, 0.0
    r = float(np.mean(before * after)) / spread
    return r, float(2 * stats.norm.sf(abs(r) * before.size**0.5))
