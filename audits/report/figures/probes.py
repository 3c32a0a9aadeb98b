"""Figures of probes: ROC curves in logarithmic axes, memorisation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audits.report.figures.accounting import SHARES
from audits.report.figures.drawing import (
    INK,
    SERIES,
    Drawing,
    finish,
    new_axes,
    percent_ticks,
    put_legend,
    short,
)

MAX_FIGURES = 24

Rows = Sequence[Mapping[str, Any]]


def draw_probes(membership: Rows, memorisation: Rows) -> dict[str, Drawing]:
    """Return a figure for each silo and model attacked, by name."""
    drawings: dict[str, Drawing] = {}
    for index, row in enumerate(membership[:MAX_FIGURES]):
        drawings[f"roc-{index}"] = _draw_roc(row, index)
    for index, row in enumerate(memorisation[:MAX_FIGURES]):
        if any(row["histogram_counts"]):
            drawings[f"memory-{index}"] = _draw_memory(row, index)
    return drawings


def _draw_roc(row: Mapping[str, Any], index: int) -> Drawing:
    """Draw the attacks on one model, with intervals, and the ceiling of epsilon."""
    figure, axes = new_axes(height=3.3)
    for attack, colour in zip(row["attacks"], SERIES, strict=False):
        points = [
            (fpr, tpr)
            for fpr, tpr in zip(attack["roc_fpr"], attack["roc_tpr"], strict=True)
            if fpr >= SHARES[0] / 2 and tpr > 0
        ]
        axes.loglog(
            *(zip(*points, strict=True) if points else ([], [])),
            color=colour,
            lw=1.3,
            label=short(attack["attack"]),
        )
        for at in attack["true_positives"]:
            low, high = max(at["low"], SHARES[0] / 4), at["high"]
            axes.plot([at["fpr"]] * 2, [low, high], "_-", color=colour, lw=1, ms=6)
    if row["ceiling"]:
        points = [(fpr, tpr) for fpr, tpr in row["ceiling"] if fpr >= SHARES[0] / 2]
        axes.loglog(*zip(*points, strict=True), color=INK, lw=1.6, label="ceiling")
    axes.loglog(SHARES, SHARES, ls=":", lw=1, color=INK, label="guessing")
    axes.set_xlim(SHARES[0] * 0.8, 1)
    axes.set_ylim(SHARES[0] * 0.8, 1.15)
    percent_ticks(axes, SHARES, x=True, y=True)
    axes.set_xlabel("false alarms among held-out images")
    axes.set_ylabel("found among training images")
    put_legend(axes, columns=3)
    said = "; ".join(
        f"{each['attack']}: AUC {each['auc']:.3f} ({each['auc_low']:.3f} to "
        f"{each['auc_high']:.3f})"
        for each in row["attacks"]
    )
    drawn = "with" if row["ceiling"] else "without"
    title = f"Attacks of {short(row['silo'])} on {row['model']}"
    words = f"Both axes logarithmic, {drawn} the ceiling of epsilon. {said}."
    return finish(figure, f"roc-{index}", title, words)


def _draw_memory(row: Mapping[str, Any], index: int) -> Drawing:
    """Draw whether samples are nearer to training or to held-out images."""
    edges, counts = row["histogram_edges"], row["histogram_counts"]
    figure, axes = new_axes(height=2.3)
    axes.bar(
        edges[:-1], counts, width=np.diff(edges), align="edge", color=SERIES[0], lw=0
    )
    axes.axvline(0.0, color=INK, lw=1, ls="--")
    axes.set_xlabel("log(distance to training / distance to held-out image)")
    axes.set_ylabel("samples")
    axes.grid(axis="x", visible=False)
    near = row["nearer_to_training"]
    said = (
        f"{near['count']:,} of {near['total']:,} samples are nearer to a training "
        "image than to any held-out one; left of the dashed line."
    )
    title = f"Nearest images of {short(row['silo'])} to samples of {row['model']}"
    return finish(figure, f"memory-{index}", title, said)
