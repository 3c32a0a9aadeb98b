import dataclasses
import json
import math
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.encoding import check_hex, decode, encode, from_table, to_table
from protocol.errors import EncodingError

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


def test_canonical_bytes_by_hand():
    value = {"b": [1, 1.5, True, None], "a": {"é": "\n"}}
    assert encode(value) == '{"a":{"é":"\\n"},"b":[1,1.5,true,null]}'.encode()


@given(values)
def test_decode_is_the_inverse_of_encode(value):
    data = encode(value)
    again = decode(data)
    assert encode(again) == data
    assert json.dumps(again, sort_keys=True) == json.dumps(value, sort_keys=True)


@given(st.dictionaries(st.text(max_size=3), st.integers(), min_size=2, max_size=5))
def test_the_order_of_names_does_not_matter(table):
    backwards = dict(reversed(list(table.items())))
    assert encode(backwards) == encode(table)


@given(values, st.data())
def test_one_more_byte_is_never_another_way_to_say_the_same(value, data):
    canonical = encode(value)
    place = data.draw(st.integers(0, len(canonical)))
    byte = data.draw(st.sampled_from([b" ", b"\n", b"\t", b"0", b"+", b"-", b","]))
    try:
        other = decode(canonical[:place] + byte + canonical[place:])
    except EncodingError:
        return
    assert encode(other) != canonical


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{"a": 1}', id="space"),
        pytest.param(b" 1", id="leading space"),
        pytest.param(b"1\n", id="trailing line end"),
        pytest.param(b"[1,\n2]", id="line end"),
        pytest.param(b'{"b":1,"a":2}', id="order of names"),
        pytest.param(b'{"a":1,"a":1}', id="same name twice"),
        pytest.param(b'{"a":1,"a":2}', id="same name twice, another value"),
        pytest.param(b"{}{}", id="trailing table"),
        pytest.param(b"{}\x00", id="trailing byte"),
        pytest.param(b"1.50", id="trailing zero"),
        pytest.param(b"1e2", id="another way to write a number"),
        pytest.param(b"01", id="leading zero"),
        pytest.param(b"-0", id="negative zero"),
        pytest.param(b"NaN", id="NaN"),
        pytest.param(b"-Infinity", id="infinity"),
        pytest.param(b"1e400", id="beyond the largest number"),
        pytest.param(b"1" * 5000, id="enormous number"),
        pytest.param(b'"\\u0041"', id="needless escape"),
        pytest.param(b'"\\/"', id="another needless escape"),
        pytest.param(b'"\\ud800"', id="half a character"),
        pytest.param(b'"\xff"', id="not UTF-8"),
        pytest.param(b"\xef\xbb\xbf1", id="byte order mark"),
        pytest.param(b"{'a':1}", id="wrong quotes"),
        pytest.param(b"[1,]", id="trailing comma"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"[" * 100_000, id="deep, cut off"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="deep"),
    ],
)
def test_other_than_canonical_bytes_are_refused(data):
    with pytest.raises(EncodingError):
        decode(data)


def test_no_depth_ends_in_another_error():
    # Reading and writing meet Python's limit at different depths.
    for depth in range(900, 1100):
        try:
            decode(b"[" * depth + b"]" * depth)
        except EncodingError:
            continue


def test_one_and_one_point_zero_differ():
    assert encode(1) != encode(1.0)
    assert type(decode(b"1")) is int
    assert type(decode(b"1.0")) is float


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, {"a": [-math.inf]}, b"bytes", {1, 2}, "\ud800", object()],
)
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(EncodingError, match="cannot be encoded"):
        encode(value)


@dataclass(frozen=True, kw_only=True)
class Inner:
    dim: int
    ratio: float = 0.5

    def __post_init__(self):
        if self.dim < 1:
            raise ValueError("dim: must be positive")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    rate: float
    inner: Inner
    count: int = 1
    flag: bool = False
    mode: Literal["slow", "fast"] = "slow"
    version: Literal[1] = 1
    sizes: tuple[int, ...] = ()
    inners: tuple[Inner, ...] = ()
    note: str | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    anything: Any = None
    computed: int = field(init=False, default=3)


GOOD: dict[str, Any] = {"name": "x", "rate": 0.25, "inner": {"dim": 2}}


def test_a_table_becomes_a_dataclass():
    table = GOOD | {
        "count": 4,
        "flag": True,
        "mode": "fast",
        "sizes": [1, 2],
        "inners": [{"dim": 3, "ratio": 2}],
        "note": "y",
        "rates": {"a": 1},
        "anything": [1, "z"],
    }
    assert from_table(Outer, table) == Outer(
        name="x",
        rate=0.25,
        inner=Inner(dim=2),
        count=4,
        flag=True,
        mode="fast",
        sizes=(1, 2),
        inners=(Inner(dim=3, ratio=2.0),),
        note="y",
        rates={"a": 1.0},
        anything=[1, "z"],
    )


def test_defaults_are_filled_in():
    assert from_table(Outer, GOOD) == Outer(name="x", rate=0.25, inner=Inner(dim=2))


