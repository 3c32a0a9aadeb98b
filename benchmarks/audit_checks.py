"""The checks of the audit on the opened canaries of one run, for the power table."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.lower_bounds import lower_bounds

STEP_COUNT = "step count"


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """What an auditor has of one run: opened scores, and what the silo claims."""

    scores: npt.NDArray[np.float64]
    included: npt.NDArray[np.bool_]
    num_steps: int
    ledger_steps: int
    claim: float
    delta: float
    noise_multiplier: float
    sample_rate: float


def caught_by(row: CheckRow) -> dict[str, bool]:
    """Return, for every check by name, whether it contradicts the claim."""
    inside, outside = row.scores[row.included], row.scores[~row.included]
    found = {
        bound.name: bound.epsilon > row.claim
        for bound in lower_bounds(inside, outside, row.delta)
    }
    found[STEP_COUNT] = row.num_steps > row.ledger_steps
    return found
