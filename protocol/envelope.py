"""Every message beside those of secure aggregation: one frozen dataclass each.

All of them travel in ``crypto.frame``: its header (kind, run, setup, slot, sender) and
its signature are the envelope. A body is one canonical table followed by byte strings,
each behind its length, and nothing after them. Transcript heads and ledgers' heads are
byte strings of fixed length: how long a message is follows from the plan and the round,
never from what anybody did (``protocol.traffic``).
"""

import enum
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from crypto import labels
from crypto.encoding import BytesLike
from crypto.frame import AGGREGATOR, Header, make_frame, open_frame, read_header
from crypto.keys import IdentityKey
from crypto.merkle import HASH_BYTES
from protocol.bodies import (
    MAX_MESSAGE_BYTES,
    check_names,
    digest_in,
    join_body,
    read_count,
    read_head,
    read_shown,
    read_text,
    split_body,
)
from protocol.errors import EnvelopeRejected
from protocol.heads import Head, ShownHead
from protocol.plan import AGGREGATOR_NAME, RunPlan
from protocol.settings import MAX_SILOS


class Kind(enum.IntEnum):
    """Kinds of envelopes; 1 to 63 belong to secure aggregation."""

    CHALLENGE = 64
    HELLO = 65
    OPEN_SETUP = 66
    ROUND = 67
    PLAIN = 68
    END = 69
    END_SEEN = 70
    REFUSED = 71
    JOINED = 72
    LEDGER = 73
    BROADCAST = 74
    HELD = 75
    AUXILIARY = 76
    AUXILIARY_SENT = 77
    MEASURE = 78
    REFERENCE = 79


@dataclass(frozen=True, kw_only=True)
class RoundRequest:
    """The aggregator's request to train in one round.

    ``parameters`` are the shared parameters as little-endian float32 in the order of
    the layout, empty where the silo holds them (docs/transport.md); ``ranges`` the
    public numbers of the grid, float32 (``protocol.grids``); ``model`` is the
    :func:`model_digest` of both. ``shown`` is a head of the aggregator's transcript,
    the same for all silos of a slot, with a proof for this one; ``sum_notice`` the SUM
    frame of the slot before, empty when there was no sum.
    """

    round_number: int
    attempt: int
    shown: ShownHead
    model: str
    parameters: BytesLike
    ranges: BytesLike
    sum_notice: BytesLike = b""

    def to_body(self) -> bytes:
        """Return the body's bytes."""
        names = ("round_number", "attempt", "model")
        table = {name: getattr(self, name) for name in names}
        parts = (self.parameters, self.ranges, self.sum_notice)
        return join_body(table, self.shown.to_bytes(), *parts)

    @classmethod
    def from_body(cls, body: memoryview) -> "RoundRequest":
        """Return the request of a body; its parts are views of it, not copies.

        Raises:
            EnvelopeRejected: malformed.
        """
        table, (shown, parameters, ranges, notice) = split_body(body, 4)
        check_names(table, ("round_number", "attempt", "model"))
        return cls(
            round_number=read_count(table, "round_number"),
            attempt=read_count(table, "attempt"),
            shown=read_shown(shown, AGGREGATOR_NAME),
            model=digest_in(table, "model"),
            parameters=parameters,
            ranges=ranges,
            sum_notice=notice,
        )

    def model_digest(self) -> bytes:
        """Return the digest that silos sign in READY, as the aggregator states it."""
        return bytes.fromhex(self.model)


def model_digest(parameters: BytesLike, ranges: BytesLike) -> bytes:
    """Return the digest of a round's shared parameters and grid.

    A different model, or a different grid, for different silos is noticed by every
    silo, and the masks derived from it do not cancel.
    """
    digest = hashlib.sha256(labels.MODEL + b"\x00")
    for part in (parameters, ranges):
        digest.update(struct.pack(">Q", len(part)))
        digest.update(part)
    return digest.digest()


@dataclass(frozen=True, kw_only=True)
class EndRequest:
    """The aggregator's notice that the run is over, with the last parameters.

    ``parameters`` are empty where the silo holds them, ``model`` is their digest.
    ``average`` is their moving average over the rounds, from which samples are drawn,
    empty where it is the same; ``sum_notice`` the SUM frame of the last slot, empty
    when there was no sum.
    """

    round_number: int
    shown: ShownHead
    model: str
    parameters: bytes = b""
    average: bytes = b""
    sum_notice: BytesLike = b""

    def to_body(self) -> bytes:
        """Return the body's bytes."""
        table = {"round_number": self.round_number, "model": self.model}
        parts = (self.parameters, self.average, self.sum_notice)
        return join_body(table, self.shown.to_bytes(), *parts)

    @classmethod
    def from_body(cls, body: memoryview) -> "EndRequest":
        """Return the notice of a body.

        Raises:
            EnvelopeRejected: malformed.
        """
        table, (shown, parameters, average, notice) = split_body(body, 4)
        check_names(table, ("round_number", "model"))
        return cls(
            round_number=read_count(table, "round_number"),
            shown=read_shown(shown, AGGREGATOR_NAME),
            model=digest_in(table, "model"),
            parameters=bytes(parameters),
            average=bytes(average),
            sum_notice=notice,
        )


