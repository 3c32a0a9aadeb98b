"""The price of what was released: events in, epsilon out. PLD, and nothing cheaper.

The privacy loss distribution (PLD) of one step is put on a grid of losses, rounded so
that every delta read from it is too large rather than too small, and composed with
itself by Fourier transforms. Four things make the number one that may be quoted:

- **grid**: it begins at a 32nd of the spread of one step's loss and is halved until
  that changes epsilon by less than ``TOLERANCE``. A coarser grid is still an upper
  bound, but not a useful one: 4394 steps at 0.2 would seem to cost 0.220 on 1e-3;
- **rounding of float64**, which a Fourier transform can turn into a delta that is too
  small: ``RESOLUTION`` for each step is taken off the delta that is asked for. A delta
  that small has no finite price;
- **order**: add-or-remove neighbours, both directions; equal steps are counted together
  wherever they stand, so events in pieces cost what they cost as one;
- **limits**: time and memory are bounded; what would not fit is priced on the finest
  grid that does, or at infinity.

Sources: Koskela, Jälkö & Honkela, 2020; Doroshenko et al., 2022 (connect the dots);
both as implemented in dp_accounting.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy.optimize import brentq

from privacy.events import SampledGaussian
from privacy.gaussian_curve import gaussian_delta, smallest_mu

TOLERANCE = 1e-3
"""Halving the grid changes epsilon by less than this, relatively."""
RESOLUTION = 2.0**-50
"""What float64 may hide of delta, for each step. Against the exact Gaussian one
transform hid up to 2^-56 of it for each step (benchmarks/accounting.py)."""
CLAIM_TOLERANCE = 0.01
"""Two accountants may differ by this much relatively, beside the stated error."""
GRIDS_PER_SPREAD = 32
"""Rounding to a grid d adds up to d² / 4 to a step's variance s²: 0.02 % at s / 32."""
COARSEST_GRID, FINEST_GRID = 2.0**5, 2.0**-30
FIRST_CELLS, MAX_CELLS = 1 << 16, 1 << 19
"""Cells of one step's distribution, at first and at most; each costs some 5 µs."""
MAX_COMPOSED_CELLS = 1 << 22
"""Cells of a composed distribution; each costs about a hundred bytes."""
STAGE_STEPS = 4096
"""More steps are composed in stages: the library's bound on the tails grows with n."""
TRUNCATION = 2.0**-70
"""Mass of the tails that one transform may move to an infinite loss."""
SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER = 1e-4, 1e6
"""Below, a step is priced at infinity; above, as if it were this, which costs more."""
MARGIN = 2.0**-12
"""A calibrated multiplier leaves so much of the target, relatively: the grids of a run
and of its first half may differ, and with them the price, rarely by more than this."""
MU_POINTS = 256
"""Epsilons at which a Gaussian curve is held against the profile."""

Groups = tuple[tuple[float, float, int], ...]
"""(sample rate, noise multiplier, steps), sorted; no two share the first two."""


