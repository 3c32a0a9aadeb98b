"""The checks of the audit on the opened canaries of one run, for the power table."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from audits.membership import CONFIDENCE, FALSE_ALARM
from privacy.accounting import epsilon, gaussian_mu
from privacy.canary_tests import TESTS, CanaryClaim, refutations
from privacy.events import SampledGaussian
from privacy.lower_bounds import lower_bounds

STEP_COUNT = "steps scored against steps on account"
AUDIT = "any of these in the audit"
NUM_SILOS = 3
"""The audit shares its chance of a false alarm out over silos and forms."""


@dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """What an auditor has of one run: opened scores, and the events of the ledger."""

    scores: npt.NDArray[np.float64]
    included: npt.NDArray[np.bool_]
    num_steps: int
    event: SampledGaussian
    delta: float


def caught_by(run: OpenedRun) -> dict[str, bool]:
    """Return, for every check by name, whether it contradicts the claim.

    The tests are those of the audit, at its rate of false alarms. Bounds and estimate
    are those that a report tells, each at 95 % confidence: caught is a claim that lies
    below.
    """
    inside, outside = run.scores[run.included], run.scores[~run.included]
    claim = claim_of(run.event, run.delta)
    refuted = {
        one.test
        for one in refutations(inside, outside, claim, FALSE_ALARM / (2 * NUM_SILOS))
    }
    found = {f"test: {name}": name in refuted for name in TESTS}
    found[STEP_COUNT] = run.num_steps != run.event.steps
    found[AUDIT] = any(found.values())
    for bound in lower_bounds(inside, outside, run.delta, CONFIDENCE):
        name = f"{bound.kind}, {CONFIDENCE:.0%}: {bound.name}"
        found[name] = bound.epsilon > claim.epsilon
    return found


def figures_of(run: OpenedRun) -> dict[str, float]:
    """Return what the bounds and the estimate say."""
    inside, outside = run.scores[run.included], run.scores[~run.included]
    bounds = lower_bounds(inside, outside, run.delta, CONFIDENCE)
    return {bound.name: bound.epsilon for bound in bounds}


@lru_cache(maxsize=64)
def claim_of(event: SampledGaussian, delta: float) -> CanaryClaim:
    """Return what a silo with such a ledger claims."""
    return CanaryClaim(
        epsilon=epsilon((event,), delta),
        mu=gaussian_mu((event,)),
        delta=delta,
        events=(event,),
    )
