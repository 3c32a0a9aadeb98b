"""What the transcript of an interrupted run already says."""

from dataclasses import dataclass

from aggregator.checkpoints import CheckpointStore
from protocol import model_records, records
from protocol.audit_records import (
    ReferencePooled,
    ReferenceSkipped,
    SiloHead,
    Witnessed,
)
from protocol.transcript import read_records

Measured = model_records.MeasuredInSilos | model_records.MeasurementSkipped


@dataclass(frozen=True)
class Said:
    """What became of rounds, silos, auxiliary images, measurement and reference.

    ``seen`` is, by silo, the size of the newest head that it has signed.
    """

    closed: frozenset[int]
    evaluated: frozenset[int]
    excluded: frozenset[str]
    calibrated: frozenset[int]
    has_images: bool
    is_measured: bool
    is_finished: bool
    seen: dict[str, int]
    pooled: ReferencePooled | ReferenceSkipped | None = None

    @classmethod
    def read(cls, store: CheckpointStore, size: int) -> "Said":
        """Read it from the first ``size`` records, none for 0."""
        closed, evaluated, excluded, calibrated = set(), set(), set(), set()
        has_images = is_measured = is_finished = False
        pooled: ReferencePooled | ReferenceSkipped | None = None
        seen: dict[str, int] = {}
        for entry in read_records(store.transcript) if size else ():
            if isinstance(entry.record, records.RoundClosed | records.RoundLost):
                closed.add(entry.record.round_number)
            elif isinstance(entry.record, model_records.Evaluated):
                evaluated.add(entry.record.round_number)
            elif isinstance(entry.record, records.SiloExcluded):
                excluded.add(entry.record.silo)
            elif isinstance(entry.record, model_records.Calibrated):
                calibrated.add(entry.record.round_number)
            elif isinstance(entry.record, ReferencePooled | ReferenceSkipped):
                pooled = pooled or entry.record
            elif isinstance(entry.record, Witnessed):
                seen |= dict.fromkeys(entry.record.silos, entry.record.size)
            elif isinstance(entry.record, SiloHead):
                seen[entry.record.silo] = entry.record.seen_size
            has_images |= isinstance(entry.record, model_records.AuxiliaryImages)
            is_measured |= isinstance(entry.record, Measured)
            is_finished = isinstance(entry.record, records.Finished)
        return cls(
            closed=frozenset(closed),
            evaluated=frozenset(evaluated),
            excluded=frozenset(excluded),
            calibrated=frozenset(calibrated),
            has_images=has_images,
            is_measured=is_measured,
            is_finished=is_finished,
            pooled=pooled,
            seen=seen,
        )
