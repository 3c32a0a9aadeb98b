"""What a cohort signs before any of it masks: READY, and ACTIVE that shows it to all.

Both hold one and the same statement: with these members, in this round, from this
model, and having been shown this head. A silo that signed another one refuses ACTIVE,
so that whatever the statement holds is the same for the whole cohort.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from crypto.encoding import BytesLike, Reader, Writer
from crypto.secagg.messages import (
    DIGEST_BYTES,
    decode_signatures,
    encode_signatures,
)

HEAD_BYTES = 104
NO_HEAD = bytes(HEAD_BYTES)
"""Where silos are shown no transcript."""
READY_BYTES = 2 * DIGEST_BYTES + 4 + HEAD_BYTES


@dataclass(frozen=True)
class Ready:
    """Stage 3, up: T2, the round, the digest of the model that was trained from.

    ``head`` is what the silo was shown of the aggregator's transcript: size, root and
    the aggregator's signature, opaque here.
    """

    members_digest: bytes
    round_number: int
    model_digest: bytes
    head: bytes = NO_HEAD

    def to_bytes(self) -> bytes:
        """Return 172 bytes."""
        return (
            Writer()
            .fixed(self.members_digest, DIGEST_BYTES)
            .integer(self.round_number, 4)
            .fixed(self.model_digest, DIGEST_BYTES)
            .fixed(self.head, HEAD_BYTES)
            .to_bytes()
        )

    @classmethod
    def read(cls, reader: Reader) -> "Ready":
        """Read the message where a reader stands."""
        return cls(
            reader.fixed(DIGEST_BYTES),
            reader.integer(4),
            reader.fixed(DIGEST_BYTES),
            reader.fixed(HEAD_BYTES),
        )

    @classmethod
    def from_bytes(cls, data: BytesLike) -> "Ready":
        """Parse; ``MalformedMessage`` unless the bytes are exactly one message."""
        reader = Reader(data)
        message = cls.read(reader)
        reader.end()
        return message


@dataclass(frozen=True)
class Active:
    """Stage 3, down: the one READY that the cohort A signed, and its signatures."""

    ready: Ready
    signatures: Mapping[int, bytes]

    def to_bytes(self, num_silos: int) -> bytes:
        """Return 172 + ceil(n/8) + 64 |A| bytes."""
        return self.ready.to_bytes() + encode_signatures(self.signatures, num_silos)

    @classmethod
    def from_bytes(cls, data: BytesLike, num_silos: int) -> "Active":
        """Parse; ``MalformedMessage`` unless the bytes are exactly one message."""
        reader = Reader(data)
        return cls(Ready.read(reader), decode_signatures(reader, num_silos))
