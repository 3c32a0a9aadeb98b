"""What masks move: a key exchange with shares, and a slot that reveals some of them."""

from collections.abc import Iterator

from crypto.frame import OVERHEAD_BYTES, Kind
from protocol.plan import RunPlan
from protocol.traffic_rows import Exchange, Vector, frame_bytes


def setup(plan: RunPlan, silo: int, notice: int) -> Iterator[Exchange]:
    """Yield the key exchange that serves the next slots; all silos are alike."""
    rows = (
        ("setup", Kind.ADVERTISE, OVERHEAD_BYTES + notice),
        ("shares", Kind.SHARES, frame_bytes(plan, Kind.KEYS)),
    )
    for stage, kind, received in rows:
        sent = frame_bytes(plan, kind)
        yield Exchange(round_number=0, stage=stage, sent=sent, received=received)
    yield Exchange(
        round_number=0,
        stage="envelopes",
        sent=OVERHEAD_BYTES,
        received=frame_bytes(plan, Kind.ENVELOPES),
    )


def slot(plan: RunPlan, silo: int, number: int, vector: Vector) -> Iterator[Exchange]:
    """Yield the exchanges of a round's masked sum; all silos are alike."""
    kinds = Kind
    rows = [("masked", kinds.MASKED, kinds.ACTIVE)]
    if plan.skips_confirm:
        rows += [("reveal", kinds.REVEAL, kinds.SURVIVORS)]
    else:
        rows += [
            ("confirm", kinds.CONFIRM, kinds.SURVIVORS),
            ("reveal", kinds.REVEAL, kinds.CONFIRMS),
        ]
    for stage, up, down in rows:
        part = vector.num_bytes if stage == "masked" else 0
        yield Exchange(
            round_number=number,
            stage=stage,
            sent=frame_bytes(plan, up) + part,
            received=frame_bytes(plan, down),
            vector=part,
        )
