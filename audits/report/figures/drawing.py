"""What all figures share: axes, colours, and SVG that follows the page.

Colours are drawn as placeholders and replaced by CSS variables, so that one figure
serves light and dark pages; text stays text.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from audits.findings import printable

MAX_SERIES = 8
MAX_BARS = 24
MAX_POINTS = 2000

INK, GRID = "#010203", "#010204"
SERIES = tuple(f"#0102{number:02x}" for number in range(16, 16 + MAX_SERIES))
VARIABLES = {INK: "--ink", GRID: "--grid"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES)
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}

COORDINATES = re.compile(r'\s(?:d|x|y|transform)="[^"]*"')
DIGITS = re.compile(r"(\.\d\d)\d+")
"""A hundredth of a point is enough for a coordinate."""


@dataclass(frozen=True)
class Drawing:
    """A figure: its SVG, its title, and the same in words for who cannot see it."""

    svg: str
    title: str
    description: str


def new_axes(height: float = 2.9) -> tuple[Figure, Axes]:
    """Return an empty figure that stays readable on a phone."""
    figure = Figure(figsize=(4.4, height), layout="constrained")
    return figure, figure.add_subplot()


def put_legend(axes: Axes, columns: int = 3) -> None:
    """Put the legend above the axes."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=columns,
        handlelength=1.2,
        columnspacing=1.2,
        borderpad=0.2,
    )


def percent_ticks(axes: Axes, shares: Sequence[float], *, x: bool, y: bool) -> None:
    """Mark shares on logarithmic axes as per cent, in words that need no exponent."""
    labels = [f"{100 * share:g} %" for share in shares]
    for axis in [axes.xaxis] * x + [axes.yaxis] * y:
        axis.set_major_locator(FixedLocator(shares))
        axis.set_minor_locator(NullLocator())
        axis.set_ticklabels(labels)


def power_ticks(axes: Axes, low: int, high: int, step: int = 1) -> None:
    """Mark powers of ten on a logarithmic y axis as text: 1e-5."""
    exponents = list(range(low, high + 1, step))
    axes.yaxis.set_major_locator(FixedLocator([10.0**power for power in exponents]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_ticklabels([f"1e{power}" if power else "1" for power in exponents])


def short(name: str) -> str:
    """Return a name that fits beside an axis, and is no formula to matplotlib."""
    clean = printable(name).replace("$", "")
    return clean if len(clean) <= 24 else clean[:23] + "…"


def finish(figure: Figure, name: str, title: str, description: str) -> Drawing:
    """Return a figure as SVG for the page: own names, CSS colours, words."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\sid="([^"]+)"', rf' id="{name}-\1"', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = COORDINATES.sub(lambda found: DIGITS.sub(r"\1", found[0]), svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    words = (
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(printable(description))}</desc>'
    )
    opening = f'<svg role="img" aria-labelledby="{name}-title {name}-desc"'
    svg = svg.replace("<svg", opening, 1)
    head, _, body = svg.partition(">")
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return Drawing(f"{head}>{words}{body}", title, description)
