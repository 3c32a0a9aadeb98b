"""The body of a message: one canonical table and byte strings, read strictly.

Every piece stands behind its length in eight bytes; nothing may follow the last one.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crypto.encoding import BytesLike
from crypto.merkle import HASH_BYTES
from protocol.encoding import check_hex, decode, encode
from protocol.errors import EncodingError, EnvelopeRejected
from protocol.heads import Head, ShownHead

MAX_MESSAGE_BYTES = 1 << 32
MAX_TABLE_BYTES = 1 << 20


def join_body(table: Mapping[str, Any], *parts: BytesLike) -> bytes:
    """Return a canonical table and byte strings as one body."""
    pieces: list[BytesLike] = [encode(table), *parts]
    return b"".join(
        piece for part in pieces for piece in (struct.pack(">Q", len(part)), part)
    )


def split_body(
    body: memoryview, num_parts: int
) -> tuple[dict[str, Any], list[memoryview]]:
    """Return the table and exactly so many byte strings of a body, as views of it.

    Raises:
        EnvelopeRejected: cut off, too long, trailing bytes, or not a table.
    """
    pieces, position = [], 0
    for index in range(num_parts + 1):
        if len(body) - position < 8:
            raise EnvelopeRejected("a message is cut off")
        (length,) = struct.unpack_from(">Q", body, position)
        position += 8
        limit = MAX_TABLE_BYTES if index == 0 else MAX_MESSAGE_BYTES
        if length > min(limit, len(body) - position):
            raise EnvelopeRejected("a message is cut off or too long")
        pieces.append(body[position : position + length])
        position += length
    if position != len(body):
        raise EnvelopeRejected("a message has trailing bytes")
    try:
        table = decode(bytes(pieces[0]))
    except EncodingError as error:
        raise EnvelopeRejected(f"a message's table is {error}") from None
    if not isinstance(table, dict):
        raise EnvelopeRejected("a message does not begin with a table")
    return table, pieces[1:]


def check_names(table: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise :class:`EnvelopeRejected` unless a table has exactly these names."""
    if set(table) != set(names):
        wanted = ", ".join(names) or "nothing"
        raise EnvelopeRejected(f"a message must hold exactly {wanted}")


def read_count(table: Mapping[str, Any], name: str) -> int:
    """Return a positive whole number of a table.

    Raises:
        EnvelopeRejected: it is something else.
    """
    value = table[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise EnvelopeRejected(f"{name} must be a positive whole number")
    return value


def read_text(table: Mapping[str, Any], name: str) -> str:
    """Return a text of a table."""
    value = table[name]
    if not isinstance(value, str):
        raise EnvelopeRejected(f"{name} must be text")
    return value


def digest_in(table: Mapping[str, Any], name: str) -> str:
    """Return a digest of a table, hexadecimal; raise if it is none."""
    value = read_text(table, name)
    try:
        check_hex(name, value, HASH_BYTES)
    except ValueError as error:
        raise EnvelopeRejected(f"a message's {error}") from None
    return value


def read_head(data: memoryview, party: str) -> Head:
    """Return the transcript head of a message; its signature is not verified here."""
    try:
        return Head.from_bytes(data, party)
    except ValueError as error:
        raise EnvelopeRejected(f"a message holds {error}") from None


def read_shown(data: memoryview, party: str) -> ShownHead:
    """Return the shown head of a message; nothing of it is verified here."""
    try:
        return ShownHead.from_bytes(data, party)
    except ValueError as error:
        raise EnvelopeRejected(f"a message holds {error}") from None


def floats_to_bytes(vector: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """Return float32 values ``[d]`` as little-endian bytes."""
    return vector.astype("<f4", copy=False).tobytes()


def floats_from_bytes(
    data: BytesLike, length: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return float32 ``[length]`` of little-endian bytes; finite values only.

    Raises:
        EnvelopeRejected: another number of bytes, NaN or infinity.
    """
    if len(data) != 4 * length:
        raise EnvelopeRejected(
            f"a message holds {len(data):,} bytes of values, expected {4 * length:,}"
        )
    values = np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise EnvelopeRejected("a message holds NaN or infinity")
    return values
