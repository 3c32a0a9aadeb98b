"""The quantised down-link: differences of the global model that define the next one.

With ``update.broadcast_bits`` b the shared parameters never travel as they are. What
travels is a *difference*: for every tensor a range, float32, and for every value an
integer level of b bits. It *defines* the next global parameters. Aggregator and silos
add it to the same base by the same function, :func:`moved`, in float32 operations that
IEEE 754 rounds in one way only, and hold the same bits on every machine.

BROADCAST brings the differences that a silo lacks, oldest first, or all parameters
where those are fewer bytes; HELD says which model the silo holds then.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crypto.encoding import BytesLike
from protocol.bodies import (
    check_names,
    digest_in,
    floats_from_bytes,
    join_body,
    split_body,
)
from protocol.errors import EnvelopeRejected
from protocol.plan import RunPlan

Vector = npt.NDArray[np.float32]
Levels = npt.NDArray[np.int32]

MAX_DIFFERENCES = 16
"""The most differences in one message; more of them are never fewer bytes than all
parameters, 32 bits a value, as a level has 4 bits or more."""
_BLOCK = 1 << 15
"""Values that are packed at a time: a whole number of bytes at any width."""


@dataclass(frozen=True)
class Difference:
    """What leads from one global model to the next.

    ``ranges`` are float32, little-endian, one for each tensor; ``levels`` the packed
    integers; ``model`` is the digest (hexadecimal) of the parameters that it leads to.
    """

    ranges: bytes
    levels: bytes
    model: str

    @property
    def num_bytes(self) -> int:
        """The bytes of ranges and levels."""
        return len(self.ranges) + len(self.levels)


def largest_level(bits: int) -> int:
    """Return M: levels are -M … M."""
    return (1 << (bits - 1)) - 1


def difference_bytes(segments: Sequence[int], bits: int) -> int:
    """Return the bytes of a difference's ranges and levels, exactly."""
    return 4 * len(segments) + _packed_bytes(sum(segments), bits)


def down_bytes(plan: RunPlan, segments: Sequence[int], round_number: int) -> int:
    """Return the bytes of parameters that one silo is sent before a round trains.

    Those of a run in which no round is lost and no silo misses one, without the few
    hundred bytes of the messages around them; round 0 is the end of the run.
    """
    is_end, size = round_number == 0, 4 * sum(segments)
    average = size if is_end and plan.aggregation.ema_decay else 0
    if round_number == 1:
        return 0
    if plan.update.broadcast_bits:
        return average + difference_bytes(segments, plan.update.broadcast_bits)
    return average + size


def make_difference(
    base: Vector, target: Vector, segments: Sequence[int], bits: int
) -> tuple[bytes, bytes]:
    """Return ranges and packed levels that lead from a base close to a target.

    Each tensor's range is its largest absolute difference, in float32; levels are
    nearest, so that a value is missed by half a grid step, range / (2 M), and by the
    rounding of :func:`moved`. A range whose grid step is no normal float32 is 0: the
    tensor stays.

    Args:
        base, target: float32 ``[d]``, finite.
        segments: lengths of the tensors; their sum is d.

    Raises:
        ValueError: a difference is beyond float32.
    """
    exact = target.astype(np.float64) - base
    ranges = np.zeros(len(segments), np.float32)
    for index, part in _parts(segments):
        with np.errstate(over="ignore"):
            ranges[index] = np.float32(np.abs(exact[part]).max(initial=0.0))
    if not np.isfinite(ranges).all():
        raise ValueError("a difference of the global model is beyond float32")
    most = largest_level(bits)
    steps = _steps(ranges, bits)
    ranges[steps < np.finfo(np.float32).tiny] = 0
    levels = np.zeros(base.size, np.int32)
    for index, part in _parts(segments):
        if ranges[index]:
            wanted = np.rint(exact[part] / np.float64(steps[index]))
            levels[part] = np.clip(wanted, -most, most)
    return ranges.astype("<f4").tobytes(), pack_levels(levels, bits)


def moved(
    base: Vector,
    ranges: BytesLike,
    levels: BytesLike,
    segments: Sequence[int],
    bits: int,
) -> Vector:
    """Return the parameters that a difference defines, float32 ``[d]``.

    Element by element, every operation rounded to the nearest float32 (ties to even)::

        step = range / M        M = 2^(b-1) - 1
        next = base + level · step

    Guarantees: the same bits for every party; the base is not changed.

    Raises:
        EnvelopeRejected: another length, levels beyond M, or a result or range that is
            not finite, or a negative range.
    """
    numbers = floats_from_bytes(ranges, len(segments))
    if (numbers < 0).any():
        raise EnvelopeRejected("a range of a difference is negative")
    whole, steps = unpack_levels(levels, base.size, bits), _steps(numbers, bits)
    following = np.empty_like(base)
    with np.errstate(over="ignore", invalid="ignore"):
        for index, part in _parts(segments):
            added = whole[part].astype(np.float32) * steps[index]
            np.add(base[part], added, out=following[part])
    if not np.isfinite(following).all():
        raise EnvelopeRejected("a difference leads to NaN or infinity")
    return following


def pack_levels(levels: Levels, bits: int) -> bytes:
    """Return levels -M … M as level + M in b bits each, the most significant first.

    The last byte is filled up with zeros.
    """
    pieces = []
    for start in range(0, levels.size, _BLOCK):
        block = levels[start : start + _BLOCK] + np.int32(largest_level(bits))
        pairs = block.astype(">u2").view(np.uint8).reshape(-1, 2)
        pieces.append(np.packbits(np.unpackbits(pairs, axis=1)[:, 16 - bits :]))
    return b"".join(piece.tobytes() for piece in pieces)


