"""What can go wrong in ``crypto``, by origin.

::

    CryptoError
    ├── MalformedMessage      the bytes are not one canonical message
    ├── InvalidSignature      the named sender did not sign these bytes
    ├── DecryptionFailed      a sealed message was altered, or sealed under another key
    ├── InvalidShare          shares that are too few, out of range, or inconsistent
    ├── DecryptionRefused     a sum that is not the one that was confirmed
    └── ProtocolViolation     well-formed and signed, but forbidden by docs/protocol.md

All of them are the peer's fault. A call out of order is ours, and raises
``RuntimeError``; a parameter that makes no sense is our configuration's, and raises
``ValueError``. No message contains a secret.

:class:`WorkerFailed` is the environment's: a child process that does homomorphic
encryption crashed, or went beyond its memory or time.
"""


class CryptoError(Exception):
    """Base of all errors that a peer's bytes can cause.

    ``silo`` is the index of the silo that is at fault, where that is known and is not
    the sender of the message itself.
    """

    def __init__(self, message: str, *, silo: int | None = None) -> None:
        super().__init__(message)
        self.silo = silo


class MalformedMessage(CryptoError):
    """The bytes are not the canonical encoding of one message."""


class InvalidSignature(CryptoError):
    """The signature does not belong to these bytes and this public key."""


class DecryptionFailed(CryptoError):
    """A sealed message does not open: altered, or under another key."""


class InvalidShare(CryptoError):
    """Shares are too few, out of range, or do not give the committed secret."""


class ProtocolViolation(CryptoError):
    """A well-formed, authentic message that the protocol forbids here."""


class DecryptionRefused(CryptoError):
    """A ciphertext is not the sum that was confirmed, or has too much noise.

    Its text is always the same: which check failed would tell the sender something.
    """

    def __init__(self) -> None:
        super().__init__("refused: not the sum that was confirmed")


class WorkerFailed(Exception):
    """A child process of homomorphic encryption crashed or went beyond its limits."""
