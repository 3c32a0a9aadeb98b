"""A silo's memory of a setup with encryption: whole, its own, and nothing shown."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.bfv.parameters import SECRET_KEY_BYTES
from crypto.bfv.silo_state import BfvSiloState, decode_state, encode_state
from crypto.errors import MalformedMessage
from crypto.keys import AgreementKey
from crypto.secagg.parts import Part
from crypto.secagg.silo_state import SlotProgress

N, OWNER = 5, bytes(32)
CHANNEL = AgreementKey.generate()
PROGRESS = SlotProgress(
    slot=2,
    round_number=7,
    model_digest=bytes([1]) * 32,
    head=bytes(104),
    slot_digest=bytes([2]) * 32,
    cohort=(0, 1, 2, 4),
    parts=(Part(3, (0, 1, 4)), Part(9, (1, 2, 4))),
    words_digest=bytes([3]) * 32,
    survivors=(0, 1, 4),
    reveal=bytes([4]) * 64,
)
FULL = BfvSiloState(
    keys=b"keys",
    members=(0, 1, 2, 4),
    progress=PROGRESS,
    journal_link=bytes([5]) * 32,
    advertisement=b"advertisement",
    handed_digest=bytes([6]) * 32,
    commitment=bytes([7]) * 32,
    secret_key=bytes(SECRET_KEY_BYTES),
)
START = BfvSiloState(journal_link=bytes(32))
STATES = {
    "start": START,
    "advertised": replace(START, advertisement=b"frame", channel=CHANNEL),
    "dealt": replace(START, channel=CHANNEL, keys=b"keys", dealt=bytes(1 << 17)),
    "joined": replace(FULL, progress=None),
    "full": FULL,
    "over": replace(FULL, progress=replace(PROGRESS, reveal=b"", sum_digest=OWNER)),
}


def plain(state: BfvSiloState) -> dict:
    channel = state.channel and state.channel.to_bytes()
    return {**vars(state), "channel": channel}


@pytest.mark.parametrize("name", STATES)
def test_there_and_back(name):
    state = STATES[name]
    data = encode_state(state, OWNER, N)
    assert plain(decode_state(data, OWNER, N)) == plain(state)


@given(st.integers(0), st.integers(1, 255))
def test_a_state_that_is_torn_is_noticed(place, flip):
    data = bytearray(encode_state(FULL, OWNER, N))
    data[place % len(data)] ^= flip
    with pytest.raises(MalformedMessage, match="torn"):
        decode_state(bytes(data), OWNER, N)
    with pytest.raises(MalformedMessage):
        decode_state(bytes(data[: place % len(data)]), OWNER, N)


def test_a_state_of_another_setup_or_silo_is_refused():
    data = encode_state(FULL, OWNER, N)
    with pytest.raises(MalformedMessage, match="another setup or silo"):
        decode_state(data, bytes([1]) * 32, N)


def test_it_shows_nothing():
    assert "keys" not in repr(FULL) and "secret" not in repr(FULL)
