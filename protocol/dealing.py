"""Which silo returns which part of the model in a round: the dealing of USplit.

Silos are drawn into pairs. One of a pair returns the decoder, the other the encoder,
and a fair coin says which of the two returns the bottleneck as well. With an odd number
the last one returns the bottleneck and, by a coin, the decoder or the encoder.

Nobody deals: every party computes the same parts from public numbers. Source: de Goede,
Cox & Decouchant, 2024, algorithm USPLIT; there, the aggregator draws.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from crypto import labels
from crypto.encoding import digest as labelled_digest
from crypto.frame import EVERYONE

ENCODER, BOTTLENECK, DECODER = "encoder", "bottleneck", "decoder"
PARTS = (ENCODER, BOTTLENECK, DECODER)
DIGEST_BYTES = 32
MAX_SILO = EVERYONE - 1


def deal(
    digest: bytes, round_number: int, members: Sequence[int]
) -> Mapping[str, tuple[int, ...]]:
    """Return, for each part of the model, the silos that return it in a round.

    Guarantees: the result depends on the digest, the round and the *set* of members
    alone. Every part has a silo. Every silo has one part or two; one silo alone has all
    three. No group is smaller than :func:`smallest_group`. For a digest that nobody
    could choose, every order of the silos and every coin is equally likely (SHA-256 as
    a random function), and rounds are independent of each other. Whoever can try out
    many digests can choose among their dealings, but never below the smallest group.

    Args:
        digest: 32 public bytes that name setup and members.
        round_number: from 1.
        members: silo indices, in any order, each once.

    Returns:
        Silo indices in rising order, by the names in ``PARTS``.

    Raises:
        ValueError: no members, one twice, or a number out of range.
    """
    _check(digest, round_number, members)
    draws = sorted((_draw(digest, round_number, silo), silo) for silo in members)
    if len(draws) == 1:
        return MappingProxyType(dict.fromkeys(PARTS, tuple(members)))
    groups: dict[str, list[int]] = {part: [] for part in PARTS}
    for (first_draw, first), (_, second) in zip(draws[::2], draws[1::2], strict=False):
        groups[DECODER].append(first)
        groups[ENCODER].append(second)
        groups[BOTTLENECK].append(first if _coin(first_draw) else second)
    if len(draws) % 2:
        last_draw, last = draws[-1]
        groups[BOTTLENECK].append(last)
        groups[DECODER if _coin(last_draw) else ENCODER].append(last)
    return MappingProxyType({part: tuple(sorted(groups[part])) for part in PARTS})


def smallest_group(num_members: int) -> int:
    """Return the size of the smallest group of a dealing, before any silo drops out.

    m members make ⌊m/2⌋ pairs, each with one encoder and one decoder; the bottleneck
    has ⌈m/2⌉ silos. The odd one joins the encoder or the decoder, so that the other has
    ⌊m/2⌋. One silo alone returns everything.

    Raises:
        ValueError: there are no members.
    """
    if num_members < 1:
        raise ValueError(f"num_members: must be at least 1, is {num_members}")
    return max(1, num_members // 2)


def members_needed(min_cohort: int) -> int:
    """Return the fewest members whose groups all have ``min_cohort`` silos for certain.

    Two for each: the inverse of :func:`smallest_group`. Silos that drop out later are
    not counted here; a group must be counted again when the survivors are known.

    Raises:
        ValueError: the cohort is empty.
    """
    if min_cohort < 1:
        raise ValueError(f"min_cohort: must be at least 1, is {min_cohort}")
    return 1 if min_cohort == 1 else 2 * min_cohort


def _check(digest: bytes, round_number: int, members: Sequence[int]) -> None:
    """Raise ``ValueError`` for what no dealing can be made of."""
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"digest: must be {DIGEST_BYTES} bytes, is {len(digest)}")
    if not 1 <= round_number < 1 << 64:
        raise ValueError(f"round_number: must be 1 to 2^64 - 1, is {round_number}")
    if not members or len(set(members)) != len(members):
        raise ValueError("members: must be silos, at least one and each once")
    if min(members) < 0 or max(members) > MAX_SILO:
        raise ValueError(f"members: must be 0 to {MAX_SILO}, are {sorted(members)}")


def _draw(digest: bytes, round_number: int, silo: int) -> bytes:
    """Return the 32 bytes that fix a silo's place in the order, and its coin."""
    return labelled_digest(
        labels.DEALING,
        digest,
        round_number.to_bytes(8, "big"),
        silo.to_bytes(2, "big"),
    )


def _coin(draw: bytes) -> bool:
    """Return the last bit, which orders two draws only if 255 others are equal."""
    return bool(draw[-1] & 1)