@dataclass(frozen=True, kw_only=True)
class EndReply:
    """A silo's last word: the head of its own transcript, and the aggregator's.

    ``seen`` is the head that END showed it: the signature of the message stands under
    both.
    """

    head: Head
    seen: Head

    def to_body(self) -> bytes:
        """Return the body's bytes."""
        return join_body({}, self.head.to_bytes(), self.seen.to_bytes())

    @classmethod
    def from_body(cls, body: memoryview, party: str) -> "EndReply":
        """Return the reply of a body.

        Args:
            party: the name of the silo that sent it.

        Raises:
            EnvelopeRejected: malformed.
        """
        table, (head, seen) = split_body(body, 2)
        check_names(table, ())
        return cls(head=read_head(head, party), seen=read_head(seen, AGGREGATOR_NAME))


@dataclass(frozen=True, kw_only=True)
class LedgerNotice:
    """The head of a silo's privacy ledger, around its answer to a private round.

    ``size`` counts entries, ``head`` is the SHA-256 of the last one; ``reply`` is the
    whole frame that a round without a mechanism would be answered with.
    """

    size: int
    head: str
    reply: BytesLike

    def to_body(self) -> bytes:
        """Return the body's bytes."""
        fixed = self.size.to_bytes(8, "big") + bytes.fromhex(self.head)
        return join_body({}, fixed, self.reply)

    @classmethod
    def from_body(cls, body: memoryview) -> "LedgerNotice":
        """Return the notice of a body; ``reply`` is a view of it.

        Raises:
            EnvelopeRejected: malformed.
        """
        table, (fixed, reply) = split_body(body, 2)
        check_names(table, ())
        if len(fixed) != 8 + HASH_BYTES:
            raise EnvelopeRejected("a message holds no head of a ledger")
        size = int.from_bytes(fixed[:8], "big")
        if not 1 <= size < 1 << 31:
            raise EnvelopeRejected("size must be a positive whole number")
        return cls(size=size, head=bytes(fixed[8:]).hex(), reply=reply)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A silo's answer to a request that it refuses: at which stage, by which check.

    ``accused`` is the index of the silo whose message was at fault, where it was not
    the aggregator's own; else -1. ``seen`` is the size of the newest head that the silo
    has accepted, where the request proved something of another; else -1.
    """

    stage: str
    check: str
    accused: int = -1
    seen: int = -1

    def to_body(self) -> bytes:
        """Return the body's bytes."""
        return join_body(
            {
                "stage": self.stage[:64],
                "check": self.check[:400],
                "accused": self.accused,
                "seen": self.seen,
            }
        )

    @classmethod
    def from_body(cls, body: memoryview) -> "Refusal":
        """Return the refusal of a body.

        Raises:
            EnvelopeRejected: malformed.
        """
        table, _ = split_body(body, 0)
        check_names(table, ("stage", "check", "accused", "seen"))
        accused, seen = table["accused"], table["seen"]
        if type(accused) is not int or not -1 <= accused < MAX_SILOS:
            raise EnvelopeRejected("accused must be the index of a silo, or -1")
        if type(seen) is not int or not -1 <= seen < 1 << 53:
            raise EnvelopeRejected("seen must be a number of records, or -1")
        return cls(
            stage=read_text(table, "stage")[:64],
            check=read_text(table, "check")[:400],
            accused=accused,
            seen=seen,
        )


def make_envelope(
    plan: RunPlan,
    identity: IdentityKey,
    kind: int,
    body: BytesLike,
    *,
    sender: int,
    setup: int = 0,
    slot: int = 0,
) -> bytes:
    """Return a signed envelope of this run."""
    header = Header(kind=kind, run=plan.run, setup=setup, slot=slot, sender=sender)
    return make_frame(identity, header, body)


def open_envelope(
    plan: RunPlan, data: BytesLike, *, sender: int, kinds: Sequence[int]
) -> tuple[Header, memoryview]:
    """Return header and body of an envelope, its origin verified.

    Args:
        sender: the silo index, or ``AGGREGATOR``, that must have signed it.
        kinds: what it may be.

    Raises:
        EnvelopeRejected: another run, sender or kind.
        CryptoError: malformed, or wrongly signed.
    """
    header = read_header(data)
    if header.run != plan.run:
        raise EnvelopeRejected("a message of another run")
    if header.sender != sender or header.kind not in kinds:
        raise EnvelopeRejected(
            f"a message of kind {header.kind} from {header.sender}, expected kind "
            f"{' or '.join(str(int(kind)) for kind in kinds)} from {sender}"
        )
    key = plan.aggregator_key if sender == AGGREGATOR else plan.roster[sender]
    return open_frame(key, data, max_bytes=MAX_MESSAGE_BYTES)
