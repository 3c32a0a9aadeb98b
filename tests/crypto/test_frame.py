import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import errors
from crypto.frame import (
    AGGREGATOR,
    HEADER_BYTES,
    NO_SLOT,
    OVERHEAD_BYTES,
    Header,
    Kind,
    describe,
    make_frame,
    open_digested,
    open_expected,
    open_frame,
    read_header,
    verify_frame,
)
from crypto.keys import IdentityKey
from tests.crypto import references
from tests.crypto.vectors import load

KEY = IdentityKey.from_bytes(hashlib.sha256(b"identity 0").digest())
HEADER = Header(Kind.READY, bytes(range(16)), 1, 0, 3)

headers = st.builds(
    Header,
    kind=st.integers(1, 127),
    run=st.binary(min_size=16, max_size=16),
    setup=st.integers(0, 2**32 - 1),
    slot=st.integers(0, 2**32 - 1),
    sender=st.integers(0, 2**16 - 1),
    recipient=st.integers(0, 2**16 - 1),
)


@pytest.mark.parametrize("case", load("frame", "generate"))
def test_known_answers(case):
    key = IdentityKey.from_bytes(bytes.fromhex(case["secret"]))
    fields = (case[n] for n in ("setup", "slot", "sender", "recipient"))
    header = Header(case["kind"], bytes.fromhex(case["run"]), *fields)
    frame = make_frame(key, header, bytes.fromhex(case["body"]))
    assert frame.hex() == case["frame"]
    assert read_header(frame) == header


@pytest.mark.parametrize("case", load("frame", "verify"))
def test_known_frames_open(case):
    public, frame = bytes.fromhex(case["public"]), bytes.fromhex(case["frame"])
    _, body = open_frame(public, frame, max_bytes=len(frame))
    assert body.hex() == case["body"]


def test_the_digest_of_a_body_comes_with_it_and_only_if_the_signature_is_right():
    frame = make_frame(KEY, HEADER, b"a body")
    body, found = open_digested(KEY.public, frame, HEADER, max_bytes=len(frame))
    assert (bytes(body), found) == (b"a body", hashlib.sha256(b"a body").digest())
    damaged = frame[:-1] + bytes([frame[-1] ^ 1])
    with pytest.raises(errors.InvalidSignature):
        open_digested(KEY.public, damaged, HEADER, max_bytes=len(frame))


@pytest.mark.parametrize("case", load("frame", "invalid"), ids=lambda c: c["why"])
def test_invalid_frames_raise(case):
    public, frame = bytes.fromhex(case["public"]), bytes.fromhex(case["frame"])
    with pytest.raises(getattr(errors, case["raises"])):
        open_frame(public, frame, max_bytes=case["max_bytes"])


@given(headers, st.binary(max_size=200), st.binary(max_size=20))
def test_open_inverts_make(header, first, second):
    frame = make_frame(KEY, header, first, second)
    assert len(frame) == OVERHEAD_BYTES + len(first) + len(second)
    assert frame == make_frame(KEY, header, first + second)
    assert open_frame(KEY.public, frame, max_bytes=len(frame)) == (
        header,
        first + second,
    )
    assert header.to_bytes() == references.header(
        header.kind,
        header.run,
        header.setup,
        header.slot,
        header.sender,
        header.recipient,
    )


def test_the_body_is_a_view_and_may_be_an_array():
    words = np.arange(5, dtype=np.uint64)
    frame = make_frame(KEY, HEADER, b"prefix", words.data.cast("B"))
    _, body = open_frame(KEY.public, frame, max_bytes=len(frame))
    assert body.obj is frame
    assert body[6:] == words.tobytes()


@pytest.mark.parametrize(
    "other",
    [
        Header(Kind.CONFIRM, HEADER.run, 1, 0, 3),
        Header(Kind.READY, bytes(16), 1, 0, 3),
        Header(Kind.READY, HEADER.run, 2, 0, 3),
        Header(Kind.READY, HEADER.run, 1, 1, 3),
        Header(Kind.READY, HEADER.run, 1, 0, 4),
        Header(Kind.READY, HEADER.run, 1, 0, 3, AGGREGATOR),
    ],
)
def test_an_authentic_frame_from_elsewhere_is_refused(other):
    frame = make_frame(KEY, HEADER, b"body")
    assert open_expected(KEY.public, frame, HEADER, max_bytes=200) == b"body"
    with pytest.raises(errors.ProtocolViolation):
        open_expected(KEY.public, frame, other, max_bytes=200)
    signature = frame[-64:]
    verify_frame(KEY.public, HEADER, b"body", signature)
    with pytest.raises(errors.InvalidSignature):
        verify_frame(KEY.public, other, b"body", signature)


@pytest.mark.parametrize(("kind", "run"), [(0, 16), (128, 16), (5, 15)])
def test_headers_that_cannot_be(kind, run):
    with pytest.raises(ValueError):
        Header(kind, bytes(run), 0, 0, 0)


def test_descriptions_name_stage_and_sender():
    assert describe(HEADER) == "READY of silo 3 (setup 1, slot 0)"
    keys = Header(Kind.KEYS, bytes(16), 2, NO_SLOT, AGGREGATOR)
    assert describe(keys) == "KEYS of the aggregator (setup 2)"
    assert describe(Header(99, bytes(16), 2, NO_SLOT, 1)).startswith(
        "kind 99 of silo 1"
    )
    assert len(HEADER.to_bytes()) == HEADER_BYTES == 32
