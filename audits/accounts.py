"""What one transcript says, by kind of record, gathered while it is read once.

Traffic is summed by silo, round and stage; all other records are kept with their
index. Memory grows with silos times rounds; the transcript's bytes are not kept.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from audits.times import Clock
from protocol.audit_records import (
    CanariesCommitted,
    CanariesOpened,
    Connected,
    HeadConflict,
    ReferencePooled,
    ReferenceSkipped,
    SiloHead,
    Witnessed,
)
from protocol.dealing import PARTS
from protocol.measurement import measurement_round
from protocol.model_records import (
    AuxiliaryImages,
    AuxiliarySent,
    Calibrated,
    Evaluated,
    MeasuredInSilos,
    MeasurementSkipped,
    ModelHeld,
)
from protocol.plan import AGGREGATOR_NAME, RunPlan
from protocol.records import (
    Cohort,
    Confirmed,
    Dropped,
    HeadSeen,
    LedgerOpened,
    LedgerSeen,
    Masked,
    NoiseSpent,
    PrivacySpent,
    Record,
    Refused,
    Resumed,
    Revealed,
    RoundClosed,
    RoundLost,
    RoundOpened,
    SetupOpened,
    SiloExcluded,
    Summed,
    Survivors,
    Traffic,
)
from protocol.reference import first_slot_round
from protocol.sum_records import Decrypted
from protocol.tally import StageBytes, StageName, Tally
from protocol.transcript import Entry

R = TypeVar("R")

MAX_NUMBER = 1 << 53
"""Larger counts are no counts; they would also overflow in figures."""


IN_MEASUREMENT = (
    Cohort,
    Confirmed,
    Decrypted,
    Dropped,
    HeadConflict,
    HeadSeen,
    Masked,
    MeasuredInSilos,
    MeasurementSkipped,
    Refused,
    Revealed,
    RoundOpened,
    Summed,
    Survivors,
    Traffic,
    Witnessed,
)
"""Records that the measurement behind the last round may have, as one more round."""

OF_ROUNDS = (Evaluated, RoundClosed, RoundLost)
"""Records that no slot before round 1 has."""

OF_SLOTS = (
    Cohort,
    Confirmed,
    Decrypted,
    Masked,
    Revealed,
    RoundOpened,
    Summed,
    Survivors,
)
"""Records of slots; before round 1 there is one only for the silos' reference."""


BY_AGGREGATOR = (
    AuxiliaryImages,
    Calibrated,
    Dropped,
    Evaluated,
    LedgerSeen,
    MeasuredInSilos,
    MeasurementSkipped,
    ReferencePooled,
    ReferenceSkipped,
    RoundClosed,
    RoundLost,
    SetupOpened,
    SiloExcluded,
    SiloHead,
    Witnessed,
)
"""Records that no honest silo writes."""

BY_SILOS = (
    CanariesCommitted,
    CanariesOpened,
    Connected,
    HeadConflict,
    HeadSeen,
    LedgerOpened,
    NoiseSpent,
    PrivacySpent,
    Refused,
)
"""Records that no honest aggregator writes."""

OF_ITSELF = (AuxiliarySent, Decrypted, Masked, ModelHeld, Revealed, Traffic)
"""Records in which a silo speaks of itself alone."""


@dataclass(frozen=True, slots=True)
class Placed(Generic[R]):
    """A record with its index in the transcript."""

    index: int
    record: R