@dataclass(frozen=True)
class Budget:
    """What may be spent: ``epsilon`` at ``delta``.

    Raises:
        ValueError: epsilon is not positive and finite, or delta not in (0, 1).
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_target(self.epsilon)
        check_delta(self.delta)


def epsilon(events: Sequence[SampledGaussian], delta: float) -> float:
    """Return an epsilon such that all events together are (epsilon, delta)-DP.

    Guarantees: an upper bound, for data sets that differ by one unit added or removed
    and for steps that may depend on what was released before. It depends on the events
    as a multiset alone. Halving the grid again would change it by less than 0.1 %,
    unless ``MAX_CELLS`` or ``FINEST_GRID`` ended the refinement: then it is the bound
    of the finest grid. Of two lists where one holds more, the larger may seem cheaper
    by less than ``TOLERANCE`` where their grids differ.

    Args:
        events: what was released; empty: nothing, 0.
        delta: in (0, 1).

    Returns:
        epsilon >= 0; infinity if delta is at most ``RESOLUTION`` times the steps or
        the losses do not fit any grid.

    Raises:
        ValueError: delta out of its range.
    """
    return price(events, delta)[0]


def price(events: Sequence[SampledGaussian], delta: float) -> tuple[float, float]:
    """Return :func:`epsilon` and the grid it was found on, 0 where none was needed."""
    check_delta(delta)
    groups = _groups(events)
    if _total_variation(groups) <= delta:
        return 0.0, 0.0
    return _refined(groups, delta, _first_grid(groups))


def epsilon_on_grid(
    events: Sequence[SampledGaussian], delta: float, grid: float
) -> float:
    """Return the upper bound that one fixed grid of losses gives; for comparisons."""
    check_delta(delta)
    return _epsilon_on_grid(_groups(events), delta, grid)


def smallest_delta(events: Sequence[SampledGaussian]) -> float:
    """Return the delta at and below which these events have no finite price."""
    return _resolution(_groups(events))


def delta_for(events: Sequence[SampledGaussian], epsilon: float) -> float:
    """Return a delta, an upper bound, such that all events are (epsilon, delta)-DP.

    ``RESOLUTION`` a step is added; halving the grid changes it by less than 1 %.

    Raises:
        ValueError: epsilon is negative or not a number.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon: must not be negative, is {epsilon}")
    groups = _groups(events)
    if not groups:
        return 0.0
    most = min(1.0, _total_variation(groups))
    grid = _first_grid(groups)
    if not math.isfinite(grid):
        return most
    delta = _delta_on_grid(groups, epsilon, grid)
    while _fits(groups, grid / 2):
        grid, before = grid / 2, delta
        delta = min(before, _delta_on_grid(groups, epsilon, grid))
        if before - delta <= 10 * TOLERANCE * delta:
            break
    return min(most, delta)


def privacy_profile(
    events: Sequence[SampledGaussian], epsilons: Sequence[float]
) -> tuple[float, ...]:
    """Return :func:`delta_for` at each epsilon: all that the events guarantee."""
    return tuple(delta_for(events, value) for value in epsilons)


def gaussian_mu(
    events: Sequence[SampledGaussian], *, last_delta: float = 1e-6
) -> float:
    """Return the mu of the Gaussian curve that lies on or above the privacy profile.

    The smallest mu, to 1e-6 relative, such that mu-GDP's delta is at least that of the
    computed profile at ``MU_POINTS`` epsilons, evenly spaced from 0 to the epsilon
    whose delta is ``last_delta``. A description of the whole profile in one number
    and not a price: below that delta the profile may rise above every such curve, and
    for rare, large losses it does. It is not the central-limit formula.

    Raises:
        ValueError: last_delta not in (0, 1).

    Source: Dong, Roth & Su, 2022, corollary 2.13.
    """
    last, grid = price(events, last_delta)
    if grid == 0.0 or not math.isfinite(last):
        return last
    groups, mu = _groups(events), 0.0
    for value in np.linspace(0.0, last, MU_POINTS):
        delta = _delta_on_grid(groups, float(value), grid)
        if gaussian_delta(mu, float(value)) < delta:
            mu = smallest_mu(float(value), delta)
    return mu


def would_exceed(
    budget: Budget,
    spent: Sequence[SampledGaussian],
    planned: Sequence[SampledGaussian],
) -> bool:
    """Return whether spent and planned events together would pass the budget.

    Guarantees: False only if the price of all of them, an upper bound, is within the
    budget. It changes nothing. What the same events cost later, taken in pieces or in
    another order, is the same number.
    """
    return epsilon([*spent, *planned], budget.delta) > budget.epsilon


def claims_agree(pld_epsilon: float, prv_epsilon: float, prv_error: float) -> bool:
    """Return whether two accountants tell the same, within 1 % plus PRV's own error.

    PRV's answer is an upper bound that lies its own error above its estimate; the two
    estimates are compared, ``|PLD − (PRV − error)| <= 0.01 PLD + error``. Whoever asks
    must bound the error: a large one agrees with everything, an infinite or undefined
    number with nothing.

    Args:
        pld_epsilon: the enforced price.
        prv_epsilon: PRV's upper bound.
        prv_error: PRV's own error, absolute.
    """
    if not (math.isfinite(pld_epsilon + prv_epsilon + prv_error) and prv_error >= 0):
        return False
    allowed = CLAIM_TOLERANCE * pld_epsilon + prv_error
    return abs(pld_epsilon - (prv_epsilon - prv_error)) <= allowed


