"""The seam between our code and any engine: requests out, replies in.

A transport carries bytes and is trusted with nothing: every message is signed before
it enters and verified after it leaves. Replies come as they arrive; a silo that does
not answer in time is simply absent. A request may be delivered again (after a
reconnection); silos answer a repeated request with the identical bytes.

:class:`LocalSockets` joins processes of one machine through a UNIX socket that only
the user's own processes can open: the aggregator listens, silos connect. What a silo
can make the aggregator hold is bounded: one reply an exchange, no longer than the stage
permits, on disk where it is long; a request is delivered ``MAX_DELIVERIES`` times.
"""

import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeAlias

from crypto.encoding import BytesLike
from crypto.errors import CryptoError
from crypto.keys import IdentityKey
from protocol.errors import ProtocolError, SpoolFailed, TransportFailed
from protocol.handshake import greet
from protocol.plan import RunPlan
from protocol.wire import check_spool, receive_message, send_message

logger = logging.getLogger(__name__)

MAX_DELIVERIES = 8
"""How often a silo that reconnects is given one and the same request."""
GRACE_SECONDS = 15.0
ACCEPT_PAUSE_SECONDS = 0.5
"""How long the listener waits when the system gives it no connection."""


class Transport(Protocol):
    """What the aggregator needs of an engine."""

    def exchange(
        self,
        requests: Mapping[int, BytesLike],
        *,
        deadline_seconds: float,
        max_reply_bytes: int,
    ) -> Generator[tuple[int, BytesLike], BytesLike | None, None]:
        """Send each silo its request; yield ``(silo, reply)`` as replies arrive.

        Whoever iterates may ``send`` another request for the silo that has just
        replied; its reply comes like any other, before the same deadline.

        Ends when all have replied, when the rest is known to be lost, or at the
        deadline. Each request is answered at most once. A silo whose reply is longer
        than ``max_reply_bytes`` is lost for this exchange; nothing of it is kept.

        Raises:
            SpoolFailed: this side's own disk cannot take a reply.
        """
        ...


@dataclass
class _Request:
    """What one silo is asked in an exchange, and what may come back."""

    number: int
    payload: BytesLike
    max_reply_bytes: int
    deliveries: int = 0


@dataclass
class _Seat:
    """What the listener knows of one silo: its connection and its pending request."""

    connection: socket.socket | None = None
    pending: _Request | None = None
    lost_since: float = field(default_factory=time.monotonic)


_Outcome: TypeAlias = memoryview | SpoolFailed | None
"""A reply; or what our own disk said; or None: the silo is lost for this exchange."""


