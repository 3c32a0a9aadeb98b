"""The exact curve of one Gaussian mechanism, mu-GDP. A description, never a price."""

import math

from scipy.special import log_ndtr

LARGEST_MU = 1e6
"""Of larger ones the epsilon, above 10^11, is called infinite."""


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return delta(epsilon) of a Gaussian mechanism with sensitivity / noise = mu.

    ``Φ(mu/2 − ε/mu) − exp(ε) Φ(−mu/2 − ε/mu)``; 0 at mu = 0. Exact.

    Source: Balle & Wang, 2018, theorem 8.
    """
    if mu <= 0:
        return 0.0
    first = log_ndtr(mu / 2 - epsilon / mu)
    second = epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return float(-math.exp(first) * math.expm1(min(0.0, second - first)))


def smallest_mu(epsilon: float, delta: float) -> float:
    """Return a mu whose curve has at least this delta there, 1e-6 above the least."""
    low, high = 0.0, 1.0
    while gaussian_delta(high, epsilon) < delta:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if gaussian_delta(middle, epsilon) < delta:
            low = middle
        else:
            high = middle
    return high


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon whose delta on mu-GDP's curve is ``delta``, to 1e-9 relative.

    0 where the curve has no more than that at epsilon 0; infinity above ``LARGEST_MU``.

    Args:
        mu: at least 0.
        delta: in (0, 1).

    Source: Dong, Roth & Su, 2022, corollary 2.13.
    """
    if mu > LARGEST_MU:
        return math.inf
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if gaussian_delta(mu, middle) > delta:
            low = middle
        else:
            high = middle
    return low
