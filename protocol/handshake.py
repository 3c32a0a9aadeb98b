"""Who is at the other end of a local socket: a signed challenge and a signed answer.

The aggregator signs a fresh nonce, the silo signs it back. Neither says anything else
before it knows the other, and an answer is of no use a second time.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from crypto.frame import AGGREGATOR, read_header
from crypto.keys import IdentityKey
from protocol.envelope import Kind, make_envelope, open_envelope
from protocol.errors import TransportFailed
from protocol.plan import RunPlan
from protocol.wire import PREFIX_BYTES, receive_message, send_message

NONCE_BYTES = 32
MAX_HANDSHAKE_BYTES = 1024
HANDSHAKE_SECONDS = 10.0


def connect(
    path: Path,
    plan: RunPlan,
    identity: IdentityKey,
    on_answer: Callable[[int, int], None] = lambda sent, received: None,
) -> socket.socket:
    """Return a connection to the aggregator's socket, as the silo of this identity.

    The silo signs the aggregator's signed challenge, so that only it takes its place.

    Args:
        on_answer: is told the bytes of answer and challenge, before the answer leaves.

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
        on_answer(len(hello) + PREFIX_BYTES, len(challenge) + PREFIX_BYTES)
        send_message(connection, 0, hello)
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


def greet(connection: socket.socket, plan: RunPlan, identity: IdentityKey) -> int:
    """Return which silo a new connection belongs to, proved by its signature.

    Raises:
        OSError: the other side is gone, or silent for ``HANDSHAKE_SECONDS``.
        ProtocolError, CryptoError: it is no silo of this plan.
    """
    connection.settimeout(HANDSHAKE_SECONDS)
    nonce = os.urandom(NONCE_BYTES)
    challenge = make_envelope(plan, identity, Kind.CHALLENGE, nonce, sender=AGGREGATOR)
    send_message(connection, 0, challenge)
    _, hello = receive_message(connection, MAX_HANDSHAKE_BYTES)
    silo = read_header(hello).sender
    if silo >= len(plan.silos):
        raise TransportFailed(f"no silo {silo} in the plan")
    _, answer = open_envelope(plan, hello, sender=silo, kinds=(Kind.HELLO,))
    if bytes(answer) != nonce:
        raise TransportFailed("an answer to another challenge")
    connection.settimeout(None)
    return silo
