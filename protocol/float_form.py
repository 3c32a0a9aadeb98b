"""Updates that are not quantised: float32 values, and their sum in float64.

For comparisons only ("full float32 FedAvg"), in the clear. Two values stand in one
64-bit word, little-endian, so that everything that counts words counts these.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from protocol.bodies import floats_from_bytes

Words = npt.NDArray[np.uint64]
Vector = npt.NDArray[np.float32]


def floats_to_words(values: Vector) -> Words:
    """Return float32 ``[d]`` as uint64 ``[ceil(d / 2)]``; an odd last half is zero."""
    halves = np.zeros(values.size + values.size % 2, "<f4")
    halves[: values.size] = values
    return halves.view("<u8").astype(np.uint64, copy=False)


def weighted_sum(
    updates: Mapping[int, Words], weights: Sequence[float], length: int
) -> Words:
    """Return the weighted sum of updates, float64 ``[length]``, as its bits.

    Guarantees: the same bits from the same updates, in whatever order they came: they
    are added by ascending silo.

    Args:
        updates: by silo, as :func:`floats_to_words` returns them.
        weights: of all silos.

    Raises:
        EnvelopeRejected: NaN or infinity.
    """
    total = np.zeros(length, np.float64)
    for silo in sorted(updates):
        values = words_to_floats(updates[silo], length)
        total += weights[silo] * values.astype(np.float64)
    return total.view(np.uint64)


def mean_of(total: Words, total_weight: float) -> Vector:
    """Return a :func:`weighted_sum` divided by the sum of its weights, float32."""
    return (total.view(np.float64) / total_weight).astype(np.float32)


def words_to_floats(words: Words, length: int) -> Vector:
    """Return the inverse of :func:`floats_to_words`, float32 ``[length]``.

    Raises:
        EnvelopeRejected: NaN or infinity.
    """
    content = words.astype("<u8", copy=False).tobytes()[: 4 * length]
    return floats_from_bytes(content, length)
