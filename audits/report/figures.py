"""Figures of a report, as inline SVG that follows the page's colours.

Colours are drawn as placeholders and replaced by CSS variables, so that one figure
serves light and dark pages; text stays text.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from audits.findings import printable
from audits.report.units import unit_for

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
KEY_STAGES = ("setup", "shares")


@dataclass(frozen=True)
class Drawing:
    """A figure: its SVG, its title, and the same in words for who cannot see it."""

    svg: str
    title: str
    description: str


def draw_all(content: Mapping[str, Any]) -> dict[str, Drawing]:
    """Return the figures that the content has numbers for, by name."""
    with mpl.rc_context(STYLE):
        drawings = {
            "bytes": _draw_bytes(content["disclosures"]),
            "distance": _draw_distance(content["evaluations"]),
            "classes": _draw_classes(content["evaluations"]),
            "growth": _draw_growth(content["transcripts"]),
        }
    return {name: drawing for name, drawing in drawings.items() if drawing}


def _draw_bytes(disclosures: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """Draw what left each silo, as stacked bars."""
    rows = sorted(disclosures, key=lambda row: -row["sent_bytes"])[:MAX_BARS]
    rows = [row for row in rows if row["sent_bytes"]]
    if not rows:
        return None
    size, unit = unit_for(rows[0]["sent_bytes"])
    labels = ("updates", "key exchange", "other messages")
    parts: dict[str, list[float]] = {label: [] for label in labels}
    for row in rows:
        keys = sum(s["sent_bytes"] for s in row["stages"] if s["stage"] in KEY_STAGES)
        vector = row["vector_bytes"]
        rest = max(0, row["sent_bytes"] - vector - keys)
        for name, number in zip(parts, (vector, keys, rest), strict=True):
            parts[name].append(number / size)
    figure, axes = _axes(height=1.25 + 0.3 * len(rows))
    silos = [_short(row["silo"]) for row in rows]
    left = [0.0] * len(rows)
    for (name, numbers), colour in zip(parts.items(), SERIES, strict=False):
        axes.barh(silos, numbers, left=left, color=colour, height=0.6, label=name)
        left = [a + b for a, b in zip(left, numbers, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"sent to the aggregator ({unit})")
    _legend(axes)
    said = "; ".join(f"{row['silo']} {row['sent_bytes']:,} bytes" for row in rows)
    return _finish(
        figure, "bytes", "Bytes that left each silo", f"Stacked bars. {said}."
    )


def _draw_distance(evaluations: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """Draw the Fréchet distance over rounds, a line for each extractor."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in evaluations[-MAX_POINTS:]:
        name = (
            f"{_short(row['extractor'])}, {row['num_samples']:,} samples, "
            f"reference of {row['reference_count']:,}"
        )
        point = (row["round_number"], row["frechet_distance"])
        lines.setdefault(name, []).append(point)
    if not lines:
        return None
    figure, axes = _axes()
    for (name, points), colour in zip(lines.items(), SERIES, strict=False):
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name, ms=4)
    highest = max(value for points in lines.values() for _, value in points)
    axes.set_ylim(0, 1.08 * highest or 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel("Fréchet distance (no unit)")
    _legend(axes, columns=1)
    said = " ".join(
        f"{name}: from {points[0][1]:.2f} in round {points[0][0]} to "
        f"{points[-1][1]:.2f} in round {points[-1][0]}."
        for name, points in lines.items()
    )
    return _finish(figure, "distance", "Fréchet distance over rounds", said)


def _draw_classes(evaluations: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """Draw the shares of classes among the samples of the last evaluation."""
    shares = evaluations[-1]["class_shares"] if evaluations else []
    if not shares or len(shares) > 200:
        return None
    figure, axes = _axes(height=2.2)
    percent = [100 * share for share in shares]
    axes.bar(range(len(shares)), percent, color=SERIES[0], width=0.7)
    axes.set_ylim(0, 1.25 * max(*percent, 1.0))
    axes.axhline(100 / len(shares), color=INK, linewidth=1, linestyle="--")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("class of the extractor (dashed: equal shares)")
    axes.set_ylabel("samples (%)")
    said = ", ".join(f"{index}: {share:.1f} %" for index, share in enumerate(percent))
    number = evaluations[-1]["round_number"]
    title = f"Classes among the samples after round {number}"
    return _finish(figure, "classes", title, f"Shares of classes: {said}.")


def _draw_growth(transcripts: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """Draw the sizes of the transcripts at their signed heads, over time."""
    lines = {
        row["party"]: points
        for row in transcripts[:MAX_SERIES]
        if (points := _points(row["heads"]))
    }
    if not lines:
        return None
    start = min(points[0][0] for points in lines.values())
    span = max(points[-1][0] for points in lines.values()) - start
    size, unit = next(
        (
            pair
            for pair in ((86400, "days"), (3600, "hours"), (60, "minutes"))
            if span >= 2 * pair[0]
        ),
        (1, "seconds"),
    )
    figure, axes = _axes()
    for (party, points), colour in zip(lines.items(), SERIES, strict=False):
        moments = [(seconds - start) / size for seconds, _ in points]
        sizes = [number for _, number in points]
        axes.plot(moments, sizes, "o-", color=colour, label=_short(party), ms=3, lw=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"time since the first head ({unit})")
    axes.set_ylabel("records")
    _legend(axes, columns=4 if sum(map(len, lines)) < 40 else 2)
    said = "; ".join(
        f"{party}: {points[-1][1]:,} records at its last head"
        for party, points in lines.items()
    )
    return _finish(figure, "growth", "Transcripts from head to head", f"{said}.")


def _points(heads: Sequence[Mapping[str, Any]]) -> list[tuple[float, int]]:
    """Return moments in seconds and sizes; at most so many, the last one kept."""
    points = []
    for head in [*heads[:: max(1, len(heads) // MAX_POINTS)], *heads[-1:]]:
        try:
            moment = datetime.strptime(head["time"], "%Y-%m-%dT%H:%M:%SZ")
        except ValueError:
            continue
        points.append((moment.replace(tzinfo=UTC).timestamp(), head["size"]))
    return sorted(points)


def _axes(height: float = 2.9) -> tuple[Figure, Axes]:
    """Return an empty figure that stays readable on a phone."""
    figure = Figure(figsize=(4.7, height), layout="constrained")
    return figure, figure.add_subplot()


def _legend(axes: Axes, columns: int = 3) -> None:
    """Put the legend above the axes."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=columns,
        handlelength=1.2,
        columnspacing=1.2,
        borderpad=0.2,
    )


def _short(name: str) -> str:
    """Return a name that fits beside an axis, and is no formula to matplotlib."""
    clean = printable(name).replace("$", "")
    return clean if len(clean) <= 24 else clean[:23] + "…"


def _finish(figure: Figure, name: str, title: str, description: str) -> Drawing:
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
