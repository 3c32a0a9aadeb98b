import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import ring
from tests.crypto import references
from tests.crypto.vectors import load


def array(texts, dtype=np.uint64):
    return np.array(list(map(int, texts)), dtype)


@pytest.mark.parametrize("case", load("ring", "generate"))
def test_known_answers(case):
    packed = ring.pack(array(case["fields"]), case["field_bits"])
    assert list(map(str, packed.tolist())) == case["words"]


@pytest.mark.parametrize("case", load("ring", "verify"))
def test_known_sums(case):
    fields = ring.unpack(array(case["words"]), case["field_bits"], case["length"])
    assert list(map(str, fields.tolist())) == case["fields"]


@pytest.mark.parametrize("case", load("ring", "invalid"))
def test_what_does_not_fit_is_refused(case):
    with pytest.raises(ValueError, match="field"):
        ring.pack(array(case["fields"]), case["field_bits"])


@st.composite
def packings(draw):
    field_bits = draw(st.sampled_from(ring.FIELD_BITS))
    values = st.integers(0, (1 << field_bits) - 1)
    return field_bits, draw(st.lists(values, max_size=40))


@given(packings())
def test_pack_is_the_definition_and_unpack_its_inverse(packing):
    field_bits, values = packing
    fields = np.array(values, np.uint64)
    packed = ring.pack(fields, field_bits)
    assert packed.tolist() == references.pack(values, field_bits)
    again = ring.unpack(packed, field_bits, len(values))
    assert again.tolist() == values
    assert again.dtype.itemsize * 8 >= field_bits > again.dtype.itemsize * 4 or (
        again.dtype == np.uint16
    )


@pytest.mark.parametrize("field_bits", ring.FIELD_BITS)
def test_several_blocks(field_bits):
    length = 2 * ring._BLOCK_WORDS * (64 // field_bits) + 3
    rng = np.random.default_rng(1)
    fields = rng.integers(0, 1 << min(field_bits, 63), length, dtype=np.uint64)
    out = np.full(ring.words_needed(length, field_bits), 7, np.uint64)
    assert ring.pack(fields, field_bits, out) is out
    assert (ring.unpack(out, field_bits, length) == fields).all()


@given(st.data())
def test_sums_do_not_carry_within_the_headroom(data):
    value_bits = data.draw(st.integers(1, 20))
    num_contributors = data.draw(st.integers(1, 12))
    field_bits = ring.field_bits_for(value_bits, num_contributors)
    largest = (1 << value_bits) - 1
    vectors = [
        data.draw(st.lists(st.integers(0, largest), min_size=7, max_size=7))
        for _ in range(num_contributors)
    ]
    vectors[0] = [largest] * 7
    total = np.zeros(ring.words_needed(7, field_bits), np.uint64)
    for vector in vectors:
        ring.add_into(total, ring.pack(np.array(vector, np.uint32), field_bits))
    expected = [sum(column) for column in zip(*vectors, strict=True)]
    assert ring.unpack(total, field_bits, 7).tolist() == expected


@pytest.mark.parametrize(
    ("value_bits", "num_contributors", "expected"),
    [
        *((8, 1, 8), (8, 2, 10), (8, 4, 10), (8, 5, 12), (12, 16, 16), (12, 17, 21)),
        *((21, 1, 21), (16, 100, 32), (32, 3, 64), (63, 2, 64)),
    ],
)
def test_field_bits_by_hand(value_bits, num_contributors, expected):
    assert ring.field_bits_for(value_bits, num_contributors) == expected


@pytest.mark.parametrize("arguments", [(0, 1), (1, 0), (64, 2), (65, 1)])
def test_field_bits_that_cannot_be(arguments):
    with pytest.raises(ValueError, match="value_bits"):
        ring.field_bits_for(*arguments)


def test_wrong_types_and_shapes():
    with pytest.raises(ValueError, match="unsigned"):
        ring.pack(np.zeros(3, np.int64), 16)
    with pytest.raises(ValueError, match="unsigned"):
        ring.pack(np.zeros((2, 2), np.uint8), 16)
    with pytest.raises(ValueError, match="out"):
        ring.pack(np.zeros(8, np.uint8), 16, np.zeros(3, np.uint64))
    with pytest.raises(ValueError, match="cannot hold"):
        ring.unpack(np.zeros(3, np.uint64), 16, 8)
    out = np.full(1, 7, np.uint64)
    with pytest.raises(ValueError, match="does not fit"):
        ring.pack(np.array([0, 256], np.uint16), 8, out)
    assert out[0] == 7


@pytest.mark.parametrize("field_bits", ring.FIELD_BITS)
@pytest.mark.parametrize("spare", [0, 1, 5])
def test_blocks_give_the_words_of_the_whole(field_bits, spare):
    """Every element is asked for once; its target is zero or garbage before."""
    length = ring._BLOCK_WORDS * (64 // field_bits) + 7 * spare
    rng = np.random.default_rng(spare)
    fields = rng.integers(0, 1 << min(field_bits, 63), length, dtype=np.uint64)
    seen = np.zeros(length, int)

    def fill(start, target):
        assert 1 <= target.size <= ring._BLOCK_WORDS
        assert 8 * target.dtype.itemsize >= field_bits
        part = slice(start, start + target.size)
        seen[part] += 1
        np.copyto(target, fields[part], casting="unsafe")

    out = np.full(ring.words_needed(length, field_bits), 7, np.uint64)
    assert ring.pack_blocks(fill, length, field_bits, out) is out
    assert (seen == 1).all()
    assert (out == ring.pack(fields, field_bits)).all()
    found, seen[:] = np.full(length, 2**64 - 1, np.uint64), 0
    for start, part in ring.unpack_blocks(out, field_bits, length):
        assert part.size
        found[start : start + part.size] = part
        seen[start : start + part.size] += 1
    assert (found == fields).all()
    assert (seen == 1).all()


@pytest.mark.parametrize("field_bits", [10, 12, 21])
def test_a_block_that_does_not_fit_is_refused(field_bits):
    def fill(start, target):
        target[:] = 1 << field_bits

    with pytest.raises(ValueError, match="does not fit"):
        ring.pack_blocks(fill, 3, field_bits)


def test_wrong_words():
    words = ring.pack(np.zeros(5, np.uint8), 16)
    with pytest.raises(ValueError, match="cannot hold"):
        next(ring.unpack_blocks(words, 16, 9))
    with pytest.raises(ValueError, match="out"):
        ring.pack_blocks(lambda start, target: None, 5, 16, np.zeros(3, np.uint64))
