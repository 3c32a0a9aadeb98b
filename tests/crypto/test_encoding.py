import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.encoding import Reader, Writer, digest
from crypto.errors import MalformedMessage


def test_hand_written_bytes():
    data = Writer().integer(258, 2).fixed(b"ab", 2).prefixed(b"c", 4).to_bytes()
    assert data == b"\x01\x02" + b"ab" + bytes(7) + b"\x01c"


@given(st.integers(0, 2**32 - 1), st.binary(max_size=40), st.binary(max_size=40))
def test_reader_inverts_writer(number, fixed, prefixed):
    writer = Writer().integer(number, 4).fixed(fixed, len(fixed))
    reader = Reader(writer.prefixed(prefixed, 40).to_bytes())
    assert reader.integer(4) == number
    assert reader.fixed(len(fixed)) == fixed
    assert reader.prefixed(40) == prefixed
    reader.end()


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.integer(-1, 2),
        lambda w: w.integer(1 << 16, 2),
        lambda w: w.fixed(b"abc", 2),
        lambda w: w.prefixed(b"abc", 2),
    ],
)
def test_writer_refuses_what_does_not_fit(write):
    with pytest.raises(ValueError):
        write(Writer())


@pytest.mark.parametrize(
    ("data", "read"),
    [
        (b"", lambda r: r.integer(1)),
        (b"ab", lambda r: r.fixed(3)),
        (bytes(7), lambda r: r.prefixed(9)),
        (bytes(7) + b"\x05abcde", lambda r: r.prefixed(4)),
        (bytes(7) + b"\x05abcd", lambda r: r.prefixed(9)),
        (b"\xff" * 8, lambda r: r.prefixed(1 << 62)),
        (b"a", lambda r: r.end()),
    ],
)
def test_reader_refuses(data, read):
    with pytest.raises(MalformedMessage):
        read(Reader(data))


def test_fixed_counts_bytes_not_elements():
    words = memoryview(bytes(16)).cast("Q")
    assert len(Writer().fixed(words, 16).to_bytes()) == 16


@given(st.lists(st.binary(max_size=4), max_size=4))
def test_no_boundary_between_digested_parts_can_move(parts):
    joined = digest(b"label", b"".join(parts))
    assert (digest(b"label", *parts) == joined) == (len(parts) == 1)
    assert digest(b"label", *parts) != digest(b"other", *parts)
