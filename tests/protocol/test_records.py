import dataclasses
import re
import typing
from typing import Literal

import pytest

from privacy.events import Event, NoisySum, SampledGaussian
from protocol.encoding import decode, encode, from_table, to_table
from protocol.errors import EncodingError
from protocol.records import RECORD_KINDS, Record

GAUSSIAN = SampledGaussian(
    sample_rate=0.5, noise_multiplier=2.0, clipping_norm=1.0, steps=3
)
NOISE = NoisySum(
    sample_rate=0.5,
    clipping_norm=1.0,
    sensitivity=100.0,
    share_variance=900,
    min_survivors=4,
    max_colluding=1,
    length=7,
    steps=3,
)
EXAMPLES = {
    int: 7,
    float: 0.25,
    str: "text",
    tuple[str, ...]: ("a", "b"),
    bool: True,
    float | None: 0.5,
    Literal["operating-system", "insecure-seed"]: "insecure-seed",
    Literal["gradient", "input"]: "gradient",
    tuple[float, ...]: (0.5, 0.25),
    tuple[SampledGaussian, ...]: (GAUSSIAN,),
    tuple[NoisySum, ...]: (NOISE,),
    tuple[Event, ...]: (NOISE, GAUSSIAN),
}


def example(kind):
    """Return a record with a value in every field, by its type."""
    hints = typing.get_type_hints(kind)
    return kind(
        **{
            field.name: EXAMPLES[hints[field.name]]
            for field in dataclasses.fields(kind)
        }
    )


kinds = pytest.mark.parametrize("name", sorted(RECORD_KINDS))


def test_the_table_of_kinds_is_complete():
    assert set(RECORD_KINDS.values()) == set(typing.get_args(Record))
    assert len(RECORD_KINDS) == len(typing.get_args(Record))


@kinds
def test_a_kind_has_one_name_in_lower_case(name):
    assert RECORD_KINDS[name].kind == name
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)


@kinds
def test_a_record_round_trips_through_canonical_bytes(name):
    kind = RECORD_KINDS[name]
    record = example(kind)
    table = decode(encode(to_table(record)))
    assert "kind" not in table
    assert from_table(kind, table) == record


@kinds
def test_a_record_has_exactly_its_fields(name):
    kind = RECORD_KINDS[name]
    table = to_table(example(kind))
    with pytest.raises(EncodingError, match=r"^extra: unknown field"):
        from_table(kind, table | {"extra": 1})
    for field in table:
        rest = {key: value for key, value in table.items() if key != field}
        with pytest.raises(EncodingError, match=f"^{field}: is missing"):
            from_table(kind, rest)


@kinds
def test_a_record_cannot_be_changed(name):
    record = example(RECORD_KINDS[name])
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, dataclasses.fields(record)[0].name, None)
