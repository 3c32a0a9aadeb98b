import dataclasses
import hashlib
import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.errors import CryptoError, InvalidSignature, MalformedMessage
from crypto.frame import AGGREGATOR, HEADER_BYTES
from crypto.frame import Kind as SecAggKind
from protocol.bodies import (
    MAX_TABLE_BYTES,
    floats_from_bytes,
    floats_to_bytes,
    join_body,
    split_body,
)
from protocol.encoding import encode
from protocol.envelope import (
    EndReply,
    EndRequest,
    Kind,
    LedgerNotice,
    Refusal,
    RoundRequest,
    make_envelope,
    model_digest,
    open_envelope,
)
from protocol.errors import EnvelopeRejected
from protocol.heads import SHOWN_HEAD_BYTES, Head, ShownHead
from tests.protocol.examples import AGGREGATOR_IDENTITY, IDENTITIES, make_example

PLAN = make_example()
HEAD = Head(party="aggregator", size=3, root="0a" * 32, signature="0b" * 64)
SHOWN = ShownHead(head=HEAD, old_size=2, proof=(bytes(range(32)), b"\1" * 32))
ROUND = RoundRequest(
    round_number=2,
    attempt=1,
    shown=SHOWN,
    model="0c" * 32,
    parameters=b"\x00\x00\x80?" * 3,
    ranges=b"\x00\x00\x00@",
    sum_notice=b"signed",
)
END = EndRequest(
    round_number=3, shown=SHOWN, model="0d" * 32, parameters=b"1234", average=b"5678"
)
OWN_HEAD = Head(party="silo-1", size=9, root="1a" * 32, signature="1b" * 64)
END_SEEN = EndReply(head=OWN_HEAD, seen=HEAD)
REFUSAL = Refusal(stage="masked", check="threshold: 2 of 3", seen=7)
BODIES = [ROUND, END, END_SEEN, REFUSAL]
NO_SUM = dataclasses.replace(ROUND, sum_notice=b"", ranges=b"")

each_body = pytest.mark.parametrize(
    "message", [*BODIES, NO_SUM], ids=lambda message: type(message).__name__
)


def parse(message, body):
    more = ("silo-1",) if isinstance(message, EndReply) else ()
    return type(message).from_body(memoryview(body), *more)


def prefixed(*parts):
    return b"".join(struct.pack(">Q", len(part)) + part for part in parts)


@each_body
def test_a_body_round_trips(message):
    assert parse(message, message.to_body()) == message


def test_a_body_by_hand():
    assert REFUSAL.to_body() == prefixed(
        b'{"accused":-1,"check":"threshold: 2 of 3","seen":7,"stage":"masked"}'
    )
    assert join_body({"a": 1}, b"", b"xy") == prefixed(b'{"a":1}', b"", b"xy")


@each_body
def test_every_cut_body_is_refused(message):
    body = message.to_body()
    for length in range(len(body)):
        with pytest.raises(EnvelopeRejected):
            parse(message, body[:length])


@each_body
def test_every_longer_body_is_refused(message):
    for rest in (b"\x00", prefixed(b""), prefixed(b"x"), message.to_body()):
        with pytest.raises(EnvelopeRejected, match="trailing bytes"):
            parse(message, message.to_body() + rest)


