"""Figures of a run: bytes, survivors, and how the transcripts grew."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from matplotlib.ticker import MaxNLocator

from audits.report.figures.drawing import (
    INK,
    MAX_BARS,
    MAX_POINTS,
    MAX_SERIES,
    SERIES,
    Drawing,
    finish,
    new_axes,
    put_legend,
    short,
)
from audits.report.units import unit_for

Rows = Sequence[Mapping[str, Any]]

MAX_ROUND_BARS = 120
"""More rounds are drawn as an area: a bar each would make the page large."""

KEY_STAGES = ("setup", "shares")
SENT = ("updates", "key exchange", "other messages")


def draw_bytes(disclosures: Rows) -> Drawing | None:
    """Draw what left each silo, as stacked bars."""
    rows = sorted(disclosures, key=lambda row: -row["sent_bytes"])[:MAX_BARS]
    rows = [row for row in rows if row["sent_bytes"]]
    if not rows:
        return None
    size, unit = unit_for(rows[0]["sent_bytes"])
    parts: dict[str, list[float]] = {label: [] for label in SENT}
    for row in rows:
        keys = sum(s["sent_bytes"] for s in row["stages"] if s["stage"] in KEY_STAGES)
        vector = row["vector_bytes"]
        rest = max(0, row["sent_bytes"] - vector - keys)
        for name, number in zip(parts, (vector, keys, rest), strict=True):
            parts[name].append(number / size)
    figure, axes = new_axes(height=1.25 + 0.3 * len(rows))
    silos = [short(row["silo"]) for row in rows]
    left = [0.0] * len(rows)
    for (name, numbers), colour in zip(parts.items(), SERIES, strict=False):
        axes.barh(silos, numbers, left=left, color=colour, height=0.6, label=name)
        left = [a + b for a, b in zip(left, numbers, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"sent to the aggregator ({unit})")
    put_legend(axes)
    said = "; ".join(f"{row['silo']} {row['sent_bytes']:,} bytes" for row in rows)
    return finish(
        figure, "bytes", "Bytes that left each silo", f"Stacked bars. {said}."
    )


def draw_round_bytes(traffic: Rows) -> Drawing | None:
    """Draw the bytes of all silos in each round, by part and direction."""
    rows = [row for row in traffic if row["sent_bytes"] or row["received_bytes"]]
    if len(rows) < 2:
        return None
    parts = {
        "updates up": [row["vector_bytes"] for row in rows],
        "other up": [row["sent_bytes"] - row["vector_bytes"] for row in rows],
        "model down": [row["broadcast_bytes"] for row in rows],
        "other down": [row["received_bytes"] - row["broadcast_bytes"] for row in rows],
    }
    totals = [sum(numbers) for numbers in zip(*parts.values(), strict=True)]
    size, unit = unit_for(max(totals))
    numbers = [row["round_number"] for row in rows]
    figure, axes = new_axes()
    bottom = [0.0] * len(rows)
    for (name, part), colour in zip(parts.items(), SERIES, strict=False):
        heights = [count / size for count in part]
        top = [a + b for a, b in zip(bottom, heights, strict=True)]
        if len(rows) > MAX_ROUND_BARS:
            axes.fill_between(
                numbers, bottom, top, step="mid", color=colour, label=name, lw=0
            )
        else:
            axes.bar(numbers, heights, 0.75, bottom, color=colour, label=name)
        bottom = top
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("round (0: outside rounds)")
    axes.set_ylabel(f"all silos together ({unit})")
    put_legend(axes, columns=2)
    said = ", ".join(
        f"{name} {sum(part):,} bytes in all" for name, part in parts.items()
    )
    title = "Bytes per round and part"
    return finish(figure, "traffic", title, f"Stacked bars: {said}.")


def draw_survivors(rounds: Rows) -> Drawing | None:
    """Draw how many silos each sum held, and how many it needed."""
    rows = [row for row in rounds if row["survivors"] is not None][:MAX_POINTS]
    if not rows:
        return None
    numbers = [row["round_number"] for row in rows]
    held = [len(row["survivors"]) for row in rows]
    needed = rows[0]["least_survivors"]
    figure, axes = new_axes(height=2.3)
    label = "updates in the sum"
    if len(rows) > MAX_ROUND_BARS:
        axes.fill_between(numbers, held, step="mid", color=SERIES[0], label=label, lw=0)
    else:
        axes.bar(numbers, held, color=SERIES[0], width=0.75, label=label)
    axes.axhline(needed, color=INK, lw=1, ls="--", label="least that may be opened")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, max(*held, needed) + 0.6)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("round")
    axes.set_ylabel("silos")
    put_legend(axes, columns=2)
    said = (
        f"Between {min(held)} and {max(held)} updates in a sum; at least {needed} are "
        "needed."
    )
    return finish(figure, "survivors", "Survivors of each round", said)


def draw_growth(transcripts: Rows) -> Drawing | None:
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
    figure, axes = new_axes()
    for (party, points), colour in zip(lines.items(), SERIES, strict=False):
        moments = [(seconds - start) / size for seconds, _ in points]
        sizes = [number for _, number in points]
        style = "o-" if len(points) <= MAX_ROUND_BARS else "-"
        axes.plot(moments, sizes, style, color=colour, label=short(party), ms=3, lw=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"time since the first head ({unit})")
    axes.set_ylabel("records")
    put_legend(axes, columns=4 if sum(map(len, lines)) < 40 else 2)
    said = "; ".join(
        f"{party}: {points[-1][1]:,} records at its last head"
        for party, points in lines.items()
    )
    return finish(figure, "growth", "Transcripts from head to head", f"{said}.")


def _points(heads: Rows) -> list[tuple[float, int]]:
    """Return moments in seconds and sizes; at most so many, the last one kept."""
    points = []
    for head in [*heads[:: max(1, len(heads) // MAX_POINTS)], *heads[-1:]]:
        try:
            moment = datetime.strptime(head["time"], "%Y-%m-%dT%H:%M:%SZ")
        except ValueError:
            continue
        points.append((moment.replace(tzinfo=UTC).timestamp(), head["size"]))
    return sorted(points)
