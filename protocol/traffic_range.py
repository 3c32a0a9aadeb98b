"""The least and the most that a plan moves, where that is not one number.

It is one but where parts are dealt, or where silos give auxiliary samples.
"""

from dataclasses import replace

from protocol.auxiliary import content_bytes
from protocol.dealing import BOTTLENECK, DECODER, ENCODER
from protocol.plan import RunPlan
from protocol.traffic import Exchange, predict, total
from protocol.traffic_parts import Segments, broadcast_by_part, vector_by_part


def predict_range(
    plan: RunPlan, segments: Segments
) -> tuple[tuple[Exchange, ...], tuple[Exchange, ...]]:
    """Return the least and the most that one silo sends and receives.

    They differ in what is sent only: where parts are dealt, and where silos give other
    numbers of auxiliary samples.
    """
    sizes = broadcast_by_part(segments)
    least, most = sorted((ENCODER, DECODER), key=lambda part: sizes.get(part, 0))
    silos = list(range(len(plan.silos)))
    if plan.calibration.asks_silos:
        silos.sort(key=lambda silo: content_bytes(plan, silo, 0))
    return (
        predict(plan, segments, lambda round_number: (least,), silo=silos[0]),
        predict(
            plan, segments, lambda round_number: (most, BOTTLENECK), silo=silos[-1]
        ),
    )


def run_range(plan: RunPlan, segments: Segments) -> tuple[Exchange, Exchange]:
    """Return the least and the most that all silos together move in a run.

    Equal but where parts are dealt to an odd number of silos: by a coin the last one
    returns the encoder or the decoder.
    """
    bare = total(
        row
        for silo in range(len(plan.silos))
        for row in predict(plan, segments, lambda round_number: (), silo=silo)
    )
    if not plan.update.is_dealt:
        return bare, bare
    pairs, left = divmod(len(plan.silos), 2)
    least = most = 0
    for number in range(1, plan.num_rounds + 1):
        parts = vector_by_part(plan, segments, number)
        sides = (parts[ENCODER], parts[DECODER])
        least += pairs * sum(parts.values()) + left * (parts[BOTTLENECK] + min(sides))
        most += pairs * sum(parts.values()) + left * (parts[BOTTLENECK] + max(sides))
    return (
        replace(bare, sent=bare.sent + least, vector=bare.vector + least),
        replace(bare, sent=bare.sent + most, vector=bare.vector + most),
    )