def unpack_levels(data: BytesLike, length: int, bits: int) -> Levels:
    """Return the levels of :func:`pack_levels`, int32 ``[length]``.

    Raises:
        EnvelopeRejected: another number of bytes, a level beyond M, or bits that no
            level has.
    """
    if len(data) != _packed_bytes(length, bits):
        raise EnvelopeRejected(
            f"a difference holds {len(data):,} bytes of levels, expected "
            f"{_packed_bytes(length, bits):,}"
        )
    content, levels = np.frombuffer(data, np.uint8), np.empty(length, np.int32)
    for start in range(0, length, _BLOCK):
        count = min(_BLOCK, length - start)
        first = start * bits // 8
        block = np.unpackbits(content[first : first + _packed_bytes(count, bits)])
        if block[count * bits :].any():
            raise EnvelopeRejected("a difference has bits behind its last level")
        rows = np.zeros((count, 16), np.uint8)
        rows[:, 16 - bits :] = block[: count * bits].reshape(count, bits)
        fields = np.packbits(rows, axis=1).view(">u2").reshape(-1)
        levels[start : start + count] = fields
    most = largest_level(bits)
    if (levels > 2 * most).any():
        raise EnvelopeRejected("a difference has a level beyond its grid")
    levels -= most
    return levels


@dataclass(frozen=True, kw_only=True)
class Broadcast:
    """The aggregator's request to hold a model: by differences, or as it is.

    ``round_number`` is the round that begins with it, 0 where the run ends. ``models``
    are the digests (hexadecimal) of the models that follow from each other; with
    differences the first is the base, and one difference leads from each to the next.
    With ``parameters``, float32, there is one digest and no difference.
    """

    round_number: int
    models: tuple[str, ...]
    ranges: BytesLike = b""
    levels: BytesLike = b""
    parameters: BytesLike = b""

    @property
    def model(self) -> str:
        """The digest of the model that a silo shall hold."""
        return self.models[-1]

    @classmethod
    def of_differences(
        cls, round_number: int, base: str, differences: Sequence[Difference]
    ) -> "Broadcast":
        """Return the request with differences in a row, the first added to ``base``."""
        return cls(
            round_number=round_number,
            models=(base, *(each.model for each in differences)),
            ranges=b"".join(each.ranges for each in differences),
            levels=b"".join(each.levels for each in differences),
        )

    def differences(self) -> tuple[Difference, ...]:
        """Return the differences one by one; their bytes are copies.

        Raises:
            EnvelopeRejected: they are not of equal length.
        """
        count = len(self.models) - 1
        if not count:
            return ()
        if len(self.ranges) % count or len(self.levels) % count:
            raise EnvelopeRejected("a message holds a part of a difference")
        ranges, levels = len(self.ranges) // count, len(self.levels) // count
        return tuple(
            Difference(
                bytes(self.ranges[ranges * index : ranges * (index + 1)]),
                bytes(self.levels[levels * index : levels * (index + 1)]),
                self.models[index + 1],
            )
            for index in range(count)
        )

    def to_body(self) -> bytes:
        """Return the body's bytes."""
        table = {"round_number": self.round_number, "models": list(self.models)}
        return join_body(table, self.ranges, self.levels, self.parameters)

    @classmethod
    def from_body(cls, body: memoryview) -> "Broadcast":
        """Return the request of a body; its parts are views of it, not copies.

        Raises:
            EnvelopeRejected: malformed.
        """
        table, (ranges, levels, parameters) = split_body(body, 3)
        check_names(table, ("round_number", "models"))
        number, models = table["round_number"], models_in(table)
        if type(number) is not int or not 0 <= number < 2**31:
            raise EnvelopeRejected("round_number must be a whole number")
        if (len(models) == 1) != bool(len(parameters)):
            raise EnvelopeRejected("a broadcast holds differences or all parameters")
        if len(models) == 1 and (len(ranges) or len(levels)):
            raise EnvelopeRejected("a difference without the model it is added to")
        return cls(
            round_number=number,
            models=models,
            ranges=ranges,
            levels=levels,
            parameters=parameters,
        )


@dataclass(frozen=True, kw_only=True)
class Held:
    """A silo's answer to a broadcast: the digest of the model that it holds now."""

    model: str

    def to_body(self) -> bytes:
        """Return the body's bytes."""
        return join_body({"model": self.model})

    @classmethod
    def from_body(cls, body: memoryview) -> "Held":
        """Return the answer of a body.

        Raises:
            EnvelopeRejected: malformed.
        """
        table, _ = split_body(body, 0)
        check_names(table, ("model",))
        return cls(model=digest_in(table, "model"))


def models_in(table: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the digests of a table's models; raise if they are none, or too many."""
    models = table["models"]
    if not isinstance(models, list) or not 1 <= len(models) <= MAX_DIFFERENCES + 1:
        raise EnvelopeRejected(f"models must be 1 to {MAX_DIFFERENCES + 1} digests")
    return tuple(digest_in({"models": model}, "models") for model in models)


def _steps(ranges: Vector, bits: int) -> Vector:
    """Return the grid steps range / M, float32."""
    with np.errstate(under="ignore"):
        return np.asarray(ranges / np.float32(largest_level(bits)), np.float32)


def _packed_bytes(length: int, bits: int) -> int:
    """Return the bytes of so many packed levels."""
    return (length * bits + 7) // 8


def _parts(segments: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Yield the index and the place of each tensor."""
    start = 0
    for index, length in enumerate(segments):
        yield index, slice(start, start + length)
        start += length
