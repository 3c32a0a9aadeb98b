"""Derive keys from shared secrets and seeds: HKDF-SHA256."""

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from crypto.encoding import BytesLike

MAX_DERIVED_BYTES = 255 * 32
"""The most that HKDF-SHA256 gives (RFC 5869, section 2.3)."""


def derive(secret: bytes, label: bytes, associated: BytesLike, length: int) -> bytes:
    """Return ``length`` bytes that only a holder of ``secret`` can compute.

    Guarantees: outputs for different (label, associated) pairs are independent, if
    ``secret`` has 128 bits of min-entropy. The label is preceded by its length, so that
    no label and associated data can be split in two ways.

    Args:
        secret: a shared secret or a seed; never used in any other way.
        label: one of ``crypto.labels``.
        associated: public bytes that the key is bound to.
        length: 1 to ``MAX_DERIVED_BYTES`` bytes.

    Raises:
        ValueError: the length is out of range.

    Source: RFC 5869, empty salt.
    """
    if not 1 <= length <= MAX_DERIVED_BYTES:
        raise ValueError(f"length: must be 1 to {MAX_DERIVED_BYTES}, is {length}")
    info = bytes([len(label)]) + label + bytes(associated)
    return HKDF(SHA256(), length, salt=None, info=info).derive(secret)
