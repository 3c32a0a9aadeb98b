"""Fixed-width, bounded, canonical bytes: the one encoder of everything signed here.

Integers are big-endian and of fixed width; byte strings have a length known to both
sides, or a length prefix with a stated maximum. There is one encoding of a message, and
bytes left over are an error.
"""

import hashlib
from typing import TypeAlias

from crypto.errors import MalformedMessage

BytesLike: TypeAlias = bytes | bytearray | memoryview


class Writer:
    """Appends fields; :meth:`to_bytes` returns them joined.

    A value out of range is a bug of ours: ``ValueError``.
    """

    def __init__(self) -> None:
        self._parts: list[BytesLike] = []

    def integer(self, value: int, num_bytes: int) -> "Writer":
        """Append an unsigned big-endian integer of ``num_bytes`` bytes."""
        if not 0 <= value < 1 << (8 * num_bytes):
            raise ValueError(f"{value} does not fit in {num_bytes} unsigned bytes")
        self._parts.append(value.to_bytes(num_bytes, "big"))
        return self

    def fixed(self, data: BytesLike, num_bytes: int) -> "Writer":
        """Append bytes whose length both sides know."""
        if memoryview(data).nbytes != num_bytes:
            raise ValueError(f"{memoryview(data).nbytes} bytes instead of {num_bytes}")
        self._parts.append(data)
        return self

    def prefixed(self, data: BytesLike, max_bytes: int) -> "Writer":
        """Append a length of eight bytes, then so many bytes."""
        num_bytes = memoryview(data).nbytes
        if num_bytes > max_bytes:
            raise ValueError(f"{num_bytes} bytes are above the limit of {max_bytes}")
        self.integer(num_bytes, 8)
        self._parts.append(data)
        return self

    def to_bytes(self) -> bytes:
        """Return all fields, joined in the order they were appended."""
        return b"".join(self._parts)


class Reader:
    """Reads the fields of a :class:`Writer`; every length is checked before use.

    Raises:
        MalformedMessage: from every method, when the bytes do not hold that field.
    """

    def __init__(self, data: BytesLike) -> None:
        self._data = memoryview(data).cast("B")
        self._offset = 0

    @property
    def remaining(self) -> int:
        """Bytes that have not been read yet."""
        return self._data.nbytes - self._offset

    def view(self, num_bytes: int) -> memoryview:
        """Return the next bytes without copying them."""
        if num_bytes > self.remaining:
            raise MalformedMessage(
                f"a field of {num_bytes} bytes, but {self.remaining} bytes are left"
            )
        start, self._offset = self._offset, self._offset + num_bytes
        return self._data[start : self._offset]

    def fixed(self, num_bytes: int) -> bytes:
        """Return the next bytes."""
        return bytes(self.view(num_bytes))

    def integer(self, num_bytes: int) -> int:
        """Return an unsigned big-endian integer of ``num_bytes`` bytes."""
        return int.from_bytes(self.view(num_bytes), "big")

    def prefixed(self, max_bytes: int) -> bytes:
        """Return the bytes behind a length prefix, at most ``max_bytes`` of them."""
        num_bytes = self.integer(8)
        if num_bytes > max_bytes:
            raise MalformedMessage(
                f"a length of {num_bytes} bytes is above the limit of {max_bytes}"
            )
        return self.fixed(num_bytes)

    def end(self) -> None:
        """Refuse trailing bytes."""
        if self.remaining:
            raise MalformedMessage(f"{self.remaining} bytes after the last field")


def digest(label: bytes, *parts: BytesLike) -> bytes:
    """Return SHA-256 over a label and parts, each preceded by its length.

    Guarantees: two calls give the same digest only if label and every part are equal
    (under collision resistance of SHA-256); no boundary between parts can move.
    """
    state = hashlib.sha256(bytes([len(label)]) + label)
    for part in parts:
        state.update(memoryview(part).nbytes.to_bytes(8, "big"))
        state.update(part)
    return state.digest()
