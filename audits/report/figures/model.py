"""Figures of the model: Fréchet distance over rounds, classes among the samples."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from audits.report.figures.drawing import (
    INK,
    MAX_POINTS,
    SERIES,
    Drawing,
    finish,
    new_axes,
    put_legend,
    short,
)

MAX_MARKERS = 120


def draw_distance(evaluations: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """Draw the Fréchet distance over rounds, a line for each extractor."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in evaluations[-MAX_POINTS:]:
        name = (
            f"{short(row['extractor'])}, {row['num_samples']:,} samples, "
            f"reference of {row['reference_count']:,}"
        )
        point = (row["round_number"], row["frechet_distance"])
        lines.setdefault(name, []).append(point)
    return draw_lines(lines, "distance", "Fréchet distance over rounds")


def draw_lines(
    lines: Mapping[str, Sequence[tuple[int, float]]], name: str, title: str
) -> Drawing | None:
    """Draw distances over rounds, a line for each name."""
    if not any(lines.values()):
        return None
    figure, axes = new_axes()
    for (label, points), colour in zip(lines.items(), SERIES, strict=False):
        style = "o-" if len(points) <= MAX_MARKERS else "-"
        axes.plot(*zip(*points, strict=True), style, color=colour, label=label, ms=4)
    highest = max(value for points in lines.values() for _, value in points)
    axes.set_ylim(0, 1.08 * highest or 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel("Fréchet distance (no unit)")
    put_legend(axes, columns=1)
    said = " ".join(
        f"{label}: from {points[0][1]:.2f} in round {points[0][0]} to "
        f"{points[-1][1]:.2f} in round {points[-1][0]}."
        for label, points in lines.items()
    )
    return finish(figure, name, title, said)


def draw_classes(evaluations: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """Draw the shares of classes among the samples of the last evaluation."""
    shares = evaluations[-1]["class_shares"] if evaluations else []
    if not shares or len(shares) > 200:
        return None
    figure, axes = new_axes(height=2.2)
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
    return finish(figure, "classes", title, f"Shares of classes: {said}.")
