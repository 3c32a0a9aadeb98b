"""The public numbers of a round beside its model: grid, clipping norm, signs.

They travel as ``ranges`` in ROUND, float32, and are covered by the model digest that
every silo signs, so that all updates of a sum were made with the same ones, bit for
bit. In this order:

- the ranges of the grid. With rotation one for each stretch of the vector, in every
  round. Without, one for each tensor, and none in round 1, whose range is the plan's
  clipping norm;
- with ``update.clipping = "previous-mean"`` the round's clipping norm.

With noise inside the secure sum there are none: grid and norm follow from the plan.

A silo takes the numbers from ROUND, where all that it can know is checked here: how
many there are, that none is larger than the plan's clipping norm permits, the whole of
round 1, and with rotation that the range is the one that belongs to the clipping norm.
What depends on the previous round's mean update it must believe; the aggregator can
choose a coarser grid or a smaller clipping norm, the same for all, but never a larger
norm.
"""

import hashlib
import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crypto import labels
from privacy.clipping import Vector
from privacy.errors import GridTooCoarse
from privacy.grids import (
    Grid,
    even_range,
    first_grid,
    next_clipping_norm,
    next_ranges,
    rotated_range,
    rounded_down,
)
from protocol import noise_plan
from protocol.errors import EnvelopeRejected
from protocol.plan import RunPlan
from protocol.update_settings import MIN_CLIPPING_NORM

Numbers = npt.NDArray[np.float32]

_SMALLEST_NORM = rounded_down(MIN_CLIPPING_NORM)


@dataclass(frozen=True)
class RoundGrid:
    """What a round's updates are clipped to and quantised on, stretch by stretch."""

    grids: tuple[Grid, ...]
    clipping_norm: float

    @property
    def grid(self) -> Grid:
        """The grid of a vector of one stretch."""
        (grid,) = self.grids
        return grid

    def check_headroom(self, plan: RunPlan, field_bits: int) -> None:
        """Raise ``Overflow`` if a sum over all silos could leave a field."""
        if plan.privacy.is_in_sum:
            noise_plan.check_headroom(plan)
            return
        for grid in self.grids:
            grid.check_headroom(field_bits, len(plan.silos))


def round_grid(
    plan: RunPlan,
    segments: Sequence[int],
    round_number: int,
    numbers: Numbers,
    counts: Sequence[int] = (),
) -> RoundGrid:
    """Return the grid and clipping norm that a round's numbers stand for.

    Args:
        segments: lengths of the federated tensors, in the order of the layout.
        numbers: finite float32 values, as the module says.
        counts: how many of the tensors each stretch has; by default one has all.

    Raises:
        EnvelopeRejected: they are not numbers that this plan permits in this round.
    """
    update = plan.update
    stretches = _stretches(segments, counts)
    num_ranges = len(segments) * (round_number > 1)
    if update.rotation:
        num_ranges = len(stretches)
    num_ranges *= not plan.privacy.is_in_sum
    has_norm = update.clipping == "previous-mean"
    if numbers.shape != (num_ranges + has_norm,):
        raise EnvelopeRejected(
            f"round {round_number} needs {num_ranges + has_norm} numbers for its grid, "
            f"got {numbers.size}"
        )
    clipping_norm = update.clipping_norm
    if has_norm:
        clipping_norm = _checked_norm(plan, round_number, numbers[-1])
    if plan.privacy.is_in_sum:
        noisy = noise_plan.noisy_grid(plan, sum(segments))
        return RoundGrid((noisy,), clipping_norm)
    value_bits = update.value_bits_in(round_number, len(plan.silos))
    if update.is_wide(round_number):
        wide = (first_grid(value_bits, clipping_norm, each) for each in stretches)
        return RoundGrid(tuple(wide), clipping_norm)
    ranges, lengths = numbers[:num_ranges], stretches
    if update.rotation:
        lengths = [(update.num_values(sum(each)),) for each in stretches]
        even = [
            rotated_range(clipping_norm, length, value_bits) for (length,) in lengths
        ]
        if (ranges != np.array(even, np.float32)).any():
            raise EnvelopeRejected("the range is not the one of the clipping norm")
    elif (ranges > np.float32(clipping_norm)).any():
        raise EnvelopeRejected("a range is larger than the clipping norm")
    stops = list(itertools.accumulate(map(len, lengths), initial=0))
    try:
        grids = (
            Grid(value_bits, ranges[start:stop], each)
            for start, stop, each in zip(stops, stops[1:], lengths, strict=False)
        )
        return RoundGrid(tuple(grids), clipping_norm)
    except GridTooCoarse as error:
        raise EnvelopeRejected(str(error)) from None


