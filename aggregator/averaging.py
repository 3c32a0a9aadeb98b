"""From the integer sum to the mean update and the next global parameters."""

import dataclasses

import numpy as np
import numpy.typing as npt

from aggregator.optimizer import step
from aggregator.state import RoundState
from crypto.prg import SecretRandom
from crypto.ring import unpack_blocks
from diffusion.parameters import ParameterLayout, flatten, unflatten
from privacy.clipping import Vector
from privacy.grids import Grid
from privacy.quantization import dequantize_sum
from privacy.rotation import rotate_back
from privacy.weights import total_weight
from protocol.float_form import mean_of
from protocol.grids import next_numbers, numbers_after_loss, sign_seed
from protocol.noise_plan import noise_bound
from protocol.plan import RunPlan

Words = npt.NDArray[np.uint64]


def mean_update(
    plan: RunPlan,
    layout: ParameterLayout,
    grid: Grid,
    words: Words,
    survivors: tuple[int, ...],
    round_number: int,
) -> Vector:
    """Return the weighted mean of the survivors' updates, float32 ``[d]``.

    With "record-distributed" an update is a sum of gradients, which is divided by the
    expected batch size, too: all divisors are public and depend on nobody's data.

    Args:
        words: the sum, packed; with form "float32" a ``weighted_sum``.
        survivors: whose updates it holds; their declared weights divide it, or the sum
            of their secret ones, which is its last word.

    Raises:
        Overflow: the sum is larger than survivors of these weights can make it, or the
            sum of their weights is.
    """
    field_bits = plan.field_bits(round_number)
    if plan.update.weights == "secret":
        most, words, last = plan.update.max_weight, words[:-1], int(words[-1])
        relative = total_weight(last, most, len(survivors)) / most
    else:
        weights = plan.relative_weights()
        relative = sum(weights[silo] for silo in survivors)
    if plan.update.form == "float32":
        return mean_of(words, relative)
    if plan.privacy.mechanism == "record-distributed":
        relative *= plan.training.examples_per_step
    mean = dequantize_sum(
        unpack_blocks(words, field_bits, grid.length),
        grid,
        num_contributors=len(survivors),
        total_weight=relative,
        noise_bound=noise_bound(plan) if plan.privacy.is_in_sum else 0,
    )
    if plan.update.rotation:
        rotate_back(mean, SecretRandom(sign_seed(plan, round_number)))
    return mean[: layout.size]


def apply(
    plan: RunPlan, layout: ParameterLayout, state: RoundState, mean: Vector
) -> RoundState:
    """Return the state after a round: the optimizer's step is added, in float32."""
    shared = flatten(state.parameters, layout)
    added, moments = step(plan.aggregation, state.moments, mean)
    shared += added
    parameters = {**state.parameters, **unflatten(shared, layout)}
    return dataclasses.replace(
        state,
        round_number=state.round_number + 1,
        parameters=parameters,
        average=state.average.updated(parameters),
        ranges=next_numbers(plan, layout.segments, mean, layout.counts),
        moments=moments,
    )


def skip(plan: RunPlan, layout: ParameterLayout, state: RoundState) -> RoundState:
    """Return the state after a round without a sum: its parameters do not change."""
    return dataclasses.replace(
        state,
        round_number=state.round_number + 1,
        ranges=numbers_after_loss(plan, layout.segments, state.ranges),
    )
