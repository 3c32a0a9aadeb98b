"""The seam between our code and any engine: requests out, replies in.

A transport carries bytes and is trusted with nothing: every message is signed before
it enters and verified after it leaves. Replies come as they arrive; a silo that does
not answer in time is simply absent. A request may be delivered twice (after a
reconnection); silos answer a repeated request with the identical bytes.

:class:`LocalSockets` joins processes of one machine through a UNIX socket that only
the user's own processes can open: the aggregator listens, silos connect.
"""

import contextlib
import logging
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from crypto.errors import CryptoError
from crypto.frame import AGGREGATOR, read_header
from crypto.keys import IdentityKey
from protocol.envelope import Kind, make_envelope, open_envelope
from protocol.errors import ProtocolError, TransportFailed
from protocol.plan import RunPlan

logger = logging.getLogger(__name__)

NONCE_BYTES = 32
MAX_HANDSHAKE_BYTES = 1024
HANDSHAKE_SECONDS = 10.0
MAX_PAYLOAD_BYTES = 1 << 33
PIECE_BYTES = 1 << 24
GRACE_SECONDS = 15.0
_PREFIX = struct.Struct(">QQ")


class Transport(Protocol):
    """What the aggregator needs of an engine."""

    def exchange(
        self, requests: Mapping[int, bytes], *, deadline_seconds: float
    ) -> Iterator[tuple[int, bytes]]:
        """Send each silo its request; yield ``(silo, reply)`` as replies arrive.

        Ends when all have replied, when the rest is known to be lost, or at the
        deadline. Each silo appears at most once.
        """
        ...


def send_message(connection: socket.socket, number: int, payload: bytes) -> None:
    """Send one numbered message, behind its length."""
    connection.sendall(_PREFIX.pack(number, len(payload)))
    connection.sendall(payload)


def receive_message(
    connection: socket.socket, max_bytes: int = MAX_PAYLOAD_BYTES
) -> tuple[int, bytes]:
    """Return number and payload of the next message.

    Raises:
        ConnectionError: the other side is gone.
        TransportFailed: the message is longer than permitted.
    """
    number, length = _PREFIX.unpack(_receive_exactly(connection, _PREFIX.size))
    if length > max_bytes:
        raise TransportFailed(f"a message of {length:,} bytes is too long")
    return number, bytes(_receive_exactly(connection, length))


def _receive_exactly(connection: socket.socket, length: int) -> bytearray:
    """Return so many bytes of a connection.

    Memory grows with what has really arrived, not with what was announced.
    """
    data, received = bytearray(min(length, PIECE_BYTES)), 0
    while received < length:
        if received == len(data):
            data.extend(bytes(min(length - received, len(data))))
        count = connection.recv_into(memoryview(data)[received:])
        if not count:
            raise ConnectionError("the other side closed the connection")
        received += count
    return data