@st.composite
def mutations(draw):
    """Return bytes and a few changes: flipped, removed, inserted, repeated."""
    message = draw(st.sampled_from(BODIES))
    body = bytearray(message.to_body())
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(body) - 1)))
        change = draw(st.sampled_from(["flip", "remove", "insert", "repeat", "length"]))
        if change == "flip" and body:
            body[place] ^= draw(st.integers(1, 255))
        elif change == "remove":
            del body[place : place + draw(st.integers(1, 9))]
        elif change == "insert":
            body[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif change == "repeat":
            body[place:place] = body[place : place + 20]
        else:
            body[:8] = struct.pack(">Q", draw(st.integers(0, 2**64 - 1)))
    return message, bytes(body)


@settings(max_examples=500)
@given(mutations())
def test_a_mutated_body_is_refused_or_another_message(mutation):
    message, body = mutation
    try:
        again = parse(message, body)
    except EnvelopeRejected as error:
        assert "\n" not in str(error)
        return
    assert again.to_body() == body


def with_table(message, table):
    """Return the body of a message with another table before its byte strings."""
    _, parts = split_body(memoryview(message.to_body()), _num_parts(message))
    encoded = table if isinstance(table, bytes) else encode(table)
    return prefixed(encoded, *parts)


def _num_parts(message):
    return {RoundRequest: 4, EndRequest: 4, EndReply: 2}.get(type(message), 0)


REFUSED = {"stage": "x", "check": "y", "accused": 0, "seen": -1}
NUMBERS = {"round_number": 2, "attempt": 1, "model": "0c" * 32}


@pytest.mark.parametrize(
    ("message", "table", "expected"),
    [
        (ROUND, {"round_number": 2}, "exactly round_number, attempt, model"),
        (ROUND, NUMBERS | {"model": 1}, "model must be text"),
        (ROUND, NUMBERS | {"model": "0c"}, "model: must be 64"),
        (ROUND, NUMBERS | {"more": 1}, "exactly round_number"),
        (ROUND, NUMBERS | {"round_number": 0}, "round_number must be"),
        (ROUND, NUMBERS | {"round_number": 2**31}, "round_number must"),
        (ROUND, NUMBERS | {"round_number": True}, "round_number must be"),
        (ROUND, NUMBERS | {"round_number": 1.0}, "round_number must be"),
        (ROUND, NUMBERS | {"round_number": "1"}, "round_number must be"),
        (ROUND, NUMBERS | {"attempt": -1}, "attempt must be"),
        (END, {}, "exactly round_number"),
        (END, {"round_number": None, "model": "0c" * 32}, "round_number must"),
        (END, {"round_number": 1, "model": "0C" * 32}, "model: must be 64"),
        (END_SEEN, {"head": 1}, "exactly nothing"),
        (REFUSAL, {"stage": "x"}, "exactly stage, check, accused, seen"),
        (
            REFUSAL,
            REFUSED | {"stage": 1, "check": "x", "accused": 0},
            "stage must be text",
        ),
        (
            REFUSAL,
            REFUSED | {"stage": "x", "check": [1], "accused": 0},
            "check must be text",
        ),
        (
            REFUSAL,
            REFUSED | {"stage": "x", "check": "y", "accused": "2"},
            "accused must be",
        ),
        (
            REFUSAL,
            REFUSED | {"stage": "x", "check": "y", "accused": -2},
            "accused must be",
        ),
        (
            REFUSAL,
            REFUSED | {"stage": "x", "check": "y", "accused": 1000},
            "accused must be",
        ),
        (
            REFUSAL,
            REFUSED | {"stage": "x", "check": "y", "accused": True},
            "accused must be",
        ),
        (REFUSAL, REFUSED | {"seen": -2}, "seen must be"),
        (REFUSAL, REFUSED | {"seen": 2**53}, "seen must be"),
        (REFUSAL, REFUSED | {"seen": False}, "seen must be"),
        (REFUSAL, [], "does not begin with a table"),
        (REFUSAL, b'{"check":"x", "stage":"y"}', "not in canonical form"),
        (REFUSAL, b"[" * 990 + b"]" * 990, "table"),
        (REFUSAL, b"", "not valid JSON"),
        (REFUSAL, b" " * (MAX_TABLE_BYTES + 1), "cut off or too long"),
    ],
)
def test_a_wrong_table_is_refused(message, table, expected):
    with pytest.raises(EnvelopeRejected) as caught:
        parse(message, with_table(message, table))
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_head_has_one_length_whatever_it_says():
    small = dataclasses.replace(HEAD, size=0, root="00" * 32)
    large = dataclasses.replace(HEAD, size=2**63 - 1, root="ff" * 32)
    proof = tuple(bytes([node]) * 32 for node in range(32))
    shown = (
        ShownHead(head=small),
        ShownHead(head=large, old_size=2**62, proof=proof),
        ShownHead(head=large, old_size=3, proof=proof[:1]),
    )
    for message in (ROUND, END):
        bodies = [dataclasses.replace(message, shown=s).to_body() for s in shown]
        assert len(set(map(len, bodies))) == 1
        assert tuple(parse(message, body).shown for body in bodies) == shown
    bodies = [
        EndReply(head=dataclasses.replace(own, party="silo-1"), seen=seen).to_body()
        for own, seen in ((small, large), (large, small))
    ]
    assert len(bodies[0]) == len(bodies[1])
    notices = [
        LedgerNotice(size=size, head="ab" * 32, reply=b"reply").to_body()
        for size in (1, 2**31 - 1)
    ]
    assert len(notices[0]) == len(notices[1])
    assert LedgerNotice.from_body(memoryview(notices[1])).size == 2**31 - 1


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        (HEAD.to_bytes()[:-1], "a head of 103 bytes, expected 104"),
        (HEAD.to_bytes() + b"0", "a head of 105 bytes, expected 104"),
        (b"\xff" + HEAD.to_bytes()[1:], "a head's size must be 0 to 2^63 - 1"),
    ],
)
def test_a_wrong_head_is_refused(fixed, expected):
    heads = [fixed, HEAD.to_bytes()]
    for parts in (heads, heads[::-1]):
        with pytest.raises(EnvelopeRejected, match=re.escape(expected)):
            EndReply.from_body(memoryview(prefixed(b"{}", *parts)), "silo-1")


