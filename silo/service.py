"""The silo's end of the local-socket transport: requests in, replies out."""

import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

from crypto.errors import CryptoError
from crypto.keys import IdentityKey
from protocol.bodies import MAX_MESSAGE_BYTES
from protocol.errors import ProtocolError, TransportFailed
from protocol.handshake import connect
from protocol.plan import RunPlan
from protocol.wire import receive_message, send_message
from silo.session import SiloSession

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.5


def serve(
    session: SiloSession,
    plan: RunPlan,
    identity: IdentityKey,
    path: Path,
    *,
    spool: Path,
    patience_seconds: float,
    announce: Callable[[str], None] = lambda text: None,
) -> None:
    """Answer the aggregator through a UNIX socket until the run is over.

    A lost connection is opened again for as long as ``patience_seconds`` without one.

    Args:
        spool: a folder of this silo, on a disk, to which long requests go while they
            are answered.

    Raises:
        TransportFailed: nobody listened for so long, or a request is too long.
        SpoolFailed: the disk does not take a request.
        OSError: this silo's own disk failed. The session must not go on then; started
            again it continues from what is saved.
    """
    while not session.is_finished:
        with _patient_connection(
            plan, identity, path, patience_seconds, session.note_connection
        ) as connection:
            announce("connected")
            while not session.is_finished and _answer_next(session, connection, spool):
                pass
            if not session.is_finished:
                announce("connection lost")
                time.sleep(RETRY_SECONDS)


def _answer_next(session: SiloSession, connection: socket.socket, spool: Path) -> bool:
    """Answer one request; return whether the connection still stands."""
    try:
        number, request = receive_message(connection, MAX_MESSAGE_BYTES, spool)
    except OSError as error:
        logger.info("the connection ended: %s", error)
        return False
    reply = session.handle(request)
    try:
        send_message(connection, number, reply)
    except OSError as error:
        logger.info("the connection ended: %s", error)
        return False
    return True


def _patient_connection(
    plan: RunPlan,
    identity: IdentityKey,
    path: Path,
    patience_seconds: float,
    on_answer: Callable[[int, int], None],
) -> socket.socket:
    """Return a connection, tried again and again until patience ends."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return connect(path, plan, identity, on_answer)
        except (OSError, ProtocolError, CryptoError) as error:
            if time.monotonic() > deadline:
                raise TransportFailed(
                    f"{path}: no aggregator of this plan listens here "
                    f"({error}); start it with `aggregator run`"
                ) from None
        time.sleep(RETRY_SECONDS)
