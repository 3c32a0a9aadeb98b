import numpy as np
import pytest

from crypto.ring import pack
from simulation.uniformity import MIN_WORDS, uniformity

PASSES = 1e-7
"""A p-value that uniform words fall below once in ten million tests."""


def uniform_words(count=20_000):
    rng = np.random.default_rng(5)
    return rng.integers(0, 2**64, count, np.uint64, endpoint=False)


def values_of(words):
    return {test.test.split(",")[0]: test.p_value for test in uniformity(words)}


def test_uniform_words_pass():
    assert min(values_of(uniform_words()).values()) > 1e-3


def test_p_values_of_uniform_words_are_uniform():
    """Of 400 p-values about 20 are below 5 %: 6 to 40, but once in 10^4 times."""
    rng = np.random.default_rng(8)
    seeds = rng.integers(0, 2**64, (134, 2000), np.uint64, endpoint=False)
    values = [p for words in seeds for p in values_of(words).values()]
    assert 6 <= sum(p < 0.05 for p in values) <= 40


def test_packed_levels_fail():
    levels = np.random.default_rng(3).normal(1 << 15, 900, 40_000).astype(np.uint32)
    values = values_of(pack(levels, 32))
    assert values["bytes"] < PASSES
    assert values["64-bit words"] < PASSES


@pytest.mark.parametrize(
    ("spoil", "which"),
    [
        (lambda words: words & np.uint64(~1 & 2**64 - 1), "bytes"),
        (lambda words: words >> np.uint64(1), "64-bit words"),
        (lambda words: np.repeat(words[::2], 2), "neighbouring words"),
        (np.zeros_like, "neighbouring words"),
    ],
    ids=["a bit is never set", "half the range", "each twice", "all the same"],
)
def test_each_test_finds_its_flaw(spoil, which):
    assert values_of(spoil(uniform_words()))[which] < PASSES


def test_too_few_words_are_refused():
    with pytest.raises(ValueError, match="at least 160"):
        uniformity(np.zeros(MIN_WORDS - 1, np.uint64))


def test_chi_square_by_hand():
    """Of 1,280 bytes all are zero: Σ (n - 5)² / 5 = (1275² + 255 · 25) / 5."""
    test = uniformity(np.zeros(MIN_WORDS, np.uint64))[0]
    assert test.statistic == pytest.approx((1275**2 + 255 * 25) / 5)
