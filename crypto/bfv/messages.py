"""The bodies of the messages that only encryption has; see ``crypto.secagg.messages``.

READY, ACTIVE, SURVIVORS, CONFIRM and SUM are those of masks, ADVERTISE and KEYS, too:
with one channel key for each silo and no slot keys. DECRYPTED has the body of MASKED,
with the words of the sum.
"""

from dataclasses import dataclass

from crypto.bfv.parameters import FRESH_BYTES, SEALED_KEY_BYTES, SUMMED_BYTES
from crypto.encoding import BytesLike, Reader, Writer
from crypto.errors import MalformedMessage
from crypto.secagg.messages import (
    DIGEST_BYTES,
    Confirms,
    Survivors,
    bitmap_bytes,
    decode_silos,
    encode_silos,
)
from crypto.signatures import SIGNATURE_BYTES


@dataclass(frozen=True)
class Dealt:
    """Stage 2, up: T1; of the silo that makes the key also a commitment to it, and the
    key sealed to each other silo of KEYS, in the roster's order.
    """

    keys_digest: bytes
    commitment: bytes = b""
    sealed: tuple[bytes, ...] = ()

    def to_bytes(self) -> bytes:
        """Return 32 bytes, or 64 + 30,748 (|U1| - 1)."""
        writer = Writer().fixed(self.keys_digest, DIGEST_BYTES)
        if self.commitment:
            writer.fixed(self.commitment, DIGEST_BYTES)
        for envelope in self.sealed:
            writer.fixed(envelope, SEALED_KEY_BYTES)
        return writer.to_bytes()

    @classmethod
    def from_bytes(cls, data: BytesLike, num_peers: int, *, is_maker: bool) -> "Dealt":
        """Parse; ``MalformedMessage`` unless the bytes are exactly one message."""
        reader = Reader(data)
        keys = reader.fixed(DIGEST_BYTES)
        commitment = reader.fixed(DIGEST_BYTES) if is_maker else b""
        peers = range(num_peers if is_maker else 0)
        sealed = tuple(reader.fixed(SEALED_KEY_BYTES) for _ in peers)
        reader.end()
        return cls(keys, commitment, sealed)


@dataclass(frozen=True)
class Handed:
    """Stage 2, down: T1, the members U2, the commitment, and the key sealed to one.

    To the silo that made the key nothing is sealed.
    """

    keys_digest: bytes
    members: tuple[int, ...]
    commitment: bytes
    sealed: BytesLike = b""

    def to_bytes(self, num_silos: int) -> bytes:
        """Return 64 + ceil(n/8) bytes, and 30,748 but for the maker."""
        writer = Writer().fixed(self.keys_digest, DIGEST_BYTES)
        writer.fixed(encode_silos(self.members, num_silos), bitmap_bytes(num_silos))
        writer.fixed(self.commitment, DIGEST_BYTES)
        return writer.fixed(self.sealed, len(self.sealed)).to_bytes()

    @classmethod
    def from_bytes(cls, data: BytesLike, num_silos: int, *, is_maker: bool) -> "Handed":
        """Parse; ``MalformedMessage`` unless the bytes are exactly one message."""
        reader = Reader(data)
        keys = reader.fixed(DIGEST_BYTES)
        members = decode_silos(reader.view(bitmap_bytes(num_silos)), num_silos)
        commitment = reader.fixed(DIGEST_BYTES)
        sealed = b"" if is_maker else reader.fixed(SEALED_KEY_BYTES)
        reader.end()
        return cls(keys, members, commitment, sealed)


ENCRYPTED_PREFIX_BYTES = DIGEST_BYTES + 4


def encrypted_prefix(slot_digest: bytes, num_ciphertexts: int) -> bytes:
    """Return what stands before the fresh ciphertexts of ENCRYPTED: T3, their number.

    The body has 36 + 30,784 c bytes.
    """
    writer = Writer().fixed(slot_digest, DIGEST_BYTES)
    return writer.integer(num_ciphertexts, 4).to_bytes()


def read_encrypted(data: BytesLike, num_ciphertexts: int) -> tuple[bytes, memoryview]:
    """Return T3 and the fresh ciphertexts of ENCRYPTED, as a view.

    Raises:
        MalformedMessage: not so many ciphertexts, or not exactly one message.
    """
    reader = Reader(data)
    slot = reader.fixed(DIGEST_BYTES)
    return slot, _read_ciphertexts(reader, num_ciphertexts, FRESH_BYTES)


def decrypt_prefix(confirms: Confirms, num_silos: int, num_ciphertexts: int) -> bytes:
    """Return what stands before the summed ciphertexts of DECRYPT.

    The body has 36 + 2 ceil(n/8) + 64 |signers| + 61,440 c bytes.
    """
    number = Writer().integer(num_ciphertexts, 4).to_bytes()
    return confirms.to_bytes(num_silos) + number


@dataclass(frozen=True)
class Decrypt:
    """Stage 6, down: CONFIRMS, and the summed ciphertexts of all parts in a row."""

    confirms: Confirms
    ciphertexts: memoryview

    @classmethod
    def from_bytes(
        cls, data: BytesLike, num_silos: int, num_ciphertexts: int
    ) -> "Decrypt":
        """Parse without copying the ciphertexts; ``MalformedMessage`` as everywhere."""
        reader = Reader(data)
        confirm = Survivors.read(reader, num_silos)
        signers = decode_silos(reader.view(bitmap_bytes(num_silos)), num_silos)
        signatures = {silo: reader.fixed(SIGNATURE_BYTES) for silo in signers}
        ciphertexts = _read_ciphertexts(reader, num_ciphertexts, SUMMED_BYTES)
        return cls(Confirms(confirm, signatures), ciphertexts)


def _read_ciphertexts(reader: Reader, number: int, size: int) -> memoryview:
    """Return so many ciphertexts, the last field of their message."""
    if (found := reader.integer(4)) != number:
        raise MalformedMessage(f"{found} ciphertexts, {number} are expected")
    view = reader.view(number * size)
    reader.end()
    return view
