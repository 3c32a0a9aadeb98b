import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.errors import InvalidShare, ProtocolViolation
from crypto.secagg import checks
from crypto.secagg.config import SecAggConfig

CONFIG = SecAggConfig(num_silos=5, threshold=4)
TABLE = {1: b"a"}


def test_checks_that_pass():
    checks.check_enough(CONFIG, (0, 1, 2, 3), "X")
    checks.check_part((0, 2), (0, 1, 2), "X")
    checks.check_inside(2, (0, 2), "X")
    checks.check_same(True, "X", "setup")
    checks.require_call(True, "")
    assert checks.is_new(TABLE, 2, b"a", is_closed=False)
    assert not checks.is_new(TABLE, 1, b"a", is_closed=False)
    assert not checks.is_new(TABLE, 1, b"a", is_closed=True)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: checks.check_enough(CONFIG, (0, 1, 2), "X"), "X: 3 silos"),
        (lambda: checks.check_threshold(CONFIG, TABLE, "X"), "X: 1 silos, 4 are"),
        (lambda: checks.check_part((0, 4, 3), (0, 1), "X"), "X: silo 3"),
        (lambda: checks.check_inside(1, (0, 2), "X"), "X: this silo, 1"),
        (lambda: checks.check_same(False, "X", "setup"), "another X"),
        (lambda: checks.is_new(TABLE, 1, b"b", is_closed=False), "second"),
        (lambda: checks.is_new(TABLE, 2, b"b", is_closed=True), "closed"),
    ],
)
def test_checks_that_refuse(call, match):
    with pytest.raises(ProtocolViolation, match=match):
        call()


def test_a_call_out_of_order_is_the_callers_bug():
    with pytest.raises(RuntimeError, match="order"):
        checks.require_call(False, "order")


def test_naming_keeps_the_type():
    with pytest.raises(InvalidShare, match=r"^silo 3: wrong"), checks.naming(3):
        raise InvalidShare("wrong")


@given(st.lists(st.lists(st.binary(min_size=2, max_size=2), min_size=1), min_size=1))
def test_twins_are_found_wherever_they_are(groups):
    """Keys of few different bytes, zeros at either end among them."""
    padded = [[key.rjust(17, b"\x00").ljust(32, b"\x00") for key in g] for g in groups]
    flat = [key for group in padded for key in group]
    assert checks.has_twins(b"".join(group) for group in padded) == (
        len(set(flat)) < len(flat)
    )


@pytest.mark.parametrize(
    ("number", "is_canonical"),
    [
        (0, True),
        (2**255 - 20, True),
        (2**255 - 19, False),
        (2**255 - 18, False),
        (2**255 + 9, False),
        (2**256 - 1, False),
    ],
)
def test_keys_above_the_prime_are_not_canonical(number, is_canonical):
    key, good = number.to_bytes(32, "little"), (9).to_bytes(32, "little")
    assert checks.are_canonical(key) is is_canonical
    assert checks.are_canonical(good + key + good) is is_canonical
