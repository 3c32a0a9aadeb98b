"""Updates on the cohort's common grid: integers that can be summed exactly, and back.

A grid has one range r for each segment of the vector (a tensor; or all of a rotated
vector). With q value bits a value x becomes an integer level of [-M, M],
M = 2^(q-1) - 1, in grid steps r / M, and is stored as the field level + M. The sum of n
such fields is at most 2 M n, which the grid compares with the field before anything is
summed. The grid itself follows from public numbers and is in ``privacy.grids``.

A silo of relative weight w (1 for the heaviest there may be) clamps its values to the
range and multiplies them by w: its levels are at most w M, rounded up. Whoever reads
the sum holds it to that (:func:`largest_deviation`).

Both directions work block by block, on what fits the processor's cache: fields are
made when they are packed and read when they are unpacked; there is never an array of
them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy.clipping import Vector
from privacy.errors import GridTooCoarse, NotFinite, Overflow
from privacy.grids import Grid
from privacy.rotation import RandomBytes

BLOCK = 1 << 15
NARROW_VALUE_BITS = 16
"""Up to so many value bits a level is reckoned in float32 and 32-bit integers."""

_WEIGHT_TOLERANCE = 2.0**-40
"""More than float64 loses of a relative weight and of the sum of 1,000 of them: each
step a relative 2^-53, together below 2^-42."""

Fields = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class _FixedPoint:
    """The types of one precision: a level is an integer of ``whole`` over 2^bits.

    The upper half of a ``whole`` is the field, the lower half its fraction, to which
    dither of type ``half`` is added.
    """

    real: type[np.floating[Any]]
    signed: type[np.signedinteger[Any]]
    whole: type[np.unsignedinteger[Any]]
    half: type[np.unsignedinteger[Any]]
    fraction_bits: int


_NARROW = _FixedPoint(np.float32, np.int32, np.uint32, np.uint16, 16)
_WIDE = _FixedPoint(np.float64, np.int64, np.uint64, np.uint32, 32)


class Quantizer:
    """One clipped update as fields on a grid, made when they are asked for.

    Guarantees: every field is M - ⌈w M⌉ … M + ⌈w M⌉, within 0 … 2 M. Values beyond
    their range are clamped to it, whatever the weight, and counted. With ``random``
    rounding is stochastic: of w · x / step the field's level is one of the two
    neighbours, and its expectation is w · x / step to within

    - 2^-17 steps and 2^-22 of the value itself, for up to 16 value bits,
    - 2^-33 steps and 2^-51 of the value itself, above,

    where the first is the resolution of the dither (given the scaled value t, rounded
    to 16 or 32 bits of fraction, floor(t + u) with u uniform on {k / 2^16} or
    {k / 2^32} has the expectation t exactly) and the second the rounding of the one
    product in float32 or float64. Without ``random`` a value goes to the nearest level
    (ties to even), the same on every machine; none is beyond w M rounded likewise.

    Two bytes of ``random`` are used a value for up to 16 value bits, four above.

    Args:
        vector: float32 ``[d]``, read while fields are made and never written.
        grid: the cohort's grid, of the same length.
        random: secret random words, or None for nearest.
        weight: the silo's factor w in the sum, in (0, 1].

    Raises:
        GridTooCoarse: the grid belongs to a vector of another length.
    """

    def __init__(
        self,
        vector: Vector,
        grid: Grid,
        random: RandomBytes | None,
        *,
        weight: float = 1.0,
    ) -> None:
        if vector.size != grid.length:
            raise GridTooCoarse(
                f"a vector of {vector.size:,} values on a grid for {grid.length:,}"
            )
        self._vector, self._grid, self._random = vector, grid, random
        is_narrow = grid.value_bits <= NARROW_VALUE_BITS and random is not None
        self._type = _NARROW if is_narrow else _WIDE
        fraction_bits = self._type.fraction_bits if random is not None else 0
        # Rounding is monotone and ⌈w M⌉ a float: the limit is at most ⌈w M⌉.
        self._limit = self._type.real(weight * float(grid.max_level << fraction_bits))
        self._middle = self._type.whole(grid.max_level << fraction_bits)
        self._factors = _factors(grid.ranges, self._limit)
        self._reals = np.empty(BLOCK, self._type.real)
        self._wholes = np.empty(BLOCK, self._type.whole)
        self._words = np.empty(BLOCK * self._type.half().itemsize // 8, np.uint64)
        self._num_clamped = 0

    @property
    def num_clamped(self) -> int:
        """Values that were beyond their range; depends on data, stays in the silo."""
        return self._num_clamped

    def fill(self, start: int, target: Fields) -> None:
        """Write the fields of the elements from ``start`` on into a target.

        Args:
            target: unsigned ``[n]``, wide enough for a field; may be a strided view.

        Raises:
            NotFinite: a value is NaN or infinite.
        """
        stop = start + target.size
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            self._fill_block(first, target[first - start : last - start])

    def _fill_block(self, start: int, target: Fields) -> None:
        """Write the fields of at most a block of values."""
        reals, wholes = self._reals[: target.size], self._wholes[: target.size]
        with np.errstate(over="ignore", invalid="ignore"):
            for part, segment in self._grid.parts(start, start + target.size):
                place = slice(part.start - start, part.stop - start)
                factor = self._factors[segment]
                np.multiply(self._vector[part], factor, out=reals[place])
        self._clamp(start, reals)
        np.rint(reals, out=reals)
        np.copyto(wholes.view(self._type.signed), reals, casting="unsafe")
        wholes += self._middle
        if self._random is not None:
            half = self._type.half
            words = self._words[: -(-target.size * half().itemsize // 8)]
            self._random(words)
            wholes += words.view(half)[: target.size]
            wholes >>= self._type.whole(self._type.fraction_bits)
        np.copyto(target, wholes, casting="unsafe")

    def _clamp(self, start: int, reals: npt.NDArray[np.floating[Any]]) -> None:
        """Clamp a block's levels at ± w M, and count those that were beyond."""
        limit = self._limit
        if reals.min() >= -limit and reals.max() <= limit:
            return
        if not np.isfinite(self._vector[start : start + reals.size]).all():
            raise NotFinite("the update holds NaN or infinity")
        self._num_clamped += int(np.count_nonzero(np.abs(reals) > limit))
        np.clip(reals, -limit, limit, out=reals)


