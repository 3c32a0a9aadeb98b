"""What a plan moves, in lines for the operators of silos and aggregator."""

from collections.abc import Iterable, Iterator, Sequence

from protocol.plan import RunPlan
from protocol.traffic_parts import Segments, broadcast_by_part, vector_by_part
from protocol.traffic_range import predictions, run_range
from protocol.traffic_rows import Exchange, by_round, total


def traffic_lines(
    plan: RunPlan, segments: Segments, *, per_round: bool = False
) -> Iterator[str]:
    """Yield what a run moves, by direction and purpose, if nothing is lost in it.

    Args:
        segments: parts and lengths of the federated tensors.
        per_round: whether to yield a line for each round, too, with its parts.
    """
    runs = predictions(plan, segments)
    yield "Bytes of a run in which no silo is lost and nothing is repeated, exactly:"
    yield f"  each silo: {_both([total(run) for run in runs])}"
    yield f"  all {len(plan.silos)} silos: {_both(run_range(plan, segments))}"
    if plan.evaluation.in_silos:
        yield "  besides, each silo receives the file of reference statistics"
    if not per_round:
        return
    rounds = [by_round(run) for run in runs]
    for number in rounds[0]:
        name = f"round {number}" if number else "outside rounds"
        yield f"  each silo, {name}: {_both([each[number] for each in rounds])}"
    yield f"  vector of round 1 by part: {_parts(vector_by_part(plan, segments, 1))}"
    if plan.num_rounds > 1:
        parts = _parts(vector_by_part(plan, segments, 2))
        yield f"  vector of a later round by part: {parts}"
    parts = _parts(broadcast_by_part(segments, plan.update.broadcast_bits))
    yield f"  one broadcast by part: {parts}"


def _both(rows: Sequence[Exchange]) -> str:
    """Return both directions with their purposes."""
    auxiliary = ""
    if any(row.auxiliary for row in rows):
        auxiliary = f", auxiliary {_span(row.auxiliary for row in rows)}"
    return (
        f"{_span(row.sent for row in rows)} bytes up (vector "
        f"{_span(row.vector for row in rows)}{auxiliary}, protocol "
        f"{_span(row.protocol_up for row in rows)}), "
        f"{_span(row.received for row in rows)} down (broadcast "
        f"{_span(row.broadcast for row in rows)}, protocol "
        f"{_span(row.protocol_down for row in rows)})"
    )


def _span(numbers: Iterable[int]) -> str:
    """Return a number, or the two that some lie between."""
    found = sorted(numbers)
    least, most = found[0], found[-1]
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _parts(parts: dict[str, int]) -> str:
    """Return the bytes of parts."""
    rows: Iterable[tuple[str, int]] = parts.items()
    return ", ".join(f"{part} {size:,}" for part, size in rows)