@dataclass
class Account:
    """One party's account of a run.

    ``broken`` is set when reading had to stop before the transcript's end;
    ``impossible`` holds records that no honest party of this plan could write, which
    are left out of everything else; ``resumed_rounds`` are those in which the party's
    process was started again, so that an exchange may be counted once or twice;
    ``growth`` is the size at each signed head with
    the time of its last record.
    """

    party: str
    plan: RunPlan
    impossible: list[Placed[str]] = field(default_factory=list)
    resumed_rounds: set[int] = field(default_factory=set)
    growth: list[tuple[str, int]] = field(default_factory=list)
    num_records: int = 0
    last_round: int = 0
    broken: bool = False

    def __post_init__(self) -> None:
        """Prepare the lists."""
        self.tally, self.clock = Tally(self.party), Clock()
        self._names = frozenset(silo.name for silo in self.plan.silos)
        self._by_kind: defaultdict[type, list[Placed[Any]]] = defaultdict(list)

    def add(self, entry: Entry) -> None:
        """Take in the next record."""
        self.num_records = entry.index + 1
        self.clock.add(entry)
        reason = self._impossible(entry.record)
        if reason:
            self.impossible.append(Placed(entry.index, reason))
            return
        number = min(getattr(entry.record, "round_number", 0), self.plan.num_rounds)
        self.last_round = max(self.last_round, number)
        self.tally.add(entry.record)
        if isinstance(entry.record, Resumed):
            self.resumed_rounds |= {0, self.last_round, self.last_round + 1}
        elif not isinstance(entry.record, (Traffic, Connected)):
            placed = Placed(entry.index, entry.record)
            self._by_kind[type(entry.record)].append(placed)

    @property
    def traffic(self) -> Mapping[str, Mapping[StageName, StageBytes]]:
        """The bytes of each silo, by round and stage."""
        return self.tally.stages

    @property
    def kinds(self) -> tuple[type, ...]:
        """The kinds of records there are, but for traffic, connections and restarts."""
        return tuple(self._by_kind)

    def all(self, kind: type[R]) -> Sequence[Placed[R]]:
        """Return the records of one kind, in order."""
        return cast("Sequence[Placed[R]]", self._by_kind.get(kind, ()))

    def mark(self, size: int, time: str) -> None:
        """Remember how far the transcript had grown when a head was signed."""
        self.growth.append((time, size))

    def last(self, kind: type[R]) -> Placed[R] | None:
        """Return the last record of one kind, if there is one."""
        records = self.all(kind)
        return records[-1] if records else None

    @property
    def updates(self) -> list[Placed[Masked]]:
        """The uploads of the rounds, without those before and behind them."""
        rounds = self.plan.num_rounds
        return [p for p in self.all(Masked) if 0 < p.record.round_number <= rounds]

    def _last_round_of(self, record: Record) -> int:
        """Return the highest round that a record may name; the measurement is one."""
        number = measurement_round(self.plan)
        is_in = isinstance(record, IN_MEASUREMENT)
        return number if number and is_in else self.plan.num_rounds

    def _first_round_of(self, record: Record) -> int:
        """Return the lowest round that a record may name; 0 belongs to no round."""
        if isinstance(record, OF_SLOTS):
            return first_slot_round(self.plan)
        return 1 if isinstance(record, OF_ROUNDS) else 0

    def _impossible(self, record: Record) -> str:
        """Return what in a record cannot be, or nothing."""
        return self._wrong_role(record) or self._wrong_field(record)

    def _wrong_role(self, record: Record) -> str:
        """Return why a record is not this party's to write, or nothing."""
        if self.party == AGGREGATOR_NAME:
            is_odd = isinstance(record, BY_SILOS)
            return f"only a silo writes `{record.kind}`" if is_odd else ""
        if isinstance(record, BY_AGGREGATOR):
            return f"only the aggregator writes `{record.kind}`"
        if isinstance(record, OF_ITSELF):
            for name in _speaks_for(record):
                if name != self.party:
                    return f"it is {self.party}'s transcript, and speaks for {name:.64}"
        return ""

    def _wrong_field(self, record: Record) -> str:
        """Return which field of a record cannot be, or nothing."""
        for name, value in _numbers(record):
            if isinstance(value, float) and not math.isfinite(value):
                return f"{name} is not finite"
            if not _least(record, name) <= value < MAX_NUMBER:
                return f"{name} is {value!r:.40}"
            if name == "round_number" and value > self._last_round_of(record):
                return f"round {value} of {self.plan.num_rounds}"
            if name == "round_number" and value < self._first_round_of(record):
                return f"round {value}, before the first"
        for name in _silos(record):
            if name not in self._names:
                return f"{name!r:.80} is no silo of the plan"
        return ""


def _least(record: Record, name: str) -> float:
    """Return the least value of a number: 0, but for scores, which may be negative."""
    return -MAX_NUMBER if isinstance(record, CanariesOpened) and name == "scores" else 0


def _numbers(record: Record) -> Iterator[tuple[str, int | float]]:
    """Yield the numbers in the fields of a record, those in lists one by one.

    A list is of one type.
    """
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        elements = value if isinstance(value, tuple) else (value,)
        if elements and isinstance(elements[0], (int, float)):
            for element in elements:
                yield item.name, element


def _speaks_for(
    record: AuxiliarySent | Decrypted | Masked | ModelHeld | Revealed | Traffic,
) -> tuple[str, ...]:
    """Return the silos as which a record speaks."""
    if isinstance(record, (Decrypted, Revealed)):
        return record.silos
    return (record.silo,)


_SILO_FIELDS = (
    "silo",
    "silos",
    "maker",
    "members",
    "survivors",
    "self_masks_of",
    "slot_keys_of",
    *PARTS,
)


def _silos(record: Record) -> Iterator[str]:
    """Yield the silos that a record names."""
    for name in _SILO_FIELDS:
        value = getattr(record, name, ())
        yield from (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class Accounts:
    """The accounts of all parties whose transcripts are there."""

    plan: RunPlan
    aggregator: Account | None
    silos: Mapping[str, Account]

    @property
    def everyone(self) -> tuple[Account, ...]:
        """All accounts, the aggregator's first."""
        first = (self.aggregator,) if self.aggregator else ()
        return (*first, *self.silos.values())
