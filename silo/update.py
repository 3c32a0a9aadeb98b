"""What leaves a silo, on one screen: from parameters to packed integers."""

import logging
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crypto.prg import MASK_SEED_BYTES, SecretRandom
from crypto.ring import pack_blocks
from diffusion.parameters import ParameterLayout, difference
from privacy.clipping import clip
from privacy.quantization import Quantizer
from privacy.rotation import rotate
from protocol.float_form import floats_to_words
from protocol.grids import RoundGrid, sign_seed
from protocol.plan import RunPlan
from protocol.stretches import EVERYTHING
from silo.errors import DataError
from silo.feedback import RoundResidual
from silo.training import Tensors

logger = logging.getLogger(__name__)


def check_weight(plan: RunPlan, num_examples: int) -> None:
    """Refuse to take part with a weight that the plan does not permit.

    Raises:
        DataError: secret weights, and not 1 to the plan's ``max_weight`` examples.
    """
    if plan.update.weights != "secret":
        return
    if not 1 <= num_examples <= plan.update.max_weight:
        raise DataError(
            f"{num_examples:,} examples are not a weight of this plan, whose "
            f"update.max_weight is {plan.update.max_weight:,}"
        )


def make_update(
    plan: RunPlan,
    layout: ParameterLayout,
    numbers: RoundGrid,
    *,
    silo: int,
    round_number: int,
    field_bits: int,
    num_examples: int,
    local: Tensors,
    global_: Tensors,
    own: Sequence[int] = EVERYTHING,
    residual: RoundResidual | None = None,
) -> npt.NDArray[np.uint64]:
    """Return this silo's update as packed words, ready to be masked.

    difference → clip → rotate → weight, quantize and pack, block by block. Rounding is
    dithered from the operating system's generator unless the plan says ``nearest``.
    With secret weights ``num_examples`` is one more word, behind those of the values.
    Of a vector in several stretches (``protocol.stretches``) the silo's ``own`` are
    returned in a row; they are clipped together, and the rest is left out. With form
    "float32" the clipped update is returned as it is. With error feedback ``residual``
    is added before the clip, and told of the clipped update.

    Guarantees: the L2 norm before the rotation is at most the round's clipping norm,
    and the sum over all silos of the plan cannot leave its fields; secret weights sum
    up to at most n W < 2^64. Beside the update and the words no memory of their length
    is used.

    Raises:
        PrivacyError: NaN or infinity, or a grid that does not fit.
        DataError: the number of examples is not a weight of the plan.
    """
    numbers.check_headroom(plan, field_bits)
    check_weight(plan, num_examples)
    grids = [numbers.grids[index] for index in own]
    stretches = [layout.stretches[index] for index in own]
    lengths = [plan.num_words(round_number, stretch.size) for stretch in stretches]
    words = np.empty(sum(lengths), np.uint64)
    vector = np.zeros(sum(grid.length for grid in grids), np.float32)
    rows = np.split(vector, np.cumsum([grid.length for grid in grids])[:-1])
    for stretch, row in zip(stretches, rows, strict=True):
        difference(local, global_, stretch, row[: stretch.size])
    if residual is not None:
        residual.add_to(rows)
    padding = rows[-1].size - stretches[-1].size
    clip(vector[: vector.size - padding], numbers.clipping_norm)
    if residual is not None:
        residual.keep(rows)
    if plan.update.form == "float32":
        return floats_to_words(vector)
    weight, random = own_weight(plan, silo, num_examples), None
    if plan.update.rounding == "stochastic":
        random = SecretRandom(os.urandom(MASK_SEED_BYTES))
    num_clamped, packed = 0, np.split(words, np.cumsum(lengths)[:-1])
    for grid, row, values in zip(grids, rows, packed, strict=True):
        if plan.update.rotation:
            rotate(row, SecretRandom(sign_seed(plan, round_number)))
        if plan.update.weights == "secret":
            values[-1], values = num_examples, values[:-1]
        quantizer = Quantizer(row, grid, random, weight=weight)
        pack_blocks(quantizer.fill, grid.length, field_bits, values)
        num_clamped += quantizer.num_clamped
    logger.info("%d of %d values clamped", num_clamped, vector.size)
    return words


def own_weight(plan: RunPlan, silo: int, num_examples: int) -> float:
    """Return this silo's factor in the sum, 1 for the heaviest."""
    if plan.update.weights == "secret":
        return num_examples / plan.update.max_weight
    return plan.relative_weights()[silo]