def test_whole_numbers_pass_as_reals():
    outer = from_table(Outer, GOOD | {"rate": 2, "rates": {"a": 3}})
    assert (type(outer.rate), type(outer.rates["a"])) == (float, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "x"}, "nmae: unknown field; did you mean name?"),
        ({"zzzzz": "x"}, "zzzzz: unknown field"),
        ({"computed": 3}, "computed: unknown field"),
        ({"inner": {"dim": 1, "rato": 1}}, "inner.rato: unknown field; did you mean"),
        ({"inner": {}}, "inner.dim: is missing"),
        ({"inner": 3}, "inner: must be a table, is 3"),
        ({"inner": {"dim": 0}}, "inner.dim: must be positive"),
        ({"inner": {"dim": True}}, "inner.dim: must be a whole number, is True"),
        ({"name": 3}, "name: must be text, is 3"),
        ({"name": ["x"]}, "name: must be text, is a list"),
        ({"name": None}, "name: must be text, is None"),
        ({"rate": "fast"}, "rate: must be a number, is 'fast'"),
        ({"rate": True}, "rate: must be a number, is True"),
        ({"rate": math.nan}, "rate: must be a number, is NaN"),
        ({"rate": 10**400}, "too large for rate"),
        ({"count": 1.0}, "count: must be a whole number, is 1.0"),
        ({"count": True}, "count: must be a whole number, is True"),
        ({"flag": 1}, "flag: must be true or false, is 1"),
        ({"mode": "medium"}, "mode: must be one of 'slow', 'fast', is 'medium'"),
        ({"mode": ["slow"]}, "mode: must be one of 'slow', 'fast', is a list"),
        ({"version": 2}, "version: must be one of 1, is 2"),
        ({"version": 1.0}, "version: must be one of 1, is 1.0"),
        ({"version": True}, "version: must be one of 1, is True"),
        ({"sizes": 3}, "sizes: must be a list, is 3"),
        ({"sizes": "12"}, "sizes: must be a list, is '12'"),
        ({"sizes": [1, "2"]}, "sizes[1]: must be a whole number, is '2'"),
        ({"inners": [{"dim": 1}, {"dim": 0}]}, "inners[1].dim: must be positive"),
        ({"inners": [{"dim": 1}, 2]}, "inners[1]: must be a table, is 2"),
        ({"note": 3}, "note: must be text, is 3"),
        ({"rates": []}, "rates: must be a table, is a list"),
        ({"rates": {"a": "b"}}, "rates.a: must be a number, is 'b'"),
        ({"name": "x" * 10_000, "mode": "y" * 10_000}, "mode: must be one of"),
    ],
)
def test_a_wrong_table_is_refused_by_the_name_of_its_field(change, message):
    with pytest.raises(EncodingError) as caught:
        from_table(Outer, GOOD | change)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["name", "rate", "inner"])
def test_a_missing_field_is_named(name):
    table = {key: value for key, value in GOOD.items() if key != name}
    with pytest.raises(EncodingError, match=f"^{name}: is missing$"):
        from_table(Outer, table)


def test_what_is_no_table_is_refused():
    with pytest.raises(EncodingError, match=r"^input: must be a table, is a list$"):
        from_table(Outer, [GOOD])
    with pytest.raises(EncodingError, match=r"^head\.dim: is missing$"):
        from_table(Inner, {}, "head")


outers = st.builds(
    Outer,
    name=st.text(max_size=5),
    rate=st.floats(allow_nan=False, allow_infinity=False) | st.integers(-99, 99),
    inner=st.builds(Inner, dim=st.integers(1, 9), ratio=st.floats(0, 1)),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    inners=st.lists(st.builds(Inner, dim=st.integers(1, 9)), max_size=2).map(tuple),
    note=st.none() | st.text(max_size=5),
    rates=st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=2),
    flag=st.booleans(),
)


@given(outers)
def test_to_table_and_from_table_are_inverse(outer):
    data = encode(to_table(outer))
    again = from_table(Outer, decode(data))
    assert again == outer
    assert encode(to_table(again)) == data


def test_equal_dataclasses_have_equal_bytes():
    whole, real = Inner(dim=1, ratio=1), Inner(dim=1, ratio=1.0)
    assert whole == real
    assert encode(to_table(whole)) == encode(to_table(real)) == b'{"dim":1,"ratio":1.0}'


def test_computed_fields_are_left_out():
    table = to_table(from_table(Outer, GOOD))
    names = {field.name for field in dataclasses.fields(Outer)}
    assert set(table) == names - {"computed"}


def test_check_hex():
    check_hex("key", "00ff", 2)
    for text in ("", "00f", "00fF", "00FF", "00 f", "00ff00", "0x00", "00fg", " 00ff"):
        with pytest.raises(ValueError, match=r"^key: must be 4 lower-case hexadecimal"):
            check_hex("key", text, 2)


@given(st.binary(max_size=8), st.sampled_from(string.printable))
def test_check_hex_takes_one_way_to_write_bytes(data, character):
    check_hex("key", data.hex(), len(data))
    with pytest.raises(ValueError, match=r"^key: "):
        check_hex("key", data.hex() + character, len(data))