def _groups(events: Sequence[SampledGaussian]) -> Groups:
    """Return what the price depends on: steps by sample rate and multiplier.

    Steps without sampling become one: Gaussian mechanisms compose exactly, by
    ``1/σ² = Σ T_i/σ_i²``.
    """
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        sigma = float(min(event.noise_multiplier, LARGEST_MULTIPLIER))
        kind = float(event.sample_rate), sigma
        steps[kind] = steps.get(kind, 0) + event.steps
    plain = [
        math.sqrt(num_steps) / sigma
        for (rate, sigma), num_steps in sorted(steps.items())
        if rate == 1.0
    ]
    sampled = [(*kind, n) for kind, n in steps.items() if kind[0] < 1.0]
    one = [(1.0, 1 / math.hypot(*plain), 1)] if plain else []
    return tuple(sorted(sampled) + one)


def _resolution(groups: Groups) -> float:
    """Return what float64 may hide of delta."""
    return RESOLUTION * sum(steps for _, _, steps in groups)


def _total_variation(groups: Groups) -> float:
    """Return delta(0) at most: the chances of telling single steps apart, added."""
    chances = (n * q * math.erf(1 / (math.sqrt(8) * sigma)) for q, sigma, n in groups)
    return sum(chances) * (1 + 1e-12)


@lru_cache(maxsize=256)
def _spread(rate: float, sigma: float) -> tuple[float, float]:
    """Return standard deviation and range of one step's loss, by quadrature.

    ``L(x) = ln(1 − q + q exp((2x − 1) / 2σ²))`` with x from
    ``(1 − q) N(0, σ²) + q N(1, σ²)``, within 11 standard deviations of each centre.
    Only the grid depends on it.
    """
    z = np.linspace(-11.0, 11.0, 4401)
    weight = np.exp(-z * z / 2)
    weight /= weight.sum()
    losses = []
    for centre in (0.0, 1.0):
        exponent = (2 * (centre + sigma * z) - 1) / (2 * sigma**2)
        log_rest = math.log1p(-rate) if rate < 1 else -math.inf
        losses.append(np.logaddexp(log_rest, math.log(rate) + exponent))
    absent, present = losses
    mean = (1 - rate) * weight @ absent + rate * weight @ present
    variance = (1 - rate) * weight @ (absent - mean) ** 2
    variance += rate * weight @ (present - mean) ** 2
    return math.sqrt(variance), float(present[-1] - absent[0])


def _fits(groups: Groups, grid: float) -> bool:
    """Return whether a grid is within the limits of time, memory and float64."""
    widest = max(_spread(rate, sigma)[1] for rate, sigma, _ in groups)
    variance = sum(n * _spread(rate, sigma)[0] ** 2 for rate, sigma, n in groups)
    composed = 20 * math.sqrt(variance) + 6 * widest
    return (
        FINEST_GRID <= grid <= COARSEST_GRID
        and widest <= grid * MAX_CELLS
        and composed <= grid * MAX_COMPOSED_CELLS
    )


def _first_grid(groups: Groups) -> float:
    """Return the grid to begin with, a power of two; infinity if there is none."""
    if min(sigma for _, sigma, _ in groups) < SMALLEST_MULTIPLIER:
        return math.inf
    variance = sum(n * _spread(rate, sigma)[0] ** 2 for rate, sigma, n in groups)
    spread = math.sqrt(variance / sum(steps for _, _, steps in groups))
    grid = 2.0 ** math.floor(math.log2(spread / GRIDS_PER_SPREAD))
    grid = min(max(grid, FINEST_GRID), COARSEST_GRID)
    widest = max(_spread(rate, sigma)[1] for rate, sigma, _ in groups)
    while not _fits(groups, grid) or widest > grid * FIRST_CELLS:
        grid *= 2
        if grid > COARSEST_GRID:
            return math.inf
    return grid


