"""Packed residues against Python's integers."""

import numpy as np
import pytest

from crypto.bfv.parameters import COEFF_MODULUS, POLY_BYTES, POLY_DEGREE
from crypto.bfv.residues import (
    add_residues,
    check_range,
    pack_residues,
    subtract_residues,
    unpack_residues,
    unpack_rows,
)
from crypto.errors import MalformedMessage

Q = COEFF_MODULUS


def polys(num, seed=1):
    residues = np.random.default_rng(seed).integers(
        0, Q, (num, POLY_DEGREE), dtype=np.uint64
    )
    residues.flat[:4] = [0, Q - 1, 1, 1 << 56]
    residues.flat[-2:] = [Q - 1, Q - 1]
    return residues


def slow_pack(row):
    values = [int(value) for value in row]
    low = b"".join((value % 2**56).to_bytes(7, "little") for value in values)
    top = [value >> 56 for value in values]
    return low + bytes(a | b << 4 for a, b in zip(top[::2], top[1::2], strict=True))


@pytest.mark.parametrize("num", [1, 3, 9])
def test_packing_is_the_slow_packing_and_has_an_inverse(num):
    residues = polys(num)
    packed = pack_residues(residues)
    assert packed.shape == (num, POLY_BYTES)
    assert packed.tobytes() == b"".join(slow_pack(row) for row in residues)
    assert (unpack_residues(packed.tobytes(), num) == residues).all()


def test_shapes_with_more_axes_and_views_are_packed():
    residues = polys(6).reshape(3, 2, POLY_DEGREE)
    assert pack_residues(residues).shape == (3, 2, POLY_BYTES)
    assert (pack_residues(residues[::2, 1]) == pack_residues(residues)[::2, 1]).all()
    assert pack_residues(residues[0, 0]).shape == (POLY_BYTES,)


@pytest.mark.parametrize("size", [0, POLY_BYTES - 1, POLY_BYTES + 1, 2 * POLY_BYTES])
def test_another_length_is_refused(size):
    with pytest.raises(MalformedMessage, match="instead of"):
        unpack_residues(bytes(size), 1)


@pytest.mark.parametrize("value", [Q, Q + 1, 2**60 - 1])
@pytest.mark.parametrize("place", [0, 1, 5000, 2 * POLY_DEGREE - 1])
def test_a_residue_of_q_or_more_is_refused_both_ways(value, place):
    residues = polys(2)
    residues.flat[place] = value
    data = b"".join(slow_pack(row) for row in residues)
    with pytest.raises(MalformedMessage, match="q or more"):
        unpack_residues(data, 2)
    with pytest.raises(MalformedMessage, match="q or more"):
        check_range(residues)
    with pytest.raises(ValueError, match="q or more"):
        pack_residues(residues)


def test_packing_fills_what_it_is_given_and_nothing_of_another_shape():
    residues, out = polys(5), np.empty((6, POLY_BYTES), np.uint8)
    assert pack_residues(residues, out[:5]).base is out
    assert (out[:5] == pack_residues(residues)).all()
    for bad in (out, out[1::2], out[:5, :-1]):
        with pytest.raises(ValueError, match="out"):
            pack_residues(residues, bad)


def test_rows_with_other_bytes_between_them_are_unpacked():
    residues = polys(5)
    rows = np.full((5, POLY_BYTES + 3), 255, np.uint8)
    rows[:, :-3] = pack_residues(residues)
    assert (unpack_rows(rows[:, :-3]) == residues).all()
    rows[4, :7], rows[4, 7 * POLY_DEGREE] = 255, 15
    with pytest.raises(MalformedMessage, match="q or more"):
        unpack_rows(rows[:, :-3])


def test_addition_is_modulo_q_in_place_and_subtraction_undoes_it():
    first, second = polys(9, 1), polys(9, 2)
    second.flat[:4] = [0, 1, Q - 1, Q - 1]
    before = first.copy()
    expected = (first.astype(object) + second.astype(object)) % Q
    add_residues(first, second)
    assert (first == expected).all()
    subtract_residues(first, second)
    assert (first == before).all()


def test_polynomials_apart_from_each_other_are_added_to():
    total, more = polys(18).reshape(9, 2, POLY_DEGREE), polys(9, 2)
    expected = total.copy()
    expected[:, 1] = (expected[:, 1].astype(object) + more.astype(object)) % Q
    add_residues(total[:, 1], more)
    assert (total == expected).all()


def test_addition_refuses_other_shapes_types_and_layouts():
    total = polys(2)
    for other in (polys(1), total.astype(np.int64), total[:, :8]):
        with pytest.raises(ValueError, match="residues"):
            add_residues(total, other)
    apart = polys(8).reshape(4, 2, POLY_DEGREE)[::2]
    for other in (apart, total.astype(np.int64)):
        with pytest.raises(ValueError, match="total"):
            add_residues(other, other.astype(np.uint64))


def test_what_is_not_residues_is_not_packed():
    for other in (polys(1)[:, :8], polys(1).astype(np.int64)):
        with pytest.raises(ValueError, match="residues"):
            pack_residues(other)
