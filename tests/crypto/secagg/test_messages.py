import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.errors import MalformedMessage
from crypto.secagg import messages as m
from crypto.secagg.ready import Active, Ready

N, R = 11, 2
D = [bytes([i]) * 32 for i in range(8)]
S = [bytes([i]) * 64 for i in range(8)]
SEALED = bytes(m.sealed_shares_bytes(R))
ADVERTISE = m.Advertise(D[0], (D[1], D[2]), (D[3], D[4]))
HEAD = bytes(range(104))
READY = Ready(D[0], 7, D[1], HEAD)
SURVIVORS = m.Survivors(D[0], (0, 3, 10))

# message, its bytes, how to parse them, its size by the formula of docs/protocol.md
CASES = {
    "ADVERTISE": (
        ADVERTISE,
        ADVERTISE.to_bytes(),
        lambda data: m.Advertise.from_bytes(data, R),
        32 + 64 * R,
    ),
    "KEYS": (
        (keys := m.Keys({1: m.Signed(bytes(160), S[0]), 9: m.Signed(D[0] * 5, S[1])})),
        keys.to_bytes(N, R),
        lambda data: m.Keys.from_bytes(data, N, R),
        2 + 2 * (96 + 64 * R),
    ),
    "SHARES": (
        (shares := m.Shares(D[0], (SEALED,) * 3)),
        shares.to_bytes(R),
        lambda data: m.Shares.from_bytes(data, 3, R),
        32 + 3 * (16 + 66 * R),
    ),
    "ENVELOPES": (
        (envelopes := m.Envelopes(D[0], (1, 4, 7), (SEALED,) * 2)),
        envelopes.to_bytes(N, R),
        lambda data: m.Envelopes.from_bytes(data, N, R),
        32 + 2 + 2 * (16 + 66 * R),
    ),
    "READY": (READY, READY.to_bytes(), Ready.from_bytes, 172),
    "ACTIVE": (
        (active := Active(READY, {0: S[0], 8: S[1]})),
        active.to_bytes(N),
        lambda data: Active.from_bytes(data, N),
        172 + 2 + 64 * 2,
    ),
    "MASKED": (
        (masked := m.Masked(D[0], memoryview(bytes(range(24))))),
        masked.to_bytes(),
        lambda data: m.Masked.from_bytes(data, 3),
        40 + 8 * 3,
    ),
    "SURVIVORS": (
        SURVIVORS,
        SURVIVORS.to_bytes(N),
        lambda data: m.Survivors.from_bytes(data, N),
        32 + 2,
    ),
    "CONFIRMS": (
        (confirms := m.Confirms(SURVIVORS, {3: S[2], 10: S[3]})),
        confirms.to_bytes(N),
        lambda data: m.Confirms.from_bytes(data, N),
        32 + 2 * 2 + 64 * 2,
    ),
    "REVEAL": (
        (reveal := m.Reveal(D[0], (bytes(33), b"\x01" * 33))),
        reveal.to_bytes(),
        lambda data: m.Reveal.from_bytes(data, 2),
        32 + 33 * 2,
    ),
    "SUM": (
        (notice := m.SumNotice(SURVIVORS, D[2])),
        notice.to_bytes(N),
        lambda data: m.SumNotice.from_bytes(data, N),
        32 + 2 + 32,
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_from_bytes_inverts_to_bytes_and_sizes_are_as_documented(case):
    message, data, parse, size = case
    assert parse(data) == message
    assert len(data) == size


def test_every_other_length_is_malformed(case):
    _, data, parse, size = case
    for length in range(size):
        with pytest.raises(MalformedMessage):
            parse(data[:length])
    for extra in (b"\x00", b"\x00" * 64):
        with pytest.raises(MalformedMessage):
            parse(data + extra)


@given(st.sampled_from(sorted(CASES)), st.data())
def test_there_is_one_encoding(name, data):
    """Bytes that parse are the bytes of what they parse to."""
    _, encoded, parse, size = CASES[name]
    place = data.draw(st.integers(0, size - 1))
    changed = bytearray(encoded)
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        message = parse(bytes(changed))
    except MalformedMessage:
        return
    assert message != CASES[name][0]


@given(st.sets(st.integers(0, 19)), st.integers(20, 40))
def test_sets_of_silos(silos, num_silos):
    bitmap = m.encode_silos(silos, num_silos)
    assert len(bitmap) == m.bitmap_bytes(num_silos)
    assert m.decode_silos(bitmap, num_silos) == tuple(sorted(silos))


def test_sets_by_hand():
    assert m.encode_silos((0, 3, 10), 11) == bytes([0b00001001, 0b00000100])
    with pytest.raises(ValueError):
        m.encode_silos((11,), 11)
    with pytest.raises(MalformedMessage):
        m.decode_silos(bytes([0, 0b00001000]), 11)
