"""The part of JSON Schema (draft 2020-12) that docs/report.schema.json uses.

A keyword that is not known here is an error, so that no rule is passed over.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool)
    ),
    "null": lambda value: value is None,
}
WORDS = {"$schema", "$defs", "title", "description"}


def errors(value: Any, schema: dict, root: dict, where: str = "$") -> Iterator[str]:
    """Yield what in a value a schema does not permit."""
    for keyword, rule in schema.items():
        if keyword in WORDS or keyword in ("properties", "additionalProperties"):
            continue
        if keyword == "$ref":
            name = rule.removeprefix("#/$defs/")
            yield from errors(value, root["$defs"][name], root, where)
        elif keyword == "anyOf":
            if all(list(errors(value, each, root, where)) for each in rule):
                yield f"{where}: none of {len(rule)} choices"
        elif keyword == "items":
            for index, item in enumerate(value if isinstance(value, list) else ()):
                yield from errors(item, rule, root, f"{where}[{index}]")
        else:
            yield from _simple(value, keyword, rule, where)
    if isinstance(value, dict) and "properties" in schema:
        yield from _fields(value, schema, root, where)


def _fields(value: dict, schema: dict, root: dict, where: str) -> Iterator[str]:
    for name, item in value.items():
        if name in schema["properties"]:
            yield from errors(item, schema["properties"][name], root, f"{where}.{name}")
        elif schema.get("additionalProperties", True) is False:
            yield f"{where}.{name}: unknown"


def _simple(value: Any, keyword: str, rule: Any, where: str) -> Iterator[str]:
    is_number, is_list = TYPES["number"](value), isinstance(value, list)
    wrong = {
        "type": lambda: (
            not any(
                TYPES[name](value)
                for name in ([rule] if isinstance(rule, str) else rule)
            )
        ),
        "const": lambda: value != rule,
        "enum": lambda: value not in rule,
        "required": lambda: isinstance(value, dict) and not set(rule) <= set(value),
        "pattern": lambda: isinstance(value, str) and not re.search(rule, value),
        "minimum": lambda: is_number and value < rule,
        "maximum": lambda: is_number and value > rule,
        "minItems": lambda: is_list and len(value) < rule,
        "maxItems": lambda: is_list and len(value) > rule,
    }
    if keyword not in wrong:
        raise AssertionError(f"{where}: the schema's keyword {keyword} is not known")
    if wrong[keyword]():
        yield f"{where}: {keyword} {rule!r:.60}, is {value!r:.60}"
