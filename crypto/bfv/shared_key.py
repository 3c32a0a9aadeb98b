"""The key that all silos of a setup share: who makes it, and how it reaches the others.

One silo makes it, chosen by the plan; if it is not in KEYS, the next one of the roster
that is. It seals the key to every other silo's channel key, which that silo's pinned
identity key has signed, and commits to it: T2 covers the commitment, so that all silos
that sign READY have one and the same key. The aggregator carries all of it and holds no
key, not even a public one: ciphertexts are made under the secret key.
"""

import secrets
from collections.abc import Collection

from crypto import labels
from crypto.aead import AEAD_KEY_BYTES, open_sealed, seal
from crypto.bfv.residues import unpack_residues
from crypto.encoding import BytesLike, Writer, digest
from crypto.errors import CryptoError, DecryptionFailed
from crypto.frame import Header
from crypto.kdf import derive
from crypto.keys import AgreementKey
from crypto.secagg.config import SecAggConfig


def key_maker(config: SecAggConfig, silos: Collection[int]) -> int:
    """Return which silo makes the key, among those of KEYS."""
    order = range(config.key_maker, config.key_maker + config.num_silos)
    return next(s % config.num_silos for s in order if s % config.num_silos in silos)


def commit_to_key(keys_digest: bytes, secret_key: bytes) -> bytes:
    """Return the commitment to a key; the key's randomness keeps it hiding."""
    return digest(labels.KEY_COMMITMENT, keys_digest, secret_key)


def seal_key(
    channel: AgreementKey,
    recipient_public: bytes,
    keys_digest: bytes,
    header: Header,
    secret_key: bytes,
) -> bytes:
    """Return the key sealed to the recipient of the header.

    The nonce is random: a maker whose state goes back in time makes another key, and
    seals it under the same channel keys.
    """
    key = _envelope_key(channel, recipient_public, keys_digest, header)
    return seal(key, secret_key, header.to_bytes())


def open_key(
    channel: AgreementKey,
    sender_public: bytes,
    keys_digest: bytes,
    header: Header,
    sealed: BytesLike,
    commitment: bytes,
) -> bytes:
    """Return the key that the sender of the header sealed to ``channel``.

    Raises:
        DecryptionFailed: altered, meant for others, no key, or not the one that was
            committed to; the message names the sender.
    """
    key = _envelope_key(channel, sender_public, keys_digest, header)
    try:
        secret_key = open_sealed(key, sealed, header.to_bytes())
        unpack_residues(secret_key, 1)
        is_committed = secrets.compare_digest(
            commit_to_key(keys_digest, secret_key), commitment
        )
    except CryptoError:
        is_committed = False
    if not is_committed:
        raise DecryptionFailed(
            f"the key that silo {header.sender} sealed to silo {header.recipient} "
            "does not open",
            silo=header.sender,
        )
    return secret_key


def _envelope_key(
    channel: AgreementKey, public: bytes, keys_digest: bytes, header: Header
) -> bytes:
    """Derive the key that seals the shared one from one silo to another."""
    parties = Writer().integer(header.sender, 2).integer(header.recipient, 2)
    return derive(
        channel.exchange(public),
        labels.KEY_ENVELOPE,
        keys_digest + parties.to_bytes(),
        AEAD_KEY_BYTES,
    )
