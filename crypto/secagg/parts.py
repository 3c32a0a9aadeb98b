"""Who contributes to which stretch of a slot's vector.

A vector is one *part*, or several in a row when a selection deals the parts of a model
to groups of silos. Each part has its own contributors, and its masks exist among them
only. Share holders are all of the cohort, whatever they contribute. A silo's parts
travel in one message, so that it survives with all of them or with none: one slot, one
mask seed and one agreement key serve the whole round (docs/decisions/0005).

Parts never come from the wire. Every side computes them from the plan and from public
digests, and T3 covers them: sides that deal differently have masks that do not cancel.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from crypto.encoding import BytesLike, Reader, Writer
from crypto.errors import MalformedMessage, ProtocolViolation
from crypto.secagg.config import MAX_PARTS, MAX_WORDS
from crypto.secagg.messages import bitmap_bytes, decode_silos, encode_silos


@dataclass(frozen=True)
class Part:
    """A stretch of the vector, and the silos whose words are summed in it.

    Attributes:
        num_words: its length in 64-bit words, at least 1.
        contributors: indices of silos, ascending, each once. There may be none: so
            :func:`within` says that nobody is left; :func:`check_groups` refuses it.

    Raises:
        ValueError: no words or too many, or contributors out of order.
    """

    num_words: int
    contributors: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check length and order."""
        if not 1 <= self.num_words <= MAX_WORDS:
            raise ValueError(
                f"num_words: must be 1 to {MAX_WORDS}, is {self.num_words}"
            )
        if tuple(sorted(set(self.contributors))) != self.contributors:
            raise ValueError("contributors: must be ascending, each once")


Parts = tuple[Part, ...]


def whole(num_words: int, silos: Collection[int]) -> Parts:
    """Return one part to which all of these silos contribute."""
    return (Part(num_words, tuple(sorted(silos))),)


def within(parts: Parts, silos: Collection[int]) -> Parts:
    """Return the same parts with only those of their contributors that are given."""
    chosen = set(silos)
    return tuple(
        Part(part.num_words, tuple(s for s in part.contributors if s in chosen))
        for part in parts
    )


def check_parts(parts: Parts) -> None:
    """Raise ``ValueError`` unless parts are few enough and short enough together."""
    if not 1 <= len(parts) <= MAX_PARTS:
        raise ValueError(f"parts: must be 1 to {MAX_PARTS}, are {len(parts)}")
    if total_words(parts) > MAX_WORDS:
        raise ValueError(f"num_words: {total_words(parts)}, above {MAX_WORDS}")


def check_groups(
    parts: Parts, silos: Collection[int], min_cohort: int, what: str
) -> None:
    """Refuse silos of whom too few contribute to a part: its sum would show them.

    Raises:
        ProtocolViolation: with the part and both numbers.
    """
    for index, part in enumerate(within(parts, silos)):
        if len(part.contributors) < min_cohort:
            raise ProtocolViolation(
                f"{what}: part {index} has {len(part.contributors)} contributors, at "
                f"least {min_cohort} are needed"
            )


def total_words(parts: Parts) -> int:
    """Return the length of the whole vector, which the aggregator sums."""
    return sum(part.num_words for part in parts)


def words_of(parts: Parts, silo: int) -> int:
    """Return the length of one silo's vector: its own parts in a row."""
    return sum(part.num_words for part in parts if silo in part.contributors)


def contributors_of(parts: Parts, silos: Collection[int]) -> tuple[int, ...]:
    """Return those of the silos that contribute to any part, ascending."""
    known = {silo for part in parts for silo in part.contributors}
    return tuple(sorted(known & set(silos)))


def places(parts: Parts) -> Iterator[tuple[int, Part, slice]]:
    """Yield every part with its index and its place in the whole vector."""
    start = 0
    for index, part in enumerate(parts):
        yield index, part, slice(start, start + part.num_words)
        start += part.num_words


def own_places(parts: Parts, silo: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield a silo's parts: index, place in its own vector, place in the whole."""
    start = 0
    for index, part, place in places(parts):
        if silo in part.contributors:
            yield index, slice(start, start + part.num_words), place
            start += part.num_words


def encode_parts(parts: Sequence[Part], num_silos: int) -> bytes:
    """Return the parts as canonical bytes, for digests and for the state on disk."""
    writer = Writer().integer(len(parts), 2)
    for part in parts:
        writer.integer(part.num_words, 8)
        writer.fixed(
            encode_silos(part.contributors, num_silos), bitmap_bytes(num_silos)
        )
    return writer.to_bytes()


def decode_parts(data: BytesLike, num_silos: int) -> Parts:
    """Return the parts of :func:`encode_parts`.

    Raises:
        MalformedMessage: other bytes, or a part of no words or too many.
    """
    reader, parts = Reader(data), []
    for _ in range(reader.integer(2)):
        num_words = reader.integer(8)
        silos = decode_silos(reader.view(bitmap_bytes(num_silos)), num_silos)
        try:
            parts.append(Part(num_words, silos))
        except ValueError as error:
            raise MalformedMessage(f"part {len(parts)}: {error}") from None
    reader.end()
    return tuple(parts)
