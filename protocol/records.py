"""What a transcript may say: one frozen dataclass for each kind of record.

Records hold digests, names, counts of bytes and published numbers – never an image, a
tensor, a key, a share, a file name or a value that depends on one silo's data. Byte
strings are hexadecimal; silos are named as in the plan. A kind never changes its
meaning: a new one gets a new name.

Both sides write *traffic* where bytes leave or arrive, so that a run's disclosures are
complete: the sum over the records is the sum over the wire.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

from privacy.events import Event, NoisySum, SampledGaussian
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
from protocol.model_records import (
    AuxiliaryImages,
    AuxiliarySent,
    Calibrated,
    Dealt,
    Evaluated,
    MeasuredInSilos,
    MeasurementSkipped,
    ModelHeld,
)
from protocol.sum_records import Decrypted, KeyShared


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A party began its transcript of a run; always the first record."""

    kind: ClassVar[str] = "opened"
    plan: str
    party: str
    software: str


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A party's process was started again in the middle of a run."""

    kind: ClassVar[str] = "resumed"
    software: str


@dataclass(frozen=True, kw_only=True)
class SetupOpened:
    """One key exchange was completed, good for several slots.

    ``members`` took part; ``advertisements`` is the digest of all advertised keys.
    """

    kind: ClassVar[str] = "setup-opened"
    setup: int
    members: tuple[str, ...]
    advertisements: str


@dataclass(frozen=True, kw_only=True)
class RoundOpened:
    """The global parameters of a round were sent (aggregator) or received (silo).

    ``model`` is the digest of shared parameters and grid that every silo signs in
    READY; ``attempt`` counts from 1.
    """

    kind: ClassVar[str] = "round-opened"
    round_number: int
    attempt: int
    setup: int
    slot: int
    model: str
    field_bits: int


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The silos that were ready, all with the same model."""

    kind: ClassVar[str] = "cohort"
    round_number: int
    silos: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Masked:
    """An update was uploaded (silo) or received (aggregator).

    ``upload`` is the SHA-256 of the whole signed message; ``protection`` says whether
    its vector was masked or plain.
    """

    kind: ClassVar[str] = "masked"
    round_number: int
    setup: int
    slot: int
    silo: str
    upload: str
    size_bytes: int
    protection: str


@dataclass(frozen=True, kw_only=True)
class Survivors:
    """The silos whose updates a sum holds (aggregator), as announced (silo)."""

    kind: ClassVar[str] = "survivors"
    round_number: int
    setup: int
    slot: int
    silos: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """At least ``threshold`` silos signed the same list of survivors.

    The aggregator names all of them; a silo names those whose signatures it saw.
    """

    kind: ClassVar[str] = "confirmed"
    round_number: int
    setup: int
    slot: int
    silos: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Revealed:
    """Shares were revealed: of self masks of survivors, of slot keys of the lost.

    The aggregator lists in ``silos`` those that answered; a silo lists itself.
    """

    kind: ClassVar[str] = "revealed"
    round_number: int
    setup: int
    slot: int
    silos: tuple[str, ...]
    self_masks_of: tuple[str, ...]
    slot_keys_of: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Summed:
    """The sum of a slot, by its digest: made (aggregator), or announced (silo).

    All parties must have been told of the same sum.
    """

    kind: ClassVar[str] = "summed"
    round_number: int
    setup: int
    slot: int
    sum: str


@dataclass(frozen=True, kw_only=True)
class SiloExcluded:
    """A silo is left out of all later setups of the run, with the reason."""

    kind: ClassVar[str] = "silo-excluded"
    setup: int
    silo: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RoundClosed:
    """A round ended with a mean update; ``parameters`` is the new model's digest."""

    kind: ClassVar[str] = "round-closed"
    round_number: int
    survivors: tuple[str, ...]
    parameters: str


