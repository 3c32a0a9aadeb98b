import contextlib
import errno
import gc
import mmap
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path

import pytest

import protocol.transport
import protocol.wire
from crypto.errors import InvalidSignature
from crypto.frame import AGGREGATOR
from protocol.envelope import Kind, make_envelope, open_envelope
from protocol.errors import (
    EnvelopeRejected,
    PlanRejected,
    SpoolFailed,
    TransportFailed,
)
from protocol.handshake import MAX_HANDSHAKE_BYTES, connect
from protocol.transport import MAX_DELIVERIES, LocalSockets
from protocol.wire import IN_MEMORY_BYTES, receive_message, send_message
from tests.protocol.examples import (
    AGGREGATOR_IDENTITY,
    IDENTITIES,
    make_example,
    make_identity,
)
from tests.protocol.upload_memory import NUM_UPLOADS, UPLOAD_BYTES

PLAN = make_example()
SOON = 10.0
"""Seconds by which a thing that is going to happen has happened, however busy."""
LIMIT = 1 << 27
"""Bytes that no honest message here has."""


@pytest.fixture
def path():
    # UNIX sockets have short names only; pytest's folders do not.
    with tempfile.TemporaryDirectory(prefix="c-") as folder:
        yield Path(folder) / "socket"


@pytest.fixture
def transport(path):
    with LocalSockets(
        path, PLAN, AGGREGATOR_IDENTITY, spool=path.parent, grace_seconds=0.2
    ) as transport:
        yield transport


@pytest.fixture
def start(path):
    """Return a function that starts a silo; all are gone when the test ends."""
    silos = []

    def start_silo(index, **options):
        silo = FakeSilo(path, index, **options)
        silos.append(silo)
        return silo

    yield start_silo
    for silo in silos:
        silo.leave()