def first_numbers(
    plan: RunPlan, segments: Sequence[int], counts: Sequence[int] = ()
) -> Numbers:
    """Return the numbers of round 1; they follow from the plan alone."""
    norm = rounded_down(plan.update.clipping_norm)
    stretches = _stretches(segments, counts)
    return _numbers(plan, stretches, norm, np.empty(0, np.float32))


def next_numbers(
    plan: RunPlan, segments: Sequence[int], mean: Vector, counts: Sequence[int] = ()
) -> Numbers:
    """Return the numbers of the round after one with this mean update, float32 ``[d]``.

    Raises:
        NotFinite: the mean holds NaN or infinity.
    """
    if plan.privacy.is_in_sum:
        return np.empty(0, np.float32)
    norm = next_clipping_norm(mean, plan.update.clipping_norm)
    if norm < _SMALLEST_NORM:
        norm = rounded_down(plan.update.clipping_norm)
    ranges = next_ranges(mean, segments, _effective_norm(plan, norm))
    return _numbers(plan, _stretches(segments, counts), norm, ranges)


def numbers_after_loss(
    plan: RunPlan, segments: Sequence[int], numbers: Numbers
) -> Numbers:
    """Return the numbers of the round after one without a sum: the last that are known.

    After round 1, where there are no ranges yet but fields become narrow, every range
    is six times what a value has if the clipping norm is spread evenly.
    """
    has_norm = plan.update.clipping == "previous-mean"
    if plan.update.rotation or numbers.size > has_norm or plan.privacy.is_in_sum:
        return numbers
    norm = numbers[-1] if has_norm else rounded_down(plan.update.clipping_norm)
    even = even_range(_effective_norm(plan, norm), sum(segments))
    ranges = np.full(len(segments), even, np.float32)
    return _numbers(plan, [tuple(segments)], norm, ranges)


def sign_seed(plan: RunPlan, round_number: int) -> bytes:
    """Return the public seed of a round's rotation, the same for every party.

    It follows from the plan's digest, which was fixed before any training: honest
    updates do not depend on the signs, and that is all that the rotation needs of them.
    A silo knows them before it trains, and whoever makes a plan can try nonces; but a
    dishonest silo can spoil the mean in easier ways. Every round has signs of its own.
    Expanded by ``crypto.prg.SecretRandom``, whose stream looks as random when its seed
    is known.

    Source: SHA-256 of label, digest and round number.
    """
    content = labels.ROTATION_SIGNS + b"\x00" + plan.digest
    return hashlib.sha256(content + struct.pack(">Q", round_number)).digest()


def _stretches(segments: Sequence[int], counts: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the lengths of the tensors in each stretch of the vector."""
    rest = iter(segments)
    counts = counts or (len(segments),)
    return [tuple(itertools.islice(rest, count)) for count in counts]


def _numbers(
    plan: RunPlan,
    stretches: Sequence[Sequence[int]],
    norm: np.float32,
    ranges: Numbers,
) -> Numbers:
    """Return ranges and clipping norm in the order of the message."""
    if plan.update.rotation:
        largest = _effective_norm(plan, norm)
        lengths = (plan.update.num_values(sum(each)) for each in stretches)
        bits = plan.update.value_bits
        even = [rotated_range(largest, length, bits) for length in lengths]
        ranges = np.array(even, np.float32)
    if plan.update.clipping == "previous-mean":
        ranges = np.append(ranges, norm)
    return ranges


def _effective_norm(plan: RunPlan, norm: np.float32) -> float:
    """Return the clipping norm of a round: its own, or the plan's where it is fixed."""
    if plan.update.clipping == "fixed":
        return plan.update.clipping_norm
    return float(norm)


def _checked_norm(plan: RunPlan, round_number: int, number: np.float32) -> float:
    """Return a round's own clipping norm, checked against the plan's."""
    largest = rounded_down(plan.update.clipping_norm)
    if not _SMALLEST_NORM <= number <= largest:
        raise EnvelopeRejected(
            f"a clipping norm of {number:g}, the plan permits at most {largest:g}"
        )
    if round_number == 1 and number != largest:
        raise EnvelopeRejected("the clipping norm of round 1 must be the plan's")
    return float(number)
