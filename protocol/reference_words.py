"""Sums of features as 64-bit words, to be added up modulo 2^64 and read back.

A silo's vector is (count, sum of f, upper triangle of the sum of f fᵀ row by row), over
its images' features f of ``dims`` values: (dims + 1)(dims + 2) / 2 numbers. Each is
rounded once to a multiple of 2^-F and sent as a whole number in two's complement. F
follows from the number of silos, so that the sum of all fits for certain, and is the
same for every word.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Vector = npt.NDArray[np.float64]

DIMS: Mapping[str, int] = {
    "fd-small-digits": 64,
    "fd-small-fashion": 128,
    "inception": 2048,
}
"""The length of a feature vector, by the plan's name of the extractor."""

MAX_FEATURE = 32.0
"""No feature is larger in magnitude; those of the three extractors stay below 10."""
MAX_IMAGES = 10_000_000
"""No silo has more."""
MAX_ENTRY = MAX_IMAGES * MAX_FEATURE**2
"""No number of a silo's vector is larger in magnitude."""
HEADROOM_BITS = 62
"""The sum of all silos stays at or below 2^62: a word holds less than 2^63."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, sum and sum of outer products of features.

    ``total`` is float64 ``[dims]``, ``second`` float64 ``[dims, dims]``, symmetric.
    ``count`` is whole but where noise is in it.
    """

    count: float
    total: Vector
    second: Vector


def num_words(dims: int) -> int:
    """Return the length of a silo's vector."""
    return (dims + 1) * (dims + 2) // 2


def fraction_bits(num_silos: int) -> int:
    """Return F, the binary digits behind the point; 27 for three silos, 18 for 1,000.

    Guarantees: ``num_silos`` numbers of at most ``MAX_ENTRY`` add up to at most 2^62
    units of 2^-F, with room for the rounding of each.
    """
    most = num_silos * int(MAX_ENTRY)
    return HEADROOM_BITS - (most - 1).bit_length()


def to_vector(moments: Moments) -> Vector:
    """Return moments as one vector, float64 ``[num_words]``."""
    rows, columns = np.triu_indices(len(moments.total))
    upper = moments.second[rows, columns]
    return np.concatenate(([moments.count], moments.total, upper))


def from_vector(vector: Vector, dims: int) -> Moments:
    """Return the moments of a vector, the lower triangle filled in.

    Raises:
        ValueError: of another length.
    """
    if vector.shape != (num_words(dims),):
        raise ValueError(f"{vector.size} numbers, expected {num_words(dims)}")
    second = np.zeros((dims, dims))
    rows, columns = np.triu_indices(dims)
    second[rows, columns] = second[columns, rows] = vector[1 + dims :]
    return Moments(float(vector[0]), vector[1 : 1 + dims].copy(), second)


def to_words(vector: Vector, num_silos: int) -> Words:
    """Return a silo's vector as words, each number rounded to the nearest unit.

    Guarantees: no wrap in the sum of ``num_silos`` such vectors; the error of a number
    is at most 2^-(F + 1), beside the 53 binary digits of float64.

    Raises:
        ValueError: a number is NaN or above ``MAX_ENTRY`` in magnitude; nothing is
            clamped.
    """
    if not (np.abs(vector) <= MAX_ENTRY).all():
        raise ValueError(f"a number is above {MAX_ENTRY:.4g} in magnitude")
    units = np.rint(vector * 2.0 ** fraction_bits(num_silos))
    return units.astype(np.int64).view(np.uint64)


def from_words(words: Words, num_silos: int) -> Vector:
    """Return the vector of words, of one silo or of a sum of them."""
    return words.view(np.int64) / 2.0 ** fraction_bits(num_silos)
