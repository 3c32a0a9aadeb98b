"""A second price, by another accountant: Opacus's PRV, from the same events.

It is recorded beside the price of ``privacy/accounting.py`` and never enforced. Two
programs that share no code, grid or bound rarely share a mistake.
"""

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from opacus.accountants.analysis.prv import (
    PoissonSubsampledGaussianPRV,
    compute_safe_domain_size,
)
from opacus.accountants.prv import PRVAccountant

from privacy.events import SampledGaussian

EPSILON_ERROR = 0.01
DELTA_ERROR = 1e-3
"""Opacus's own default, as a share of delta."""
MAX_CELLS = 1 << 22
"""Of all distributions together; each costs about 200 bytes and a microsecond."""

LARGE, REFINEMENTS = 20, 2
"""An error above a 20th of epsilon is divided by ten, at most so often."""

History = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sample rate, steps), as Opacus keeps it."""


@dataclass(frozen=True)
class PrvClaim:
    """What PRV says: an upper bound, its estimate plus its error ``eps_error``.

    ``epsilon`` is None where PRV could not answer; ``reason`` says why, and is empty
    otherwise. ``eps_error`` is absolute: the one that the answer was found with.
    """

    epsilon: float | None
    eps_error: float
    reason: str = ""


def prv_epsilon(
    events: Sequence[SampledGaussian], delta: float, *, eps_error: float = EPSILON_ERROR
) -> PrvClaim:
    """Return Opacus's upper bound of epsilon, or why there is none.

    Time and memory are bounded: the number of cells is worked out first, by the rule
    that Opacus itself follows. At an ``eps_error`` of 0.01 the limit is reached at
    about 10^5 steps for an epsilon of 10.

    Args:
        events: what was released; empty: 0.
        delta: in (0, 1).
        eps_error: the error PRV is asked for, positive; a tenth or a hundredth of it
            where epsilon is small beside it, so that the comparison says something.

    Raises:
        ValueError: delta or eps_error out of its range.

    Source: Gopi, Lee & Wutschitz, 2021; Opacus 1.6, ``accountants/prv.py``.
    """
    if not (0 < delta < 1 and 0 < eps_error < math.inf):
        raise ValueError(f"delta, eps_error: out of range, are {delta}, {eps_error}")
    history = _history(events)
    if not history:
        return PrvClaim(0.0, eps_error)
    claim = _claim(history, delta, eps_error)
    for _ in range(REFINEMENTS):
        if claim.epsilon is None or claim.epsilon > LARGE * claim.eps_error:
            break
        closer = _claim(history, delta, claim.eps_error / 10)
        if closer.epsilon is None:
            break
        claim = closer
    return claim


@functools.lru_cache(maxsize=64)
def _claim(history: History, delta: float, eps_error: float) -> PrvClaim:
    """Return what Opacus says at one width; its warnings are not ours."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Its densities underflow and overflow far out, where they weigh nothing; what
        # is not finite in the end is refused.
        warnings.simplefilter("ignore")
        try:
            cells = _cells(history, delta, eps_error)
            if not cells <= MAX_CELLS:
                return PrvClaim(None, eps_error, f"needs {cells:.2g} cells")
            accountant = PRVAccountant()
            accountant.history = list(history)
            found = float(accountant.get_epsilon(delta, eps_error=eps_error))
        except (ArithmeticError, IndexError, RuntimeError, ValueError) as error:
            return PrvClaim(None, eps_error, str(error).splitlines()[0])
    if not math.isfinite(found):
        return PrvClaim(None, eps_error, "the answer is not finite")
    return PrvClaim(max(0.0, found), eps_error)


def _history(events: Sequence[SampledGaussian]) -> History:
    """Return the events as Opacus keeps them: multiplier, sample rate, steps."""
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        kind = event.noise_multiplier, event.sample_rate
        steps[kind] = steps.get(kind, 0) + event.steps
    return tuple((sigma, rate, count) for (sigma, rate), count in sorted(steps.items()))


def _cells(history: History, delta: float, eps_error: float) -> float:
    """Return how many cells Opacus would need, summed over distinct mechanisms."""
    counts = [steps for _, _, steps in history]
    reach = compute_safe_domain_size(
        prvs=[PoissonSubsampledGaussianPRV(rate, sigma) for sigma, rate, _ in history],
        max_self_compositions=counts,
        eps_error=eps_error,
        delta_error=delta * DELTA_ERROR,
    )
    log_term = math.log(12 / (delta * DELTA_ERROR))
    cell = eps_error / math.sqrt(sum(counts) * log_term / 2)
    return float(2 * reach / cell * len(history))
