"""What canaries can certify, and which faults they catch, with ideal scores.

``python -m benchmarks.lower_bounds``: medians of every bound for known epsilons, beside
those of a table made earlier with other code; what one run certifies of Gaussian
mechanisms with very many canaries, beside a published table; the power against each
fault at a claimed epsilon of 10 and of 1. Real runs are in another benchmark.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from benchmarks.results_file import Row, row, save
from privacy.accounting import epsilon, gaussian_mu
from privacy.canary_tests import SOUND, CanaryClaim, _power, power
from privacy.events import SampledGaussian
from privacy.f_dp_audit import one_run_mu
from privacy.gaussian_curve import gaussian_epsilon, smallest_mu
from privacy.lower_bounds import Guesses, lower_bounds, one_run_epsilon

DELTA, RUNS, FALSE_ALARM = 1e-5, 101, 1e-6

TABLE = {
    # epsilon, canaries: one-run, f-DP, Clopper–Pearson, the same on a Gaussian curve
    (1, 200): (0.0, None, None, None),
    (1, 1000): (0.23, 0.17, 0.0, 0.0),
    (1, 5000): (0.33, 0.27, 0.17, 0.47),
    (4, 200): (0.77, None, None, None),
    (4, 1000): (1.38, 1.50, 0.86, 2.54),
    (4, 5000): (1.75, 2.07, 1.44, 3.41),
    (8, 200): (1.78, None, None, None),
    (8, 1000): (2.51, 3.13, 1.98, 5.98),
    (8, 5000): (3.33, 4.23, 2.72, 7.16),
    (10, 200): (2.13, None, None, None),
    (10, 1000): (3.05, 3.70, 2.53, 7.72),
    (10, 5000): (3.72, 5.21, 3.29, 8.99),
}
"""Medians found earlier by other code, one-sided and over all thresholds."""

PUBLISHED = {9.99: (4.99, 8.16), 4.37: (2.61, 3.61), 1.99: (1.33, 1.59)}
"""Epsilon: one-run and f-DP of Mahloujifar et al., 2024, with 10^5 to 10^6 canaries."""

MECHANISMS = {10: 2.38, 1: 16.92}
"""Noise multipliers at sample rate 0.0683 and 4,394 steps, by epsilon."""


def main() -> None:
    """Measure everything and write the results."""
    save("lower_bounds", [*attainable(), *published(), *powers()])


def attainable() -> list[Row]:
    """Return medians of the bounds with ideal Gaussian scores."""
    rows = []
    for (target, m), earlier in TABLE.items():
        mu, random, found = smallest_mu(target, DELTA), np.random.default_rng(1), []
        for _ in range(RUNS):
            groups = random.normal(mu, 1, m // 2), random.normal(0, 1, m - m // 2)
            found.append(lower_bounds(*groups, DELTA))
        for bound, before in zip(found[0], (*earlier, None), strict=True):
            values = [one.epsilon for each in found for one in each
                      if one.name == bound.name]  # fmt: skip
            name = f"true epsilon {target}, m {m}: {bound.name}"
            note = "" if before is None else f"~ {before:.2f}"
            rows.append(row(name, float(np.median(values)), "epsilon", note))
    return rows


def published() -> list[Row]:
    """Return what one run certifies at the best number of guesses, in expectation."""
    rows = []
    for target, (one_run, f_dp) in PUBLISHED.items():
        mu, plain, curved = smallest_mu(target, DELTA), 0.0, 0.0
        for m in (100_000, 1_000_000):
            for number in (30, 100, 300, 1000, 3000, 10_000):
                guesses = expected(m, number, mu)
                plain = max(plain, one_run_epsilon(m, guesses, DELTA, 0.95))
                least = one_run_mu(m, number, guesses.num_correct, 0.05)
                curved = max(curved, gaussian_epsilon(least, DELTA))
        name = f"theory {target}, at most 10^6 canaries"
        rows.append(row(f"{name}: one-run", plain, "epsilon", f"~ {one_run}"))
        rows.append(row(f"{name}: one-run, f-DP", curved, "epsilon", f"~ {f_dp}"))
    return rows


def expected(num_canaries: int, number: int, mu: float) -> Guesses:
    """Return how many of the most extreme guesses are right, in expectation."""
    share = number / 2 / num_canaries
    t = brentq(lambda t: ndtr(-t) / 2 + ndtr(mu - t) / 2 - share, -10, 20)
    return Guesses(number, int(number * ndtr(mu - t) / 2 / share))


def powers() -> list[Row]:
    """Return how often each fault is caught, and a sound mechanism accused."""
    rows = []
    for target, sigma in MECHANISMS.items():
        event = SampledGaussian(
            sample_rate=0.0683, noise_multiplier=sigma, clipping_norm=1.0, steps=4394
        )
        claim = CanaryClaim(
            epsilon=epsilon((event,), DELTA),
            mu=gaussian_mu((event,)),
            delta=DELTA,
            events=(event,),
        )
        name = f"claim {target}, m 1000"
        for one in (_power(SOUND, claim, 1000, FALSE_ALARM),
                    *power(claim, 1000, FALSE_ALARM)):  # fmt: skip
            rows.append(row(f"{name}, {one.fault}: caught", one.caught, "share"))
            for test, share in one.by_test:
                if share:
                    rows.append(row(f"{name}, {one.fault}: by {test}", share, "share"))
    return rows


if __name__ == "__main__":
    main()
