"""Messages on a connection: bounded, in pieces, long ones on disk."""

import errno
import gc
import mmap
import os
import socket
import struct
import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocol.wire
from protocol.errors import SpoolFailed, TransportFailed
from protocol.wire import (
    IN_MEMORY_BYTES,
    PIECE_BYTES,
    check_spool,
    receive_message,
    send_message,
)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    theirs.settimeout(10.0)
    with ours, theirs:
        yield ours, theirs


def passed(pair, payload, spool, limit=1 << 30):
    """Return what arrives of a payload of any length."""
    ours, theirs = pair
    sending = threading.Thread(target=send_message, args=(ours, 5, payload))
    sending.start()
    try:
        number, received = receive_message(theirs, limit, spool)
    finally:
        sending.join(10.0)
    assert number == 5
    return received


@given(st.integers(0, 2**64 - 1), st.binary(max_size=100))
def test_messages_round_trip(number, payload):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_message(ours, number, payload)
        send_message(ours, 7, b"next")
        assert receive_message(theirs) == (number, payload)
        assert receive_message(theirs, 4) == (7, b"next")


def test_a_message_by_hand(pair):
    ours, theirs = pair
    send_message(ours, 258, b"xyz")
    assert theirs.recv(100) == b"\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x03xyz"


@pytest.mark.parametrize(
    "payload",
    [
        b"12345678",
        bytearray(b"12345678"),
        memoryview(b"12345678"),
        memoryview(b"12345678").cast("I"),
    ],
)
def test_whatever_holds_bytes_can_be_sent(payload, pair, tmp_path):
    assert passed(pair, payload, tmp_path) == b"12345678"


EDGES = [0, 1, 15, 16, 17, 31, 32, 33, 100, 1000]


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("spool", [True, False])
def test_a_message_of_any_size_arrives(size, spool, monkeypatch, pair, tmp_path):
    monkeypatch.setattr(protocol.wire, "IN_MEMORY_BYTES", 16 if spool else 1000)
    monkeypatch.setattr(protocol.wire, "PIECE_BYTES", 8)
    payload = os.urandom(size)
    received = passed(pair, payload, tmp_path)
    assert received == payload
    assert received.readonly
    assert isinstance(received.obj, mmap.mmap) == (spool and size > 16)


@pytest.mark.parametrize(
    "size",
    [IN_MEMORY_BYTES, IN_MEMORY_BYTES + 1, 3 * IN_MEMORY_BYTES + PIECE_BYTES - 1],
)
def test_a_long_message_lies_on_disk_under_no_name(size, pair, tmp_path):
    payload = os.urandom(size)
    received = passed(pair, payload, tmp_path)
    assert received == payload
    assert isinstance(received.obj, mmap.mmap) == (size > IN_MEMORY_BYTES)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError):
        received[0] = 1


def test_the_file_of_a_message_is_gone_with_its_last_view(pair, tmp_path):
    def open_files():
        here = Path("/proc/self/fd")
        names = [str(p.readlink()) for p in here.iterdir() if p.is_symlink()]
        return [name for name in names if name.startswith(str(tmp_path))]

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    received = passed(pair, bytes(IN_MEMORY_BYTES + 1), tmp_path)
    part = received[5:10]
    del received
    gc.collect()
    assert len(open_files()) == 1
    assert part == bytes(5)
    del part
    gc.collect()
    assert open_files() == []


def test_files_are_readable_by_their_owner_alone(monkeypatch, pair, tmp_path):
    modes = []
    write = protocol.wire._write

    def watch(file, data):
        modes.append(os.fstat(file.fileno()).st_mode & 0o777)
        write(file, data)

    monkeypatch.setattr(protocol.wire, "_write", watch)
    before = os.umask(0)
    try:
        passed(pair, bytes(IN_MEMORY_BYTES + 1), tmp_path)
    finally:
        os.umask(before)
    assert set(modes) == {0o600}


# Too long, cut off.


@pytest.mark.parametrize("announced", [1001, 2**40, 2**64 - 1])
@pytest.mark.parametrize("spool", [True, False])
def test_a_message_that_is_too_long_is_refused_before_anything_is_reserved(
    announced, spool, monkeypatch, pair, tmp_path
):
    def reserve(*arguments):
        raise AssertionError("something was reserved")

    ours, theirs = pair
    ours.sendall(struct.pack(">QQ", 1, announced) + bytes(100))
    monkeypatch.setattr(protocol.wire, "_spooled", reserve)
    tracemalloc.start()
    with pytest.raises(TransportFailed, match=f"{announced:,} bytes is too long"):
        receive_message(theirs, 1000, tmp_path if spool else None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50_000
    assert theirs.recv(1000) == bytes(100)  # The payload was not touched.


def test_without_a_folder_there_are_no_long_messages(pair):
    ours, theirs = pair
    ours.sendall(struct.pack(">QQ", 1, IN_MEMORY_BYTES + 1))
    with pytest.raises(TransportFailed, match="too long"):
        receive_message(theirs, 1 << 40)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 18])
def test_a_message_that_is_cut_off_is_refused(length, pair):
    ours, theirs = pair
    ours.sendall((struct.pack(">QQ", 1, 3) + b"xyz")[:length])
    ours.close()
    with pytest.raises(ConnectionError, match="closed the connection"):
        receive_message(theirs)


def test_a_long_message_that_is_cut_off_leaves_nothing(pair, tmp_path):
    ours, theirs = pair
    ours.sendall(struct.pack(">QQ", 1, 1 << 40) + bytes(5000))
    ours.close()
    tracemalloc.start()
    with pytest.raises(ConnectionError, match="closed the connection"):
        receive_message(theirs, 1 << 41, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < PIECE_BYTES + 50_000
    assert list(tmp_path.iterdir()) == []


def test_memory_is_a_piece_however_long_a_message_is(pair, tmp_path):
    payload = bytes(32 * IN_MEMORY_BYTES)
    tracemalloc.start()
    received = passed(pair, payload, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert received == payload
    assert peak < PIECE_BYTES + 50_000


# Our own disk.


def test_a_full_disk_is_not_the_fault_of_the_other_side(monkeypatch, pair, tmp_path):
    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(protocol.wire, "_write", full)
    ours, theirs = pair
    ours.sendall(struct.pack(">QQ", 1, IN_MEMORY_BYTES + 1) + bytes(100))
    with pytest.raises(SpoolFailed, match="No space left on device"):
        receive_message(theirs, 1 << 40, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_takes_only_a_part_goes_on():
    class Slow:
        def __init__(self):
            self.taken = b""

        def write(self, data):
            self.taken += bytes(data[:3])
            return min(3, len(data))

    file = Slow()
    protocol.wire._write(file, memoryview(b"12345678"))
    assert file.taken == b"12345678"


def test_a_folder_is_tried_before_it_is_needed(tmp_path):
    check_spool(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(SpoolFailed, match="none: No such file or directory"):
        check_spool(tmp_path / "none")
    with pytest.raises(SpoolFailed, match="file: Not a directory"):
        check_spool(tmp_path / "file")
