"""The arithmetic of the down-link, its bytes, and its messages."""

import dataclasses
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.bodies import join_body
from protocol.broadcast import (
    MAX_DIFFERENCES,
    Broadcast,
    Difference,
    Held,
    difference_bytes,
    down_bytes,
    largest_level,
    make_difference,
    moved,
    pack_levels,
    unpack_levels,
)
from protocol.encoding import encode
from protocol.errors import EnvelopeRejected
from tests.protocol.examples import make_example

BITS = range(4, 17)
A, B, C = ("0a" * 32, "0b" * 32, "0c" * 32)


def slow_pack(levels, bits):
    """Return packed levels by way of one long text of binary digits."""
    text = "".join(f"{int(k) + largest_level(bits):0{bits}b}" for k in levels)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))


def slow_moved(base, ranges, levels, segments, bits):
    """Return :func:`moved` one value at a time, each operation in float32."""
    found, place = [], 0
    for length, size in zip(segments, np.frombuffer(ranges, "<f4"), strict=True):
        step = np.float32(np.float32(size) / np.float32(2 ** (bits - 1) - 1))
        for _ in range(length):
            added = np.float32(np.float32(levels[place]) * step)
            found.append(np.float32(base[place] + added))
            place += 1
    return np.array(found, np.float32)


@st.composite
def vectors(draw):
    """Return base, target, segments and bits, over many magnitudes."""
    segments = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = 10.0 ** random.integers(-9, 4, sum(segments))
    base = random.normal(0, 1, sum(segments))
    target = base + size * random.normal(0, 1, sum(segments))
    bits = draw(st.sampled_from(BITS))
    return base.astype(np.float32), target.astype(np.float32), segments, bits


class TestLevels:
    def test_by_hand(self):
        levels = np.array([-7, 0, 7], np.int32)
        assert pack_levels(levels, 4) == bytes([0x07, 0xE0])
        assert unpack_levels(bytes([0x07, 0xE0]), 3, 4).tolist() == [-7, 0, 7]
        assert pack_levels(np.array([1], np.int32), 16) == (2**15).to_bytes(2, "big")
        assert pack_levels(np.empty(0, np.int32), 5) == b""

    @pytest.mark.parametrize("bits", BITS)
    @pytest.mark.parametrize("length", [1, 7, 8, 9, 1000, (1 << 15) + 3])
    def test_exact_bytes_and_the_inverse(self, bits, length):
        most = largest_level(bits)
        levels = np.random.default_rng(length).integers(-most, most + 1, length)
        packed = pack_levels(levels.astype(np.int32), bits)
        assert len(packed) == -(-length * bits // 8)
        assert packed == slow_pack(levels, bits) or length > 1000
        assert np.array_equal(unpack_levels(packed, length, bits), levels)

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"\x07", "expected 2"),
            (b"\x07\xe0\x00", "expected 2"),
            (b"\x07\xe1", "behind its last level"),
            (b"\x07\xf0", "beyond its grid"),
        ],
    )
    def test_other_bytes_are_refused(self, data, words):
        with pytest.raises(EnvelopeRejected, match=words):
            unpack_levels(data, 3, 4)


class TestDifference:
    def test_by_hand(self):
        """Range 7, four bits, M = 7: the step is 1."""
        base = np.array([1, 1, 5], np.float32)
        target = np.array([8, 0.4, 5], np.float32)
        ranges, levels = make_difference(base, target, (2, 1), 4)
        assert np.frombuffer(ranges, "<f4").tolist() == [7.0, 0.0]
        assert unpack_levels(levels, 3, 4).tolist() == [7, -1, 0]
        assert moved(base, ranges, levels, (2, 1), 4).tolist() == [8.0, 0.0, 5.0]

    @settings(deadline=None)
    @given(vectors())
    def test_both_sides_define_the_same_bits(self, drawn):
        base, target, segments, bits = drawn
        ranges, levels = make_difference(base, target, segments, bits)
        assert len(ranges) + len(levels) == difference_bytes(segments, bits)
        before = base.copy()
        found = moved(base, memoryview(ranges), memoryview(levels), segments, bits)
        whole = unpack_levels(levels, base.size, bits)
        slow = slow_moved(base, ranges, whole, segments, bits)
        assert found.tobytes() == slow.tobytes()
        assert base.tobytes() == before.tobytes()

    @settings(deadline=None)
    @given(vectors())
    def test_half_a_step_and_the_rounding_of_float32(self, drawn):
        base, target, segments, bits = drawn
        ranges, levels = make_difference(base, target, segments, bits)
        found = moved(base, ranges, levels, segments, bits).astype(np.float64)
        numbers = np.frombuffer(ranges, "<f4").astype(np.float64)
        step = np.repeat(numbers / largest_level(bits), segments)
        size = np.maximum(np.abs(base), np.abs(target)).astype(np.float64)
        bound = step * (0.5 + 2.0**-8) + 2.0**-22 * size + 1e-37
        assert (np.abs(found - target) <= bound).all()

    def test_error_feedback_bounds_the_error_over_fifty_rounds(self):
        """The held model stays within half a step of the exact target; without, not."""
        random = np.random.default_rng(4)
        target = random.normal(0, 1, 500).astype(np.float32)
        held, plain, exact = target.copy(), target.copy(), target.astype(np.float64)
        drift = random.normal(0, 1e-2, 500)
        for _ in range(50):
            update = (drift + random.normal(0, 1e-2, 500)).astype(np.float32)
            exact += update
            target = target + update
            ranges, levels = make_difference(held, target, (500,), 4)
            held = moved(held, ranges, levels, (500,), 4)
            step = float(np.frombuffer(ranges, "<f4")[0]) / 7
            assert np.abs(held - exact).max() <= 0.51 * step
            ranges, levels = make_difference(plain, plain + update, (500,), 4)
            plain = moved(plain, ranges, levels, (500,), 4)
        assert np.abs(plain - exact).max() > 2 * step

    def test_what_is_too_small_or_too_large(self):
        zeros = np.zeros(3, np.float32)
        tiny = np.array([1e-44, 0, 1e-39], np.float32)
        ranges, levels = make_difference(zeros, tiny, (3,), 8)
        assert np.frombuffer(ranges, "<f4").tolist() == [0.0]
        assert moved(zeros, ranges, levels, (3,), 8).tolist() == [0, 0, 0]
        largest = np.full(3, np.finfo(np.float32).max)
        with pytest.raises(ValueError, match="beyond float32"):
            make_difference(-largest, largest, (3,), 8)

    @pytest.mark.parametrize(
        ("ranges", "words"),
        [
            ([1.0], "expected 8"),
            ([1.0, np.nan], "NaN or infinity"),
            ([1.0, np.inf], "NaN or infinity"),
            ([1.0, -1.0], "negative"),
            ([3e38, 1.0], "leads to NaN or infinity"),
        ],
    )
    def test_other_ranges_are_refused(self, ranges, words):
        base = np.array([3e38, 0.0], np.float32)
        levels = pack_levels(np.array([7, 7], np.int32), 4)
        data = np.array(ranges, "<f4").tobytes()
        with pytest.raises(EnvelopeRejected, match=words):
            moved(base, data, levels, (1, 1), 4)


