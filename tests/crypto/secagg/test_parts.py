"""Parts by hand: a vector of 2 + 3 + 1 words, dealt to four silos."""

import pytest

from crypto.errors import MalformedMessage, ProtocolViolation
from crypto.secagg import parts as p
from crypto.secagg.config import MAX_PARTS, MAX_WORDS
from crypto.secagg.parts import Part

DEALT = (Part(2, (0, 1)), Part(3, (1, 2)), Part(1, (0, 2)))


def test_lengths_and_contributors():
    assert p.total_words(DEALT) == 6
    assert [p.words_of(DEALT, silo) for silo in range(4)] == [3, 5, 4, 0]
    assert p.contributors_of(DEALT, range(4)) == (0, 1, 2)
    assert p.contributors_of(DEALT, (2, 3)) == (2,)


def test_places():
    assert [place for _, _, place in p.places(DEALT)] == [
        slice(0, 2),
        slice(2, 5),
        slice(5, 6),
    ]
    assert list(p.own_places(DEALT, 2)) == [
        (1, slice(0, 3), slice(2, 5)),
        (2, slice(3, 4), slice(5, 6)),
    ]
    assert list(p.own_places(DEALT, 3)) == []


def test_within_keeps_parts_and_drops_silos():
    assert p.within(DEALT, (0, 1)) == (Part(2, (0, 1)), Part(3, (1,)), Part(1, (0,)))


def test_whole_is_one_part():
    assert p.whole(7, {4, 1}) == (Part(7, (1, 4)),)


@pytest.mark.parametrize(
    ("num_words", "contributors", "match"),
    [
        (0, (0,), "num_words"),
        (MAX_WORDS + 1, (0,), "num_words"),
        (1, (1, 0), "contributors"),
        (1, (1, 1), "contributors"),
    ],
)
def test_parts_that_cannot_be(num_words, contributors, match):
    with pytest.raises(ValueError, match=match):
        Part(num_words, contributors)


@pytest.mark.parametrize(
    ("parts", "match"),
    [((), "parts"), (DEALT * 86, "parts"), ((Part(MAX_WORDS, (0,)),) * 2, "num_words")],
)
def test_too_many_too_long_or_none(parts, match):
    assert len(DEALT * 86) > MAX_PARTS
    with pytest.raises(ValueError, match=match):
        p.check_parts(parts)


def test_groups_that_are_too_small_are_named():
    p.check_groups(DEALT, range(3), 2, "X")
    with pytest.raises(ProtocolViolation, match="X: part 1 has 1 contributors"):
        p.check_groups(DEALT, (0, 1), 1 + 1, "X")


def test_bytes_by_hand_and_back():
    """A count, then of each part its words and its silos as a bitmap of two bytes."""
    data = p.encode_parts(DEALT[:2], 9)
    assert (
        data.hex() == "0002" + "0000000000000002" + "0300" + "0000000000000003" + "0600"
    )
    assert p.decode_parts(data, 9) == DEALT[:2]
    for other in (b"", data[:-1], data + b"\x00", b"\x00\x01" + data[2:]):
        with pytest.raises(MalformedMessage):
            p.decode_parts(other, 9)


def test_a_part_may_have_nobody_left_but_is_refused_as_a_group():
    nobody = p.within(DEALT, ())
    assert [part.contributors for part in nobody] == [()] * 3
    with pytest.raises(ProtocolViolation, match="part 0 has 0 contributors"):
        p.check_groups(DEALT, (), 1, "X")


@pytest.mark.parametrize("num_words", [0, MAX_WORDS + 1])
def test_bytes_of_a_part_that_cannot_be_are_malformed(num_words):
    data = b"\x00\x01" + num_words.to_bytes(8, "big") + b"\x03"
    with pytest.raises(MalformedMessage, match="part 0: num_words: must be 1"):
        p.decode_parts(data, 8)
