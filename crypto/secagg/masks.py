"""Self masks and pairwise masks; mask and unmask a vector.

With the slot's digest T3, its mask seeds b_i and agreement keys s_i, silo i of the
cohort A sends (all modulo 2^64)

    y_i = x_i + PRG(b_i, T3) + Σ_{j∈A, j>i} PRG(s_ij, T3) - Σ_{j∈A, j<i} PRG(s_ij, T3)

In a sum over survivors, pairwise masks between survivors cancel. The aggregator takes
away the self masks of survivors and the pairwise masks between survivors and dropouts.

Source: Bonawitz et al., "Practical Secure Aggregation", CCS 2017, section 4; the
binding of every mask to T3 is ours (docs/protocol.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crypto import labels
from crypto.encoding import Writer
from crypto.errors import ProtocolViolation
from crypto.kdf import derive
from crypto.keys import AgreementKey
from crypto.prg import MASK_SEED_BYTES, add_keystreams

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, repr=False)
class SlotSecrets:
    """What one silo masks one vector with, once."""

    mask_seed: bytes
    agreement: AgreementKey


def self_mask_seed(mask_seed: bytes, slot_digest: bytes, silo: int) -> bytes:
    """Return the seed of a silo's own mask, from its shared and committed seed."""
    associated = slot_digest + _place(silo)
    return derive(mask_seed, labels.SELF_MASK, associated, MASK_SEED_BYTES)


def pairwise_mask_seed(
    agreement: AgreementKey, peer_public: bytes, slot_digest: bytes, pair: set[int]
) -> bytes:
    """Return the seed of the mask between two silos; both derive the same.

    Raises:
        ProtocolViolation: the peer's key is of low order.
    """
    shared_secret = agreement.exchange(peer_public)
    associated = slot_digest + _place(*sorted(pair))
    return derive(shared_secret, labels.PAIRWISE_MASK, associated, MASK_SEED_BYTES)


def mask(
    words: Words,
    own: SlotSecrets,
    silo: int,
    publics: Mapping[int, bytes],
    slot_digest: bytes,
) -> None:
    """Add a silo's masks to its packed vector, in place.

    Guarantees: to whoever lacks the silo's mask seed, and lacks its agreement key and
    that of at least one peer, the result is indistinguishable from uniform words, if
    these secrets mask no other vector under this slot digest.

    Args:
        words: uint64 ``[w]``; overwritten.
        publics: the slot's public agreement keys of the whole cohort, by silo.

    Raises:
        ProtocolViolation: a peer's key is of low order; ``words`` is unchanged.
    """
    add = [self_mask_seed(own.mask_seed, slot_digest, silo)]
    subtract: list[bytes] = []
    for peer, public in publics.items():
        if peer == silo:
            continue
        try:
            mask_seed = pairwise_mask_seed(
                own.agreement, public, slot_digest, {silo, peer}
            )
        except ProtocolViolation as error:
            raise ProtocolViolation(f"silo {peer}: {error}") from None
        (add if silo < peer else subtract).append(mask_seed)
    add_keystreams(words, add, subtract)


def unmask(
    total: Words,
    mask_seeds: Mapping[int, bytes],
    dropped: Mapping[int, AgreementKey],
    publics: Mapping[int, bytes],
    slot_digest: bytes,
) -> None:
    """Take the masks away from a sum of masked vectors, in place.

    Args:
        total: uint64 ``[w]``, the sum over the survivors; overwritten.
        mask_seeds: the self seeds of all survivors, by silo.
        dropped: the slot's agreement keys of all dropouts, by silo.
        publics: the slot's public agreement keys of the cohort, by silo.
    """
    subtract = [
        self_mask_seed(mask_seed, slot_digest, silo)
        for silo, mask_seed in mask_seeds.items()
    ]
    add: list[bytes] = []
    for dropout, agreement in dropped.items():
        for survivor in mask_seeds:
            mask_seed = pairwise_mask_seed(
                agreement, publics[survivor], slot_digest, {dropout, survivor}
            )
            (subtract if survivor < dropout else add).append(mask_seed)
    add_keystreams(total, add, subtract)


def _place(*silos: int) -> bytes:
    """Return silo indices as associated data."""
    writer = Writer()
    for silo in silos:
        writer.integer(silo, 2)
    return writer.to_bytes()
