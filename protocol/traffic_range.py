"""The least and the most that a plan moves, where that is not one number.

It is one but where parts are dealt, where silos give auxiliary samples, or where they
share a key, which one of them makes, and with which some decrypt.
"""

from dataclasses import replace

from protocol.auxiliary import content_bytes
from protocol.dealing import BOTTLENECK, DECODER, ENCODER
from protocol.plan import RunPlan
from protocol.traffic import predict
from protocol.traffic_parts import Segments, broadcast_by_part, vector_by_part
from protocol.traffic_rows import Exchange, total

Prediction = tuple[Exchange, ...]


def predictions(plan: RunPlan, segments: Segments) -> tuple[Prediction, ...]:
    """Return what single silos may send and receive: figures lie between theirs.

    Two predictions will do where only what is sent differs: by the parts that are
    dealt, and by numbers of auxiliary samples. Else there are two for each silo.
    """
    sizes = broadcast_by_part(segments)
    least, most = sorted((ENCODER, DECODER), key=lambda part: sizes.get(part, 0))
    silos = list(range(len(plan.silos)))
    if plan.calibration.asks_silos:
        silos.sort(key=lambda silo: content_bytes(plan, silo, 0))
    is_alike = not plan.protection.is_encrypted
    low, high = (silos[:1], silos[-1:]) if is_alike else (silos, silos)
    return (
        *(predict(plan, segments, lambda number: (least,), silo=s) for s in low),
        *(
            predict(plan, segments, lambda number: (most, BOTTLENECK), silo=s)
            for s in high
        ),
    )


def predict_range(plan: RunPlan, segments: Segments) -> tuple[Prediction, Prediction]:
    """Return the predictions of a silo that sends least, and of one that sends most."""
    rows = sorted(predictions(plan, segments), key=lambda rows: total(rows).sent)
    return rows[0], rows[-1]


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
