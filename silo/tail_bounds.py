"""How far honest random numbers may stray: bounds that hold for every sample size.

Each takes the false-alarm rate that it may cost. None is an approximation for large
numbers, so a test that uses them alarms no more often than it says.
"""

import math

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]


def norm_limit(num_values: int, rate: float) -> float:
    """Return how far the mean square of standard normals may be from 1.

    Source: Laurent & Massart, 2000, lemma 1: 2 √(x / d) + 2 x / d, x = ln(2 / rate).
    """
    x = math.log(2 / rate)
    return 2 * math.sqrt(x / num_values) + 2 * x / num_values


def normal_limit(rate: float) -> float:
    """Return how large a standard normal may be, in absolute value.

    Source: P(|Z| > x) <= 2 exp(-x² / 2).
    """
    return math.sqrt(2 * math.log(2 / rate))


def gap_limit(num_values: int, rate: float) -> float:
    """Return how far an empirical distribution function may be from the true one.

    Source: Dvoretzky, Kiefer & Wolfowitz, 1956, with the constant of Massart, 1990; it
    holds for distributions of whole numbers, too.
    """
    return math.sqrt(math.log(2 / rate) / (2 * num_values))


def normal_gap(values: Floats) -> float:
    """Return the Kolmogorov-Smirnov distance from the standard normal."""
    n = len(values)
    expected = torch.special.ndtr(torch.from_numpy(np.sort(values))).numpy()
    steps = np.arange(n + 1) / n
    above, below = steps[1:] - expected, expected - steps[:-1]
    return float(np.nan_to_num(np.maximum(above, below), nan=1.0).max())


def binomial_gap(counts: npt.NDArray[np.int64], num_trials: int, rate: float) -> float:
    """Return the Kolmogorov-Smirnov distance of counts from Bin(num_trials, rate)."""
    found = np.bincount(counts, minlength=num_trials + 1).cumsum() / len(counts)
    expected = binomial_probabilities(num_trials, rate).cumsum()
    return float(np.abs(found - expected).max())


def binomial_probabilities(num_trials: int, rate: float) -> Floats:
    """Return the probabilities of 0 … num_trials successes."""
    if rate >= 1:
        certain: Floats = np.eye(1, num_trials + 1, num_trials)[0]
        return certain
    k = np.arange(num_trials)
    ratios = np.log((num_trials - k) / (k + 1)) + math.log(rate) - math.log1p(-rate)
    logs = num_trials * math.log1p(-rate) + np.concatenate(([0.0], ratios.cumsum()))
    probabilities: Floats = np.exp(logs)
    return probabilities


def count_surprise(
    counts: npt.ArrayLike, num_trials: int, probability: float
) -> Floats:
    """Return an upper bound of the chance of counts so far from their mean, each.

    Two-sided: ``2 exp(-n KL(count / n || p))``, at most 1.

    Source: Chernoff, 1952; Hoeffding, 1963, theorem 1.
    """
    shares = np.asarray(counts, dtype=np.float64) / num_trials
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.where(shares > 0, shares * np.log(shares / probability), 0.0)
        rest = (1 - shares) * np.log((1 - shares) / (1 - probability))
        divergence = drawn + np.where(shares < 1, rest, 0.0)
    chances: Floats = np.minimum(1.0, 2 * np.exp(-num_trials * divergence))
    return chances
