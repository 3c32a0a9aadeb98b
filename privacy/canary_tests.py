"""Do the scores of canaries contradict a silo's claim? Tests with known error rates.

Under the claim a gradient canary's score is ``B + N(0, s²)`` and something independent
of both (other gradients at its coordinate), with B a sum of one coin of chance q for
each step if it was included, else 0, and s² = Σ T σ² over the events, in units of the
clipping norm. So two things can be tested that no lower bound sees at a large epsilon:

- **noise**: at most the share P(|N(0, 1)| <= 1) of scores lies within s of its mean.
  Whatever independent is added, a sum is no more concentrated than its noise (Anderson,
  1955): an exact binomial test of too little noise, and no test of too much;
- **gap**: the means of the groups differ by Σ q T; tested on both sides, with the
  larger of the claimed and the observed variance, by the central limit theorem.

The others refute the claimed epsilon, or the claimed curve, as in
``privacy.lower_bounds``; they know nothing of coordinates or noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import bdtrc, erf, ndtr

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

TESTS = ("noise", "gap", "one-run", "one-run, f-DP", "Clopper–Pearson")
"""Every test; each has an equal part of the chance of a false alarm."""

CENTRAL_SHARE = float(erf(1 / math.sqrt(2)))
"""P(|N(0, 1)| <= 1)."""

NUM_SIMULATIONS = 100
_SEED = 20_231_116


@dataclass(frozen=True, kw_only=True)
class CanaryClaim:
    """What a silo claims, as far as its canaries can contradict it.

    ``mu`` is that of a Gaussian curve on or above the whole privacy profile
    (``accounting.gaussian_mu``). ``events`` are those that gradient canaries took part
    in; none for input canaries, whose scores have no known law.

    Raises:
        ValueError: a number out of its range.
    """

    epsilon: float
    mu: float
    delta: float
    events: tuple[SampledGaussian, ...] = ()

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
    ``false_alarm``: exactly for noise and the one-run tests, to the accuracy of the
    central limit theorem for the gap, and for Clopper–Pearson if canaries of one group
    score independently and alike.

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
    m = included.size + excluded.size
    numbers = guess_numbers(m)
    guessed = [guess(included, excluded, number) for number in numbers]
    found += _one_run(m, guessed, claim, each)
    found += _f_dp(m, guessed, claim, each)
    found += _clopper_pearson(included, excluded, claim, each)
    return tuple(found)


def noise_p_value(included: Scores, excluded: Scores, claim: CanaryClaim) -> float:
    """Return how likely so many scores near their mean are at most, under the claim."""
    stddev = claim.noise_stddev
    near = np.count_nonzero(np.abs(excluded) <= stddev)
    near += np.count_nonzero(np.abs(included - claim.expected_gap) <= stddev)
    total = included.size + excluded.size
    # bdtrc(k, n, p) is the chance of more than k.
    return float(bdtrc(near - 1, total, CENTRAL_SHARE)) if near else 1.0


def gap_deviation(included: Scores, excluded: Scores, claim: CanaryClaim) -> float:
    """Return by how many standard errors the gap of the means is off, with its sign."""
    noise = claim.noise_stddev**2
    of_included = max(noise + claim.sampling_variance, float(included.var(ddof=1)))
    of_excluded = max(noise, float(excluded.var(ddof=1)))
    error = math.sqrt(of_included / included.size + of_excluded / excluded.size)
    gap = float(included.mean() - excluded.mean())
    return (gap - claim.expected_gap) / error


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
    deviation = gap_deviation(included, excluded, claim)
    if 2 * float(ndtr(-abs(deviation))) > each:
        return []
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
        if _refutes(num_canaries, *numbers, claim.mu, each / len(guessed)):
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
    are counted.
    """

    name: str
    noise: float = 1.0
    size: float = 1.0
    unsampled: bool = False
    steps: int = 1


SOUND = Fault(name="as claimed")
FAULTS = (
    Fault(name="noise × 0.75", noise=0.75),
    Fault(name="noise × 0.5", noise=0.5),
    Fault(name="noise × 0.25", noise=0.25),
    Fault(name="no noise", noise=0.0),
    Fault(name="contributions clipped to twice the norm", size=2.0),
    Fault(name="in every step, not sampled", unsampled=True),
    Fault(name="half of the steps not counted", steps=2),
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
    for event in claim.events:
        rate = 1.0 if fault.unsampled else event.sample_rate
        drawn = random.binomial(fault.steps * event.steps, rate, included.size)
        included += fault.size * drawn
    return included, excluded
