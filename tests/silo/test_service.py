import socket
import threading
import time
from pathlib import Path

import pytest

import silo.service
from protocol.envelope import Kind, open_envelope
from protocol.errors import TransportFailed
from protocol.transport import LocalSockets
from protocol.wire import receive_message, send_message
from silo.service import serve
from tests.silo.conftest import STAGES, Federation

SPOOL = Path()
"""The folder of a test, in which it works."""

SPOOL = Path()
"""The folder of a test, in which it works."""


@pytest.fixture
def sockets(tmp_path, monkeypatch):
    """A socket in a folder with a short name, and silos that retry at once."""
    monkeypatch.setattr(silo.service, "RETRY_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    return tmp_path.relative_to(tmp_path) / "socket"


def start(federation, path, said, errors, patience=5.0) -> list[threading.Thread]:
    """Serve every silo in a thread of its own."""

    def run(index):
        try:
            serve(
                federation.sessions[index],
                federation.plan,
                federation.keys[index],
                path,
                spool=SPOOL,
                patience_seconds=patience,
                announce=said.append,
            )
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in federation.everyone]
    for thread in threads:
        thread.start()
    return threads


def exchange(federation, transport, stage) -> None:
    federation.make_requests(stage)
    replies = dict(
        transport.exchange(
            federation.requests[stage], deadline_seconds=20.0, max_reply_bytes=1 << 20
        )
    )
    assert sorted(replies) == list(federation.everyone)
    federation.replies[stage] = replies
    federation.take(stage, replies.values())


class TestServe:
    def test_a_whole_round(self, federation, sockets, trainings):
        said, errors = [], []
        with LocalSockets(
            sockets, federation.plan, federation.aggregator, spool=SPOOL
        ) as transport:
            threads = start(federation, sockets, said, errors)
            assert transport.wait_for_silos(10.0) == []
            for stage in STAGES:
                exchange(federation, transport, stage)
            for thread in threads:
                thread.join(10.0)
                assert not thread.is_alive()
        assert errors == []
        assert said == ["connected"] * 3
        assert sorted(trainings) == [(0, 1), (1, 1), (2, 1)]
        federation.side.slot.unmask()

    def test_reconnects_and_answers_the_same_again(self, federation, sockets):
        said, errors = [], []
        first = LocalSockets(
            sockets, federation.plan, federation.aggregator, spool=SPOOL
        )
        threads = start(federation, sockets, said, errors)
        assert first.wait_for_silos(10.0) == []
        exchange(federation, first, "setup")
        first.close()
        with LocalSockets(
            sockets, federation.plan, federation.aggregator, spool=SPOOL
        ) as second:
            assert second.wait_for_silos(10.0) == []
            again = dict(
                second.exchange(
                    federation.requests["setup"],
                    deadline_seconds=10.0,
                    max_reply_bytes=1 << 20,
                )
            )
            assert again == federation.replies["setup"]
            exchange(federation, second, "end")
            for thread in threads:
                thread.join(10.0)
        assert errors == []
        assert sorted(said) == ["connected"] * 6 + ["connection lost"] * 3

    def test_gives_up_in_one_line(self, federation, sockets):
        began = time.monotonic()
        with pytest.raises(TransportFailed) as caught:
            serve(
                federation.sessions[0],
                federation.plan,
                federation.keys[0],
                sockets,
                spool=SPOOL,
                patience_seconds=0.05,
            )
        assert time.monotonic() - began < 2.0
        message = str(caught.value)
        assert message.startswith("socket: no aggregator of this plan listens here")
        assert "\n" not in message

    def test_does_not_talk_to_another_aggregator(self, federation, sockets, tmp_path):
        other = Federation(tmp_path / "other")  # Another nonce, hence another run.
        other.close()
        with (
            LocalSockets(sockets, other.plan, other.aggregator, spool=SPOOL),
            pytest.raises(TransportFailed, match="no aggregator of this plan"),
        ):
            serve(
                federation.sessions[0],
                federation.plan,
                federation.keys[0],
                sockets,
                spool=SPOOL,
                patience_seconds=0.05,
            )

    def test_ends_at_once_when_the_run_is_over(self, federation, sockets):
        federation.play("end")
        serve(
            federation.sessions[0],
            federation.plan,
            federation.keys[0],
            sockets,
            spool=SPOOL,
            patience_seconds=0.0,
        )


def once(connection):
    """Return a ``connect`` that succeeds once, and never again."""
    left = [connection]

    def connect(*arguments):
        if not left:
            raise ConnectionError("nobody")
        return left.pop()

    return connect


class TestDisk:
    """A full disk is no lost connection: a session that could not save must end."""

    def test_ends_the_service(self, federation, monkeypatch, sockets):
        here, there = socket.socketpair()
        monkeypatch.setattr(silo.service, "connect", once(here))
        federation.make_requests("setup")

        def full(*arguments):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(federation.store(0).__class__, "save_secagg", full)
        with there:
            send_message(there, 1, federation.requests["setup"][0])
            with pytest.raises(OSError, match="No space left"):
                serve(
                    federation.sessions[0],
                    federation.plan,
                    federation.keys[0],
                    sockets,
                    spool=SPOOL,
                    patience_seconds=0.05,
                )
            assert there.recv(1) == b""  # Nothing was sent.

    def test_a_lost_connection_does_not(self, federation, monkeypatch, sockets):
        here, there = socket.socketpair()
        monkeypatch.setattr(silo.service, "connect", once(here))
        there.close()
        with pytest.raises(TransportFailed):
            serve(
                federation.sessions[0],
                federation.plan,
                federation.keys[0],
                sockets,
                spool=SPOOL,
                patience_seconds=0.02,
            )

    def test_the_reply_carries_the_number_of_its_request(
        self, federation, monkeypatch, sockets
    ):
        here, there = socket.socketpair()
        monkeypatch.setattr(silo.service, "connect", once(here))
        federation.make_requests("end")
        with there:
            send_message(there, 41, b"nonsense")
            send_message(there, 42, federation.requests["end"][0])
            serve(
                federation.sessions[0],
                federation.plan,
                federation.keys[0],
                sockets,
                spool=SPOOL,
                patience_seconds=0.05,
            )
            number, reply = receive_message(there)
            assert number == 41
            federation.refusal(reply)
            number, reply = receive_message(there)
            assert number == 42
            open_envelope(federation.plan, reply, sender=0, kinds=(Kind.END_SEEN,))