class FakeSilo:
    """A silo that answers every request with its index and the request."""

    def __init__(self, path, index, *, answer=None):
        self.index, self.seen, self.spool = index, [], path.parent
        self._answer = answer or self.echo
        self.connection = connect(path, PLAN, IDENTITIES[index])
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def echo(self, number, request):
        send_message(self.connection, number, b"%d:%s" % (self.index, request))

    def _run(self):
        try:
            while True:
                number, request = receive_message(self.connection, LIMIT, self.spool)
                self.seen.append((number, request))
                self._answer(number, request)
        except OSError:
            pass

    def leave(self):
        """End the connection and wait for the thread."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(SOON)
        assert not self._thread.is_alive()
        self.connection.close()


def wait_until(condition):
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ask(transport, asked, seconds=SOON, limit=LIMIT):
    return transport.exchange(asked, deadline_seconds=seconds, max_reply_bytes=limit)


def silent(number, request):
    """Never answer."""


def requests(*silos, text=b"r"):
    return {silo: b"%s%d" % (text, silo) for silo in silos}


def test_every_silo_gets_its_request_and_its_reply_is_yielded(transport, start):
    silos = [start(index) for index in range(3)]
    assert transport.wait_for_silos(SOON) == []
    for text in (b"a", b"b", b""):
        asked = requests(0, 1, 2, text=text)
        replies = list(ask(transport, asked))
        assert sorted(replies) == [(i, b"%d:%s" % (i, asked[i])) for i in range(3)]
    assert [request for _, request in silos[1].seen] == [b"a1", b"b1", b"1"]


def test_a_silo_that_has_replied_can_be_asked_something_else(transport, start):
    """Within the exchange, while the others are still at work."""
    held = threading.Event()

    def slow(number, request):
        held.wait(SOON)
        silos[1].echo(number, request)

    silos = [start(0), start(1, answer=slow)]
    exchange = ask(transport, requests(0, 1))
    assert next(exchange) == (0, b"0:r0")
    assert exchange.send(b"more") == (0, b"0:more")
    held.set()
    assert list(exchange) == [(1, b"1:r1")]
    assert [request for _, request in silos[0].seen] == [b"r0", b"more"]
    assert len({number for number, _ in silos[0].seen}) == 2


def test_only_those_asked_are_asked(transport, start):
    silos = [start(index) for index in range(3)]
    transport.wait_for_silos(SOON)
    replies = dict(ask(transport, requests(2)))
    assert set(replies) == {2}
    assert [len(silo.seen) for silo in silos] == [0, 0, 1]
    assert list(ask(transport, {})) == []


def test_a_large_message_passes(transport, start):
    start(0)
    large = os.urandom(1 << 22)
    ((_, reply),) = ask(transport, {0: large})
    assert reply == b"0:" + large


def test_a_silo_that_never_answers_is_absent_at_the_deadline(transport, start):
    start(0, answer=silent)
    start(1)
    start(2)
    transport.wait_for_silos(SOON)
    began = time.monotonic()
    exchange = ask(transport, requests(0, 1, 2), 1.0)
    assert {next(exchange)[0], next(exchange)[0]} == {1, 2}
    assert time.monotonic() - began < 0.9
    assert list(exchange) == []
    assert 1.0 <= time.monotonic() - began < SOON


def test_a_silo_that_comes_back_gets_its_request_again(transport, start):
    first = start(0, answer=lambda number, request: first.connection.close())
    transport.wait_for_silos(0)
    received = []
    asking = threading.Thread(
        target=lambda: received.extend(ask(transport, requests(0)))
    )
    asking.start()
    wait_until(lambda: first.seen)
    second = start(0)
    asking.join(SOON)
    assert received == [(0, b"0:r0")]
    assert second.seen == first.seen == [(1, b"r0")]


def test_a_silo_that_comes_late_gets_its_request(path, start):
    with LocalSockets(
        path, PLAN, AGGREGATOR_IDENTITY, spool=path.parent, grace_seconds=SOON
    ) as transport:
        received = []
        asking = threading.Thread(
            target=lambda: received.extend(ask(transport, requests(1)))
        )
        asking.start()
        start(1)
        asking.join(SOON)
        assert received == [(1, b"1:r1")]


def test_a_request_is_not_sent_again_after_its_exchange(transport, start):
    first = start(0, answer=silent)
    transport.wait_for_silos(0)
    assert not list(ask(transport, requests(0), 0.3))
    assert first.seen
    second = start(0)
    assert list(ask(transport, {0: b"new"})) == [(0, b"0:new")]
    assert second.seen == [(2, b"new")]


def test_a_late_reply_is_not_taken_for_the_reply_to_a_newer_request(transport, start):
    release = threading.Event()

    def slowly(number, request):
        release.wait(SOON)
        silo.echo(number, request)

    silo = start(0, answer=slowly)
    transport.wait_for_silos(0)
    assert not list(ask(transport, {0: b"old"}, 0.3))
    release.set()
    assert list(ask(transport, {0: b"new"})) == [(0, b"0:new")]
    assert silo.seen == [(1, b"old"), (2, b"new")]


@pytest.mark.parametrize("number", [0, 1, 3, 2**64 - 1])
def test_a_reply_to_another_request_ends_the_connection(number, transport, start):
    def lie(asked, request):
        send_message(silo.connection, number if asked == 2 else asked, b"x")

    silo = start(0, answer=lie)
    start(1)
    assert list(ask(transport, {0: b"a"})) == [(0, b"x")]
    began = time.monotonic()
    assert [silo for silo, _ in ask(transport, requests(0, 1))] == [1]
    assert time.monotonic() - began < SOON / 2
    wait_until(lambda: not silo._thread.is_alive())


def test_a_second_reply_is_not_taken_for_the_reply_to_the_next_request(
    transport, start
):
    def twice(number, request):
        silo.echo(number, request)
        with contextlib.suppress(OSError):
            silo.echo(number, b"twice")

    silo = start(0, answer=twice)
    assert list(ask(transport, {0: b"a"})) == [(0, b"0:a")]
    assert list(ask(transport, {0: b"b"})) == []
    start(0)
    assert list(ask(transport, {0: b"c"})) == [(0, b"0:c")]


def test_replies_that_came_in_time_count_however_slow_they_are_taken(transport, start):
    silos = [start(index) for index in range(3)]
    transport.wait_for_silos(SOON)
    exchange = ask(transport, requests(0, 1, 2), 0.5)
    taken = [next(exchange)[0]]
    wait_until(lambda: all(silo.seen for silo in silos))
    time.sleep(0.6)
    taken += [silo for silo, _ in exchange]
    assert sorted(taken) == [0, 1, 2]


def test_an_exchange_ends_when_all_that_are_missing_are_lost(transport, start):
    silo = start(0)
    start(1)
    transport.wait_for_silos(0)
    silo.leave()
    began = time.monotonic()
    replies = list(ask(transport, requests(0, 1, 2), 60.0))
    assert [index for index, _ in replies] == [1]
    assert time.monotonic() - began < SOON


def test_a_silo_that_left_a_moment_ago_is_not_lost_yet(path, start):
    with LocalSockets(
        path, PLAN, AGGREGATOR_IDENTITY, spool=path.parent, grace_seconds=SOON
    ) as transport:
        start(0).leave()
        began = time.monotonic()
        assert not list(ask(transport, requests(0), 0.5))
        assert time.monotonic() - began >= 0.5


def test_a_silo_that_is_there_is_not_lost(transport, start):
    start(0, answer=silent)
    transport.wait_for_silos(0)
    began = time.monotonic()
    assert not list(ask(transport, requests(0), 0.6))
    assert time.monotonic() - began >= 0.6


def test_a_newer_connection_takes_the_seat(transport, start):
    first = start(0)
    transport.wait_for_silos(0)
    second = start(0)
    wait_until(lambda: not first._thread.is_alive())
    assert list(ask(transport, requests(0))) == [(0, b"0:r0")]
    assert (len(first.seen), len(second.seen)) == (0, 1)


def test_a_newer_connection_ends_one_that_is_waited_for(transport, start):
    first = start(0, answer=silent)
    transport.wait_for_silos(0)
    assert not list(ask(transport, requests(0), 0.3))
    start(0)
    wait_until(lambda: not first._thread.is_alive())


def test_a_reply_that_comes_twice_is_yielded_once(transport, start):
    release = threading.Event()

    def slowly(number, request):
        release.wait(SOON)
        last.echo(number, request)

    start(0)
    start(1)
    last = start(2, answer=slowly)
    transport.wait_for_silos(SOON)
    exchange = ask(transport, requests(0, 1, 2))
    first, reply = next(exchange)
    # As it is when a silo reconnects while its reply is on its way.
    transport._outcomes.put((first, 1, reply))
    transport._outcomes.put((first, 1, None))
    release.set()
    assert sorted(silo for silo, _ in exchange) == sorted({0, 1, 2} - {first})


def test_a_reply_that_came_whole_is_not_asked_for_again(transport, start):
    first = start(0)
    start(1, answer=silent)
    transport.wait_for_silos(0)
    exchange = ask(transport, requests(0, 1), 1.0)
    assert next(exchange) == (0, b"0:r0")
    second = start(0)
    assert list(exchange) == []
    assert (len(first.seen), len(second.seen)) == (1, 0)


def test_waiting_names_who_is_missing(transport, start):
    assert transport.wait_for_silos(0.0) == [0, 1, 2]
    start(1)
    wait_until(lambda: transport.wait_for_silos(0.0) == [0, 2])
    start(0)
    start(2)
    assert transport.wait_for_silos(SOON) == []


# Who may take a seat.


def hello(nonce, *, identity, sender, plan=PLAN, kind=Kind.HELLO):
    return make_envelope(plan, identity, kind, nonce, sender=sender)


@pytest.mark.parametrize(
    "make_hello",
    [
        pytest.param(
            lambda nonce: hello(nonce, identity=make_identity("x"), sender=0),
            id="a stranger's key",
        ),
        pytest.param(
            lambda nonce: hello(nonce, identity=IDENTITIES[1], sender=0),
            id="another silo's key",
        ),
        pytest.param(
            lambda nonce: hello(nonce, identity=IDENTITIES[3], sender=3),
            id="no silo of the plan",
        ),
        pytest.param(
            lambda nonce: hello(nonce, identity=AGGREGATOR_IDENTITY, sender=AGGREGATOR),
            id="the aggregator",
        ),
        pytest.param(
            lambda nonce: hello(bytes(32), identity=IDENTITIES[0], sender=0),
            id="another challenge",
        ),
        pytest.param(
            lambda nonce: hello(
                nonce, identity=IDENTITIES[0], sender=0, plan=make_example({"seed": 8})
            ),
            id="another run",
        ),
        pytest.param(
            lambda nonce: hello(
                nonce, identity=IDENTITIES[0], sender=0, kind=Kind.CHALLENGE
            ),
            id="another kind",
        ),
        pytest.param(lambda nonce: b"", id="nothing"),
        pytest.param(lambda nonce: b"x" * MAX_HANDSHAKE_BYTES, id="noise"),
        pytest.param(lambda nonce: b"x" * (MAX_HANDSHAKE_BYTES + 1), id="too long"),
    ],
)
def test_an_impostor_gets_no_seat(make_hello, path, transport, start):
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.settimeout(SOON)
        impostor.connect(os.fspath(path))
        _, challenge = receive_message(impostor)
        _, nonce = open_envelope(
            PLAN, challenge, sender=AGGREGATOR, kinds=(Kind.CHALLENGE,)
        )
        with pytest.raises(ConnectionError):
            send_message(impostor, 0, make_hello(bytes(nonce)))
            receive_message(impostor)
    assert transport.wait_for_silos(0.0) == [0, 1, 2]
    start(0)  # The real one is let in after it.
    wait_until(lambda: transport.wait_for_silos(0.0) == [1, 2])


def test_a_hello_is_of_no_use_a_second_time(path, transport):
    with socket.socket(socket.AF_UNIX) as silo:
        silo.connect(os.fspath(path))
        _, challenge = receive_message(silo)
        _, nonce = open_envelope(
            PLAN, challenge, sender=AGGREGATOR, kinds=(Kind.CHALLENGE,)
        )
        answer = hello(bytes(nonce), identity=IDENTITIES[0], sender=0)
        send_message(silo, 0, answer)
        wait_until(lambda: transport.wait_for_silos(0.0) == [1, 2])
        with socket.socket(socket.AF_UNIX) as replay:
            replay.settimeout(SOON)
            replay.connect(os.fspath(path))
            receive_message(replay)
            send_message(replay, 0, answer)
            with pytest.raises(ConnectionError):
                receive_message(replay)
        replies = ask(transport, {0: b"x"})
        answering = threading.Thread(
            target=lambda: send_message(silo, *receive_message(silo))
        )
        answering.start()
        assert list(replies) == [(0, b"x")]
        answering.join(SOON)


def test_a_visitor_who_says_nothing_and_leaves_is_forgotten(path, transport, start):
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.connect(os.fspath(path))
    start(0)
    wait_until(lambda: transport.wait_for_silos(0.0) == [1, 2])


def test_a_silo_that_is_not_in_the_plan_says_so_itself(path, transport):
    with pytest.raises(PlanRejected, match="not in the plan"):
        connect(path, PLAN, make_identity("x"))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"identity": make_identity("x")}, InvalidSignature),
        ({"identity": IDENTITIES[0]}, InvalidSignature),
        ({"plan": make_example({"seed": 8})}, EnvelopeRejected),
        ({"kind": Kind.HELLO}, EnvelopeRejected),
        ({"sender": 0}, EnvelopeRejected),
    ],
)
def test_a_silo_leaves_a_false_aggregator(changes, error, path):
    fields = {
        "plan": PLAN,
        "identity": AGGREGATOR_IDENTITY,
        "kind": Kind.CHALLENGE,
        "sender": AGGREGATOR,
    } | changes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()

        def challenge():
            connection, _ = listener.accept()
            with connection:
                send_message(connection, 0, make_envelope(**fields, body=bytes(32)))
                assert connection.recv(1) == b""  # Nothing was signed for it.

        thread = threading.Thread(target=challenge)
        thread.start()
        with pytest.raises(error):
            connect(path, PLAN, IDENTITIES[1])
        thread.join(SOON)


def test_connecting_where_nobody_listens(path):
    with pytest.raises(FileNotFoundError):
        connect(path, PLAN, IDENTITIES[0])
    with pytest.raises(OSError, match="path too long"):
        connect(path.with_name("x" * 200), PLAN, IDENTITIES[0])


# The socket's path.


def test_only_this_user_may_connect(path, transport):
    before = os.umask(0)
    os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert before != 0o177


def failure(path):
    with pytest.raises(TransportFailed) as caught:
        LocalSockets(path, PLAN, AGGREGATOR_IDENTITY, spool=Path(__file__).parent)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_socket_that_a_crash_left_is_replaced(path, start):
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(os.fspath(path))
        old.listen()
    assert path.is_socket()
    with LocalSockets(path, PLAN, AGGREGATOR_IDENTITY, spool=path.parent) as transport:
        start(0)
        assert 0 not in transport.wait_for_silos(0.1)
    assert not path.exists()


def test_a_path_where_somebody_listens_is_left_alone(path, transport, start):
    assert failure(path) == "another process listens here"
    start(0)
    wait_until(lambda: transport.wait_for_silos(0.0) == [1, 2])


def test_a_socket_that_cannot_be_asked_is_left_alone(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(os.fspath(path))
        assert failure(path) == "Protocol wrong type for socket"
    assert path.is_socket()


def test_a_file_in_the_way_is_left_alone(path):
    path.write_text("precious")
    assert failure(path) == "exists and is not a socket"
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_says_so(path):
    assert "path too long" in failure(path.with_name("x" * 120))


def test_a_missing_folder_is_named(path):
    assert failure(path.parent / "none" / "socket") == "No such file or directory"


# The end.


def test_closing_ends_every_thread_and_connection(path, start):
    before = set(threading.enumerate())
    transport = LocalSockets(path, PLAN, AGGREGATOR_IDENTITY, spool=path.parent)
    silos = [start(index) for index in range(3)]
    transport.wait_for_silos(SOON)
    transport.close()
    assert not path.exists()
    wait_until(lambda: not any(silo._thread.is_alive() for silo in silos))
    wait_until(lambda: set(threading.enumerate()) <= before)
    transport.close()


def test_closing_in_the_middle_of_an_exchange(path, start):
    transport = LocalSockets(
        path, PLAN, AGGREGATOR_IDENTITY, spool=path.parent, grace_seconds=0.1
    )
    silo = start(0, answer=silent)
    transport.wait_for_silos(0)
    received = []
    asking = threading.Thread(
        target=lambda: received.extend(ask(transport, requests(0), 60.0))
    )
    asking.start()
    wait_until(lambda: silo.seen)
    transport.close()
    wait_until(lambda: not silo._thread.is_alive())
    asking.join(SOON)
    assert not asking.is_alive()
    assert received == []


def test_nobody_is_seated_after_the_end(transport):
    transport.close()
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.settimeout(SOON)
        transport._seat(0, ours)
        assert theirs.recv(1) == b""


# What a silo can make the aggregator hold.


def send_announced(connection, number, announced, payload=b""):
    connection.sendall(struct.pack(">QQ", number, announced) + payload)


@pytest.mark.parametrize("announced", [1001, IN_MEMORY_BYTES + 1, 2**63, 2**64 - 1])
def test_a_reply_that_is_too_long_loses_the_silo_at_once(announced, transport, start):
    liar = start(
        0, answer=lambda number, _: send_announced(liar.connection, number, announced)
    )
    start(1)
    transport.wait_for_silos(0)
    began = time.monotonic()
    replies = list(ask(transport, requests(0, 1), 1.5 * SOON, limit=1000))
    assert replies == [(1, b"1:r1")]
    assert time.monotonic() - began < SOON
    wait_until(lambda: not liar._thread.is_alive())
    again = start(0)  # Back in the next exchange, and not asked again for this one.
    assert list(ask(transport, {0: b"next"})) == [(0, b"0:next")]
    assert [request for _, request in again.seen] == [b"next"]


@pytest.mark.parametrize("size", [0, 1000, IN_MEMORY_BYTES + 1])
def test_a_reply_of_just_the_permitted_length_is_taken(size, transport, start):
    silo = start(
        0, answer=lambda number, _: send_message(silo.connection, number, bytes(size))
    )
    assert list(ask(transport, requests(0), limit=size)) == [(0, bytes(size))]


def test_a_large_reply_stands_in_no_folder(path, transport, start):
    large = os.urandom(IN_MEMORY_BYTES + 1)
    start(0)
    before = sorted(path.parent.iterdir())
    ((_, reply),) = ask(transport, {0: large})
    assert isinstance(reply.obj, mmap.mmap)
    assert reply.readonly
    assert reply == b"0:" + large
    assert sorted(path.parent.iterdir()) == before


class BreaksOff(FakeSilo):
    """A silo that is gone in the middle of every reply."""

    def echo(self, number, request):
        send_announced(self.connection, number, 1000, b"cut off")
        self.connection.close()


def test_a_silo_that_always_breaks_off_gets_its_request_a_few_times(path, start):
    received = []
    with LocalSockets(
        path, PLAN, AGGREGATOR_IDENTITY, spool=path.parent, grace_seconds=6 * SOON
    ) as transport:
        asking = threading.Thread(
            target=lambda: received.extend(ask(transport, requests(0), 6 * SOON))
        )
        asking.start()
        for _ in range(MAX_DELIVERIES):
            silo = BreaksOff(path, 0)
            silo._thread.join(SOON)
            assert len(silo.seen) == 1
        last = start(0)
        asking.join(SOON)
        assert not asking.is_alive()
        assert received == []
        assert last.seen == []
        assert list(ask(transport, {0: b"next"})) == [(0, b"0:next")]


def test_a_silo_whose_reply_is_cut_off_may_send_it_again(transport, start):
    def break_off(number, request):
        half = bytes(IN_MEMORY_BYTES)
        send_announced(first.connection, number, 2 * IN_MEMORY_BYTES, half)
        first.connection.close()

    first = start(0, answer=break_off)
    transport.wait_for_silos(0)
    exchange, received = ask(transport, requests(0)), []
    asking = threading.Thread(target=lambda: received.extend(exchange))
    asking.start()
    wait_until(lambda: not first._thread.is_alive())
    start(0)
    asking.join(SOON)
    assert received == [(0, b"0:r0")]


def test_a_silo_that_hangs_in_a_large_upload_blocks_nobody(transport, start):
    def hang(number, request):
        half = bytes(IN_MEMORY_BYTES)
        send_announced(silo.connection, number, 2 * IN_MEMORY_BYTES, half)

    silo = start(0, answer=hang)
    others = [start(index) for index in (1, 2)]
    transport.wait_for_silos(SOON)
    for text in (b"a", b"b", b"c"):
        began = time.monotonic()
        exchange = ask(transport, requests(0, 1, 2, text=text), 1.0)
        assert {next(exchange)[0], next(exchange)[0]} == {1, 2}
        assert time.monotonic() - began < 0.9
        assert list(exchange) == []
    assert [len(other.seen) for other in others] == [3, 3]
    assert len(silo.seen) == 1


def test_what_a_silo_that_hangs_was_asked_is_not_kept(transport, start):
    class Request(bytearray):
        """Bytes that can be watched."""

    start(0, answer=silent)
    transport.wait_for_silos(0)
    watched = []
    for _ in range(4):
        request = Request(b"a model")
        watched.append(weakref.ref(request))
        assert not list(ask(transport, {0: request}, 0.2))
        del request
    gc.collect()
    assert [ref() is None for ref in watched] == [False, True, True, True]


def test_a_reply_is_gone_once_it_was_taken(path, transport, start):
    start(0)
    exchange = ask(transport, {0: bytes(IN_MEMORY_BYTES)})
    _, reply = next(exchange)
    watched = weakref.ref(reply.obj)
    del reply
    assert list(exchange) == []
    del exchange
    gc.collect()
    assert watched() is None


def test_a_full_disk_of_ours_is_no_lost_silo(monkeypatch, transport, start):
    def full(file, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(protocol.wire, "_write", full)
    start(0)
    with pytest.raises(SpoolFailed, match="No space left on device"):
        list(ask(transport, {0: bytes(IN_MEMORY_BYTES)}))


def test_a_folder_that_cannot_take_long_replies_is_refused_at_the_start(path):
    with pytest.raises(SpoolFailed, match="none: No such file or directory"):
        LocalSockets(path, PLAN, AGGREGATOR_IDENTITY, spool=path.parent / "none")
    assert not path.exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_of_the_aggregator_does_not_grow_with_the_silos(tmp_path):
    """Eight vectors are held at once by a process that has room for one and a half."""
    plan = make_example(num_silos=NUM_UPLOADS)
    vector = struct.pack("<Q", 1) * (UPLOAD_BYTES // 8)

    def upload(connection):
        number, _ = receive_message(connection)
        send_message(connection, number, vector)

    with tempfile.TemporaryDirectory(prefix="c-") as folder:
        path = Path(folder) / "socket"
        aggregator = subprocess.Popen(
            [sys.executable, "-m", "tests.protocol.upload_memory", path, tmp_path],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        wait_until(path.is_socket)
        connections = [
            connect(path, plan, identity) for identity in IDENTITIES[:NUM_UPLOADS]
        ]
        threads = [threading.Thread(target=upload, args=(c,)) for c in connections]
        for thread in threads:
            thread.start()
        output, _ = aggregator.communicate(timeout=60.0)
        for thread, connection in zip(threads, connections, strict=True):
            thread.join(SOON)
            connection.close()
    grown = int(output)
    assert UPLOAD_BYTES < grown < 1.5 * UPLOAD_BYTES  # One is the running total.


def test_a_listener_survives_what_the_system_refuses_for_a_while(
    path, transport, start, monkeypatch, caplog
):
    monkeypatch.setattr(protocol.transport, "ACCEPT_PAUSE_SECONDS", 0.01)
    refusals = [errno.EMFILE, errno.ECONNABORTED, errno.ENOBUFS]
    accept = socket.socket.accept

    def accept_later(listener):
        if refusals:
            code = refusals.pop(0)
            raise OSError(code, os.strerror(code))
        return accept(listener)

    start(0)  # The listener waits in the real accept() for this one.
    monkeypatch.setattr(socket.socket, "accept", accept_later)
    start(1)
    start(2)
    assert transport.wait_for_silos(SOON) == []
    assert refusals == []
    assert len(caplog.records) == 3
    assert "could be accepted: [Errno 24] Too many open files" in caplog.text


def test_a_listener_that_is_closed_ends_without_a_word(path, caplog, monkeypatch):
    monkeypatch.setattr(protocol.transport, "ACCEPT_PAUSE_SECONDS", 0.01)
    before = set(threading.enumerate())
    with LocalSockets(path, PLAN, AGGREGATOR_IDENTITY, spool=path.parent):
        (listener,) = set(threading.enumerate()) - before
    listener.join(SOON)
    assert not listener.is_alive()
    assert "accepted" not in caplog.text


def test_a_listener_that_waits_is_closed_at_once(path, monkeypatch):
    def refuse(listener):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket.socket, "accept", refuse)
    monkeypatch.setattr(protocol.transport, "ACCEPT_PAUSE_SECONDS", 10 * SOON)
    before = set(threading.enumerate())
    with LocalSockets(path, PLAN, AGGREGATOR_IDENTITY, spool=path.parent):
        (listener,) = set(threading.enumerate()) - before
    listener.join(SOON)
    assert not listener.is_alive()
