"""The one header and one signature of every message.

::

    magic 2 | version 1 | kind 1 | run 16 | setup 4 | slot 4 | sender 2 | recipient 2
    body
    signature 64, by the sender's identity key, over header and SHA-256(body)

Integers are big-endian. The signature covers the body through its digest, so that a
vector of 140 MB is read once and not copied. A message that is forwarded to others
travels as body and signature only: whoever verifies it rebuilds the header it must have
(:func:`verify_frame`), so a message made for another run, setup, slot or sender cannot
pass.
"""

import hashlib
from dataclasses import dataclass, fields
from enum import IntEnum

from crypto.encoding import BytesLike, Reader, Writer
from crypto.errors import InvalidSignature, MalformedMessage, ProtocolViolation
from crypto.keys import IdentityKey
from crypto.labels import FRAME_SIGNATURE, PROTOCOL_VERSION
from crypto.signatures import SIGNATURE_BYTES, sign, verify

MAGIC = b"Cl"
RUN_BYTES = 16
HEADER_BYTES = 32
OVERHEAD_BYTES = HEADER_BYTES + SIGNATURE_BYTES
"""Bytes that a frame adds to its body."""

AGGREGATOR = 0xFFFF
"""Sender or recipient that is no silo."""
EVERYONE = 0xFFFE
"""Recipient of a broadcast."""
NO_SLOT = 0xFFFFFFFF
"""Slot of a message that belongs to the whole setup, or to none."""


class Kind(IntEnum):
    """Kinds 1 to 63: secure aggregation. 64 to 127 belong to ``protocol.envelope``."""

    ADVERTISE = 1
    KEYS = 2
    SHARES = 3
    ENVELOPES = 4
    READY = 5
    ACTIVE = 6
    MASKED = 7
    SURVIVORS = 8
    CONFIRM = 9
    CONFIRMS = 10
    REVEAL = 11
    SUM = 12
    DEALT = 13
    HANDED = 14
    ENCRYPTED = 15
    DECRYPT = 16
    DECRYPTED = 17


@dataclass(frozen=True)
class Header:
    """Who says what to whom, in which run, setup and slot."""

    kind: int
    run: bytes
    setup: int
    slot: int
    sender: int
    recipient: int = EVERYONE

    def __post_init__(self) -> None:
        """Check the ranges; ``ValueError`` names the field."""
        if not 1 <= self.kind <= 127:
            raise ValueError(f"kind: must be 1 to 127, is {self.kind}")
        if len(self.run) != RUN_BYTES:
            raise ValueError(f"run: must be {RUN_BYTES} bytes, is {len(self.run)}")

    def to_bytes(self) -> bytes:
        """Return the 32 bytes of the header."""
        return (
            Writer()
            .fixed(MAGIC, len(MAGIC))
            .integer(PROTOCOL_VERSION, 1)
            .integer(self.kind, 1)
            .fixed(self.run, RUN_BYTES)
            .integer(self.setup, 4)
            .integer(self.slot, 4)
            .integer(self.sender, 2)
            .integer(self.recipient, 2)
            .to_bytes()
        )


def make_frame(key: IdentityKey, header: Header, *body: BytesLike) -> bytes:
    """Return header, body and signature.

    Args:
        key: the sender's identity key.
        body: one or several buffers that follow each other; each is copied once.
    """
    state = hashlib.sha256()
    for part in body:
        state.update(part)
    head = header.to_bytes()
    signature = sign(key, FRAME_SIGNATURE, head + state.digest())
    return b"".join((head, *body, signature))


def finish_frame(key: IdentityKey, header: Header, frame: memoryview) -> None:
    """Write header and signature around the body that stands in a buffer.

    The frame is the one that :func:`make_frame` returns, without a copy of the body.

    Args:
        frame: writeable, ``OVERHEAD_BYTES`` longer than the body in its middle.
    """
    frame[:HEADER_BYTES] = header.to_bytes()
    body = hashlib.sha256(frame[HEADER_BYTES:-SIGNATURE_BYTES])
    frame[-SIGNATURE_BYTES:] = sign(
        key, FRAME_SIGNATURE, bytes(frame[:HEADER_BYTES]) + body.digest()
    )


