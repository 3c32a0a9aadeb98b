"""Seal and open: ChaCha20-Poly1305 with associated data.

Two pairs. ``seal`` and ``open_sealed`` draw a nonce and serve keys that seal often.
``seal_once`` and ``open_once`` use the zero nonce and serve keys that were derived for
one message; their caller guarantees that there is no second one.
"""

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from crypto.encoding import BytesLike
from crypto.errors import DecryptionFailed

AEAD_KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
_ZERO_NONCE = bytes(NONCE_BYTES)


def seal(key: bytes, plaintext: BytesLike, associated: BytesLike) -> bytes:
    """Return nonce, ciphertext and tag, under a nonce drawn from the operating system.

    Guarantees: confidential and authentic together with ``associated``, for up to 2^32
    messages under one key (random 96-bit nonces).
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + _seal(key, nonce, plaintext, associated)


def open_sealed(key: bytes, sealed: BytesLike, associated: BytesLike) -> bytes:
    """Return the plaintext of :func:`seal`.

    Raises:
        DecryptionFailed: altered, too short, under another key or associated data.
    """
    view = memoryview(sealed)
    return _open(key, bytes(view[:NONCE_BYTES]), view[NONCE_BYTES:], associated)


def seal_once(key: bytes, plaintext: BytesLike, associated: BytesLike) -> bytes:
    """Return ciphertext and tag under the zero nonce.

    Guarantees: as :func:`seal`, if ``key`` seals this one message and no other. Two
    messages under one key would lose confidentiality and authenticity.
    """
    return _seal(key, _ZERO_NONCE, plaintext, associated)


def open_once(key: bytes, sealed: BytesLike, associated: BytesLike) -> bytes:
    """Return the plaintext of :func:`seal_once`.

    Raises:
        DecryptionFailed: altered, too short, under another key or associated data.
    """
    return _open(key, _ZERO_NONCE, sealed, associated)


def _seal(
    key: bytes, nonce: bytes, plaintext: BytesLike, associated: BytesLike
) -> bytes:
    """Seal under a given nonce: the deterministic core that test vectors reach."""
    return ChaCha20Poly1305(key).encrypt(nonce, plaintext, associated)


def _open(key: bytes, nonce: bytes, sealed: BytesLike, associated: BytesLike) -> bytes:
    """Open under a given nonce."""
    if memoryview(sealed).nbytes < TAG_BYTES:
        raise DecryptionFailed("a sealed message that is too short")
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, sealed, associated)
    except InvalidTag:
        raise DecryptionFailed("a sealed message does not open") from None