class LocalSockets:
    """The aggregator's end of a transport over one UNIX socket.

    One thread a connection sends requests and reads replies, so that a silo that
    hangs blocks nobody. A silo that reconnects gets its pending request again; it is
    delivered ``MAX_DELIVERIES`` times at most. A silo that breaks the rules, by a reply
    that is too long or to another request, loses its connection and its part in the
    exchange; it may come back for the next one.

    Args:
        spool: a folder of the aggregator, on a disk, to which long replies go. Their
            files have no name and are readable by this user alone.

    Raises:
        TransportFailed: the socket's path is taken or cannot be used.
        SpoolFailed: the folder cannot be written to.
    """

    def __init__(
        self,
        path: Path,
        plan: RunPlan,
        identity: IdentityKey,
        *,
        spool: Path,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        check_spool(spool)
        self._path, self._plan, self._identity = path, plan, identity
        self._spool, self._grace_seconds = spool, grace_seconds
        self._seats = {index: _Seat() for index in range(len(plan.silos))}
        self._outcomes: queue.SimpleQueue[tuple[int, int, _Outcome]] = (
            queue.SimpleQueue()
        )
        self._changed = threading.Condition()
        self._number, self._is_closed = 0, False
        self._listener = _listen(path)
        threading.Thread(target=self._accept, daemon=True).start()

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
        self,
        requests: Mapping[int, BytesLike],
        *,
        deadline_seconds: float,
        max_reply_bytes: int,
    ) -> Generator[tuple[int, memoryview], BytesLike | None, None]:
        """Send each silo its request; yield replies as they arrive."""
        deadline = time.monotonic() + deadline_seconds
        waiting: dict[int, int] = {}

        def send(payloads: Mapping[int, BytesLike]) -> None:
            self._number += 1
            waiting.update(dict.fromkeys(payloads, self._number))
            with self._changed:
                for silo, payload in payloads.items():
                    request = _Request(self._number, payload, max_reply_bytes)
                    self._seats[silo].pending = request
                self._changed.notify_all()

        send(requests)
        try:
            while waiting:
                left = max(0.0, deadline - time.monotonic())
                try:
                    silo, of_number, outcome = self._outcomes.get(
                        timeout=min(left, 0.2)
                    )
                except queue.Empty:
                    if not left or self._are_lost(set(waiting)):
                        return
                    continue
                if waiting.get(silo) != of_number:
                    continue
                if isinstance(outcome, SpoolFailed):
                    raise outcome
                del waiting[silo]
                other = (yield silo, outcome) if outcome is not None else None
                if other is not None:
                    send({silo: other})
        finally:
            with self._changed:
                for silo in waiting:
                    self._seats[silo].pending = None

    def close(self) -> None:
        """Close all connections and remove the socket."""
        with self._changed:
            self._is_closed = True
            _shut(self._listener)
            self._listener.close()
            for seat in self._seats.values():
                if seat.connection is not None:
                    _shut(seat.connection)
                    seat.connection = None
            self._changed.notify_all()
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
        """Let silos in, one handshake after the other, until the transport is closed.

        What the system refuses for a while (too many open files, a connection that is
        gone again) is logged and tried again.
        """
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._wait_after(error):
                    return
                continue
            try:
                silo = greet(connection, self._plan, self._identity)
            except (OSError, ProtocolError, CryptoError) as error:
                logger.info("a connection was refused: %s", error)
                connection.close()
                continue
            self._seat(silo, connection)

    def _wait_after(self, error: OSError) -> bool:
        """Log what failed and wait a little; return whether the transport is closed."""
        with self._changed:
            if not self._is_closed:
                logger.warning("no connection could be accepted: %s", error)
                self._changed.wait_for(lambda: self._is_closed, ACCEPT_PAUSE_SECONDS)
            return self._is_closed

    def _seat(self, silo: int, connection: socket.socket) -> None:
        """Give a silo its seat; an older connection of it is closed."""
        with self._changed:
            if self._is_closed:
                connection.close()
                return
            old = self._seats[silo]
            if old.connection is not None:
                _shut(old.connection)
            seat = _Seat(connection=connection, pending=old.pending)
            self._seats[silo] = seat
            self._changed.notify_all()
        thread = threading.Thread(
            target=self._serve, args=(silo, seat, connection), daemon=True
        )
        thread.start()

    def _serve(self, silo: int, seat: _Seat, connection: socket.socket) -> None:
        """Carry one connection's requests and replies until it ends."""
        try:
            while self._carry_next(silo, seat, connection):
                pass
        except (OSError, TransportFailed) as error:
            logger.info("silo %d is gone: %s", silo, error)
        except SpoolFailed as error:
            logger.warning("%s", error)
        finally:
            connection.close()
            with self._changed:
                if self._seats[silo] is seat:
                    seat.connection = None
                    seat.lost_since = time.monotonic()

    def _carry_next(self, silo: int, seat: _Seat, connection: socket.socket) -> bool:
        """Send one request and read its reply; return False when there is no more.

        Nothing of either is kept here while the thread waits for the next.
        """
        request = self._next_request(silo, seat)
        if request is None:
            return False
        send_message(connection, request.number, request.payload)
        try:
            number, reply = receive_message(
                connection, request.max_reply_bytes, self._spool
            )
            if number != request.number:
                raise TransportFailed(f"a reply to request {number}, not asked here")
        except (TransportFailed, SpoolFailed) as error:
            outcome = error if isinstance(error, SpoolFailed) else None
            self._settle(silo, request, outcome)
            raise
        self._settle(silo, request, reply)
        return True

    def _next_request(self, silo: int, seat: _Seat) -> _Request | None:
        """Wait for a request; None when the seat is another's or all is over."""
        with self._changed:
            while self._seats[silo] is seat and not self._is_closed:
                request = seat.pending
                if request is None:
                    self._changed.wait()
                elif request.deliveries < MAX_DELIVERIES:
                    request.deliveries += 1
                    return request
                else:
                    logger.info("silo %d had its request too often", silo)
                    self._settle(silo, request, None)
        return None

    def _settle(self, silo: int, request: _Request, outcome: _Outcome) -> None:
        """Report what became of a request; it is delivered no more."""
        with self._changed:
            if self._seats[silo].pending is request:
                self._seats[silo].pending = None
            self._outcomes.put((silo, request.number, outcome))


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
