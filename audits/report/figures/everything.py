"""All figures that a report's content has numbers for."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl

from audits.report.figures.accounting import (
    draw_epsilon,
    draw_profile,
    draw_trade_off,
)
from audits.report.figures.canaries import draw_canaries
from audits.report.figures.drawing import STYLE, Drawing
from audits.report.figures.model import draw_classes, draw_distance
from audits.report.figures.probes import draw_probes
from audits.report.figures.rounds import (
    draw_bytes,
    draw_growth,
    draw_round_bytes,
    draw_survivors,
)


def draw_all(content: Mapping[str, Any]) -> dict[str, Drawing]:
    """Return the figures by name; a name stands where there are numbers for it."""
    with mpl.rc_context(STYLE):
        drawings = {
            "epsilon": draw_epsilon(content["privacy"]),
            "profile": draw_profile(content["privacy"]),
            "trade-off": draw_trade_off(content["privacy"]),
            "survivors": draw_survivors(content["rounds"]),
            "bytes": draw_bytes(content["disclosures"]),
            "traffic": draw_round_bytes(content["traffic"]),
            "distance": draw_distance(content["evaluations"]),
            "classes": draw_classes(content["evaluations"]),
            "growth": draw_growth(content["transcripts"]),
        }
        more = draw_canaries(content["canaries"]["silos"])
        more |= draw_probes(content["membership"] or [], content["memorisation"] or [])
    return {name: drawing for name, drawing in drawings.items() if drawing} | more
