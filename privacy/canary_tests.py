"""Do the scores of canaries contradict a silo's claim? Tests with known error rates.

Under the claim a gradient canary's score is ``B + N(0, s²)`` and something independent
of both (other gradients at its coordinate), with B a sum of one coin of chance q for
each step if it was included, else 0, and s² = Σ T σ² over the events, in units of the
clipping norm. So three things can be tested that no bound sees at a large epsilon:

- **noise**: at most the share P(|N(0, 1)| <= w) of scores lies within w s of its mean.
  Whatever independent is added, a sum is no more concentrated than its noise (Anderson,
  1955): an exact binomial test of too little noise, and no test of too much. The width
  w = 1 sees noise that is too small everywhere, narrow ones noise that lacks somewhere;
- **gap**: the means of the groups differ by Σ q T; tested on both sides, with the
  larger of the claimed and the observed variance, by Student's t;
- **outliers**: if to every score of a canary that was not included a sum of such coins
  is added, both groups have one law. So among the highest and the lowest are no more
  included ones than lots would give: an exact permutation test, whatever else is there.

The others refute the claimed epsilon, or the claimed curve, as in
``privacy.lower_bounds``; they know nothing of coordinates or noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import bdtrc, erf, stdtr
from scipy.stats import hypergeom

from privacy.events import SampledGaussian
from privacy.f_dp_audit import refutes_mu
from privacy.lower_bounds import (
    Guesses,
    Scores,
    error_epsilon,
    error_mu,
    error_rates,
    guess,
    guess_numbers,
    one_run_p_value,
)

TESTS = ("noise", "gap", "outliers", "one-run", "one-run, f-DP", "Clopper–Pearson")
"""Every test; each has an equal part of the chance of a false alarm."""

WIDTHS = (1.0, 1 / 4, 1 / 16)
"""In standard deviations of the noise: what counts as near the mean."""
TAIL_SHARES = (1 / 32, 1 / 8)
"""Shares of all canaries that are looked at as the highest, and as the lowest."""

NUM_SIMULATIONS = 50
_SEED = 20_231_116


@dataclass(frozen=True, kw_only=True)
class CanaryClaim:
    """What a silo claims, as far as its canaries can contradict it.

    ``mu`` is that of a Gaussian curve on or above the privacy profile down to a delta
    of ``last_delta`` (``accounting.gaussian_mu``). ``events`` are those that gradient
    canaries took part in; none for input canaries, whose scores have no known law.

    Raises:
        ValueError: a number out of its range.
    """

    epsilon: float
    mu: float
    delta: float
    events: tuple[SampledGaussian, ...] = ()
    last_delta: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (self.epsilon >= 0 and self.mu >= 0 and 0 < self.delta < 1):
            raise ValueError(f"claim: out of range: {self}")

    @property
    def expected_gap(self) -> float:
        """Σ q T: how much higher included canaries score on average."""
        return sum(event.sample_rate * event.steps for event in self.events)

    @property
    def noise_stddev(self) -> float:
        """The square root of Σ T σ²: what the noise alone does to every score."""
        return math.sqrt(sum(e.steps * e.noise_multiplier**2 for e in self.events))

    @property
    def sampling_variance(self) -> float:
        """Σ T q (1 − q): what sampling adds to the variance of included ones."""
        return sum(e.steps * e.sample_rate * (1 - e.sample_rate) for e in self.events)


@dataclass(frozen=True)
class Refutation:
    """A test that the claim did not pass, with the numbers as a text."""

    test: str
    statement: str


def refutations(
    included: Scores, excluded: Scores, claim: CanaryClaim, false_alarm: float
) -> tuple[Refutation, ...]:
    """Return the tests that contradict a claim.

    Guarantees: where the claim holds, anything is returned at most at the rate
    ``false_alarm``: exactly for noise, outliers and the one-run tests; for the gap if
    scores are Gaussian, or about so; for Clopper–Pearson if canaries of one group score
    independently and alike.

    Args:
        included, excluded: scores, at least two in each group.
        claim: with events for gradient canaries, without for input canaries.
        false_alarm: in (0, 0.5), for all tests together.
    """
    each = false_alarm / len(TESTS)
    found: list[Refutation] = []
    if claim.events:
        found += _noise(included, excluded, claim, each)
        found += _gap(included, excluded, claim, each)
        found += _outliers(included, excluded, claim, each)
    m = included.size + excluded.size
    numbers = guess_numbers(m)
    guessed = [guess(included, excluded, number) for number in numbers]
    found += _one_run(m, guessed, claim, each)
    found += _f_dp(m, guessed, claim, each)
    found += _clopper_pearson(included, excluded, claim, each)
    return tuple(found)


def noise_p_value(included: Scores, excluded: Scores, claim: CanaryClaim) -> float:
    """Return how likely so many scores near their mean are at most, under the claim."""
    centred = np.abs(np.concatenate([excluded, included - claim.expected_gap]))
    p_values = [1.0]
    for width in WIDTHS:
        near = int(np.count_nonzero(centred <= width * claim.noise_stddev))
        if near:  # bdtrc(k, n, p) is the chance of more than k.
            share = float(erf(width / math.sqrt(2)))
            p_values.append(float(bdtrc(near - 1, centred.size, share)))
    return min(1.0, len(WIDTHS) * min(p_values))


def outlier_p_value(included: Scores, excluded: Scores, claim: CanaryClaim) -> float:
    """Return how likely so many included among the extremes are at most.

    The lots come from a fixed seed: they are independent of the scores.
    """
    random = np.random.default_rng(_SEED)
    others = excluded.copy()
    for event in claim.events:
        others += random.binomial(event.steps, event.sample_rate, others.size)
    scores = np.concatenate([others, included])
    is_included = np.repeat([False, True], [others.size, included.size])
    p_values = [1.0]
    for share in TAIL_SHARES:
        number = int(share * scores.size)
        # Equal scores count as if they were not included.
        for end in (
            np.lexsort((is_included, -scores)),
            np.lexsort((is_included, scores)),
        ):
            seen = int(np.count_nonzero(is_included[end[:number]]))
            chance = hypergeom.sf(seen - 1, scores.size, included.size, number)
            p_values.append(float(chance))
    return min(1.0, 2 * len(TAIL_SHARES) * min(p_values))


def gap_deviation(included: Scores, excluded: Scores, claim: CanaryClaim) -> float:
    """Return by how many standard errors the gap of the means is off, with its sign."""
    noise = claim.noise_stddev**2
    of_included = max(noise + claim.sampling_variance, float(included.var(ddof=1)))
    of_excluded = max(noise, float(excluded.var(ddof=1)))
    error = math.sqrt(of_included / included.size + of_excluded / excluded.size)
    gap = float(included.mean() - excluded.mean())
    return (gap - claim.expected_gap) / error


def gap_p_value(included: Scores, excluded: Scores, claim: CanaryClaim) -> float:
    """Return how likely so large a deviation of the gap is, on either side.

    By Student's t with the freedom of the smaller group: where real gradients and not
    the claimed noise make the variance, it is known from the scores alone.
    """
    freedom = min(included.size, excluded.size) - 1
    return 2 * float(stdtr(freedom, -abs(gap_deviation(included, excluded, claim))))


def _noise(
    included: Scores, excluded: Scores, claim: CanaryClaim, each: float
) -> list[Refutation]:
    """Return what contradicts the claimed noise."""
    p_value = noise_p_value(included, excluded, claim)
    if p_value > each:
        return []
    seen = float(excluded.std(ddof=1))
    return [
        Refutation(
            "noise",
            f"the scores are too close to their means for the claimed noise: standard "
            f"deviation {seen:.4g} where noise alone makes {claim.noise_stddev:.4g} "
            f"(p {p_value:.1g})",
        )
    ]


def _gap(
    included: Scores, excluded: Scores, claim: CanaryClaim, each: float
) -> list[Refutation]:
    """Return what contradicts the claimed sampling, clip and number of steps."""
    if gap_p_value(included, excluded, claim) > each:
        return []
    deviation = gap_deviation(included, excluded, claim)
    gap = float(included.mean() - excluded.mean())
    side = "more" if deviation > 0 else "less"
    return [
        Refutation(
            "gap",
            f"included canaries left {side} in what was released than claimed: a gap "
            f"of {gap:.4g} clipping norms where sample rate times steps is "
            f"{claim.expected_gap:.4g}, {abs(deviation):.3g} standard errors off",
        )
    ]


def _outliers(
    included: Scores, excluded: Scores, claim: CanaryClaim, each: float
) -> list[Refutation]:
    """Return what contradicts that a contribution is clipped, of a few canaries."""
    p_value = outlier_p_value(included, excluded, claim)
    if p_value > each:
        return []
    return [
        Refutation(
            "outliers",
            "among the most extreme scores are more included canaries than sampling "
            f"explains: some leave more than the clipping norm (p {p_value:.1g})",
        )
    ]


def _one_run(
    num_canaries: int, guessed: Sequence[Guesses], claim: CanaryClaim, each: float
) -> list[Refutation]:
    """Return what contradicts (epsilon, delta) in one run."""
    for guesses in guessed:
        p_value = _p_value(num_canaries, guesses, claim.epsilon, claim.delta)
        if p_value <= each / len(guessed):
            return [
                Refutation(
                    "one-run",
                    f"{guesses.num_correct:,} of {guesses.num_guesses:,} guesses are "
                    f"right, too many for the claimed epsilon (p {p_value:.1g})",
                )
            ]
    return []


def _f_dp(
    num_canaries: int, guessed: Sequence[Guesses], claim: CanaryClaim, each: float
) -> list[Refutation]:
    """Return what contradicts the claimed curve in one run."""
    for guesses in guessed:
        numbers = guesses.num_guesses, guesses.num_correct
        level = each / len(guessed)
        if _refutes(num_canaries, *numbers, claim.mu, level, claim.last_delta):
            return [
                Refutation(
                    "one-run, f-DP",
                    f"{guesses.num_correct:,} of {guesses.num_guesses:,} guesses are "
                    "right, too many for the claimed trade-off curve, which lies above "
                    f"that of mu {claim.mu:.4g}",
                )
            ]
    return []


def _clopper_pearson(
    included: Scores, excluded: Scores, claim: CanaryClaim, each: float
) -> list[Refutation]:
    """Return what contradicts (epsilon, delta) or the curve by both error rates."""
    for errors in error_rates(included, excluded, each):
        if (
            error_epsilon(errors, claim.delta) > claim.epsilon
            or error_mu(errors) > claim.mu
        ):
            return [
                Refutation(
                    "Clopper–Pearson",
                    f"error rates of at most {errors.rare:.3g} and {errors.other:.3g} "
                    "are smaller than the claim permits",
                )
            ]
    return []


_p_value = lru_cache(maxsize=4096)(one_run_p_value)
_refutes = lru_cache(maxsize=4096)(refutes_mu)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A broken mechanism: what it does to scores, beside what is claimed.

    Noise is multiplied by ``noise``; each drawn canary adds ``size`` clipping norms;
    ``unsampled`` ones are in every step; ``steps`` times as many steps are taken as
    are counted. Of one in ten canaries the contributions are ``loud`` times as large
    as the others', or the noise is ``quiet`` times as large.
    """

    name: str
    noise: float = 1.0
    size: float = 1.0
    unsampled: bool = False
    steps: int = 1
    loud: float = 1.0
    quiet: float = 1.0


