"""From a target to a noise multiplier, on the private side of it."""

import itertools
import math
from collections.abc import Callable, Sequence
from decimal import ROUND_CEILING, Context, Decimal

from privacy.accounting import (
    LARGEST_MULTIPLIER,
    MARGIN,
    SMALLEST_MULTIPLIER,
    TOLERANCE,
    check_delta,
    check_target,
    epsilon,
    smallest_delta,
)
from privacy.errors import Uncalibrated
from privacy.events import SampledGaussian
from privacy.gaussian_curve import smallest_mu

DIGITS = 5
"""Significant digits of a calibrated noise multiplier."""
_CONTEXT = Context(prec=DIGITS, rounding=ROUND_CEILING)


def calibrate(
    target: float,
    delta: float,
    *,
    sample_rate: float,
    clipping_norm: float,
    steps: int,
    before: Sequence[SampledGaussian] = (),
) -> float:
    """Return the smallest noise multiplier whose epsilon stays within the target.

    Guarantees: the price of ``before`` and so many steps with exactly the returned
    number is at most ``target`` (1 − ``MARGIN``). It is rounded up to ``DIGITS``
    significant digits, so that a plan shows a short number, and no more than 0.1 % of
    epsilon or one unit of the last digit too large. If any noise would do, because
    delta exceeds the chance of being drawn at all, it is ``SMALLEST_MULTIPLIER``.

    Args:
        target: epsilon, positive.
        delta: in (0, 1).
        sample_rate: of each step, in (0, 1].
        clipping_norm: positive; it has no influence.
        steps: at least 1.
        before: events that share the account.

    Raises:
        Uncalibrated: no multiplier up to ``LARGEST_MULTIPLIER`` reaches the target.
        ValueError: an argument out of its range.
    """
    check_target(target)
    check_delta(delta)
    event = SampledGaussian(
        sample_rate=sample_rate,
        noise_multiplier=1.0,
        clipping_norm=clipping_norm,
        steps=steps,
    )
    least = smallest_delta([*before, event])
    if delta <= least:
        raise Uncalibrated(
            f"delta {delta:g} is too small to be computed for so many steps; "
            f"it must be above {least:.2g}"
        )
    limit = target * (1 - MARGIN)
    already = epsilon(before, delta)
    if already > limit:
        raise Uncalibrated(
            f"what was released before costs epsilon {already:.4g} at delta {delta:g}: "
            f"no noise keeps the whole within {target:g}"
        )

    def cost(multiplier: float) -> float:
        now = SampledGaussian(
            sample_rate=sample_rate,
            noise_multiplier=multiplier,
            clipping_norm=event.clipping_norm,
            steps=steps,
        )
        return epsilon([*before, now], delta)

    low, high = _bracket(cost, limit, _guess(limit, delta, sample_rate, steps))
    if low is None:
        return high
    return _narrow(cost, limit, low, high)


def _bracket(
    cost: Callable[[float], float], limit: float, guess: float
) -> tuple[float | None, float]:
    """Return a multiplier that costs too much, None if none does, and one that fits."""
    low, high = None, _rounded_up(guess)
    while cost(high) > limit:
        if high >= LARGEST_MULTIPLIER:
            raise Uncalibrated(
                f"no noise multiplier up to {LARGEST_MULTIPLIER:g} brings epsilon "
                f"down to {limit:.4g}; fewer steps or a smaller sample rate might"
            )
        low, high = high, min(_rounded_up(high * 1.5), LARGEST_MULTIPLIER)
    while low is None:
        below = max(_rounded_up(high / 1.5), SMALLEST_MULTIPLIER)
        if cost(below) > limit:
            low = below
        elif below == SMALLEST_MULTIPLIER:
            return None, below
        else:
            high = below
    return low, high


def _narrow(
    cost: Callable[[float], float], limit: float, low: float, high: float
) -> float:
    """Return the smallest multiplier that fits, by false position and bisection."""
    cost_low, cost_high = cost(low), cost(high)
    for turn in itertools.count():
        below = float(_CONTEXT.next_minus(Decimal(repr(high))))
        if cost_high >= limit * (1 - TOLERANCE / 4) or below <= low:
            return high
        share = 0.5
        if turn % 3 < 2 and math.isfinite(cost_low) and cost_high > 0:
            # Aim a little to the private side of the chord in the logarithms.
            share = math.log(cost_low / limit) / math.log(cost_low / cost_high)
            share = min(0.99, share + 1e-4)
        middle = min(_rounded_up(low * (high / low) ** share), below)
        price_there = cost(middle)
        if price_there > limit:
            low, cost_low = middle, price_there
        else:
            high, cost_high = middle, price_there
    raise AssertionError("unreachable")


def _rounded_up(value: float) -> float:
    """Return the smallest number of ``DIGITS`` significant digits not below."""
    return float(_CONTEXT.create_decimal_from_float(value))


def _guess(target: float, delta: float, sample_rate: float, steps: int) -> float:
    """Return where to begin: the central-limit formula, solved for the multiplier.

    ``mu = q √(T (exp(1/σ²) − 1))``. Bu, Dong, Long & Su, 2020. Never a price.
    """
    ratio = smallest_mu(target, delta) / math.sqrt(steps)
    if sample_rate < 1:
        ratio = math.sqrt(math.log1p((ratio / sample_rate) ** 2))
    return min(max(1 / ratio, 10 * SMALLEST_MULTIPLIER), LARGEST_MULTIPLIER / 10)
