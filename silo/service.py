"""The silo's end of the local-socket transport: requests in, replies out."""

import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

from crypto.errors import CryptoError
from crypto.keys import IdentityKey
from protocol.errors import ProtocolError, TransportFailed
from protocol.plan import RunPlan
from protocol.transport import connect, receive_message, send_message
from silo.session import SiloSession

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.5


def serve(
    session: SiloSession,
    plan: RunPlan,
    identity: IdentityKey,
    path: Path,
    *,
    patience_seconds: float,
    announce: Callable[[str], None] = lambda text: None,
) -> None:
    """Answer the aggregator through a UNIX socket until the run is over.

    A lost connection is opened again for as long as ``patience_seconds`` without one.

    Raises:
        TransportFailed: nobody listened for so long.
    """
    while not session.is_finished:
        with _patient_connection(plan, identity, path, patience_seconds) as connection:
            announce("connected")
            try:
                while not session.is_finished:
                    number, request = receive_message(connection)
                    send_message(connection, number, session.handle(request))
            except OSError as error:
                logger.info("the connection ended: %s", error)
                announce("connection lost")


def _patient_connection(
    plan: RunPlan, identity: IdentityKey, path: Path, patience_seconds: float
) -> socket.socket:
    """Return a connection, tried again and again until patience ends."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return connect(path, plan, identity)
        except (OSError, ProtocolError, CryptoError) as error:
            if time.monotonic() > deadline:
                raise TransportFailed(
                    f"{path}: no aggregator of this plan listens here "
                    f"({error}); start it with `aggregator run`"
                ) from None
        time.sleep(RETRY_SECONDS)
