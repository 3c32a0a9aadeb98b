"""Identity keys (Ed25519) and agreement keys (X25519); raw bytes in and out.

An identity key is long-term and only ever signs. An agreement key lives for one setup
or one slot and only ever agrees on shared secrets. Neither shows its secret bytes in
``repr``; Python cannot wipe them from memory (docs/protocol.md, "Limits").
"""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)

from crypto.errors import MalformedMessage, ProtocolViolation

KEY_BYTES = 32
"""Length of every public and secret key."""


class IdentityKey:
    """A long-term Ed25519 key: who a silo, aggregator or auditor is."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> "IdentityKey":
        """Return a fresh key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, secret: bytes) -> "IdentityKey":
        """Return the key of 32 secret bytes; ``ValueError`` for another length."""
        return cls(Ed25519PrivateKey.from_private_bytes(secret))

    def to_bytes(self) -> bytes:
        """Return the 32 secret bytes."""
        return self._private.private_bytes_raw()

    def sign_unlabelled(self, message: bytes) -> bytes:
        """Sign raw bytes.

        Only ``signatures.sign`` calls this, which adds the label, and
        ``notes.sign_text``, whose texts can be no labelled message.
        """
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"IdentityKey(public={self.public.hex()})"


class AgreementKey:
    """An X25519 key of one setup or one slot."""

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> "AgreementKey":
        """Return a fresh key from the operating system's randomness."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, secret: bytes) -> "AgreementKey":
        """Return the key of 32 secret bytes; ``ValueError`` for another length."""
        return cls(X25519PrivateKey.from_private_bytes(secret))

    def to_bytes(self) -> bytes:
        """Return the 32 secret bytes."""
        return self._private.private_bytes_raw()

    def exchange(self, peer_public: bytes) -> bytes:
        """Return the raw shared secret with a peer; feed it to ``derive`` only.

        Raises:
            MalformedMessage: the peer's key does not have 32 bytes.
            ProtocolViolation: the peer's key is a point of low order, with which the
                shared secret would be zero, whoever asks.

        Source: RFC 7748, sections 5 and 6.1.
        """
        if len(peer_public) != KEY_BYTES:
            raise MalformedMessage(f"a public key of {len(peer_public)} bytes")
        try:
            return self._private.exchange(
                X25519PublicKey.from_public_bytes(peer_public)
            )
        except ValueError:
            raise ProtocolViolation("an agreement key of low order") from None

    def __repr__(self) -> str:
        return f"AgreementKey(public={self.public.hex()})"
