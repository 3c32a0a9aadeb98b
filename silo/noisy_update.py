"""What leaves a silo with noise inside the secure sum: from a vector to noisy fields.

The order is that of docs/noise-inside-the-sum.md: clip → quantise with dither → add
discrete Gaussian noise to the integers → pack. After the noise nothing is clamped,
weighted or rounded.
"""

import os

import numpy as np
import numpy.typing as npt

from crypto.prg import MASK_SEED_BYTES, SecretRandom
from crypto.ring import pack_blocks
from privacy.clipping import Vector, clip
from privacy.errors import NotFinite
from privacy.noise import DiscreteGaussian
from privacy.quantization import Fields, Quantizer
from privacy.rotation import RandomBytes
from protocol.grids import RoundGrid
from protocol.noise_plan import FIELD_BITS
from protocol.plan import RunPlan


def make_noisy_update(
    plan: RunPlan, numbers: RoundGrid, vector: Vector
) -> npt.NDArray[np.uint64]:
    """Return a vector as packed noisy levels, ready to be masked.

    Guarantees: levels of a vector of L2 norm at most ``update.clipping_norm``, with
    exact noise of the plan's ``share_variance``; dither and noise come from two fresh
    seeds of the operating system, whatever a debugging seed says. Every field is
    within 0 … 2 (M + N), so that the sum of all silos cannot leave it. A vector that
    holds NaN or infinity counts as zero: whether it did is not to be seen.

    Args:
        vector: float32 ``[d]``, d the plan's ``privacy.num_values``; consumed.

    Raises:
        PrivacyError: the grid does not fit, or the sum could leave its fields.
    """
    dither = SecretRandom(os.urandom(MASK_SEED_BYTES))
    noise = SecretRandom(os.urandom(MASK_SEED_BYTES))
    return noisy_words(plan, numbers, vector, dither=dither, noise=noise)


def noisy_words(
    plan: RunPlan,
    numbers: RoundGrid,
    vector: Vector,
    *,
    dither: RandomBytes,
    noise: RandomBytes,
) -> npt.NDArray[np.uint64]:
    """Return :func:`make_noisy_update`, with given randomness: for tests."""
    numbers.check_headroom(plan, FIELD_BITS)
    grid, sampler = numbers.grid, DiscreteGaussian(plan.privacy.share_variance)
    try:
        clip(vector, plan.update.clipping_norm)
    except NotFinite:
        vector[:] = 0.0
    quantizer = Quantizer(vector, grid, dither)

    def fill(start: int, target: Fields) -> None:
        quantizer.fill(start, target)
        drawn = np.empty(target.size, np.int64)
        sampler.fill(drawn, noise)
        drawn += sampler.bound
        np.add(target, drawn.astype(target.dtype), out=target)

    return pack_blocks(fill, grid.length, FIELD_BITS)
