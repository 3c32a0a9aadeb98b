"""Shares sealed from one silo to another, past the aggregator that carries them.

The key comes from the two channel keys, which are never shared and mask nothing: if
the mask keys sealed the shares, recovering a dropout would open its envelopes. One key
seals one message: it is bound to T1, sender and recipient, and channel keys are fresh
in every setup.
"""

from crypto import labels
from crypto.aead import AEAD_KEY_BYTES, open_once, seal_once
from crypto.encoding import BytesLike, Writer
from crypto.errors import DecryptionFailed
from crypto.frame import Header
from crypto.kdf import derive
from crypto.keys import AgreementKey


def seal_shares(
    channel: AgreementKey,
    recipient_public: bytes,
    keys_digest: bytes,
    header: Header,
    shares: bytes,
) -> bytes:
    """Return the shares sealed to the recipient of the header.

    Args:
        channel: the sender's channel key.
        recipient_public: the recipient's channel key.
        keys_digest: T1.
        header: from one silo to another; authenticated with the shares.
        shares: for each slot the share of the mask seed, then of the agreement key.
    """
    key = _envelope_key(channel, recipient_public, keys_digest, header)
    return seal_once(key, shares, header.to_bytes())


def open_shares(
    channel: AgreementKey,
    sender_public: bytes,
    keys_digest: bytes,
    header: Header,
    sealed: BytesLike,
) -> bytes:
    """Return the shares that the sender of the header sealed to ``channel``.

    Raises:
        DecryptionFailed: altered, or meant for others; the message names the sender.
    """
    key = _envelope_key(channel, sender_public, keys_digest, header)
    try:
        return open_once(key, sealed, header.to_bytes())
    except DecryptionFailed:
        raise DecryptionFailed(
            f"the envelope of silo {header.sender} to silo {header.recipient} "
            "does not open",
            silo=header.sender,
        ) from None


def _envelope_key(
    channel: AgreementKey, public: bytes, keys_digest: bytes, header: Header
) -> bytes:
    """Derive the one-time key of one envelope."""
    parties = Writer().integer(header.sender, 2).integer(header.recipient, 2)
    return derive(
        channel.exchange(public),
        labels.ENVELOPE_KEY,
        keys_digest + parties.to_bytes(),
        AEAD_KEY_BYTES,
    )
