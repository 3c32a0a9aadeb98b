"""Updates on the cohort's common grid: integers that can be summed exactly, and back.

A grid has one range r for each segment (tensor) of the vector. With q value bits a
value x becomes an integer level of [-M, M], M = 2^(q-1) - 1, in grid steps r / M, and
is stored as the field level + M. The sum of n such fields is at most 2 M n, which the
grid compares with the field before anything is summed. The aggregator computes
the grid from public numbers, the plan and the previous round's mean update; every silo
signs its digest with the model's, so that all of a sum have used the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.clipping import ClippedUpdate, Vector, norm
from privacy.errors import GridTooCoarse, NotFinite, Overflow

BLOCK = 1 << 16
RANGE_MARGIN = 3.0
"""A range is this many times the largest value of the previous round's mean update."""

RandomBytes = Callable[[npt.NDArray[np.uint64]], None]
"""Fills a buffer with secret random words; bound by the caller to a fresh OS seed."""

Fields = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Grid:
    """The public grid of one round.

    ``ranges`` is float32, one positive number for each segment; ``segments`` are the
    lengths of the tensors, in the order of the flat vector.
    """

    value_bits: int
    ranges: npt.NDArray[np.float32]
    segments: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the bits, and that there is one usable range for each segment."""
        if not 2 <= self.value_bits <= 32:
            raise GridTooCoarse(f"{self.value_bits} value bits, must be 2 to 32")
        if self.ranges.shape != (len(self.segments),):
            raise GridTooCoarse(
                f"{self.ranges.size} ranges for {len(self.segments)} segments"
            )
        if not (np.isfinite(self.ranges).all() and (self.ranges > 0).all()):
            raise GridTooCoarse("every range must be positive and finite")

    @property
    def max_level(self) -> int:
        """The largest level M, in grid steps."""
        return (1 << (self.value_bits - 1)) - 1

    def check_headroom(self, field_bits: int, num_contributors: int) -> None:
        """Raise :class:`Overflow` if the sum of so many fields could overflow."""
        largest = 2 * self.max_level * num_contributors
        if largest >= 1 << field_bits:
            raise Overflow(
                f"{num_contributors} values of {self.value_bits} bits do not fit "
                f"a field of {field_bits} bits"
            )

    def blocks(self) -> Iterator[tuple[slice, float]]:
        """Yield slices of the vector, no longer than a block, with their grid step."""
        start = 0
        for length, range_ in zip(self.segments, self.ranges, strict=True):
            step = float(range_) / self.max_level
            for offset in range(start, start + length, BLOCK):
                yield slice(offset, min(offset + BLOCK, start + length)), step
            start += length


@dataclass(frozen=True)
class IntegerUpdate:
    """A quantised update: fields ``[d]`` of 0 … 2 M, ready to be packed.

    ``num_clamped`` counts the values beyond their range; it depends on data and stays
    in the silo.
    """

    fields: Fields
    num_clamped: int


def first_grid(value_bits: int, clipping_norm: float, segments: Sequence[int]) -> Grid:
    """Return the grid of a run's first round: no clipped value can leave its range."""
    ranges = np.full(len(segments), clipping_norm, dtype=np.float32)
    return Grid(value_bits, ranges, tuple(segments))


def next_ranges(
    mean: Vector, segments: Sequence[int], clipping_norm: float
) -> npt.NDArray[np.float32]:
    """Return the ranges that follow from a round's mean update, one for each segment.

    Three times the segment's largest absolute value; at least three times the root
    mean square of the whole vector, so that a tensor at rest may move again; at most
    the clipping norm.

    Args:
        mean: float32 ``[d]``.

    Raises:
        NotFinite: the mean holds NaN or infinity.
    """
    floor = RANGE_MARGIN * norm(mean) / max(1, mean.size) ** 0.5
    ranges, start = np.empty(len(segments), dtype=np.float32), 0
    for index, length in enumerate(segments):
        segment = mean[start : start + length]
        largest = float(max(segment.max(initial=0), -segment.min(initial=0)))
        ranges[index] = min(max(RANGE_MARGIN * largest, floor), clipping_norm)
        start += length
    ranges[ranges <= 0] = clipping_norm
    return ranges


def quantize(
    update: ClippedUpdate,
    grid: Grid,
    random: RandomBytes | None,
    *,
    weight: float = 1.0,
) -> IntegerUpdate:
    """Return a clipped update as integers on the grid.

    Guarantees: values beyond a range are clamped to it and counted. With ``random``
    the rounding is stochastic: level = floor(x / step + u), u uniform on
    {(k + 1/2) / 2^32}, hence unbiased to within 2^-33 steps; without, to the nearest
    level (ties to even).

    Args:
        update: float32 ``[d]`` with its bound.
        random: secret random words, or None for nearest.
        weight: the silo's factor in the sum, in (0, 1].

    Raises:
        GridTooCoarse: the grid belongs to a vector of another length.
        NotFinite: an element is NaN.
    """
    vector = update.vector
    _check_length(vector.size, grid)
    fields = np.empty(vector.size, dtype=np.uint32)
    words = np.empty(BLOCK // 2, dtype=np.uint64)
    num_clamped, limit = 0, float(grid.max_level)
    beyond = limit * (1 + 2**-50)  # A value at its range is not beyond by rounding.
    for block, step in grid.blocks():
        levels = vector[block].astype(np.float64)
        levels *= weight / step
        if np.isnan(levels).any():
            raise NotFinite("the update holds NaN")
        num_clamped += int(np.count_nonzero(np.abs(levels) > beyond))
        if random is None:
            np.rint(levels, out=levels)
        else:
            random(words[: (levels.size + 1) // 2])
            dither = words.view(np.uint32)[: levels.size].astype(np.float64)
            dither += 0.5
            dither *= 2.0**-32
            # Whole and fraction apart: their sum with u would be rounded for large M.
            whole = np.floor(levels)
            levels -= whole
            levels += dither
            np.floor(levels, out=levels)
            levels += whole
        np.clip(levels, -limit, limit, out=levels)
        levels += limit
        fields[block] = levels
    return IntegerUpdate(fields, num_clamped)


def dequantize_sum(
    total: npt.NDArray[np.unsignedinteger],
    grid: Grid,
    *,
    num_contributors: int,
    total_weight: float,
) -> Vector:
    """Return the mean update, float32 ``[d]``, of a sum of fields.

    Args:
        total: sums of ``num_contributors`` fields, integers ``[d]``.
        total_weight: the sum of the contributors' weights.

    Raises:
        GridTooCoarse: the grid belongs to a vector of another length.
        Overflow: a sum is larger than so many fields can be: somebody lied, or the
            masks did not cancel.
    """
    _check_length(total.size, grid)
    if total.size and int(total.max()) > 2 * grid.max_level * num_contributors:
        raise Overflow("the sum is larger than its contributors' fields can be")
    mean = np.empty(total.size, dtype=np.float32)
    offset = float(grid.max_level * num_contributors)
    for block, step in grid.blocks():
        mean[block] = (total[block].astype(np.float64) - offset) * (step / total_weight)
    return mean


def _check_length(length: int, grid: Grid) -> None:
    """Refuse a vector that is not as long as the grid's segments together."""
    expected = sum(grid.segments)
    if length != expected:
        raise GridTooCoarse(f"a vector of {length:,} values on a grid for {expected:,}")