SHOWN_BYTES = SHOWN.to_bytes()


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        (SHOWN_BYTES[:-1], f"expected {SHOWN_HEAD_BYTES}"),
        (SHOWN_BYTES + b"\0", f"a shown head of {SHOWN_HEAD_BYTES + 1} bytes"),
        (SHOWN_BYTES[:-1] + b"\1", "not in its one form"),
        (SHOWN_BYTES[:112] + b"\1" + SHOWN_BYTES[113:], "not in its one form"),
        (SHOWN_BYTES[:112] + b"\x21" + SHOWN_BYTES[113:], "not in its one form"),
        (b"\xff" + SHOWN_BYTES[1:], "a head's size must be 0 to 2^63 - 1"),
    ],
)
def test_a_wrong_shown_head_is_refused(fixed, expected):
    _, parts = split_body(memoryview(ROUND.to_body()), 4)
    body = prefixed(encode(NUMBERS), fixed, *parts[1:])
    with pytest.raises(EnvelopeRejected, match=re.escape(expected)):
        RoundRequest.from_body(memoryview(body))


@pytest.mark.parametrize("fixed", [b"", bytes(40), b"\xff" * 40, bytes(7) + b"1" * 34])
def test_a_wrong_head_of_a_ledger_is_refused(fixed):
    with pytest.raises(EnvelopeRejected):
        LedgerNotice.from_body(memoryview(prefixed(b"{}", fixed, b"reply")))


def test_a_length_beyond_the_message_is_refused_before_it_is_used():
    body = struct.pack(">Q", 2**63) + b"{}"
    with pytest.raises(EnvelopeRejected, match="cut off or too long"):
        split_body(memoryview(body), 0)


def test_the_number_of_byte_strings_is_fixed():
    body = memoryview(join_body({}, b"a", b"b"))
    assert split_body(body, 2) == ({}, [b"a", b"b"])
    for count in (0, 1, 3):
        with pytest.raises(EnvelopeRejected):
            split_body(body, count)


def test_a_refusal_is_short():
    long = Refusal(stage="s" * 100, check="c" * 1000)
    short = Refusal(stage="s" * 64, check="c" * 400)
    assert long.to_body() == short.to_body()
    assert parse(long, long.to_body()) == short
    table = {"stage": "s" * 100, "check": "c" * 1000, "accused": -1, "seen": -1}
    wire = with_table(REFUSAL, table)
    assert parse(REFUSAL, wire) == short


# The envelope itself.


def sealed(**changes):
    fields = {
        "plan": PLAN,
        "identity": IDENTITIES[1],
        "kind": Kind.REFUSED,
        "body": REFUSAL.to_body(),
        "sender": 1,
        "setup": 4,
        "slot": 5,
    }
    return make_envelope(**(fields | changes))


def test_an_envelope_round_trips():
    header, body = open_envelope(PLAN, sealed(), sender=1, kinds=(Kind.REFUSED,))
    assert (header.kind, header.run, header.sender) == (Kind.REFUSED, PLAN.run, 1)
    assert (header.setup, header.slot) == (4, 5)
    assert Refusal.from_body(body) == REFUSAL


def test_an_envelope_of_the_aggregator():
    data = sealed(identity=AGGREGATOR_IDENTITY, sender=AGGREGATOR)
    open_envelope(PLAN, data, sender=AGGREGATOR, kinds=(Kind.END, Kind.REFUSED))
    with pytest.raises(InvalidSignature):
        open_envelope(
            PLAN,
            sealed(sender=AGGREGATOR),
            sender=AGGREGATOR,
            kinds=(Kind.REFUSED,),
        )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"plan": make_example({"seed": 8})}, EnvelopeRejected, "another run"),
        ({"sender": 0}, EnvelopeRejected, "expected kind 71 from 1"),
        ({"sender": AGGREGATOR}, EnvelopeRejected, "expected kind 71 from 1"),
        ({"kind": Kind.END}, EnvelopeRejected, "of kind 69"),
        ({"kind": SecAggKind.MASKED}, EnvelopeRejected, "of kind 7 "),
        ({"identity": IDENTITIES[2]}, InvalidSignature, "not the sender's"),
        ({"identity": AGGREGATOR_IDENTITY}, InvalidSignature, "not the sender's"),
    ],
)
def test_an_envelope_of_something_else_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        open_envelope(PLAN, sealed(**changes), sender=1, kinds=(Kind.REFUSED,))


