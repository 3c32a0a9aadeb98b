"""The body of every message, one frozen dataclass per stage and direction.

``to_bytes`` and ``from_bytes`` are exact inverses; there is one encoding of a message.
Sizes follow from the number of silos n, the slots per setup R and the sets of silos
themselves, and ``docs/protocol.md`` lists them. A set of silos is a bitmap of ceil(n/8)
bytes, so that it has no order and no repetition. Where the aggregator passes on what
silos have signed, it sends bodies and signatures; the verifier rebuilds the headers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from crypto.aead import TAG_BYTES
from crypto.encoding import BytesLike, Reader, Writer
from crypto.errors import MalformedMessage
from crypto.keys import KEY_BYTES
from crypto.shamir import SHARE_BYTES
from crypto.signatures import SIGNATURE_BYTES

DIGEST_BYTES = 32
SHARE_PAIR_BYTES = 2 * SHARE_BYTES
"""One slot's shares for one holder: of the mask seed, then of the agreement key."""


def encode_silos(silos: Collection[int], num_silos: int) -> bytes:
    """Return a set of silo indices as a bitmap; bit i of byte i // 8 is silo i."""
    bits = sum(1 << silo for silo in set(silos))
    if bits >> num_silos:
        raise ValueError(f"a silo index above {num_silos - 1}")
    return bits.to_bytes(bitmap_bytes(num_silos), "little")


def decode_silos(bitmap: BytesLike, num_silos: int) -> tuple[int, ...]:
    """Return the silo indices of a bitmap, ascending.

    Raises:
        MalformedMessage: a bit beyond the last silo is set.
    """
    bits = int.from_bytes(bitmap, "little")
    if bits >> num_silos:
        raise MalformedMessage(f"a set names a silo above index {num_silos - 1}")
    return tuple(silo for silo in range(num_silos) if bits >> silo & 1)


