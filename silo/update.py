"""What leaves a silo, on one screen: from parameters to packed integers."""

import os

import numpy as np
import numpy.typing as npt

from crypto.prg import MASK_SEED_BYTES, SecretRandom
from crypto.ring import pack
from diffusion.parameters import ParameterLayout, difference
from privacy.clipping import clip
from privacy.quantization import Grid, first_grid, quantize
from protocol.plan import RunPlan
from silo.training import Tensors


def round_grid(
    plan: RunPlan,
    layout: ParameterLayout,
    round_number: int,
    ranges: npt.NDArray[np.float32],
) -> Grid:
    """Return the cohort's common grid of a round, from public numbers alone."""
    value_bits = plan.update.value_bits_in(round_number, len(plan.silos))
    if not ranges.size:
        return first_grid(value_bits, plan.update.clipping_norm, layout.segments)
    return Grid(value_bits, ranges, layout.segments)


def make_update(
    plan: RunPlan,
    layout: ParameterLayout,
    grid: Grid,
    *,
    silo: int,
    field_bits: int,
    local: Tensors,
    global_: Tensors,
) -> npt.NDArray[np.uint64]:
    """Return this silo's update as packed words, ready to be masked.

    difference → flatten → clip → weight → quantize → pack. Rounding is dithered from
    the operating system's generator unless the plan says ``nearest``.

    Guarantees: the L2 norm before quantisation is at most the plan's clipping norm,
    and the sum over all silos of the plan cannot leave its fields.

    Raises:
        PrivacyError: NaN or infinity, or a grid that does not fit.
    """
    grid.check_headroom(field_bits, len(plan.silos))
    clipped = clip(difference(local, global_, layout), plan.update.clipping_norm)
    random = None
    if plan.update.rounding == "stochastic":
        random = SecretRandom(os.urandom(MASK_SEED_BYTES))
    weight = plan.relative_weights()[silo]
    integers = quantize(clipped, grid, random, weight=weight)
    return pack(integers.fields, field_bits)