@dataclass(frozen=True, kw_only=True)
class RoundLost:
    """A round ended without a sum; none will ever be made of its updates.

    Silos that revealed shares have destroyed theirs; the others do so with the next
    round, or at the end.
    """

    kind: ClassVar[str] = "round-lost"
    round_number: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A silo did not answer a stage, or answered wrongly, and was left out."""

    kind: ClassVar[str] = "dropped"
    round_number: int
    stage: str
    silo: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A silo refused a request of the aggregator; ``check`` names what failed."""

    kind: ClassVar[str] = "refused"
    round_number: int
    stage: str
    check: str


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one silo sent to and received from the aggregator in one stage.

    ``vector_bytes`` of the bytes sent are the masked (or plain) vector itself, and
    ``broadcast_bytes`` of those received are parameters of the global model.
    """

    kind: ClassVar[str] = "traffic"
    round_number: int
    stage: str
    silo: str
    sent_bytes: int
    received_bytes: int
    vector_bytes: int
    broadcast_bytes: int


@dataclass(frozen=True, kw_only=True)
class LedgerOpened:
    """A silo opened its privacy ledger for the run, or opened it again.

    ``commitment`` binds the silo to the set of its privacy units without telling it;
    ``randomness`` is where sampling and noise come from; ``fresh`` that
    its operator left earlier ledgers on the same data out of account.
    """

    kind: ClassVar[str] = "ledger-opened"
    commitment: str
    unit: str
    relation: str
    delta: float
    randomness: Literal["operating-system", "insecure-seed"]
    fresh: bool


@dataclass(frozen=True, kw_only=True)
class PrivacySpent:
    """All that a silo's mechanism has released, when a round's training was over.

    ``events`` are those of this run, steps repeated after crashes included;
    ``earlier`` those of other ledgers on the same data. ``epsilon`` is the price of
    this run at the plan's delta (PLD), ``epsilon_prv`` the same by another accountant
    (PRV) with its error bound, None where that one gives up; ``account_epsilon`` the
    price of both lists together.
    """

    kind: ClassVar[str] = "privacy-spent"
    round_number: int
    ledger_size: int
    ledger_head: str
    multiplicity: int
    events: tuple[SampledGaussian, ...]
    earlier: tuple[Event, ...]
    epsilon: float
    epsilon_prv: float | None
    prv_error: float
    account_epsilon: float


@dataclass(frozen=True, kw_only=True)
class NoiseSpent:
    """What a silo is charged with for noise in the sum, when a round's vector was made.

    As :class:`PrivacySpent`, with other events. ``epsilon`` holds under the assumptions
    of the mechanism, ``share_epsilon`` where secure aggregation fails; None is
    infinity.
    """

    kind: ClassVar[str] = "noise-spent"
    round_number: int
    ledger_size: int
    ledger_head: str
    multiplicity: int
    events: tuple[NoisySum, ...]
    earlier: tuple[Event, ...]
    epsilon: float | None
    share_epsilon: float | None
    account_epsilon: float | None


@dataclass(frozen=True, kw_only=True)
class LedgerSeen:
    """The aggregator was told the head of a silo's privacy ledger.

    A ledger only grows: one that was set back to an older state shows here.
    """

    kind: ClassVar[str] = "ledger-seen"
    round_number: int
    silo: str
    size: int
    head: str


@dataclass(frozen=True, kw_only=True)
class HeadSeen:
    """A silo was shown a signed head of the aggregator's transcript."""

    kind: ClassVar[str] = "head-seen"
    round_number: int
    size: int
    root: str
    signature: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The run ended after all its rounds.

    ``parameters`` is the digest of the last global parameters, ``average`` that of
    their moving average, from which samples are drawn.
    """

    kind: ClassVar[str] = "finished"
    round_number: int
    parameters: str
    average: str


Record: TypeAlias = (
    Opened
    | Resumed
    | SetupOpened
    | RoundOpened
    | Dealt
    | Cohort
    | Masked
    | Survivors
    | Confirmed
    | Revealed
    | Summed
    | SiloExcluded
    | RoundClosed
    | RoundLost
    | Dropped
    | Refused
    | Traffic
    | Evaluated
    | ModelHeld
    | MeasuredInSilos
    | MeasurementSkipped
    | AuxiliarySent
    | AuxiliaryImages
    | Calibrated
    | LedgerOpened
    | PrivacySpent
    | NoiseSpent
    | LedgerSeen
    | HeadSeen
    | SiloHead
    | Finished
    | Witnessed
    | HeadConflict
    | CanariesCommitted
    | CanariesOpened
    | ReferencePooled
    | ReferenceSkipped
    | Connected
    | KeyShared
    | Decrypted
)

RECORD_KINDS: dict[str, type[Record]] = {each.kind: each for each in get_args(Record)}
