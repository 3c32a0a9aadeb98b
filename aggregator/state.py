"""What survives a round: a value. The work on it is functions."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from aggregator.down_link import DownLink, first_down_link
from aggregator.optimizer import Moments, first_moments
from aggregator.slow_learning import SlowLearning
from diffusion.ema import ExponentialMovingAverage
from diffusion.initial import first_model
from diffusion.model import make_model
from diffusion.parameters import (
    ParameterLayout,
    parameters_digest,
    parameters_of,
    part_lengths,
    selected_layout,
)
from protocol.errors import PlanRejected
from protocol.grids import first_numbers
from protocol.plan import PlanDraft, RunPlan


@dataclass(frozen=True, kw_only=True)
class RoundState:
    """The global model after ``round_number`` rounds.

    ``ranges`` are the public numbers of the next round's grid (``protocol.grids``).
    ``average`` is the moving average from which samples are drawn; ``moments`` are
    those of the aggregator's optimizer, where it has any; ``down_link`` is what a
    quantised down-link keeps, where the plan has one; ``slow_learning`` what the rule
    of the one correction remembers.
    """

    round_number: int
    parameters: Mapping[str, Tensor] = field(repr=False)
    average: ExponentialMovingAverage = field(repr=False)
    ranges: npt.NDArray[np.float32] = field(repr=False)
    moments: Moments | None = field(default=None, repr=False)
    down_link: DownLink | None = field(default=None, repr=False)
    slow_learning: SlowLearning = SlowLearning()

    @property
    def is_initial(self) -> bool:
        """Whether the parameters are still those that the plan begins with."""
        return self.average.num_updates == 0


def initial_state(plan: RunPlan, initial: Path | None = None) -> RoundState:
    """Return the state before the first round; it follows from the plan.

    Args:
        initial: the file of the parameters that the plan begins with, if it names one.

    Raises:
        DiffusionError: the file is missing, or another one.
    """
    seed = plan.seed_for("model")
    model = first_model(plan.model, seed, plan.initial.sha256, initial)
    layout = selected_layout(model, plan.update.selection, plan.update.parts)
    parameters = parameters_of(model)
    return RoundState(
        round_number=0,
        parameters=parameters,
        average=ExponentialMovingAverage(
            decay=plan.aggregation.ema_decay, parameters=parameters
        ),
        ranges=first_numbers(plan, layout.segments, layout.counts),
        moments=first_moments(plan.aggregation, layout.size),
        down_link=_first_down_link(plan, layout, parameters),
    )


def _first_down_link(
    plan: RunPlan, layout: ParameterLayout, parameters: Mapping[str, Tensor]
) -> DownLink | None:
    """Return what a quantised down-link begins with, where the plan has one."""
    if not plan.update.broadcast_bits:
        return None
    return first_down_link(layout.size, parameters_digest(parameters, layout).hex())


def shared_layout(plan: PlanDraft) -> ParameterLayout:
    """Return names and shapes of the parameters that are federated."""
    model = make_model(plan.model, 0)
    return selected_layout(model, plan.update.selection, plan.update.parts)


def shared_segments(plan: PlanDraft) -> tuple[tuple[str, int], ...]:
    """Return part and length of every federated tensor (``protocol.traffic``)."""
    return part_lengths(make_model(plan.model, 0), shared_layout(plan))


def with_num_values(draft: PlanDraft) -> PlanDraft:
    """Return a draft that says how many values a noisy update has, where it matters.

    Raises:
        PlanRejected: it says another number.
    """
    privacy = draft.privacy
    if not privacy.is_in_sum:
        return draft
    layout = shared_layout(draft)
    if privacy.num_values not in (0, layout.size):
        raise PlanRejected(
            f"privacy.num_values: must be {layout.size}, the number of federated "
            "parameters; leave it out"
        )
    changed = dataclasses.replace(privacy, num_values=layout.size)
    return dataclasses.replace(draft, privacy=changed)
