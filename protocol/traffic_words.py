"""What a plan moves, in lines for the operators of silos and aggregator."""

from collections.abc import Iterable, Iterator

from protocol.plan import RunPlan
from protocol.traffic import (
    Exchange,
    by_round,
    total,
)
from protocol.traffic_parts import Segments, broadcast_by_part, vector_by_part
from protocol.traffic_range import predict_range, run_range


def traffic_lines(
    plan: RunPlan, segments: Segments, *, per_round: bool = False
) -> Iterator[str]:
    """Yield what a run moves, by direction and purpose, if nothing is lost in it.

    Args:
        segments: parts and lengths of the federated tensors.
        per_round: whether to yield a line for each round, too, with its parts.
    """
    least, most = predict_range(plan, segments)
    yield "Bytes of a run in which no silo is lost and nothing is repeated, exactly:"
    yield f"  each silo: {_both(total(least), total(most))}"
    yield f"  all {len(plan.silos)} silos: {_both(*run_range(plan, segments))}"
    if plan.evaluation.in_silos:
        yield "  besides, each silo receives the file of reference statistics"
    if not per_round:
        return
    rounds = zip(by_round(least).items(), by_round(most).values(), strict=True)
    for (number, low), high in rounds:
        name = f"round {number}" if number else "outside rounds"
        yield f"  each silo, {name}: {_both(low, high)}"
    yield f"  vector of round 1 by part: {_parts(vector_by_part(plan, segments, 1))}"
    if plan.num_rounds > 1:
        parts = _parts(vector_by_part(plan, segments, 2))
        yield f"  vector of a later round by part: {parts}"
    parts = _parts(broadcast_by_part(segments, plan.update.broadcast_bits))
    yield f"  one broadcast by part: {parts}"


def _both(least: Exchange, most: Exchange) -> str:
    """Return both directions with their purposes."""
    auxiliary = ""
    if most.auxiliary:
        auxiliary = f", auxiliary {_span(least.auxiliary, most.auxiliary)}"
    return (
        f"{_span(least.sent, most.sent)} bytes up (vector "
        f"{_span(least.vector, most.vector)}{auxiliary}, protocol "
        f"{least.protocol_up:,}), "
        f"{least.received:,} down (broadcast {least.broadcast:,}, protocol "
        f"{least.protocol_down:,})"
    )


def _span(least: int, most: int) -> str:
    """Return a number, or the two that it lies between."""
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _parts(parts: dict[str, int]) -> str:
    """Return the bytes of parts."""
    rows: Iterable[tuple[str, int]] = parts.items()
    return ", ".join(f"{part} {size:,}" for part, size in rows)
