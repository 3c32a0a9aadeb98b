"""Self masks and pairwise masks: mask and unmask a vector.

With the slot's digest T3, its mask seed b_i and agreement key s_i, silo i sends of each
part p that it contributes to, with G_p the contributors in the cohort (modulo 2^64)

    y_i = x_i + PRG(b_i, T3, p) + Σ_{j∈G_p, j>i} PRG(s_ij, T3, p)
                                - Σ_{j∈G_p, j<i} PRG(s_ij, T3, p)

In a sum over survivors, pairwise masks between survivors cancel. The aggregator takes
away the self masks of survivors and the pairwise masks between survivors and dropouts.

Source: Bonawitz et al., "Practical Secure Aggregation", CCS 2017, section 4; the
binding of every mask to T3 and part is ours (docs/protocol.md).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crypto import labels
from crypto.encoding import Writer
from crypto.errors import ProtocolViolation
from crypto.kdf import derive
from crypto.keys import AgreementKey
from crypto.prg import MASK_SEED_BYTES, add_keystreams
from crypto.secagg.parts import Parts, own_places, places

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, repr=False)
class SlotSecrets:
    """What one silo masks one vector with, once."""

    mask_seed: bytes
    agreement: AgreementKey


def self_mask_seed(mask_seed: bytes, slot_digest: bytes, part: int, silo: int) -> bytes:
    """Return the seed of a silo's own mask, from its shared and committed seed."""
    associated = slot_digest + _place(part, silo)
    return derive(mask_seed, labels.SELF_MASK, associated, MASK_SEED_BYTES)


def pairwise_mask_seed(
    shared_secret: bytes, slot_digest: bytes, part: int, pair: set[int]
) -> bytes:
    """Return the seed of the mask between two silos; both derive the same.

    Args:
        shared_secret: what the two agreement keys of the slot give.
        pair: both indices.
    """
    associated = slot_digest + _place(part, *sorted(pair))
    return derive(shared_secret, labels.PAIRWISE_MASK, associated, MASK_SEED_BYTES)


@dataclass(frozen=True, repr=False)
class PartMasks:
    """The seeds of one silo's masks on one stretch of its vector."""

    place: slice
    add: tuple[bytes, ...]
    subtract: tuple[bytes, ...]


def derive_masks(
    own: SlotSecrets,
    silo: int,
    publics: Mapping[int, bytes],
    slot_digest: bytes,
    parts: Parts,
) -> list[PartMasks]:
    """Return the seeds of a silo's masks, for each of its parts.

    Args:
        publics: the slot's public agreement keys of the whole cohort, by silo.
        parts: with their contributors in the cohort.

    Raises:
        ProtocolViolation: a peer's key is of low order.
    """
    mine = [(index, place) for index, place, _ in own_places(parts, silo)]
    peers = {peer for index, _ in mine for peer in parts[index].contributors} - {silo}
    shared = {peer: _exchange(own.agreement, peer, publics[peer]) for peer in peers}
    masks = []
    for index, place in mine:
        add = [self_mask_seed(own.mask_seed, slot_digest, index, silo)]
        subtract: list[bytes] = []
        for peer in parts[index].contributors:
            if peer != silo:
                pair = {silo, peer}
                seed = pairwise_mask_seed(shared[peer], slot_digest, index, pair)
                (add if silo < peer else subtract).append(seed)
        masks.append(PartMasks(place, tuple(add), tuple(subtract)))
    return masks


def add_masks(words: Words, masks: Iterable[PartMasks]) -> None:
    """Add a silo's masks to its packed vector, in place.

    Guarantees: to whoever lacks the silo's mask seed, and lacks its agreement key and
    that of at least one peer of the part, the result is indistinguishable from uniform
    words, if these secrets mask no other vector under this slot digest.

    Args:
        words: uint64 ``[w]``, the silo's parts in a row; overwritten.
    """
    for part in masks:
        add_keystreams(words[part.place], part.add, part.subtract)


def mask(
    words: Words,
    own: SlotSecrets,
    silo: int,
    publics: Mapping[int, bytes],
    slot_digest: bytes,
    parts: Parts,
) -> None:
    """Derive a silo's masks and add them; see the two functions above.

    Raises:
        ProtocolViolation: a peer's key is of low order; ``words`` is unchanged.
    """
    add_masks(words, derive_masks(own, silo, publics, slot_digest, parts))


def unmask(
    total: Words,
    mask_seeds: Mapping[int, bytes],
    dropped: Mapping[int, AgreementKey],
    publics: Mapping[int, bytes],
    slot_digest: bytes,
    parts: Parts,
) -> None:
    """Take the masks away from a sum of masked vectors, in place.

    Args:
        total: uint64 ``[w]``, all parts in a row, the sum over the survivors;
            overwritten.
        mask_seeds: the self seeds of all surviving contributors, by silo.
        dropped: the slot's agreement keys of all lost contributors, by silo.
        publics: the slot's public agreement keys of the cohort, by silo.
        parts: with their contributors in the cohort.
    """
    shared = {
        (dropout, survivor): _exchange(agreement, survivor, publics[survivor])
        for dropout, agreement in dropped.items()
        for survivor in mask_seeds
        if _share_a_part(parts, dropout, survivor)
    }
    for index, part, place in places(parts):
        add: list[bytes] = []
        subtract = [
            self_mask_seed(mask_seeds[silo], slot_digest, index, silo)
            for silo in part.contributors
            if silo in mask_seeds
        ]
        members = set(part.contributors)
        for (dropout, survivor), secret in shared.items():
            if {dropout, survivor} <= members:
                pair = {dropout, survivor}
                seed = pairwise_mask_seed(secret, slot_digest, index, pair)
                (subtract if survivor < dropout else add).append(seed)
        add_keystreams(total[place], add, subtract)


def _share_a_part(parts: Parts, one: int, other: int) -> bool:
    """Whether two silos contribute to the same part."""
    return any({one, other} <= set(part.contributors) for part in parts)


def _exchange(agreement: AgreementKey, peer: int, public: bytes) -> bytes:
    """Return the shared secret with a peer; an error names the peer.

    Raises:
        ProtocolViolation: the peer's key is of low order.
    """
    try:
        return agreement.exchange(public)
    except ProtocolViolation as error:
        raise ProtocolViolation(f"silo {peer}: {error}") from None


def _place(*numbers: int) -> bytes:
    """Return part and silo indices as associated data."""
    writer = Writer()
    for number in numbers:
        writer.integer(number, 2)
    return writer.to_bytes()