@lru_cache(maxsize=1024)
def _refined(groups: Groups, delta: float, grid: float) -> tuple[float, float]:
    """Return epsilon and the grid, halved from the given one until it is fine enough.

    An infinity stays one: the mass at an infinite loss does not depend on the grid.
    """
    if not math.isfinite(grid):
        return math.inf, grid
    best = _epsilon_on_grid(groups, delta, grid)
    while math.isfinite(best) and _fits(groups, grid / 2):
        grid, before = grid / 2, best
        best = min(before, _epsilon_on_grid(groups, delta, grid, before))
        if before - best <= TOLERANCE * best:
            break
    return best, grid


def _epsilon_on_grid(
    groups: Groups, delta: float, grid: float, coarser: float = math.inf
) -> float:
    """Return the smallest epsilon whose composed delta is small enough, rounded up.

    ``coarser`` is what a coarser grid gave: the search begins just below.
    """
    delta -= _resolution(groups)
    if delta <= 0:
        return math.inf
    losses = _composed(groups, grid)
    if float(losses.get_delta_for_epsilon(math.inf)) > delta:
        return math.inf

    def excess(value: float) -> float:
        # Beyond the largest loss no mass is left, and rounding may make it negative.
        left = max(float(losses.get_delta_for_epsilon(value)), 1e-300)
        return math.log(left) - math.log(delta)

    low, high = 0.0, 1.0
    if excess(low) <= 0:
        return 0.0
    if math.isfinite(coarser):
        near = coarser * (1 - TOLERANCE)
        low, high = (near, coarser) if excess(near) > 0 else (low, near)
    while excess(high) > 0:
        low, high = high, 2 * high
    root = brentq(excess, low, high, xtol=1e-13, rtol=1e-8)
    return float(root * (1 + 1e-7) + 1e-12)


def _delta_on_grid(groups: Groups, epsilon: float, grid: float) -> float:
    """Return the composed delta at an epsilon, with what float64 may hide."""
    delta = float(_composed(groups, grid).get_delta_for_epsilon(float(epsilon)))
    return min(1.0, max(0.0, delta) + _resolution(groups))


@lru_cache(maxsize=4)
def _composed(groups: Groups, grid: float) -> pld.PrivacyLossDistribution:
    """Return the loss distribution of all groups together."""
    whole = None
    for rate, sigma, steps in groups:
        part = _repeated(_one_step(rate, sigma, grid), steps)
        whole = part if whole is None else whole.compose(part, TRUNCATION)
    return whole


def _repeated(
    losses: pld.PrivacyLossDistribution, times: int
) -> pld.PrivacyLossDistribution:
    """Return the loss distribution of so many equal mechanisms, composed in stages."""
    if times <= STAGE_STEPS:
        return losses.self_compose(times, TRUNCATION)
    blocks, rest = divmod(times, STAGE_STEPS)
    whole = _repeated(losses.self_compose(STAGE_STEPS, TRUNCATION), blocks)
    if not rest:
        return whole
    return whole.compose(losses.self_compose(rest, TRUNCATION), TRUNCATION)


@lru_cache(maxsize=32)
def _one_step(rate: float, sigma: float, grid: float) -> pld.PrivacyLossDistribution:
    """Return the loss distribution of one step, in both directions."""
    return pld.from_gaussian_mechanism(
        sigma,
        sampling_prob=rate,
        value_discretization_interval=grid,
        pessimistic_estimate=True,  # every delta too large, none too small
    )


def check_delta(delta: float) -> None:
    """Refuse what is no delta."""
    if not 0 < delta < 1:
        raise ValueError(f"delta: must be in (0, 1), is {delta}")


def check_target(epsilon: float) -> None:
    """Refuse what is no epsilon to aim at."""
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon: must be positive and finite, is {epsilon}")
