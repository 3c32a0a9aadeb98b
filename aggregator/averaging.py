"""From the integer sum to the mean update and the next global parameters."""

import dataclasses

import numpy as np
import numpy.typing as npt

from aggregator.state import RoundState
from crypto.ring import unpack
from diffusion.parameters import ParameterLayout, flatten, unflatten
from privacy.clipping import Vector
from privacy.quantization import Grid, dequantize_sum, first_grid, next_ranges
from protocol.plan import RunPlan

Words = npt.NDArray[np.uint64]


def round_grid(plan: RunPlan, layout: ParameterLayout, state: RoundState) -> Grid:
    """Return the cohort's common grid of the round that follows a state."""
    round_number = state.round_number + 1
    value_bits = plan.update.value_bits_in(round_number, len(plan.silos))
    if not state.ranges.size:
        return first_grid(value_bits, plan.update.clipping_norm, layout.segments)
    return Grid(value_bits, state.ranges, layout.segments)


def mean_update(
    plan: RunPlan,
    grid: Grid,
    words: Words,
    survivors: tuple[int, ...],
    round_number: int,
) -> Vector:
    """Return the weighted mean of the survivors' updates, float32 ``[d]``.

    Args:
        words: the unmasked sum, packed.
        survivors: whose updates it holds; their declared weights divide it.

    Raises:
        Overflow: the sum is larger than the survivors' fields can be.
    """
    weights = plan.relative_weights()
    field_bits = plan.update.field_bits(round_number, len(plan.silos))
    return dequantize_sum(
        unpack(words, field_bits, sum(grid.segments)),
        grid,
        num_contributors=len(survivors),
        total_weight=sum(weights[silo] for silo in survivors),
    )


def apply(
    plan: RunPlan, layout: ParameterLayout, state: RoundState, mean: Vector
) -> RoundState:
    """Return the state after a round: parameters + learning_rate · mean, in float32."""
    shared = flatten(state.parameters, layout)
    shared += np.float32(plan.aggregation.learning_rate) * mean
    parameters = {**state.parameters, **unflatten(shared, layout)}
    return dataclasses.replace(
        state,
        round_number=state.round_number + 1,
        parameters=parameters,
        average=state.average.updated(parameters),
        ranges=next_ranges(mean, layout.segments, plan.update.clipping_norm),
    )


def skip(plan: RunPlan, layout: ParameterLayout, state: RoundState) -> RoundState:
    """Return the state after a round without a sum: its parameters do not change.

    Where no mean update is known yet, the next grid's ranges are six times what every
    value has if the clipping norm is spread evenly.
    """
    ranges = state.ranges
    if not ranges.size:
        even = plan.update.clipping_norm / layout.size**0.5
        ranges = np.full(len(layout.segments), 6.0 * even, dtype=np.float32)
    number = state.round_number + 1
    return dataclasses.replace(state, round_number=number, ranges=ranges)
