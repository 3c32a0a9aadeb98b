"""The bytes that left each silo, added up from the records of one party.

Records are written where bytes leave (docs/disclosures.md): *traffic* for every
message, *connected* for what a connection adds. A silo's own tally is never less than
what left it, and exact where no reply was lost on its way.
"""

import math
from dataclasses import dataclass, field

from protocol.audit_records import Connected
from protocol.records import (
    NoiseSpent,
    PrivacySpent,
    Record,
    Refused,
    Resumed,
    Traffic,
)

CONNECTION = "connection"
"""The stage of what a connection adds to the messages: handshakes and lengths."""

StageName = tuple[int, str]
"""Round number (0: outside rounds) and stage."""


@dataclass(frozen=True, slots=True)
class StageBytes:
    """Bytes of one silo in one stage, as one transcript counts them.

    ``vector`` and ``refusal`` are part of ``sent``, ``broadcast`` of ``received``. Only
    a silo counts its refusals apart; two counts are compared without them.
    """

    sent: int = 0
    received: int = 0
    vector: int = 0
    broadcast: int = 0
    refusal: int = field(default=0, compare=False)

    def __add__(self, other: "StageBytes") -> "StageBytes":
        """Return the sum, field by field."""
        return StageBytes(
            self.sent + other.sent,
            self.received + other.received,
            self.vector + other.vector,
            self.broadcast + other.broadcast,
            self.refusal + other.refusal,
        )


class Tally:
    """The bytes of each silo by round and stage, from the records of one party.

    ``epsilon`` is what the party, a silo, last recorded as spent in the run.
    """

    def __init__(self, party: str) -> None:
        self._party = party
        self._frame_bytes = 0
        self._refused: StageName | None = None
        self.epsilon: float | None = None
        self.stages: dict[str, dict[StageName, StageBytes]] = {}

    def add(self, record: Record) -> None:
        """Take in the party's next record, in order."""
        if isinstance(record, Traffic):
            self._add_traffic(record)
        elif isinstance(record, Refused):
            self._refused = (record.round_number, record.stage)
        elif isinstance(record, Connected):
            self._frame_bytes = record.frame_bytes
            more = StageBytes(record.sent_bytes, record.received_bytes)
            self._put(self._party, (0, CONNECTION), more)
        elif isinstance(record, Resumed):
            self._frame_bytes = 0  # The next connection says it again.
        elif isinstance(record, (PrivacySpent, NoiseSpent)):
            spent = record.epsilon
            self.epsilon = math.inf if spent is None else spent

    def _add_traffic(self, record: Traffic) -> None:
        """Add one exchange, and what the connection put around its messages."""
        name = (record.round_number, record.stage)
        is_refusal = self._refused == name and record.silo == self._party
        more = StageBytes(
            record.sent_bytes,
            record.received_bytes,
            record.vector_bytes,
            record.broadcast_bytes,
            record.sent_bytes * is_refusal,
        )
        self._refused = None
        self._put(record.silo, name, more)
        if self._frame_bytes and record.silo == self._party:
            around = StageBytes(self._frame_bytes, self._frame_bytes)
            self._put(record.silo, (0, CONNECTION), around)

    def _put(self, silo: str, name: StageName, more: StageBytes) -> None:
        """Add bytes to those of a silo's stage."""
        stages = self.stages.setdefault(silo, {})
        stages[name] = stages.get(name, StageBytes()) + more
