"""Messages on a connection: a number, a length, and so many bytes.

::

    number 8 | length 8 | payload

A payload of up to ``IN_MEMORY_BYTES`` is read into memory. A longer one goes to disk
piece by piece as it arrives, into a file that has no name, and is handed on as a view
of that file: whoever holds many long messages holds none of them in memory. The file
is gone when the last view of it is.
"""

import contextlib
import io
import mmap
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crypto.encoding import BytesLike
from protocol.errors import SpoolFailed, TransportFailed

IN_MEMORY_BYTES = 1 << 20
"""The longest payload that is kept in memory; n silos may send one each at a time."""
PIECE_BYTES = 1 << 18
"""The most that is read at once on its way to disk."""
_PREFIX = struct.Struct(">QQ")
PREFIX_BYTES = _PREFIX.size
"""What goes before every payload."""


def send_message(connection: socket.socket, number: int, payload: BytesLike) -> None:
    """Send one numbered message, behind its length; the payload is not copied.

    Raises:
        OSError: the other side is gone.
    """
    connection.sendall(_PREFIX.pack(number, memoryview(payload).nbytes))
    connection.sendall(payload)


def receive_message(
    connection: socket.socket,
    max_bytes: int = IN_MEMORY_BYTES,
    spool: Path | None = None,
) -> tuple[int, memoryview]:
    """Return number and payload of the next message; the payload is read-only.

    Guarantees: a message that is announced as longer than permitted is refused before
    anything is reserved for it. Memory does not grow with the length: at most
    ``IN_MEMORY_BYTES + PIECE_BYTES`` are taken. A file on disk grows with what has
    really arrived.

    Args:
        max_bytes: the longest payload that is permitted, inclusive.
        spool: a folder, on a disk, for payloads above ``IN_MEMORY_BYTES``. Without one
            they are refused.

    Raises:
        OSError: the other side is gone; a message that was cut off is dropped.
        TransportFailed: the message is longer than permitted.
        SpoolFailed: our own disk does not take it.
    """
    number, length = _PREFIX.unpack(_received(connection, _PREFIX.size))
    if length > (max_bytes if spool else min(max_bytes, IN_MEMORY_BYTES)):
        raise TransportFailed(f"a message of {length:,} bytes is too long")
    if spool and length > IN_MEMORY_BYTES:
        return number, _spooled(connection, length, spool)
    return number, memoryview(_received(connection, length)).toreadonly()


def check_spool(folder: Path) -> None:
    """Return if long messages can be put into a folder.

    Raises:
        SpoolFailed: they cannot.
    """
    with _our_disk(folder), tempfile.TemporaryFile(dir=folder):
        pass


def _received(connection: socket.socket, length: int) -> bytearray:
    """Return so many bytes of a connection, in memory."""
    data = bytearray(length)
    left = memoryview(data)
    while left:
        left = left[_receive_into(connection, left) :]
    return data


def _spooled(connection: socket.socket, length: int, folder: Path) -> memoryview:
    """Return so many bytes of a connection as a view of a file without a name."""
    piece, left = memoryview(bytearray(PIECE_BYTES)), length
    with _our_disk(folder):
        # Unbuffered: what the disk refuses is refused at once, not when it is closed.
        file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115
    with file:
        while left:
            count = _receive_into(connection, piece[: min(left, PIECE_BYTES)])
            with _our_disk(folder):
                _write(file, piece[:count])
            left -= count
        with _our_disk(folder):
            mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)
    return memoryview(mapped)


def _receive_into(connection: socket.socket, room: memoryview) -> int:
    """Fill some of the room with what has arrived; return how many bytes."""
    count = connection.recv_into(room)
    if not count:
        raise ConnectionError("the other side closed the connection")
    return count


def _write(file: io.FileIO, data: memoryview) -> None:
    """Write all of the data; an unbuffered file may take less at a time."""
    while data:
        data = data[file.write(data) :]


@contextlib.contextmanager
def _our_disk(folder: Path) -> Iterator[None]:
    """Turn errors of our own disk into one that cannot be taken for a lost peer."""
    try:
        yield
    except OSError as error:
        raise SpoolFailed(f"{folder}: {error.strerror or error}") from None
