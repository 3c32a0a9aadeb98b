"""The only encoder: canonical bytes for plans, envelopes and records.

Everything that is signed or hashed passes through :func:`encode`: JSON with sorted
names, no white space, UTF-8, no NaN; byte strings are lower-case hexadecimal. There is
one encoding of a value, and :func:`decode` refuses any other.

Frozen dataclasses describe what a table may hold; :func:`from_table` builds one and
names the field that is unknown, missing or of the wrong type.
"""

import dataclasses
import difflib
import functools
import json
import math
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from protocol.errors import EncodingError

T = TypeVar("T")
Table = Mapping[str, Any]

SHARED_CHARACTERS = 256
"""Texts up to this length are kept once in memory: records repeat names and digests."""
SHARED_LISTS = 64
"""So many lists of texts, the latest, are kept once: a round repeats its silos."""


def encode(value: object) -> bytes:
    """Return the canonical bytes of a value made of tables, lists, text and numbers.

    Raises:
        EncodingError: the value holds NaN, infinity or another type, or is nested
            too deeply.
    """
    try:
        text = json.dumps(
            value,
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise EncodingError(f"cannot be encoded: {error}") from None


def decode(data: bytes) -> Any:
    """Return the value of canonical bytes.

    Guarantees: ``encode(decode(data)) == data``, so that two different byte strings
    never mean the same.

    Raises:
        EncodingError: the bytes are not JSON, or not the canonical form.
    """
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise EncodingError(f"not valid JSON: {error}") from None
    if encode(value) != bytes(data):
        raise EncodingError("not in canonical form")
    return value


def to_table(value: object) -> Any:
    """Return a dataclass as nested tables, lists, text and numbers.

    Fields that the dataclass computes by itself (``init=False``) are left out. A whole
    number in a field of reals becomes a real, as :func:`from_table` reads it, so that
    equal dataclasses have equal bytes.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            name: _to_item(hint, getattr(value, name))
            for name, (hint, _) in _fields_of(type(value)).items()
        }
    if isinstance(value, Mapping):
        return {str(name): to_table(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_table(item) for item in value]
    return value


@dataclass(frozen=True)
class NotOffered:
    """Why a value that somebody may well try is not one of a field's choices.

    ``Annotated[Literal[...], NotOffered(value, why)]``: :func:`from_table` refuses the
    value with this reason in place of the list of choices.
    """

    value: str
    why: str


@functools.cache
def _fields_of(kind: type) -> Mapping[str, tuple[Any, bool]]:
    """Return the type of every field that a dataclass takes, and whether it must be."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        field.name: (
            hints[field.name],
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(kind)
        if field.init
    }


def _to_item(hint: Any, value: object) -> Any:
    """Return one field of a dataclass as :func:`to_table` does."""
    if hint is float and isinstance(value, int):
        return float(value)
    return to_table(value)


def check_hex(name: str, text: str, num_bytes: int) -> None:
    """Raise ``ValueError`` unless a text is so many bytes in lower-case hexadecimal."""
    try:
        valid = bytes.fromhex(text).hex() == text and len(text) == 2 * num_bytes
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(
            f"{name}: must be {2 * num_bytes} lower-case hexadecimal digits"
        )


