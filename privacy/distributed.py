"""What noise inside the secure sum is worth: sensitivity, shares, epsilon.

Every silo adds discrete Gaussian noise (``privacy.noise``) to its integers; whoever
sees only sums, and the noise of ``max_colluding`` silos, is left with the noise of the
others. From the grid follows how far one unit can move the sum
(:func:`grid_sensitivity`), from that and the noise follows epsilon
(:func:`distributed_epsilon`), or the noise from epsilon (:func:`calibrate_share`). The
proofs and the assumptions are in docs/noise-inside-the-sum.md; its sections are cited
as (docs, section).

Noise and sensitivity are in grid steps, and variances are exact fractions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from privacy.errors import Uncalibrated
from privacy.grids import Grid
from privacy.noise import TAIL_BITS, exact_variance
from privacy.quantization import NARROW_VALUE_BITS

FAILURE_BITS = 100
"""Rounding lengthens a difference beyond its bound with probability 2^-100 at most."""
MIN_HONEST = 3
"""With fewer honest silos a sum hides little of any of them."""

SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER = 1e-3, 1e6
"""Below, a round is priced at infinity; above, as if it were this, which costs more."""

_ROUND_UP = 1 + 1e-9
_LOST = 1e-12
"""More than float64 loses in a price: a factor, and an absolute error."""


def rounded_norm(norm: float, length: int) -> float:
    """Return a bound on the L2 norm of a vector after stochastic rounding, grid steps.

    With a of norm c and length d, independently rounded up or down to integers without
    bias, the norm exceeds the root of::

        min(c² + d/4 + √(2 ln(1/β)) (c + √d/2),  (c + √d)²)

    with probability at most β = 2^-100.

    Source: Kairouz, Liu & Steinke (2021), on conditional rounding; proven in (docs, 3).
    """
    root = math.sqrt(length)
    deviation = math.sqrt(2 * FAILURE_BITS * math.log(2)) * (norm + root / 2)
    square = min(norm**2 + length / 4 + deviation, (norm + root) ** 2)
    return math.sqrt(square) * _ROUND_UP


def grid_sensitivity(
    grid: Grid, clipping_norm: float, *, arithmetic_error: float = 0.0
) -> float:
    """Return how far a silo's levels can move, in grid steps of L2 norm.

    Guarantees: two vectors at an L2 distance of at most ``clipping_norm``, quantised on
    this grid by ``privacy.quantization.Quantizer`` with stochastic rounding, weight 1
    and the same dither, are further apart with probability at most 2^-100. That a
    value is clamped to its range brings them no further apart. Where grid steps differ
    the smallest counts.

    Args:
        arithmetic_error: how far each of the two vectors may be from the one that was
            meant, L2, through rounding before the quantiser: sums, clip, rotation.

    Raises:
        ValueError: a number is not finite, or negative.
    """
    if not (0 < clipping_norm < math.inf and 0 <= arithmetic_error < math.inf):
        raise ValueError(
            "clipping_norm, arithmetic_error: must be finite, not negative"
        )
    step, largest = float(grid.steps.min()), float(grid.max_level)
    # The rounding of a product, and of its fraction (privacy/quantization.py), for each
    # of two values; above 16 value bits float64 is used.
    is_narrow = grid.value_bits <= NARROW_VALUE_BITS
    rounding, fraction = (2**-24, 2**-17) if is_narrow else (2**-53, 2**-33)
    per_value = (largest + 1) * rounding + fraction
    moved = (clipping_norm + 2 * arithmetic_error) / step * (1 + 2**-22)
    return rounded_norm(moved + 2 * per_value * math.sqrt(grid.length), grid.length)


@dataclass(frozen=True, kw_only=True)
class DistributedNoise:
    """How much noise every silo adds, and how much of it is sure to be in the sum.

    A sum is opened only if it has ``min_survivors`` contributors; of them at most
    ``max_colluding`` tell others their noise, or add none. The noise of the remaining
    ``honest`` is relied on; what further silos add makes the sum no less private.

    Args:
        share_variance: of each silo's noise, grid steps squared.
        sensitivity: from :func:`grid_sensitivity`.
        length: values in one update, padding included.

    Raises:
        ValueError: a number out of its range; fewer than three honest silos.
    """

    share_variance: Fraction
    min_survivors: int
    max_colluding: int
    sensitivity: float
    length: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        exact_variance(self.share_variance)
        if self.max_colluding < 1:
            raise ValueError(
                "max_colluding: must be at least 1: a silo knows its own noise and may "
                f"subtract it; is {self.max_colluding}"
            )
        if self.honest < MIN_HONEST:
            raise ValueError(
                f"min_survivors: {self.min_survivors} less {self.max_colluding} "
                f"colluding are fewer than {MIN_HONEST} honest silos"
            )
        if not 0 < self.sensitivity < math.inf or self.length < 1:
            raise ValueError("sensitivity, length: must be positive")

    @property
    def honest(self) -> int:
        """How many silos' noise is relied on."""
        return self.min_survivors - self.max_colluding

    @property
    def noise_multiplier(self) -> float:
        """The standard deviation of the noise that is relied on, over sensitivity."""
        return math.sqrt(self.honest * self.share_variance) / self.sensitivity


