"""What sections of a report are made of: blocks that HTML and Markdown both know."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias


@dataclass(frozen=True)
class Paragraph:
    """One paragraph; a quiet one is small print, a strong one a statement."""

    kind: ClassVar[str] = "paragraph"
    text: str
    style: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Rows:
    """A table: names of its columns, those with numbers, and its cells as text.

    The page shows the beginning and the end of a long one.
    """

    kind: ClassVar[str] = "rows"
    names: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Facts:
    """Names and what they stand for."""

    kind: ClassVar[str] = "facts"
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Bullets:
    """A list."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]


@dataclass(frozen=True)
class Figures:
    """Figures by their names, beside each other where there is room."""

    kind: ClassVar[str] = "figures"
    names: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A picture by the SHA-256 of its file."""

    kind: ClassVar[str] = "picture"
    sha256: str
    width: int
    height: int
    alt: str
    caption: str


@dataclass(frozen=True)
class Code:
    """A command to type."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks that a reader unfolds."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: tuple["Block", ...]


Block: TypeAlias = (
    Paragraph | Heading | Rows | Facts | Bullets | Figures | Picture | Code | Fold
)


@dataclass(frozen=True)
class Section:
    """One section with its number."""

    number: int
    title: str
    blocks: tuple[Block, ...] = field(default=())


def rows(
    names: Sequence[str], cells: Iterable[Sequence[object]], numbers: Iterable[int] = ()
) -> Rows:
    """Return a table; None in a cell becomes a dash."""
    return Rows(
        tuple(names),
        tuple(tuple(shown(cell) for cell in row) for row in cells),
        frozenset(numbers),
    )


def facts(pairs: Iterable[Sequence[object]]) -> Facts:
    """Return names and values; None becomes a dash."""
    return Facts(tuple((shown(name), shown(value)) for name, value in pairs))


def shown(value: object) -> str:
    """Return a value as text: a dash for None, separators in whole numbers."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def number(value: float | None, form: str = ".4g") -> str:
    """Return a real number as text, a dash for None."""
    return "–" if value is None else format(value, form)


def percent(share: float | None, digits: int = 3) -> str:
    """Return a share in per cent."""
    return "–" if share is None else f"{100 * share:.{digits}g} %"
