"""How much privacy was lost at least, told from the scores of planted canaries.

Each of m canaries was included by a fair coin. Whoever tells the included from the
others by their scores better than the claimed epsilon permits has refuted the claim.
Every function here errs to the side of too small an epsilon: with at least the stated
confidence the mechanism's epsilon is no smaller. It may be much larger.

How many scores are guessed on is never chosen for its result: the numbers stand in a
fixed table, and the confidence is shared out over them (Bonferroni).

What each bound assumes is in ``LowerBound``; see docs/empirical-privacy.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, expit, ndtri
from scipy.stats import binom

from privacy.f_dp_audit import one_run_mu
from privacy.gaussian_curve import LARGEST_MU, gaussian_epsilon

Scores = npt.NDArray[np.float64]

GUESS_SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
"""Shares of the canaries that the one-run bounds guess on: half of them "included",
for the highest scores, half "not", for the lowest."""
ERROR_SHARES = (0.0, 1 / 128, 1 / 32, 1 / 8)
"""Shares of one group on the wrong side of a threshold, for Clopper–Pearson."""
MAX_EPSILON = 1e4
"""Beyond this an epsilon says nothing more."""


@dataclass(frozen=True, kw_only=True)
class LowerBound:
    """What one method says of epsilon at ``delta``.

    A ``bound`` holds with at least ``confidence`` under its assumptions; an
    ``estimate`` assumes besides that scores are Gaussian, and is no evidence alone.
    ``curve`` says for which trade-off curves: ``any`` (epsilon, delta), or those of a
    Gaussian mechanism. ``num_guesses`` and ``num_correct`` are those that gave
    ``epsilon``; ``detail`` is a text for readers.
    """

    name: str
    kind: Literal["bound", "estimate"]
    curve: Literal["any", "gaussian"]
    epsilon: float
    confidence: float
    delta: float
    num_guesses: int
    num_correct: int
    detail: str


@dataclass(frozen=True)
class Guesses:
    """So many guesses, of which so many were right."""

    num_guesses: int
    num_correct: int


@dataclass(frozen=True)
class Errors:
    """Upper limits on both error rates of telling the groups apart by a threshold.

    ``rare`` is the rate by whose order the threshold was chosen, ``other`` that of the
    other group; their counts of scores on the wrong side are given too.
    """

    rare: float
    other: float
    num_rare: int
    num_other: int


def guess_numbers(num_canaries: int) -> tuple[int, ...]:
    """Return the even numbers of guesses that are tried, by m alone."""
    numbers = (2 * int(num_canaries * share / 2) for share in GUESS_SHARES)
    return tuple(sorted({number for number in numbers if number}, reverse=True))


def guess(included: Scores, excluded: Scores, num_guesses: int) -> Guesses:
    """Return how many guesses are right: highest scores in, lowest out.

    Equal scores count as if the guesser had bad luck with them.
    """
    scores = np.concatenate([excluded, included])
    is_included = np.repeat([False, True], [excluded.size, included.size])
    half = num_guesses // 2
    top = np.lexsort((is_included, -scores))[:half]
    bottom = np.lexsort((~is_included, scores))[:half]
    right = np.count_nonzero(is_included[top]) + np.count_nonzero(~is_included[bottom])
    return Guesses(2 * half, int(right))


def one_run_p_value(
    num_canaries: int, guesses: Guesses, epsilon: float, delta: float
) -> float:
    """Return how likely so many right guesses are at most, if (epsilon, delta) holds.

    With r guesses, v right, q = e^ε / (1 + e^ε), β = P[Bin(r, q) >= v] and
    α = max over i of P[v − i <= Bin(r, q) < v] / i: ``min(1, β + 2 m δ α)``.

    Guarantees: valid for any mechanism that is (epsilon, delta)-DP for adding or
    removing one canary, however the scores depend on each other.

    Source: Steinke, Nasr & Jagielski, 2023 (arXiv 2305.08846), their main theorem.
    """
    q, v = float(expit(epsilon)), guesses.num_correct
    beta = float(binom.sf(v - 1, guesses.num_guesses, q))
    if v < 1 or delta == 0:
        return min(1.0, beta)
    below = binom.pmf(np.arange(v - 1, -1, -1), guesses.num_guesses, q)
    alpha = float(np.max(np.cumsum(below) / np.arange(1, v + 1)))
    return min(1.0, beta + 2 * num_canaries * delta * alpha)


def one_run_epsilon(
    num_canaries: int, guesses: Guesses, delta: float, confidence: float
) -> float:
    """Return the largest epsilon that these guesses refute; 0 if none.

    At most ``logit((1 − confidence)^(1/r))``: 5.81 for 1,000 guesses at 95 %.
    """
    significance = 1 - confidence
    return largest_refuted(
        lambda epsilon: (
            one_run_p_value(num_canaries, guesses, epsilon, delta) <= significance
        )
    )


def largest_refuted(is_refuted: Callable[[float], bool]) -> float:
    """Return the largest refuted value, 1e-7 below at most; 0 if not even that is."""
    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while is_refuted(high):
        low, high = high, 2 * high
        if high > MAX_EPSILON:
            return low
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low


def clopper_pearson_upper(count: int, total: int, significance: float) -> float:
    """Return the upper limit of a rate of which ``count`` of ``total`` were seen.

    Source: Clopper & Pearson, 1934.
    """
    if count >= total:
        return 1.0
    return float(betaincinv(count + 1, total - count, 1 - significance))


def error_numbers(size: int) -> tuple[int, ...]:
    """Return how many scores of one group lie beyond each threshold, by size alone."""
    return tuple(sorted({int(size * share) for share in ERROR_SHARES}))


def num_thresholds(num_included: int, num_excluded: int) -> int:
    """Return how many thresholds are tried in both directions together."""
    return len(error_numbers(num_included)) + len(error_numbers(num_excluded))


def error_rates(
    included: Scores, excluded: Scores, significance: float
) -> tuple[Errors, ...]:
    """Return upper limits on error rates at fixed thresholds, in both directions.

    A threshold is the (k + 1)-th most extreme score of one group. The chance of that
    group beyond its own order statistic is at most Beta(k + 1, n − k) distributed,
    whatever the scores' law, and the other group's count is binomial given the
    threshold: both limits hold without splitting the scores.

    Guarantees: all limits hold together with probability 1 − significance, if the
    scores of one group are independent and alike.
    """
    each = significance / num_thresholds(included.size, excluded.size) / 2
    return (
        *_errors(excluded, included, each),
        *_errors(-included, -excluded, each),
    )


def _errors(rare: Scores, other: Scores, each: float) -> tuple[Errors, ...]:
    """Return the limits with thresholds among the highest scores of ``rare``."""
    ordered, found = np.sort(rare)[::-1], []
    for k in error_numbers(rare.size):
        missed = int(np.count_nonzero(other <= ordered[k]))
        found.append(
            Errors(
                rare=clopper_pearson_upper(k, rare.size, each),
                other=clopper_pearson_upper(missed, other.size, each),
                num_rare=k,
                num_other=missed,
            )
        )
    return tuple(found)


def error_epsilon(errors: Errors, delta: float) -> float:
    """Return ``ln((1 − other − δ) / rare)``, or 0: the least epsilon with such errors.

    Source: Kairouz, Oh & Viswanath, 2015 (DP as a hypothesis test).
    """
    left = 1 - errors.other - delta
    return max(0.0, math.log(left / errors.rare)) if left > 0 else 0.0


def error_mu(errors: Errors) -> float:
    """Return ``Φ⁻¹(1 − rare) − Φ⁻¹(other)``, or 0: the least mu with such errors.

    Source: Dong, Roth & Su, 2022, equation 6; Nasr et al., 2023.
    """
    return max(0.0, float(-ndtri(errors.rare) - ndtri(errors.other)))


def lower_bounds(
    included: Scores, excluded: Scores, delta: float, confidence: float = 0.95
) -> tuple[LowerBound, ...]:
    """Return all bounds and the estimate, in the order of what they assume.

    Args:
        included, excluded: scores, at least two in each group; higher means included.
        delta: in (0, 1).
        confidence: of each bound by itself, in (0.5, 1).

    Raises:
        ValueError: too few scores, or a number out of its range.
    """
    if min(included.size, excluded.size) < 2:
        raise ValueError("scores: at least two in each group are needed")
    if not 0 < delta < 1 or not 0.5 < confidence < 1:
        raise ValueError(f"delta {delta} or confidence {confidence} is out of range")
    return (
        _one_run(included, excluded, delta, confidence),
        _f_dp(included, excluded, delta, confidence),
        *_clopper_pearson(included, excluded, delta, confidence),
        gaussian_estimate(included, excluded, delta, confidence),
    )


def _one_run(
    included: Scores, excluded: Scores, delta: float, confidence: float
) -> LowerBound:
    """Return the best one-run bound over the table of numbers of guesses."""
    m = included.size + excluded.size
    numbers = guess_numbers(m)
    each = 1 - (1 - confidence) / len(numbers)
    found = [guess(included, excluded, number) for number in numbers]
    epsilons = [one_run_epsilon(m, guesses, delta, each) for guesses in found]
    best = int(np.argmax(epsilons))
    return LowerBound(
        name="one-run",
        kind="bound",
        curve="any",
        epsilon=epsilons[best],
        confidence=confidence,
        delta=delta,
        num_guesses=found[best].num_guesses,
        num_correct=found[best].num_correct,
        detail=f"best of {len(numbers)} numbers of guesses, each at {each:.5g}",
    )


def _f_dp(
    included: Scores, excluded: Scores, delta: float, confidence: float
) -> LowerBound:
    """Return the best f-DP one-run bound over the table of numbers of guesses."""
    m = included.size + excluded.size
    numbers = guess_numbers(m)
    each = 1 - (1 - confidence) / len(numbers)
    found = [guess(included, excluded, number) for number in numbers]
    mus = [one_run_mu(m, g.num_guesses, g.num_correct, 1 - each) for g in found]
    best = int(np.argmax(mus))
    return LowerBound(
        name="one-run, f-DP",
        kind="bound",
        curve="gaussian",
        epsilon=gaussian_epsilon(mus[best], delta),
        confidence=confidence,
        delta=delta,
        num_guesses=found[best].num_guesses,
        num_correct=found[best].num_correct,
        detail=f"mu at least {mus[best]:.4g}; best of {len(numbers)} numbers of "
        f"guesses, each at {each:.5g}",
    )


def _clopper_pearson(
    included: Scores, excluded: Scores, delta: float, confidence: float
) -> tuple[LowerBound, LowerBound]:
    """Return the bounds from both error rates: for any curve, and for a Gaussian."""
    limits = error_rates(included, excluded, 1 - confidence)
    m = included.size + excluded.size
    plain = max(limits, key=lambda errors: error_epsilon(errors, delta))
    curved = max(limits, key=error_mu)
    tried = f"best of {len(limits)} thresholds, all limits together at {confidence:g}"
    bound = LowerBound(
        name="Clopper–Pearson",
        kind="bound",
        curve="any",
        epsilon=error_epsilon(plain, delta),
        confidence=confidence,
        delta=delta,
        num_guesses=m,
        num_correct=m - plain.num_rare - plain.num_other,
        detail=f"error rates at most {plain.rare:.4g} and {plain.other:.4g}; {tried}",
    )
    mu = error_mu(curved)
    return bound, replace(
        bound,
        name="Clopper–Pearson, Gaussian curve",
        curve="gaussian",
        epsilon=gaussian_epsilon(mu, delta),
        num_correct=m - curved.num_rare - curved.num_other,
        detail=f"mu at least {mu:.4g}; {tried}",
    )


def gaussian_estimate(
    included: Scores, excluded: Scores, delta: float, confidence: float = 0.95
) -> LowerBound:
    """Return the lower limit of epsilon if both groups' scores are Gaussian.

    mu is the gap of the means over the standard deviation of the excluded scores; its
    standard error is that of a ratio, to first order. An estimate: where scores are
    not Gaussian, it may be too large as well as too small.
    """
    spread = float(excluded.std(ddof=1))
    gap = float(included.mean() - excluded.mean())
    mu = least = math.inf if gap > 0 else 0.0
    if 0 < gap < LARGEST_MU * spread:
        mu, ratio = gap / spread, float(included.std(ddof=1)) / spread
        variance = ratio * ratio / included.size + 1 / excluded.size
        variance += mu * mu / (2 * (excluded.size - 1))
        least = max(0.0, mu - float(ndtri(confidence)) * math.sqrt(variance))
    m, half_way = included.size + excluded.size, float(excluded.mean()) + gap / 2
    right = np.count_nonzero(included > half_way)
    right += np.count_nonzero(excluded <= half_way)
    return LowerBound(
        name="Gaussian estimate",
        kind="estimate",
        curve="gaussian",
        epsilon=gaussian_epsilon(least, delta),
        confidence=confidence,
        delta=delta,
        num_guesses=m,
        num_correct=int(right),
        detail=f"lower limit of a fit with mu {mu:.4g}, epsilon "
        f"{gaussian_epsilon(mu, delta):.4g}",
    )