def bitmap_bytes(num_silos: int) -> int:
    """Return the length of a set of silos."""
    return -(-num_silos // 8)


def sealed_shares_bytes(num_slots: int) -> int:
    """Return the length of one sealed envelope of shares."""
    return num_slots * SHARE_PAIR_BYTES + TAG_BYTES


@dataclass(frozen=True)
class Advertise:
    """Stage 1, up: the key that seals shares; per slot a key and a commitment."""

    channel_public: bytes
    slot_publics: tuple[bytes, ...]
    commitments: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """Return 32 + 64 R bytes."""
        writer = Writer().fixed(self.channel_public, KEY_BYTES)
        for public, commitment in zip(self.slot_publics, self.commitments, strict=True):
            writer.fixed(public, KEY_BYTES).fixed(commitment, DIGEST_BYTES)
        return writer.to_bytes()

    @classmethod
    def from_bytes(cls, data: BytesLike, num_slots: int) -> "Advertise":
        """Parse; ``MalformedMessage`` unless the bytes are exactly one message."""
        reader = Reader(data)
        channel = reader.fixed(KEY_BYTES)
        pairs = [
            (reader.fixed(KEY_BYTES), reader.fixed(DIGEST_BYTES))
            for _ in range(num_slots)
        ]
        reader.end()
        return cls(channel, tuple(p for p, _ in pairs), tuple(c for _, c in pairs))

    @property
    def publics(self) -> tuple[bytes, ...]:
        """All public keys of the silo in this setup."""
        return (self.channel_public, *self.slot_publics)


@dataclass(frozen=True)
class Signed:
    """What a silo said, passed on: a body and the signature of its frame."""

    body: BytesLike
    signature: bytes


@dataclass(frozen=True)
class Keys:
    """Stage 1, down: every ADVERTISE, by silo."""

    advertisements: Mapping[int, Signed]

    def to_bytes(self, num_silos: int, num_slots: int) -> bytes:
        """Return ceil(n/8) + (96 + 64 R) |U1| bytes."""
        size = advertise_bytes(num_slots)
        bitmap = encode_silos(self.advertisements, num_silos)
        writer = Writer().fixed(bitmap, bitmap_bytes(num_silos))
        for _, signed in sorted(self.advertisements.items()):
            writer.fixed(signed.body, size).fixed(signed.signature, SIGNATURE_BYTES)
        return writer.to_bytes()

    @classmethod
    def from_bytes(cls, data: BytesLike, num_silos: int, num_slots: int) -> "Keys":
        """Parse without copying the bodies; ``MalformedMessage`` as everywhere."""
        reader, size = Reader(data), advertise_bytes(num_slots)
        silos = decode_silos(reader.view(bitmap_bytes(num_silos)), num_silos)
        signed = {
            silo: Signed(reader.view(size), reader.fixed(SIGNATURE_BYTES))
            for silo in silos
        }
        reader.end()
        return cls(signed)


def public_keys(advertise: BytesLike) -> bytes:
    """Return the public keys of a body of ADVERTISE, one after the other."""
    view = memoryview(advertise)
    step = KEY_BYTES + DIGEST_BYTES
    starts = range(KEY_BYTES, view.nbytes, step)
    keys = (view[start : start + KEY_BYTES] for start in starts)
    return b"".join((view[:KEY_BYTES], *keys))


def advertise_bytes(num_slots: int) -> int:
    """Return the length of the body of ADVERTISE."""
    return KEY_BYTES + num_slots * (KEY_BYTES + DIGEST_BYTES)


@dataclass(frozen=True)
class Shares:
    """Stage 2, up: T1, and one sealed envelope for each other silo of KEYS."""

    keys_digest: bytes
    sealed: tuple[bytes, ...]

    def to_bytes(self, num_slots: int) -> bytes:
        """Return 32 + (|U1| - 1) (16 + 66 R) bytes."""
        writer = Writer().fixed(self.keys_digest, DIGEST_BYTES)
        for envelope in self.sealed:
            writer.fixed(envelope, sealed_shares_bytes(num_slots))
        return writer.to_bytes()

    @classmethod
    def from_bytes(cls, data: BytesLike, num_peers: int, num_slots: int) -> "Shares":
        """Parse; ``MalformedMessage`` unless the bytes are exactly one message."""
        reader, size = Reader(data), sealed_shares_bytes(num_slots)
        keys = reader.fixed(DIGEST_BYTES)
        sealed = tuple(reader.fixed(size) for _ in range(num_peers))
        reader.end()
        return cls(keys, sealed)


def sealed_shares(body: bytes, place: int, num_slots: int) -> bytes:
    """Return one envelope of a SHARES that was checked before, by its place in it."""
    size = sealed_shares_bytes(num_slots)
    start = DIGEST_BYTES + place * size
    return body[start : start + size]


@dataclass(frozen=True)
class Envelopes:
    """Stage 2, down: T1, the members U2, and what the others sealed to one of them."""

    keys_digest: bytes
    members: tuple[int, ...]
    sealed: tuple[BytesLike, ...]

    def to_bytes(self, num_silos: int, num_slots: int) -> bytes:
        """Return 32 + ceil(n/8) + (|U2| - 1) (16 + 66 R) bytes."""
        writer = Writer().fixed(self.keys_digest, DIGEST_BYTES)
        writer.fixed(encode_silos(self.members, num_silos), bitmap_bytes(num_silos))
        for envelope in self.sealed:
            writer.fixed(envelope, sealed_shares_bytes(num_slots))
        return writer.to_bytes()

    @classmethod
    def from_bytes(cls, data: BytesLike, num_silos: int, num_slots: int) -> "Envelopes":
        """Parse without copying what is sealed; ``MalformedMessage`` as everywhere."""
        reader, size = Reader(data), sealed_shares_bytes(num_slots)
        keys = reader.fixed(DIGEST_BYTES)
        members = decode_silos(reader.view(bitmap_bytes(num_silos)), num_silos)
        sealed = tuple(reader.view(size) for _ in members[1:])
        reader.end()
        return cls(keys, members, sealed)


MASKED_PREFIX_BYTES = DIGEST_BYTES + 8


@dataclass(frozen=True)
class Masked:
    """Stage 4, up: T3, the number of words, and the masked words, little-endian."""

    slot_digest: bytes
    words: memoryview

    def prefix(self) -> bytes:
        """Return the 40 bytes that stand before the words."""
        return (
            Writer()
            .fixed(self.slot_digest, DIGEST_BYTES)
            .integer(self.words.nbytes // 8, 8)
            .to_bytes()
        )

    def to_bytes(self) -> bytes:
        """Return 40 + 8 W bytes."""
        return self.prefix() + self.words

    @classmethod
    def from_bytes(cls, data: BytesLike, num_words: int) -> "Masked":
        """Parse without copying the words, of which there must be ``num_words``."""
        reader = Reader(data)
        slot = reader.fixed(DIGEST_BYTES)
        if (found := reader.integer(8)) != num_words:
            raise MalformedMessage(f"{found} words, {num_words} are expected")
        words = reader.view(8 * num_words)
        reader.end()
        return cls(slot, words)


@dataclass(frozen=True)
class Survivors:
    """Stages 4 down and 5 up: T3 and the survivors U3.

    SURVIVORS of the aggregator and CONFIRM of a silo have the same body.
    """

    slot_digest: bytes
    survivors: tuple[int, ...]

    def to_bytes(self, num_silos: int) -> bytes:
        """Return 32 + ceil(n/8) bytes."""
        bitmap = encode_silos(self.survivors, num_silos)
        writer = Writer().fixed(self.slot_digest, DIGEST_BYTES)
        return writer.fixed(bitmap, bitmap_bytes(num_silos)).to_bytes()

    @classmethod
    def read(cls, reader: Reader, num_silos: int) -> "Survivors":
        """Read the message where a reader stands."""
        slot = reader.fixed(DIGEST_BYTES)
        return cls(slot, decode_silos(reader.view(bitmap_bytes(num_silos)), num_silos))

    @classmethod
    def from_bytes(cls, data: BytesLike, num_silos: int) -> "Survivors":
        """Parse; ``MalformedMessage`` unless the bytes are exactly one message."""
        reader = Reader(data)
        message = cls.read(reader, num_silos)
        reader.end()
        return message


@dataclass(frozen=True)
class Confirms:
    """Stage 5, down: the one CONFIRM that was signed, and its signatures."""

    confirm: Survivors
    signatures: Mapping[int, bytes]

    def to_bytes(self, num_silos: int) -> bytes:
        """Return 32 + 2 ceil(n/8) + 64 |signers| bytes."""
        return self.confirm.to_bytes(num_silos) + encode_signatures(
            self.signatures, num_silos
        )

    @classmethod
    def from_bytes(cls, data: BytesLike, num_silos: int) -> "Confirms":
        """Parse; ``MalformedMessage`` unless the bytes are exactly one message."""
        reader = Reader(data)
        confirm = Survivors.read(reader, num_silos)
        return cls(confirm, decode_signatures(reader, num_silos))


@dataclass(frozen=True)
class Reveal:
    """Stage 6, up: T3, and one share of each contributor in A, in the roster's order.

    Of a survivor it is the share of the mask seed, of a dropout that of the slot's
    agreement key; never both of one silo.
    """

    slot_digest: bytes
    shares: Sequence[bytes]

    def to_bytes(self) -> bytes:
        """Return 32 bytes, and 33 for each contributor in A."""
        writer = Writer().fixed(self.slot_digest, DIGEST_BYTES)
        for share in self.shares:
            writer.fixed(share, SHARE_BYTES)
        return writer.to_bytes()

    @classmethod
    def from_bytes(cls, data: BytesLike, num_shares: int) -> "Reveal":
        """Parse; ``MalformedMessage`` unless the bytes are exactly one message."""
        reader = Reader(data)
        slot = reader.fixed(DIGEST_BYTES)
        shares = tuple(reader.fixed(SHARE_BYTES) for _ in range(num_shares))
        reader.end()
        return cls(slot, shares)


@dataclass(frozen=True)
class SumNotice:
    """Stage 7, down: T3, the survivors U3, and the digest of their sum."""

    survivors: Survivors
    sum_digest: bytes

    def to_bytes(self, num_silos: int) -> bytes:
        """Return 64 + ceil(n/8) bytes."""
        writer = Writer().fixed(self.sum_digest, DIGEST_BYTES)
        return self.survivors.to_bytes(num_silos) + writer.to_bytes()

    @classmethod
    def from_bytes(cls, data: BytesLike, num_silos: int) -> "SumNotice":
        """Parse; ``MalformedMessage`` unless the bytes are exactly one message."""
        reader = Reader(data)
        survivors = Survivors.read(reader, num_silos)
        notice = cls(survivors, reader.fixed(DIGEST_BYTES))
        reader.end()
        return notice


def encode_signatures(signatures: Mapping[int, bytes], num_silos: int) -> bytes:
    """Return the set of signers, then their signatures in the order of the roster."""
    bitmap = encode_silos(signatures, num_silos)
    writer = Writer().fixed(bitmap, bitmap_bytes(num_silos))
    for _, signature in sorted(signatures.items()):
        writer.fixed(signature, SIGNATURE_BYTES)
    return writer.to_bytes()


def decode_signatures(reader: Reader, num_silos: int) -> dict[int, bytes]:
    """Read signatures by silo; they are the last field of their message."""
    signers = decode_silos(reader.view(bitmap_bytes(num_silos)), num_silos)
    signatures = {silo: reader.fixed(SIGNATURE_BYTES) for silo in signers}
    reader.end()
    return signatures
