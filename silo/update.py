"""What leaves a silo, on one screen: from parameters to packed integers."""

import logging
import os

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
from silo.errors import DataError
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
) -> npt.NDArray[np.uint64]:
    """Return this silo's update as packed words, ready to be masked.

    difference → clip → rotate → weight, quantize and pack, block by block. Rounding is
    dithered from the operating system's generator unless the plan says ``nearest``.
    With secret weights ``num_examples`` is one more word, behind those of the values.
    With form "float32" the clipped update is returned as it is.

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
    grid = numbers.grid
    words = np.empty(plan.num_words(round_number, layout.size), np.uint64)
    vector = np.zeros(grid.length, np.float32)
    update = difference(local, global_, layout, vector[: layout.size])
    clip(update, numbers.clipping_norm)
    if plan.update.form == "float32":
        return floats_to_words(update)
    if plan.update.rotation:
        rotate(vector, SecretRandom(sign_seed(plan, round_number)))
    random = None
    if plan.update.rounding == "stochastic":
        random = SecretRandom(os.urandom(MASK_SEED_BYTES))
    if plan.update.weights == "secret":
        weight, values = num_examples / plan.update.max_weight, words[:-1]
        words[-1] = num_examples
    else:
        weight, values = plan.relative_weights()[silo], words
    quantizer = Quantizer(vector, grid, random, weight=weight)
    pack_blocks(quantizer.fill, grid.length, field_bits, values)
    logger.info("%d of %d values clamped", quantizer.num_clamped, grid.length)
    return words