@settings(max_examples=500)
@given(st.data())
def test_a_mutated_envelope_is_refused(data):
    envelope = bytearray(sealed())
    change = data.draw(st.sampled_from(["flip", "cut", "extend", "other"]))
    if change == "flip":
        place = data.draw(st.integers(0, len(envelope) - 1))
        envelope[place] ^= data.draw(st.integers(1, 255))
    elif change == "cut":
        del envelope[data.draw(st.integers(0, len(envelope) - 1)) :]
    elif change == "extend":
        envelope += data.draw(st.binary(min_size=1, max_size=99))
    else:
        envelope = bytearray(data.draw(st.binary(max_size=200)))
    with pytest.raises((EnvelopeRejected, CryptoError)):
        open_envelope(PLAN, bytes(envelope), sender=1, kinds=(Kind.REFUSED,))


def test_kinds_are_apart_from_those_of_secure_aggregation():
    assert min(Kind) > 63 >= max(SecAggKind)
    assert max(Kind) <= 127


def test_a_body_moved_under_another_header_is_refused():
    one, other = sealed(), sealed(slot=6)
    moved = other[:HEADER_BYTES] + one[HEADER_BYTES:]
    with pytest.raises(InvalidSignature):
        open_envelope(PLAN, moved, sender=1, kinds=(Kind.REFUSED,))


def test_an_unknown_version_is_refused():
    data = bytearray(sealed())
    data[2] += 1
    with pytest.raises(MalformedMessage, match="protocol version 2"):
        open_envelope(PLAN, bytes(data), sender=1, kinds=(Kind.REFUSED,))


# The model's digest.


def test_the_model_digest_by_hand():
    expected = hashlib.sha256(
        b"cloister/1/model-digest\x00" + prefixed(b"abcd", b"ef")
    ).digest()
    assert model_digest(b"abcd", b"ef") == expected


def test_the_model_digest_binds_parameters_and_ranges():
    pairs = [(b"ab", b"c"), (b"a", b"bc"), (b"abc", b""), (b"", b"abc"), (b"c", b"ab")]
    assert len({model_digest(*pair) for pair in pairs}) == len(pairs)


@given(st.binary(max_size=20), st.binary(max_size=20), st.data())
def test_every_bit_counts_for_the_model_digest(parameters, ranges, data):
    content = bytearray(parameters + ranges + b"\x00")
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    changed = bytes(content[: len(parameters)]), bytes(content[len(parameters) :])
    assert model_digest(parameters, ranges + b"\x00") != model_digest(*changed)


def test_a_request_states_the_model_digest():
    assert ROUND.model_digest().hex() == ROUND.model


# Vectors of reals.


def test_floats_by_hand():
    data = floats_to_bytes(np.array([1.0, -2.0], np.float32))
    assert data == b"\x00\x00\x80\x3f\x00\x00\x00\xc0"
    assert floats_from_bytes(data, 2).tolist() == [1.0, -2.0]
    assert floats_from_bytes(b"", 0).shape == (0,)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_floats_round_trip_bit_for_bit(values):
    vector = np.array(values, np.float32)
    again = floats_from_bytes(floats_to_bytes(vector), vector.size)
    assert again.dtype == np.float32
    assert again.tobytes() == vector.tobytes()


@pytest.mark.parametrize("length", [0, 1, 3])
def test_another_number_of_floats_is_refused(length):
    with pytest.raises(EnvelopeRejected, match=f"expected {4 * length}"):
        floats_from_bytes(bytes(8), length)


def test_part_of_a_float_is_refused():
    with pytest.raises(EnvelopeRejected, match="7 bytes"):
        floats_from_bytes(bytes(7), 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_refused(value):
    data = floats_to_bytes(np.array([1.0, value], np.float32))
    with pytest.raises(EnvelopeRejected, match="NaN or infinity"):
        floats_from_bytes(data, 2)