def share_variance(
    total: Fraction | int | float, *, min_survivors: int, max_colluding: int
) -> Fraction:
    """Return the variance that each silo adds, so that the honest ones make a total.

    Raises:
        ValueError: fewer than three honest silos.
    """
    if min_survivors - max_colluding < MIN_HONEST:
        raise ValueError(f"min_survivors: needs {MIN_HONEST} more than may collude")
    return Fraction(total) / (min_survivors - max_colluding)


def distributed_epsilon(
    noise: DistributedNoise, delta: float, *, sample_rate: float, rounds: int
) -> float:
    """Return epsilon against whoever sees only the sums, and the colluding silos.

    Guarantees: an upper bound, under the assumptions of docs/noise-inside-the-sum.md,
    for ``rounds`` sums that may each depend on those before, one Poisson-sampled step
    each (mechanism ``record-distributed``), or with ``sample_rate`` 1 one update of any
    making each (mechanism ``silo``). Infinity if delta is used up by what the sampler
    and the rounding leave out.

    Args:
        delta: in (0, 1).
        sample_rate: Poisson inclusion probability of a unit in a round, in (0, 1].
        rounds: sums that were or will be opened, lost ones included.
    """
    return renyi_epsilon([part_of(noise, noise.honest, sample_rate, rounds)], delta)


def share_epsilon(
    noise: DistributedNoise, delta: float, *, sample_rate: float, rounds: int
) -> float:
    """Return epsilon where secure aggregation fails and a silo's own noise is all."""
    return renyi_epsilon([part_of(noise, 1, sample_rate, rounds)], delta)


@dataclass(frozen=True)
class RenyiPart:
    """Equal rounds of a sampled Gaussian mechanism, as Rényi divergence prices them.

    ``ratio`` is η of all rounds together, how far their laws are from Gaussians by a
    factor, and ``lost`` is T, how far in total variation (docs, 4); a continuous
    Gaussian has neither.
    """

    noise_multiplier: float
    sample_rate: float
    rounds: int
    ratio: float = 0.0
    lost: float = 0.0


def part_of(
    noise: DistributedNoise, honest: int, sample_rate: float, rounds: int
) -> RenyiPart:
    """Return what so many rounds with the noise of so many silos come to (docs, 4)."""
    return RenyiPart(
        math.sqrt(honest * noise.share_variance) / noise.sensitivity,
        sample_rate,
        rounds,
        rounds * noise.length * sum_ratio(noise.share_variance, honest),
        rounds * (2.0**-FAILURE_BITS + noise.length * honest * 2.0**-TAIL_BITS),
    )


def renyi_epsilon(parts: Sequence[RenyiPart], delta: float) -> float:
    """Return the least epsilon that all parts of the bound permit (docs, 4).

    Guarantees: an upper bound for all parts together, in whatever order their rounds
    alternate: at each order their divergences add up, and so do η and T.

    Raises:
        ValueError: a number out of its range, or nothing to price.
    """
    in_range = all(0 < p.sample_rate <= 1 and p.rounds >= 1 for p in parts)
    if not (parts and in_range and 0 < delta < 1):
        raise ValueError("delta, sample_rate, rounds: out of range")
    is_sampled = any(part.sample_rate < 1 for part in parts)
    orders = _orders(is_sampled)
    ratio, lost = sum(p.ratio for p in parts), sum(p.lost for p in parts)
    total = np.zeros_like(orders)
    for p in parts:
        total += p.rounds * _costs(p.noise_multiplier, p.sample_rate, is_sampled)
    epsilon = 0.0
    for _ in range(100):
        left = delta - lost * (1 + math.exp(min(epsilon, 700.0)))
        if left <= 0:
            return math.inf
        logs = np.log(left) - ratio + np.log(orders)
        options = total + np.log1p(-1 / orders) - logs / (orders - 1)
        following = max(0.0, float(options.min()) * _ROUND_UP + 2 * ratio)
        if following <= epsilon:
            return epsilon
        epsilon = following * _ROUND_UP
    return math.inf