def from_table(kind: type[T], table: object, where: str = "") -> T:
    """Build a frozen dataclass from a table, strictly.

    Args:
        kind: a dataclass whose fields are numbers, text, booleans, literals, other
            dataclasses, or tuples and mappings of these.
        table: nested tables as ``tomllib`` or :func:`decode` return them.
        where: dotted name of the table, for messages.

    Raises:
        EncodingError: a field is unknown, missing, of the wrong type or refused by
            the dataclass; the message names it.
    """
    if not isinstance(table, Mapping):
        raise EncodingError(f"{where or 'input'}: must be a table, is {_kind(table)}")
    fields = _fields_of(typing.cast("type", kind))
    values: dict[str, Any] = {}
    for name, item in table.items():
        if name not in fields:
            raise EncodingError(f"{_join(where, name)}: {_unknown(name, fields)}")
        hint = fields[name][0]
        if hint is type(item) and hint in _PLAIN:
            values[name] = _shared(item)
        else:
            values[name] = _convert(hint, item, _join(where, name))
    for name, (_, is_needed) in fields.items():
        if is_needed and name not in values:
            raise EncodingError(f"{_join(where, name)}: is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise EncodingError(f"{where + '.' if where else ''}{error}") from None


_PLAIN = (str, int, bool)
"""Types of which an item of the very type needs no conversion."""


def _shared(item: Any) -> Any:
    """Return an item; one object for all short texts that are equal."""
    if type(item) is str and len(item) <= SHARED_CHARACTERS:
        return sys.intern(item)
    return item


@functools.lru_cache(maxsize=SHARED_LISTS)
def _shared_texts(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return some texts; one object for lists that are equal, if they come often."""
    return texts


def _convert(hint: Any, item: object, where: str) -> Any:
    """Return the item as the type that the hint asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _convert_offered(arguments, item, where)
    if dataclasses.is_dataclass(hint):
        return from_table(typing.cast("type", hint), item, where)
    if origin is typing.Literal:
        if not any(type(item) is type(one) and item == one for one in arguments):
            choices = ", ".join(repr(choice) for choice in arguments)
            raise EncodingError(f"{where}: must be one of {choices}, is {_kind(item)}")
        return item
    if origin in (types.UnionType, typing.Union):
        return _convert_optional(arguments, item, where)
    if origin is tuple:
        return _convert_tuple(arguments, item, where)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return _convert_mapping(arguments, item, where)
    return _convert_scalar(hint, item, where)


def _convert_offered(arguments: tuple[Any, ...], item: object, where: str) -> Any:
    """Return the item as the annotated type, or the reason why there is no such."""
    hint, *refused = arguments
    for each in refused:
        if isinstance(each, NotOffered) and item == each.value:
            raise EncodingError(f"{where}: {each.value!r} {each.why}")
    return _convert(hint, item, where)


def _convert_optional(arguments: tuple[Any, ...], item: object, where: str) -> Any:
    """Return None, or the item as the other type of an optional field.

    Of several dataclasses it is the one whose fields all are those of the table.
    """
    if item is None and type(None) in arguments:
        return None
    hint, *others = [argument for argument in arguments if argument is not type(None)]
    names = set(item) if isinstance(item, Mapping) else set()
    for other in others:
        if names == {field.name for field in dataclasses.fields(other)}:
            hint = other
    return _convert(hint, item, where)


def _convert_tuple(arguments: tuple[Any, ...], item: object, where: str) -> Any:
    """Return a list as a tuple of one element type."""
    if isinstance(item, (str, bytes)) or not isinstance(item, Sequence):
        raise EncodingError(f"{where}: must be a list, is {_kind(item)}")
    hint = arguments[0]
    if hint is str and all(type(element) is str for element in item):
        return _shared_texts(tuple(map(_shared, item)))
    return tuple(
        _convert(hint, element, f"{where}[{index}]")
        for index, element in enumerate(item)
    )


def _convert_mapping(arguments: tuple[Any, ...], item: object, where: str) -> Any:
    """Return a table as a dictionary from text to one element type."""
    if not isinstance(item, Mapping):
        raise EncodingError(f"{where}: must be a table, is {_kind(item)}")
    hint = arguments[1] if arguments else Any
    return {
        str(name): _convert(hint, element, _join(where, str(name)))
        for name, element in item.items()
    }


def _convert_scalar(hint: Any, item: object, where: str) -> Any:
    """Return a number, text or boolean, checked; whole numbers pass as reals."""
    if hint is Any:
        return item
    if hint is float and isinstance(item, int) and not isinstance(item, bool):
        try:
            item = float(item)
        except OverflowError:
            raise EncodingError(f"int too large for {where}") from None
    if not isinstance(item, hint) or (hint is not bool and isinstance(item, bool)):
        raise EncodingError(f"{where}: must be {_NAMES[hint]}, is {_kind(item)}")
    if isinstance(item, float) and math.isnan(item):
        raise EncodingError(f"{where}: must be a number, is NaN")
    return _shared(item)


_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
}


def _kind(item: object) -> str:
    """Describe an item in a person's words."""
    if isinstance(item, Mapping):
        return "a table"
    if isinstance(item, (list, tuple)):
        return "a list"
    return f"{item!r:.60}"


def _join(where: str, name: str) -> str:
    """Return the dotted name of a field."""
    return f"{where}.{name}" if where else name


def _unknown(name: str, fields: Mapping[str, object]) -> str:
    """Say that a field is unknown, and which known one is nearest."""
    near = difflib.get_close_matches(name, fields, n=1)
    return f"unknown field{f'; did you mean {near[0]}?' if near else ''}"
