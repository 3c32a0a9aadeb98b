"""Ed25519 signatures with a domain-separation label."""

from cryptography.exceptions import InvalidSignature as Refused
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from crypto.encoding import BytesLike
from crypto.errors import InvalidSignature
from crypto.keys import IdentityKey

SIGNATURE_BYTES = 64


def sign(key: IdentityKey, label: bytes, message: BytesLike) -> bytes:
    """Return the signature of a message for one purpose.

    Guarantees: deterministic, so that a repeated answer is byte-identical; a signature
    under one label never verifies under another.

    Returns:
        64 bytes.

    Source: RFC 8032, section 5.1 (pure Ed25519).
    """
    return key.sign_unlabelled(_labelled(label, message))


def verify(
    public: bytes, label: bytes, message: BytesLike, signature: BytesLike
) -> None:
    """Return if the holder of ``public`` signed ``message`` under ``label``.

    Raises:
        InvalidSignature: in every other case, malformed keys included.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(
            bytes(signature), _labelled(label, message)
        )
    except (Refused, ValueError):
        raise InvalidSignature(
            f"not signed by the key {bytes(public).hex()[:16]}…"
        ) from None


def _labelled(label: bytes, message: BytesLike) -> bytes:
    """Put the label, preceded by its length, before the message."""
    return bytes([len(label)]) + label + bytes(message)
