"""The digests that chain the stages: each names everything that was agreed before it.

::

    T0  setup    parameters, roster, aggregator, run, setup number
    T1  keys     T0 and every silo's public keys
    T2  members  T1 and the silos whose shares were delivered
    T3  slot     T2, slot, round, model digest, cohort and parts

Two silos that were told different things at any stage have different digests from then
on: their sealed shares do not open, their signatures do not count together, and their
masks do not cancel.
"""

from collections.abc import Collection, Sequence

from crypto import labels
from crypto.encoding import BytesLike, Writer, digest
from crypto.frame import RUN_BYTES
from crypto.keys import KEY_BYTES
from crypto.secagg.config import SecAggConfig
from crypto.secagg.messages import encode_silos
from crypto.secagg.parts import Parts, encode_parts, within


def setup_digest(
    config: SecAggConfig,
    roster: Sequence[bytes],
    aggregator_public: bytes,
    run: bytes,
    setup: int,
) -> bytes:
    """Return T0, over everything that is pinned before the first message.

    Raises:
        ValueError: lengths are wrong, or two silos of the roster share a key.
    """
    if len(roster) != config.num_silos:
        raise ValueError(f"roster: {len(roster)} keys for {config.num_silos} silos")
    if len({*roster, aggregator_public}) != len(roster) + 1:
        raise ValueError("roster: two parties with one identity key")
    keys = Writer().fixed(aggregator_public, KEY_BYTES)
    for public in roster:
        keys.fixed(public, KEY_BYTES)
    name = Writer().fixed(run, RUN_BYTES).integer(setup, 4).to_bytes()
    return digest(labels.SETUP_DIGEST, config.to_bytes(), keys.to_bytes(), name)


def keys_digest(setup: bytes, keys_body: BytesLike) -> bytes:
    """Return T1 = H(T0, body of KEYS)."""
    return digest(labels.KEYS_DIGEST, setup, keys_body)


def members_digest(
    keys: bytes, members: Collection[int], num_silos: int, commitment: bytes = b""
) -> bytes:
    """Return T2 = H(T1, U2); with encryption H(T1, U2, commitment to the key)."""
    parts = (keys, encode_silos(members, num_silos))
    return digest(labels.MEMBERS_DIGEST, *parts, *([commitment] if commitment else []))


def slot_digest(
    members: bytes,
    slot: int,
    round_number: int,
    model_digest: bytes,
    cohort: Collection[int],
    parts: Parts,
    num_silos: int,
) -> bytes:
    """Return T3 = H(T2, slot ‖ round, model digest, A, parts); masks come from it.

    Of every part T3 covers its length and those of its contributors that are in A.
    """
    return digest(
        labels.SLOT_DIGEST,
        members,
        Writer().integer(slot, 4).integer(round_number, 4).to_bytes(),
        model_digest,
        encode_silos(cohort, num_silos),
        encode_parts(within(parts, cohort), num_silos),
    )


def commit_to_seed(setup: bytes, silo: int, slot: int, mask_seed: bytes) -> bytes:
    """Return the commitment to a self mask's seed; 32 random bytes keep it hiding."""
    place = Writer().integer(silo, 2).integer(slot, 4).to_bytes()
    return digest(labels.MASK_SEED_COMMITMENT, setup, place, mask_seed)


def sum_digest(slot_digest: bytes, words: BytesLike) -> bytes:
    """Return the digest of a slot's sum, packed words as little-endian bytes."""
    return digest(labels.SUM_DIGEST, slot_digest, words)