def _factors(
    ranges: npt.NDArray[np.float32], limit: np.floating[Any]
) -> npt.NDArray[np.floating[Any]]:
    """Return what a value of each segment is multiplied with: limit / range.

    Rounded down where a value at its range would come out above the limit.
    """
    real = type(limit)
    factors = (float(limit) / ranges.astype(np.float64)).astype(real)
    while (beyond := factors * ranges.astype(real) > limit).any():
        factors[beyond] = np.nextafter(factors[beyond], real(0))
    return factors


def largest_deviation(grid: Grid, num_contributors: int, total_weight: float) -> int:
    """Return how far an honest sum of fields may lie from n M, in grid steps.

    Guarantees: no sum of fields that n :class:`Quantizer` made deviates more, if
    ``total_weight`` is the sum of their weights to a relative 2^-41. A level is below
    w M + 1, so n of them are at most ⌊M Σ w⌋ + n; nor are they above n M, which is the
    smaller one when all weights are equal.
    """
    by_weight = grid.max_level * total_weight * (1 + _WEIGHT_TOLERANCE)
    return min(grid.max_level * num_contributors, int(by_weight) + num_contributors)


def dequantize_sum(
    blocks: Iterable[tuple[int, Fields]],
    grid: Grid,
    *,
    num_contributors: int,
    total_weight: float,
    noise_bound: int = 0,
) -> Vector:
    """Return the mean update, float32 ``[d]``, of a sum of fields.

    Guarantees: every value is (sum - n M) · step / total weight, of which the product
    alone is rounded, to a relative 2^-22, but no further from zero than its range,
    whoever lied. (Honest values reach beyond it by their rounding at most.) With noise
    up to N the middle is n (M + N), and the mean is *not* cut off at its range: that
    would bias it.

    Args:
        blocks: (start, sums of ``num_contributors`` fields), in any order, which
            together are the vector once.
        total_weight: the sum of the contributors' relative weights; with noise, where
            all weights are 1, whatever the sum is to be divided by.
        noise_bound: N, the largest noise that a contributor adds to a level.

    Raises:
        GridTooCoarse: the grid belongs to a vector of another length.
        Overflow: a sum is further from the middle than contributors of this total
            weight can bring it: somebody lied, or the masks did not cancel.
    """
    center, mean = grid.max_level * num_contributors, np.empty(grid.length, "f4")
    if noise_bound:
        center += noise_bound * num_contributors
        deviation, may_exceed = center, False
    else:
        deviation = largest_deviation(grid, num_contributors, total_weight)
        may_exceed = deviation > grid.max_level * total_weight
    # Up to 2^24 a whole number is exact in float32.
    real = np.float32 if 2 * center <= 1 << 24 else np.float64
    middle = real(center)
    factors = (grid.steps / total_weight).astype(real)
    num_values = 0
    for start, fields in blocks:
        num_values += fields.size
        if start + fields.size > grid.length or num_values > grid.length:
            raise GridTooCoarse(f"a sum of more than {grid.length:,} values")
        if fields.size:
            _check_sum(fields, center - deviation, center + deviation)
        for part, segment in grid.parts(start, start + fields.size):
            values = fields[part.start - start : part.stop - start].astype(real)
            np.subtract(values, middle, out=values)
            np.multiply(values, factors[segment], out=mean[part], casting="same_kind")
            if may_exceed:
                range_ = grid.ranges[segment]
                np.clip(mean[part], -range_, range_, out=mean[part])
    if num_values != grid.length:
        raise GridTooCoarse(
            f"a sum of {num_values:,} values on a grid for {grid.length:,}"
        )
    return mean


def _check_sum(fields: Fields, smallest: int, largest: int) -> None:
    """Refuse sums of fields outside of smallest … largest."""
    if int(fields.max()) > largest or (smallest and int(fields.min()) < smallest):
        raise Overflow("the sum is larger than its contributors' fields can be")
