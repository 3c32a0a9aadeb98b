"""Figures of the price: epsilon over rounds, privacy profile, trade-off curve."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from audits.report.figures.drawing import (
    INK,
    MAX_SERIES,
    SERIES,
    Drawing,
    finish,
    new_axes,
    percent_ticks,
    power_ticks,
    put_legend,
    short,
)

SHARES = (0.001, 0.01, 0.1, 1.0)
LOWEST_POWER = -10

Privacy = Mapping[str, Any]


def draw_epsilon(privacy: Privacy | None) -> Drawing | None:
    """Draw what each silo had spent after each round, and what the plan permits."""
    lines = privacy["over_rounds"] if privacy else []
    lines = [line for line in lines if line["points"]]
    if not privacy or not lines:
        return None
    figure, axes = new_axes()
    for (label, points), colour in zip(_together(lines), SERIES, strict=False):
        axes.plot(*zip(*points, strict=True), "o-", ms=4, color=colour, label=label)
    planned = privacy["budget"]["planned"]
    if planned is not None:
        axes.axhline(planned, color=INK, lw=1, ls="--", label="whole run as planned")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    delta = privacy["budget"]["delta"]
    axes.set_ylabel(f"epsilon at delta {delta:g}")
    put_legend(axes, columns=2)
    said = "; ".join(
        f"{line['silo']} had spent epsilon {line['points'][-1][1]:.4g} after round "
        f"{line['points'][-1][0]}"
        for line in lines
    )
    return finish(figure, "epsilon", "Epsilon over rounds", f"{said}.")


def _together(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Return each different line once, with the silos that share it."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault(repr(line["points"]), []).append(line)
    return [
        (
            short(group[0]["silo"])
            + (f" and {len(group) - 1} more" if len(group) > 1 else ""),
            group[0]["points"],
        )
        for group in list(groups.values())[:MAX_SERIES]
    ]


def draw_profile(privacy: Privacy | None) -> Drawing | None:
    """Draw delta(epsilon), all that the mechanism guarantees."""
    points = privacy["profile"] if privacy else []
    points = [(eps, delta) for eps, delta in points if delta >= 10.0**LOWEST_POWER]
    if not privacy or len(points) < 2:
        return None
    figure, axes = new_axes()
    axes.semilogy(*zip(*points, strict=True), "-", color=SERIES[0])
    axes.axhline(privacy["budget"]["delta"], color=INK, lw=1, ls="--")
    axes.set_ylim(10.0**LOWEST_POWER, 1)
    axes.set_xlim(left=0)
    power_ticks(axes, LOWEST_POWER, 0, 2)
    axes.set_xlabel("epsilon")
    axes.set_ylabel("delta")
    said = "Upper bounds: " + ", ".join(
        f"delta {delta:.2g} at epsilon {eps:.3g}" for eps, delta in points[::12]
    )
    title = "Privacy profile (dashed: the plan's delta)"
    return finish(figure, "profile", title, f"{said}.")


def draw_trade_off(privacy: Privacy | None) -> Drawing | None:
    """Draw the most that an attack can find at each rate of false alarms."""
    points = privacy["trade_off"] if privacy else []
    if not points:
        return None
    figure, axes = new_axes()
    axes.loglog(*zip(*points, strict=True), color=SERIES[1], label="no attack above")
    axes.loglog(SHARES, SHARES, ls="--", lw=1, color=INK, label="guessing")
    axes.set_xlim(SHARES[0], 1)
    axes.set_ylim(SHARES[0], 1.08)
    percent_ticks(axes, SHARES, x=True, y=True)
    axes.set_xlabel("false alarms among those not in the data")
    axes.set_ylabel("found among those in the data")
    put_legend(axes, columns=2)
    said = ", ".join(
        f"{most:.1%} found at {rate:.1%} false alarms"
        for rate, most in (privacy or {})["ceilings"]
    )
    title = "The ceiling on any membership attack"
    return finish(figure, "trade-off", title, f"At most {said}.")
