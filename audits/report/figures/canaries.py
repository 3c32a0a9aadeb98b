"""Figures of canaries: histograms of scores, bounds beside the claimed epsilon."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audits.report.figures.drawing import (
    INK,
    MAX_SERIES,
    SERIES,
    Drawing,
    finish,
    new_axes,
    put_legend,
    short,
)

NUM_BINS = 40


def draw_canaries(canaries: Sequence[Mapping[str, Any]]) -> dict[str, Drawing]:
    """Return two figures for each silo's canaries, by name."""
    drawings: dict[str, Drawing | None] = {}
    for index, row in enumerate(canaries[:MAX_SERIES]):
        drawings[f"canary-scores-{index}"] = _draw_scores(row, index)
        drawings[f"canary-bounds-{index}"] = _draw_bounds(row, index)
    return {name: drawing for name, drawing in drawings.items() if drawing}


def _draw_scores(row: Mapping[str, Any], index: int) -> Drawing | None:
    """Draw the scores of canaries that were in the training, and of the others."""
    inside, outside = row["included_scores"], row["excluded_scores"]
    if not inside or not outside:
        return None
    edges = np.linspace(min(*inside, *outside), max(*inside, *outside), NUM_BINS + 1)
    if edges[0] == edges[-1]:
        return None
    figure, axes = new_axes(height=2.4)
    groups = (("planted", inside, SERIES[1]), ("left out", outside, SERIES[0]))
    for label, scores, colour in groups:
        axes.hist(scores, edges.tolist(), color=colour, alpha=0.55, label=label)
    unit = "clipping norms" if row["form"] == "gradient" else "minus the mean loss"
    axes.set_xlabel(f"score ({unit})")
    axes.set_ylabel("canaries")
    axes.grid(axis="x", visible=False)
    put_legend(axes, columns=2)
    silo = short(row["silo"])
    said = (
        f"{len(inside):,} planted canaries with a mean score of {np.mean(inside):.3g} "
        f"(standard deviation {np.std(inside):.3g}), {len(outside):,} left out with "
        f"{np.mean(outside):.3g} ({np.std(outside):.3g})."
    )
    title = f"Scores of the canaries of {silo}"
    return finish(figure, f"canary-scores-{index}", title, said)


def _draw_bounds(row: Mapping[str, Any], index: int) -> Drawing | None:
    """Draw each lower bound and estimate of epsilon beside the claimed one."""
    bounds = [each for each in row["bounds"] if each["epsilon"] is not None]
    if not bounds:
        return None
    figure, axes = new_axes(height=1.2 + 0.38 * len(bounds))
    names = [",\n".join(map(short, each["name"].split(", "))) for each in bounds]
    values = [each["epsilon"] for each in bounds]
    colours = [SERIES[0 if each["kind"] == "bound" else 4] for each in bounds]
    axes.barh(range(len(names)), values, color=colours, height=0.55)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    claimed = row["claimed_epsilon"]
    if claimed is not None:
        axes.axvline(claimed, color=INK, lw=1.2, ls="--", label="claimed epsilon")
        put_legend(axes, columns=1)
    axes.set_xlim(0, 1.15 * max(*values, claimed or 0.0, 0.1))
    axes.set_xlabel("epsilon")
    said = "; ".join(
        f"{each['name']} ({each['kind']}) {each['epsilon']:.3g}" for each in bounds
    )
    claim = "no epsilon is claimed" if claimed is None else f"claimed {claimed:.4g}"
    title = f"What the canaries of {short(row['silo'])} show of epsilon"
    return finish(figure, f"canary-bounds-{index}", title, f"{said}; {claim}.")