SOUND = Fault(name="as claimed")
FAULTS = (
    Fault(name="noise × 0.75", noise=0.75),
    Fault(name="noise × 0.5", noise=0.5),
    Fault(name="noise × 0.25", noise=0.25),
    Fault(name="no noise", noise=0.0),
    Fault(name="contributions clipped to twice the norm", size=2.0),
    Fault(name="in every step, not sampled", unsampled=True),
    Fault(name="half of the steps not counted", steps=2),
    Fault(name="one canary in ten without noise", quiet=0.0),
    Fault(name="one canary in ten with ten times its contribution", loud=10.0),
)
"""Broken mechanisms of which the power is told."""


@dataclass(frozen=True, kw_only=True)
class Power:
    """How often a fault is caught: by any test, and by each of ``TESTS``."""

    fault: str
    caught: float
    by_test: tuple[tuple[str, float], ...]


@lru_cache(maxsize=64)
def power(
    claim: CanaryClaim, num_canaries: int, false_alarm: float
) -> tuple[Power, ...]:
    """Return how often each of ``FAULTS`` is caught, in simulated runs.

    ``NUM_SIMULATIONS`` runs with fixed seeds, half of the canaries included, scores of
    the sampled Gaussian mechanism itself: nothing but the canary at its coordinate.
    Real gradients there cost power. Deterministic.

    Args:
        claim: with events; without, there is nothing to simulate.
        num_canaries: at least 4.
        false_alarm: as for :func:`refutations`.
    """
    if not claim.events:
        return ()
    return tuple(_power(fault, claim, num_canaries, false_alarm) for fault in FAULTS)


