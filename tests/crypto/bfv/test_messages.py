"""The bodies that only encryption has: one encoding each, and nothing else is read."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.bfv import messages as m
from crypto.bfv.parameters import FRESH_BYTES, SEALED_KEY_BYTES, SUMMED_BYTES
from crypto.errors import MalformedMessage
from crypto.frame import Kind
from crypto.secagg.messages import Confirms, Survivors
from crypto.secagg.setup import max_frame_bytes
from tests.crypto.bfv.federation import FIVE

N = 11
D = [bytes([i]) * 32 for i in range(8)]
S = [bytes([i]) * 64 for i in range(8)]
SEALED = bytes(range(256)) * 120 + bytes(28)
FRESH = bytes(range(64)) * (2 * FRESH_BYTES // 64)
SUMMED = bytes(range(60)) * (2 * SUMMED_BYTES // 60)
CONFIRMS = Confirms(Survivors(D[0], (0, 3, 10)), {0: S[0], 3: S[1]})


def fresh(data):
    slot, view = m.read_encrypted(data, 2)
    return slot, bytes(view)


def summed(data):
    message = m.Decrypt.from_bytes(data, N, 2)
    return message.confirms, bytes(message.ciphertexts)


# what was said, its bytes, how to parse them, its size by the formula
CASES = {
    "DEALT": (
        (dealt := m.Dealt(D[0])),
        dealt.to_bytes(),
        lambda data: m.Dealt.from_bytes(data, 4, is_maker=False),
        32,
    ),
    "DEALT of the maker": (
        (dealt := m.Dealt(D[0], D[1], (SEALED,) * 4)),
        dealt.to_bytes(),
        lambda data: m.Dealt.from_bytes(data, 4, is_maker=True),
        64 + 4 * 30_748,
    ),
    "HANDED": (
        (handed := m.Handed(D[0], (0, 1, 7, 10), D[1], SEALED)),
        handed.to_bytes(N),
        lambda data: m.Handed.from_bytes(data, N, is_maker=False),
        64 + 2 + 30_748,
    ),
    "HANDED to the maker": (
        (handed := m.Handed(D[0], (0, 1, 7, 10), D[1])),
        handed.to_bytes(N),
        lambda data: m.Handed.from_bytes(data, N, is_maker=True),
        64 + 2,
    ),
    "ENCRYPTED": (
        (D[0], FRESH),
        m.encrypted_prefix(D[0], 2) + FRESH,
        fresh,
        36 + 2 * 30_784,
    ),
    "DECRYPT": (
        (CONFIRMS, SUMMED),
        m.decrypt_prefix(CONFIRMS, N, 2) + SUMMED,
        summed,
        36 + 2 * 2 + 64 * 2 + 2 * 61_440,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name):
    message, data, parse, size = CASES[name]
    assert len(data) == size
    assert parse(data) == message
    assert parse(memoryview(data)) == message


@pytest.mark.parametrize("name", CASES)
def test_other_lengths_are_refused(name):
    _, data, parse, _ = CASES[name]
    for other in (data[:-1], data + b"\0", b"", data[:31], data[: len(data) // 2]):
        with pytest.raises(MalformedMessage):
            parse(other)


@pytest.mark.parametrize("name", CASES)
@given(st.binary(max_size=300), st.integers(0, 250))
def test_bytes_that_are_no_message_are_refused_or_read_as_one(name, data, place):
    """Whatever stands in front: it is read, or ``MalformedMessage``."""
    _, honest, parse, _ = CASES[name]
    for other in (data, honest[:place] + data + honest[place + len(data) :]):
        try:
            parse(other)
        except MalformedMessage:
            continue
        assert len(other) == len(honest)


@pytest.mark.parametrize("number", [0, 1, 3, 2**32 - 1])
def test_another_number_of_ciphertexts_is_refused(number):
    count = number.to_bytes(4, "big")
    body = D[0] + count + FRESH
    with pytest.raises(MalformedMessage, match=f"{number} ciphertexts, 2 are"):
        m.read_encrypted(body, 2)
    prefix = m.decrypt_prefix(CONFIRMS, N, 2)[:-4] + count
    with pytest.raises(MalformedMessage, match=f"{number} ciphertexts, 2 are"):
        m.Decrypt.from_bytes(prefix + SUMMED, N, 2)


def test_ciphertexts_are_not_copied():
    data = bytearray(m.decrypt_prefix(CONFIRMS, N, 2) + SUMMED)
    message = m.Decrypt.from_bytes(data, N, 2)
    data[-1] ^= 1
    assert message.ciphertexts[-1] == data[-1]


def test_silos_beyond_the_roster_are_refused():
    _, data, parse, _ = CASES["HANDED"]
    with pytest.raises(MalformedMessage, match="above index 10"):
        parse(data[:33] + b"\xff" + data[34:])


def test_sealed_keys_have_one_length():
    message, *_ = CASES["DEALT of the maker"]
    with pytest.raises(ValueError, match="30747 bytes instead of 30748"):
        replace(message, sealed=(SEALED[:-1],)).to_bytes()
    assert len(SEALED) == SEALED_KEY_BYTES


LONGEST = {
    Kind.ADVERTISE: 32,
    Kind.KEYS: 1 + 5 * 96,
    Kind.DEALT: 64 + 4 * 30_748,
    Kind.HANDED: 65 + 30_748,
    Kind.ENCRYPTED: 36 + 3 * 30_784,
    Kind.DECRYPT: 36 + 2 + 5 * 64 + 3 * 61_440,
    Kind.DECRYPTED: 40 + 8 * 70,
}


@pytest.mark.parametrize(("kind", "size"), LONGEST.items())
def test_no_frame_is_longer(kind, size):
    assert max_frame_bytes(kind, FIVE, 70, num_ciphertexts=3) == 96 + size