def connect(path: Path, plan: RunPlan, identity: IdentityKey) -> socket.socket:
    """Return a connection to the aggregator's socket, as the silo of this identity.

    The silo signs the aggregator's signed challenge, so that only it takes its place.

    Raises:
        OSError: nobody listens there.
        ProtocolError, CryptoError: somebody else listens there.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(HANDSHAKE_SECONDS)
        connection.connect(os.fspath(path))
        _, challenge = receive_message(connection, MAX_HANDSHAKE_BYTES)
        _, nonce = open_envelope(
            plan, challenge, sender=AGGREGATOR, kinds=(Kind.CHALLENGE,)
        )
        silo = plan.silo_index(identity.public)
        hello = make_envelope(plan, identity, Kind.HELLO, bytes(nonce), sender=silo)
        send_message(connection, 0, hello)
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


@dataclass
class _Seat:
    """What the listener knows of one silo: its connection and its pending request."""

    inbox: "queue.SimpleQueue[tuple[int, bytes] | None]" = field(
        default_factory=queue.SimpleQueue
    )
    connection: socket.socket | None = None
    pending: tuple[int, bytes] | None = None
    lost_since: float = field(default_factory=time.monotonic)


class LocalSockets:
    """The aggregator's end of a transport over one UNIX socket.

    One thread a connection sends requests and reads replies, so that a silo that
    hangs blocks nobody. A silo that reconnects gets its pending request again.

    Raises:
        TransportFailed: the socket's path is taken or cannot be used.
    """

    def __init__(
        self,
        path: Path,
        plan: RunPlan,
        identity: IdentityKey,
        *,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._path, self._plan, self._identity = path, plan, identity
        self._grace_seconds = grace_seconds
        self._seats = {index: _Seat() for index in range(len(plan.silos))}
        self._replies: queue.Queue[tuple[int, int, bytes]] = queue.Queue()
        self._changed = threading.Condition()
        self._number, self._is_closed = 0, False
        self._listener = _listen(path)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        """Return the transport."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the transport."""
        self.close()

    def wait_for_silos(self, timeout_seconds: float) -> list[int]:
        """Wait until every silo is connected; return those that are not in time."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while missing := [
                silo for silo, seat in self._seats.items() if seat.connection is None
            ]:
                left = deadline - time.monotonic()
                if left <= 0:
                    return missing
                self._changed.wait(left)
        return []

    def exchange(
        self, requests: Mapping[int, bytes], *, deadline_seconds: float
    ) -> Iterator[tuple[int, bytes]]:
        """Send each silo its request; yield replies as they arrive."""
        deadline = time.monotonic() + deadline_seconds
        self._number += 1
        number, waiting = self._number, set(requests)
        with self._changed:
            for silo, request in requests.items():
                seat = self._seats[silo]
                seat.pending = (number, request)
                if seat.connection is not None:
                    seat.inbox.put(seat.pending)
        try:
            while waiting:
                left = max(0.0, deadline - time.monotonic())
                try:
                    silo, of_number, reply = self._replies.get(timeout=min(left, 0.2))
                except queue.Empty:
                    if not left or self._are_lost(waiting):
                        return
                    continue
                if of_number == number and silo in waiting:
                    waiting.discard(silo)
                    self._seats[silo].pending = None
                    yield silo, reply
        finally:
            for silo in waiting:
                self._seats[silo].pending = None

    def close(self) -> None:
        """Close all connections and remove the socket."""
        _shut(self._listener)
        self._listener.close()
        with self._changed:
            self._is_closed = True
            for seat in self._seats.values():
                seat.inbox.put(None)
                if seat.connection is not None:
                    _shut(seat.connection)
                    seat.connection = None
        self._path.unlink(missing_ok=True)

    def _are_lost(self, silos: set[int]) -> bool:
        """Return whether all these silos have been gone for longer than the grace."""
        now = time.monotonic()
        seats = [self._seats[silo] for silo in silos]
        return all(
            seat.connection is None and now - seat.lost_since > self._grace_seconds
            for seat in seats
        )

    def _accept(self) -> None:
        """Let silos in, one handshake after the other."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            try:
                silo = self._greet(connection)
            except (OSError, ProtocolError, CryptoError) as error:
                logger.info("a connection was refused: %s", error)
                connection.close()
                continue
            self._seat(silo, connection)

    def _greet(self, connection: socket.socket) -> int:
        """Return which silo a new connection belongs to, proved by its signature."""
        connection.settimeout(HANDSHAKE_SECONDS)
        nonce = os.urandom(NONCE_BYTES)
        challenge = make_envelope(
            self._plan, self._identity, Kind.CHALLENGE, nonce, sender=AGGREGATOR
        )
        send_message(connection, 0, challenge)
        _, hello = receive_message(connection, MAX_HANDSHAKE_BYTES)
        silo = read_header(hello).sender
        if silo not in self._seats:
            raise TransportFailed(f"no silo {silo} in the plan")
        _, answer = open_envelope(self._plan, hello, sender=silo, kinds=(Kind.HELLO,))
        if bytes(answer) != nonce:
            raise TransportFailed("an answer to another challenge")
        connection.settimeout(None)
        return silo

    def _seat(self, silo: int, connection: socket.socket) -> None:
        """Give a silo its seat; an older connection of it is closed."""
        with self._changed:
            if self._is_closed:
                connection.close()
                return
            old = self._seats[silo]
            old.inbox.put(None)
            if old.connection is not None:
                _shut(old.connection)
            seat = _Seat(connection=connection, pending=old.pending)
            self._seats[silo] = seat
            if seat.pending is not None:
                seat.inbox.put(seat.pending)
            self._changed.notify_all()
        thread = threading.Thread(
            target=self._serve, args=(silo, seat, connection), daemon=True
        )
        thread.start()

    def _serve(self, silo: int, seat: _Seat, connection: socket.socket) -> None:
        """Carry one connection's requests and replies until it ends."""
        try:
            while (item := seat.inbox.get()) is not None:
                number, request = item
                send_message(connection, number, request)
                answered = -1
                while answered != number:
                    answered, reply = receive_message(connection)
                self._replies.put((silo, number, reply))
        except (OSError, TransportFailed) as error:
            logger.info("silo %d is gone: %s", silo, error)
        finally:
            connection.close()
            with self._changed:
                if self._seats[silo] is seat:
                    seat.connection = None
                    seat.lost_since = time.monotonic()


def _listen(path: Path) -> socket.socket:
    """Return a listening UNIX socket that only this user can open."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        previous = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(previous)
        listener.listen(128)
    except TransportFailed:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        raise TransportFailed(f"{path}: {error.strerror or error}") from None
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket on which nobody listens any more.

    Raises:
        TransportFailed: somebody listens, or another kind of file is there.
    """
    if not path.exists():
        return
    if not path.is_socket():
        raise TransportFailed(f"{path}: exists and is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise TransportFailed(f"{path}: another process listens here")


def _shut(connection: socket.socket) -> None:
    """End a socket so that a thread blocked in it wakes up."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