def sum_ratio(variance: Fraction | int | float, num_shares: int) -> float:
    """Return the tau of a sum of n discrete Gaussians: how far its law is from one.

    The probabilities of each integer differ by a factor of at most e^tau,
    tau = 10 Σ_{k<n} exp(-2 π² σ² k / (k + 1)), from those of variance n σ².

    Source: Kairouz, Liu & Steinke (2021), on the convolution of discrete Gaussians; for
    variances of at least 1/4.
    """
    k = np.arange(1, num_shares)
    return float(10 * np.exp(-2 * math.pi**2 * float(variance) * k / (k + 1)).sum())


def _orders(is_sampled: bool) -> npt.NDArray[np.float64]:
    """Return the Rényi orders that are tried: whole ones where units are sampled."""
    if not is_sampled:
        return np.asarray(1 + np.geomspace(1e-3, 1e6, 2000))
    whole = {*range(2, 129), *map(int, np.geomspace(129, 8192, 60))}
    return np.array(sorted(whole), np.float64)


@lru_cache(maxsize=64)
def _costs(
    noise_multiplier: float, sample_rate: float, is_sampled: bool
) -> npt.NDArray[np.float64]:
    """Return the divergence of one round at each order.

    For integer orders, Σ_k C(α, k) (1 - q)^(α - k) q^k exp((k² - k) / 2z²): exact for
    discrete Gaussians too, where the shift is an integer. Without sampling α / 2z², for
    all orders. Source: Mironov, Talwar & Zhang (2019); (docs, 4).
    """
    orders = _orders(is_sampled)
    if noise_multiplier < SMALLEST_MULTIPLIER:
        return np.full_like(orders, math.inf)
    noise_multiplier = min(noise_multiplier, LARGEST_MULTIPLIER)
    if sample_rate == 1:
        return orders / (2 * noise_multiplier**2) * _ROUND_UP
    costs = [_sampled_cost(int(a), noise_multiplier, sample_rate) for a in orders]
    return np.array(costs) * _ROUND_UP + _LOST


def _sampled_cost(order: int, noise_multiplier: float, sample_rate: float) -> float:
    """Return the divergence of one sampled round at an integer order."""
    # Events know this module; commands that price nothing need not wait for scipy.
    from scipy.special import gammaln, logsumexp

    k = np.arange(order + 1, dtype=np.float64)
    logs = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    logs += k * math.log(sample_rate) + (order - k) * math.log1p(-sample_rate)
    logs += (k * k - k) / (2 * noise_multiplier**2)
    return max(0.0, float(logsumexp(logs)) / (order - 1))


def calibrate_share(
    target: float,
    delta: float,
    *,
    min_survivors: int,
    max_colluding: int,
    sensitivity: float,
    length: int,
    sample_rate: float,
    rounds: int,
) -> DistributedNoise:
    """Return the least noise whose :func:`distributed_epsilon` is within a target.

    Guarantees: the result was priced and is within the target; its share is a whole
    number of grid steps squared, at most 0.1 % and one above the least that is.

    Raises:
        Uncalibrated: no variance up to 2^48 reaches the target.
        ValueError: a number out of its range.
    """

    def priced(variance: float) -> tuple[DistributedNoise, float]:
        noise = DistributedNoise(
            share_variance=Fraction(math.ceil(variance)),
            min_survivors=min_survivors,
            max_colluding=max_colluding,
            sensitivity=sensitivity,
            length=length,
        )
        return noise, distributed_epsilon(
            noise, delta, sample_rate=sample_rate, rounds=rounds
        )

    low, high = 0.0, 48.0
    best, epsilon = priced(2**high)
    if not epsilon <= target:
        raise Uncalibrated(
            f"no noise of up to 2^24 grid steps reaches epsilon {target:g}; the most "
            f"that is possible gives {epsilon:g}"
        )
    while high - low > 1e-3:
        middle = (low + high) / 2
        noise, epsilon = priced(2**middle)
        if epsilon <= target:
            best, high = noise, middle
        else:
            low = middle
    return best


def signal_to_noise(
    mean_norm: float, noise: DistributedNoise, *, num_contributors: int, step: float
) -> float:
    """Return the norm of the mean update over the expected norm of its noise.

    Args:
        mean_norm: L2, real units; at most the clipping norm, which is the best case.
        num_contributors: silos in the sum, all of which add their share.
        step: the grid step, real units.

    Source: noise of the mean = step · √(n · share variance · d) / n.
    """
    variance = float(noise.share_variance) * noise.length / num_contributors
    return mean_norm / (step * math.sqrt(variance))


def signal_sentence(ratio: float) -> str:
    """Return what a signal-to-noise ratio means, as one plain sentence."""
    if ratio >= 1:
        return f"The mean update is {ratio:,.3g} times as long as its noise."
    return (
        f"WARNING: the noise is {1 / ratio:,.3g} times as long as the mean update; "
        "a single round teaches the model next to nothing."
    )