def _power(
    fault: Fault, claim: CanaryClaim, num_canaries: int, false_alarm: float
) -> Power:
    """Return how often one fault is caught."""
    random = np.random.default_rng(_SEED)
    caught, by_test = 0, dict.fromkeys(TESTS, 0)
    for _ in range(NUM_SIMULATIONS):
        groups = simulated_scores(claim, num_canaries, fault, random)
        tests = {one.test for one in refutations(*groups, claim, false_alarm)}
        caught += bool(tests)
        for test in tests:
            by_test[test] += 1
    return Power(
        fault=fault.name,
        caught=caught / NUM_SIMULATIONS,
        by_test=tuple((name, n / NUM_SIMULATIONS) for name, n in by_test.items()),
    )


def simulated_scores(
    claim: CanaryClaim, num_canaries: int, fault: Fault, random: np.random.Generator
) -> tuple[Scores, Scores]:
    """Return scores of included and excluded canaries of a mechanism with a fault."""
    half = num_canaries // 2
    noise = fault.noise * math.sqrt(fault.steps) * claim.noise_stddev
    included = random.normal(0.0, noise, num_canaries - half)
    excluded = random.normal(0.0, noise, half)
    included[: included.size // 10] *= fault.quiet
    excluded[: half // 10] *= fault.quiet
    sizes = np.full(included.size, fault.size)
    sizes[: included.size // 10] *= fault.loud
    for event in claim.events:
        rate = 1.0 if fault.unsampled else event.sample_rate
        drawn = random.binomial(fault.steps * event.steps, rate, included.size)
        included += sizes * drawn
    return included, excluded