def test_what_a_silo_is_sent():
    plan = make_example(
        changes={"update.broadcast_bits": 8, "aggregation.ema_decay": 0.5}
    )
    whole = make_example()
    assert [down_bytes(plan, (10, 3), n) for n in (1, 2, 0)] == [0, 21, 21 + 52]
    assert [down_bytes(whole, (10, 3), n) for n in (1, 2, 0)] == [0, 52, 52]


DIFFERENCES = (Difference(b"abcd", b"xy", B), Difference(b"efgh", b"zw", C))
ROW = Broadcast.of_differences(3, A, DIFFERENCES)
WHOLE = Broadcast(round_number=0, models=(C,), parameters=b"12345678")
HELD = Held(model=A)


class TestMessages:
    @pytest.mark.parametrize("message", [ROW, WHOLE, HELD])
    def test_round_trip_and_nothing_else(self, message):
        body = message.to_body()
        assert type(message).from_body(memoryview(body)) == message
        for length in range(len(body)):
            with pytest.raises(EnvelopeRejected):
                type(message).from_body(memoryview(body)[:length])
        with pytest.raises(EnvelopeRejected, match="trailing"):
            type(message).from_body(memoryview(body + b"\0"))

    def test_differences_in_a_row(self):
        assert (ROW.models, ROW.model) == ((A, B, C), C)
        assert ROW.differences() == DIFFERENCES
        assert WHOLE.differences() == ()
        uneven = dataclasses.replace(ROW, levels=b"xyz")
        with pytest.raises(EnvelopeRejected, match="a part of a difference"):
            uneven.differences()

    @pytest.mark.parametrize(
        ("table", "parts", "words"),
        [
            ({"models": [A, B]}, (b"", b"", b""), "exactly round_number, models"),
            ({"round_number": -1, "models": [A, B]}, (b"",) * 3, "a whole number"),
            ({"round_number": True, "models": [A, B]}, (b"",) * 3, "a whole number"),
            ({"round_number": 1, "models": []}, (b"",) * 3, "must be 1 to 17"),
            ({"round_number": 1, "models": A}, (b"",) * 3, "must be 1 to 17"),
            ({"round_number": 1, "models": [A] * 18}, (b"",) * 3, "must be 1 to 17"),
            ({"round_number": 1, "models": [A, "0B"]}, (b"",) * 3, "64 lower-case"),
            ({"round_number": 1, "models": [1]}, (b"", b"", b"x"), "must be text"),
            ({"round_number": 1, "models": [A]}, (b"",) * 3, "or all parameters"),
            ({"round_number": 1, "models": [A, B]}, (b"", b"", b"x"), "or all param"),
            ({"round_number": 1, "models": [A]}, (b"y", b"", b"x"), "without the"),
        ],
    )
    def test_a_wrong_message_is_refused(self, table, parts, words):
        with pytest.raises(EnvelopeRejected, match=words):
            Broadcast.from_body(memoryview(join_body(table, *parts)))

    def test_a_wrong_answer_is_refused(self):
        for table in ({}, {"model": 1}, {"model": "0A" * 32}):
            with pytest.raises(EnvelopeRejected):
                Held.from_body(memoryview(join_body(table)))

    def test_bytes_by_hand(self):
        pieces = (encode({"model": A}),)
        expected = b"".join(struct.pack(">Q", len(p)) + p for p in pieces)
        assert HELD.to_body() == expected
        assert MAX_DIFFERENCES == 16