def read_header(data: BytesLike) -> Header:
    """Return the header, UNVERIFIED: it serves to choose the key, and nothing else.

    Raises:
        MalformedMessage: too short, not ours, another version or an unknown kind.
    """
    if memoryview(data).nbytes < OVERHEAD_BYTES:
        raise MalformedMessage(f"{memoryview(data).nbytes} bytes are not a frame")
    reader = Reader(memoryview(data)[:HEADER_BYTES])
    if reader.fixed(len(MAGIC)) != MAGIC:
        raise MalformedMessage("not a Cloister frame")
    if (version := reader.integer(1)) != PROTOCOL_VERSION:
        raise MalformedMessage(
            f"protocol version {version}, this side speaks {PROTOCOL_VERSION}"
        )
    kind, run = reader.integer(1), reader.fixed(RUN_BYTES)
    setup, slot = reader.integer(4), reader.integer(4)
    if not 1 <= kind <= 127:
        raise MalformedMessage(f"unknown kind of frame: {kind}")
    return Header(kind, run, setup, slot, reader.integer(2), reader.integer(2))


def open_frame(
    public: bytes, data: BytesLike, *, max_bytes: int
) -> tuple[Header, memoryview]:
    """Return header and body of a frame signed by the holder of ``public``.

    Guarantees: nothing of the body is looked at before length, header and signature
    have been checked. The body is a view of ``data``, not a copy.

    Args:
        max_bytes: the most that the whole frame may have.

    Raises:
        MalformedMessage: too long, too short, or not a frame of this version.
        InvalidSignature: header or body were not signed by ``public``.
    """
    header, body, _ = _open(public, data, max_bytes)
    return header, body


def _open(
    public: bytes, data: BytesLike, max_bytes: int
) -> tuple[Header, memoryview, bytes]:
    """Return header, body and SHA-256(body) of a frame, as :func:`open_frame`."""
    view = memoryview(data).cast("B")
    if view.nbytes > max_bytes:
        raise MalformedMessage(
            f"a frame of {view.nbytes} bytes is above the limit of {max_bytes}"
        )
    header = read_header(view)
    body = view[HEADER_BYTES:-SIGNATURE_BYTES]
    return header, body, verify_frame(public, header, body, view[-SIGNATURE_BYTES:])


def verify_frame(
    public: bytes, header: Header, body: BytesLike, signature: BytesLike
) -> bytes:
    """Return SHA-256(body) if the holder of ``public`` made a frame of header and body.

    Raises:
        InvalidSignature: otherwise; the message names kind and sender.
    """
    body_digest = hashlib.sha256(body).digest()
    message = header.to_bytes() + body_digest
    try:
        verify(public, FRAME_SIGNATURE, message, signature)
    except InvalidSignature:
        raise InvalidSignature(
            f"the signature of {describe(header)} is not the sender's"
        ) from None
    return body_digest


def open_expected(
    public: bytes, data: BytesLike, expected: Header, *, max_bytes: int
) -> memoryview:
    """Return the body of a frame that must carry exactly this header.

    Raises:
        MalformedMessage, InvalidSignature: as :func:`open_frame`.
        ProtocolViolation: authentic, but for another kind, run, setup, slot, sender or
            recipient.
    """
    body, _ = open_digested(public, data, expected, max_bytes=max_bytes)
    return body


def open_digested(
    public: bytes, data: BytesLike, expected: Header, *, max_bytes: int
) -> tuple[memoryview, bytes]:
    """Return the body as :func:`open_expected` does, and SHA-256 of it.

    It was computed for the signature: a body of 175 MB is not read twice.
    """
    header, body, body_digest = _open(public, data, max_bytes)
    for field in fields(Header):
        found, wanted = getattr(header, field.name), getattr(expected, field.name)
        if found != wanted:
            raise ProtocolViolation(
                f"{describe(header)} has another {field.name} than "
                f"{describe(expected)}, which is expected here"
            )
    return body, body_digest


def describe(header: Header) -> str:
    """Return a header in words for error messages, e.g. ``READY of silo 3, slot 0``."""
    known = header.kind in set(Kind)
    kind = Kind(header.kind).name if known else f"kind {header.kind}"
    sender = (
        "the aggregator" if header.sender == AGGREGATOR else f"silo {header.sender}"
    )
    slot = "" if header.slot == NO_SLOT else f", slot {header.slot}"
    return f"{kind} of {sender} (setup {header.setup}{slot})"
