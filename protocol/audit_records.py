"""Records whose only reader is the auditor: witnesses, canaries, pooled statistics.

Part of the table in ``protocol.records``, whose rules they keep.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class Witnessed:
    """Silos have signed a head of the aggregator's transcript, inside READY.

    ``size``, ``root`` and ``signature`` are the head; ``agreed`` (T2) and ``model``
    are what else READY holds, so that each of ``signatures``, the frames' own in the
    order of ``silos``, can be verified from this record and the plan alone.
    """

    kind: ClassVar[str] = "witnessed"
    round_number: int
    setup: int
    slot: int
    agreed: str
    model: str
    size: int
    root: str
    signature: str
    silos: tuple[str, ...]
    signatures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SiloHead:
    """The aggregator was told the head of a silo's transcript at the end of a run.

    ``seen_size``, ``seen_root`` and ``seen_signature`` are the aggregator's head that
    the silo acknowledged; ``acknowledgement`` is the signature of its END_SEEN, which
    stands under both heads and can be verified from this record and the plan alone.
    """

    kind: ClassVar[str] = "silo-head"
    silo: str
    size: int
    root: str
    signature: str
    seen_size: int
    seen_root: str
    seen_signature: str
    acknowledgement: str


@dataclass(frozen=True, kw_only=True)
class HeadConflict:
    """A silo was shown two heads of the aggregator that no one transcript has.

    Both carry the aggregator's signature: ``seen`` what this silo had accepted,
    ``shown`` the other one, in a request or in the cohort's READY.
    """

    kind: ClassVar[str] = "head-conflict"
    round_number: int
    stage: str
    seen_size: int
    seen_root: str
    seen_signature: str
    shown_size: int
    shown_root: str
    shown_signature: str


@dataclass(frozen=True, kw_only=True)
class CanariesCommitted:
    """A silo bound itself to its canaries, before it trained.

    ``commitment`` is the digest of the seed from which everything about them follows:
    which are included, where each is, and its sign.
    """

    kind: ClassVar[str] = "canaries-committed"
    form: Literal["gradient", "input"]
    num_canaries: int
    commitment: str


@dataclass(frozen=True, kw_only=True)
class CanariesOpened:
    """A silo opened its canaries at the end of a run: their seed, and every score.

    ``scores`` are in the canaries' order. That of a gradient canary is the sum over
    ``num_steps`` noised steps of its sign times the released sum of gradients at its
    coordinate, in units of the clipping norm; that of an input canary is minus its
    mean loss under the silo's finished model.
    """

    kind: ClassVar[str] = "canaries-opened"
    form: Literal["gradient", "input"]
    seed: str
    num_steps: int
    scores: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ReferencePooled:
    """The silos' feature statistics were summed, once, to be evaluated against.

    ``reference`` is the digest of the pooled statistics; ``noise_multiplier`` 0 where
    they are exact.
    """

    kind: ClassVar[str] = "reference-pooled"
    round_number: int
    survivors: tuple[str, ...]
    extractor: str
    extractor_digest: str
    count: int
    noise_multiplier: float
    reference: str


@dataclass(frozen=True, kw_only=True)
class ReferenceSkipped:
    """There is no sum of the silos' feature statistics, with the reason."""

    kind: ClassVar[str] = "reference-skipped"
    round_number: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Connected:
    """A silo opened a connection to the aggregator and proved who it is.

    The bytes are those of its answer and of the challenge, with their lengths;
    ``frame_bytes`` go around every message that follows, in each direction.
    """

    kind: ClassVar[str] = "connected"
    transport: str
    sent_bytes: int
    received_bytes: int
    frame_bytes: int
