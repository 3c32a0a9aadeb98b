"""The public grid of a round, and how the next one follows from the mean update.

Without rotation every tensor has a range of its own: three times the largest value of
the previous round's mean update. A rotated update is alike everywhere and has one
range, from its clipping norm alone. A range as large as the clipping norm itself, from
which no value could be clamped, is used in the first round only, where fields of 32
bits afford it: at fewer bits it would drown the update in rounding.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from privacy.clipping import Vector, norm
from privacy.errors import GridTooCoarse, Overflow

RANGE_MARGIN = 3.0
"""A range is this many times the largest value of the previous round's mean update."""
EVEN_MARGIN = 6.0
"""A range without a mean update is this many times C / √d, a value's root mean square
in an update that fills its clipping norm; after a rotation values are about normal, and
beyond six standard deviations lies one of 5 · 10⁸."""
NORM_MARGIN = 3.0
"""A round's clipping norm is this many times the norm of the mean update before it."""
MIN_RANGE = 2.0**-90
"""Below, a factor of the grid would leave float32; nobody trains in such steps."""


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
        if not (np.isfinite(self.ranges).all() and (self.ranges >= MIN_RANGE).all()):
            raise GridTooCoarse("every range must be positive and finite")

    @property
    def length(self) -> int:
        """The number of values."""
        return self._stops[-1] if self._stops else 0

    @property
    def max_level(self) -> int:
        """The largest level M, in grid steps."""
        return (1 << (self.value_bits - 1)) - 1

    @property
    def steps(self) -> npt.NDArray[np.float64]:
        """The grid step of each segment."""
        return self.ranges.astype(np.float64) / self.max_level

    @cached_property
    def _stops(self) -> tuple[int, ...]:
        """Where each segment ends."""
        return tuple(itertools.accumulate(self.segments))

    def check_headroom(self, field_bits: int, num_contributors: int) -> None:
        """Raise :class:`Overflow` if the sum of so many fields could overflow."""
        largest = 2 * self.max_level * num_contributors
        if largest >= 1 << field_bits:
            raise Overflow(
                f"{num_contributors} values of {self.value_bits} bits do not fit "
                f"a field of {field_bits} bits"
            )

    def parts(self, start: int, stop: int) -> Iterator[tuple[slice, int]]:
        """Yield the elements start … stop - 1 cut at segments, and each segment."""
        segment = bisect_right(self._stops, start)
        while start < stop:
            end = min(stop, self._stops[segment])
            if end > start:
                yield slice(start, end), segment
            start, segment = end, segment + 1


def first_grid(value_bits: int, clipping_norm: float, segments: Sequence[int]) -> Grid:
    """Return the first round's grid, of 32-bit fields: no clipped value can leave it.

    A float32 range is rounded up.
    """
    ranges = np.full(len(segments), _rounded_up(clipping_norm), dtype=np.float32)
    return Grid(value_bits, ranges, tuple(segments))


def even_range(clipping_norm: float, length: int) -> np.float32:
    """Return the range of values alike in size: 6 C / √d, at most C, in float32.

    The same bit for bit on every machine: each operation is rounded as IEEE 754 says.
    """
    even = EVEN_MARGIN * clipping_norm / max(1, length) ** 0.5
    return np.float32(min(even, clipping_norm))


def rotated_range(clipping_norm: float, length: int, value_bits: int) -> np.float32:
    """Return the range of a rotated update: (2 + q/4) C / √d for q bits, at most 6.

    Fewer bits want a smaller range: with 6 standard deviations for all, rounding would
    cost more than the few values save that would be clamped. For a vector that fills
    its norm the expected square of both errors is least at 2.3 (4 bits), 3.8 (8), 4.9
    (12) and 5.8 (16) standard deviations; these margins are a little above, so that the
    error stays rounding, which is unbiased: at 4, 8 and 12 bits at most 0.3 %, 0.006 %
    and 0.00006 % of the values of a vector that fills its norm are clamped.

    The same bit for bit on every machine: each operation is rounded as IEEE 754 says.
    """
    margin = min(EVEN_MARGIN, 2.0 + value_bits / 4)
    return np.float32(min(margin * clipping_norm / length**0.5, clipping_norm))


def next_ranges(
    mean: Vector, segments: Sequence[int], clipping_norm: float
) -> npt.NDArray[np.float32]:
    """Return the ranges that follow from a round's mean update, one for each segment.

    Three times the segment's largest absolute value; at least three times the root
    mean square of the whole vector, so that a tensor at rest may move again; at most
    the clipping norm. After a mean of zeros every range is :func:`even_range`.

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
    ranges[ranges < MIN_RANGE] = even_range(clipping_norm, mean.size)
    return ranges


def next_clipping_norm(mean: Vector, largest: float) -> np.float32:
    """Return the clipping norm that follows from a round's mean update.

    Three times its norm, at most ``largest``; ``largest`` itself after a mean of
    zeros. Rounded down to float32, so that it is the same number for everybody and
    never above ``largest``.

    Raises:
        NotFinite: the mean holds NaN or infinity.
    """
    following = NORM_MARGIN * norm(mean)
    return rounded_down(min(following, largest) if following > 0 else largest)


def rounded_down(value: float) -> np.float32:
    """Return the largest float32 that is not above a positive value."""
    nearest = np.float32(value)
    return nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(0))


def _rounded_up(value: float) -> np.float32:
    """Return the smallest float32 that is not below a positive value."""
    nearest = np.float32(value)
    infinity = np.float32(np.inf)
    return nearest if float(nearest) >= value else np.nextafter(nearest, infinity)
