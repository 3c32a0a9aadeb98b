"""Exchanges with the silos, with their evidence: who answered, in how many bytes."""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from crypto.encoding import BytesLike
from crypto.errors import CryptoError, ProtocolViolation
from crypto.frame import AGGREGATOR, read_header
from crypto.keys import IdentityKey
from protocol import records
from protocol.auxiliary import STAGE as AUXILIARY
from protocol.envelope import (
    Kind,
    LedgerNotice,
    Refusal,
    make_envelope,
    open_envelope,
)
from protocol.errors import ProtocolError
from protocol.plan import RunPlan
from protocol.reference import REFERENCE
from protocol.traffic import broadcast_bytes
from protocol.transcript import TranscriptWriter
from protocol.transport import Transport

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 1 << 26
"""The longest reply of a stage that sets no limit of its own."""
READY = "ready"
"""The stage at which silos have trained."""
WITH_LEDGER = (READY, AUXILIARY, REFERENCE)
"""The stages that a silo's privacy ledger grows with."""
ENVELOPES, HANDED = "envelopes", "handed"
ACCUSING = (ENVELOPES, HANDED)
"""The stages at which a silo may accuse another: what it sealed does not open."""
MAX_LEDGER_BYTES = 1 << 10
"""What the head of a privacy ledger adds to a reply, at most."""
MAX_REFUSAL_BYTES = 1 << 13
"""No limit of a stage is lower: a refusal, with a reason of 400 characters, fits."""

Again = Callable[[int, int], BytesLike | None]
"""By a silo and the size of the head that it has seen: what to ask it instead."""

Accept = Callable[[int, BytesLike], int]
"""Takes a silo's reply; returns how many of its bytes are the vector, or raises."""


def taking(add: Callable[[BytesLike], None]) -> Accept:
    """Return an acceptance that hands a reply on and counts no vector."""

    def accept(silo: int, reply: BytesLike) -> int:
        add(reply)
        return 0

    return accept


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One exchange: its name, the round it belongs to (0: none), and its limits.

    A reply longer than ``max_reply_bytes`` is not read.
    """

    name: str
    round_number: int
    deadline_seconds: float
    max_reply_bytes: int = MAX_REPLY_BYTES


class _SeenAnother(ProtocolViolation):
    """A silo wants a proof from the head that it has seen."""

    def __init__(self, text: str, seen: int) -> None:
        super().__init__(text)
        self.seen = seen


class Exchanges:
    """Sends requests, hands replies on as they arrive, and records both.

    A silo that answers wrongly, refuses, or does not answer in time is left out of
    the stage and recorded as dropped; the others go on. ``accusations`` are, by silo,
    those that refused what it had sealed for them; ``refused`` those that refused the
    latest request.
    """

    def __init__(
        self,
        plan: RunPlan,
        identity: IdentityKey,
        transport: Transport,
        transcript: TranscriptWriter,
        on_stage: Callable[[Stage], None] = lambda stage: None,
        on_bytes: Callable[[int, int], None] = lambda sent, received: None,
    ) -> None:
        self.plan, self.identity, self.transcript = plan, identity, transcript
        self._transport, self._on_stage, self._on_bytes = transport, on_stage, on_bytes
        self.accusations: dict[int, set[int]] = {}
        self.refused: set[int] = set()

    def ask(
        self,
        stage: Stage,
        requests: Mapping[int, BytesLike],
        accept: Accept,
        again: Again = lambda silo, seen: None,
    ) -> tuple[int, ...]:
        """Run one exchange; return the silos whose replies were accepted.

        Args:
            again: what a silo is asked, once, that has seen another head than the
                request proves something of; None drops it.
        """
        self._on_stage(stage)
        asked, answered, accepted = dict(requests), set[int](), []
        self.refused, repeated = set(), set[int]()
        replies = self._transport.exchange(
            requests,
            deadline_seconds=stage.deadline_seconds,
            max_reply_bytes=self._max_reply_bytes(stage),
        )
        other: BytesLike | None = None
        with suppress(StopIteration):
            while True:
                silo, reply = replies.send(other)
                request, vector_bytes, other = asked[silo], 0, None
                answered.add(silo)
                try:
                    self._check_origin(stage, silo, request, reply)
                    vector_bytes = accept(silo, self._take_ledger(stage, silo, reply))
                    accepted.append(silo)
                except _SeenAnother as error:
                    if silo not in repeated:
                        other = again(silo, error.seen)
                    if other is None:
                        self.drop(stage.name, stage.round_number, silo, str(error))
                except (CryptoError, ProtocolError) as error:
                    self.drop(stage.name, stage.round_number, silo, str(error))
                self._record_traffic(stage, silo, request, reply, vector_bytes)
                if other is not None:
                    repeated.add(silo)
                    asked[silo] = other
                    answered.discard(silo)
                    self.refused.discard(silo)
        for silo in sorted(set(requests) - answered):
            self.drop(stage.name, stage.round_number, silo, "no answer in time")
            self._record_traffic(stage, silo, asked[silo], b"", 0)
        return tuple(sorted(accepted))

    def envelope(self, kind: int, body: bytes, *, setup: int, slot: int) -> bytes:
        """Return a signed envelope of the aggregator."""
        return make_envelope(
            self.plan,
            self.identity,
            kind,
            body,
            sender=AGGREGATOR,
            setup=setup,
            slot=slot,
        )

    def names(self, silos: Iterable[int]) -> tuple[str, ...]:
        """Return the names of silos, in the order of the plan."""
        return tuple(self.plan.silos[silo].name for silo in sorted(silos))

    def drop(self, stage: str, round_number: int, silo: int, reason: str) -> None:
        """Record that a silo is left out of a stage, or is not believed."""
        name = self.plan.silos[silo].name
        logger.warning("%s dropped at %s: %s", name, stage, reason)
        self.transcript.append(
            records.Dropped(
                round_number=round_number,
                stage=stage,
                silo=name,
                reason=reason[:400],
            )
        )

    def _check_origin(
        self, stage: Stage, silo: int, request: BytesLike, reply: BytesLike
    ) -> None:
        """Refuse a reply of somebody else, and one that says no.

        A silo's words reach the operator's terminal: nothing in them may steer it.
        """
        header = read_header(reply)
        if header.sender != silo:
            raise ProtocolViolation(f"a reply signed by silo {header.sender}")
        if header.kind == Kind.REFUSED:
            _, body = open_envelope(
                self.plan, reply, sender=silo, kinds=(Kind.REFUSED,)
            )
            refusal = Refusal.from_body(body)
            self.refused.add(silo)
            if stage.name in ACCUSING and header.setup == read_header(request).setup:
                self._note_accusation(silo, refusal.accused)
            shown = "".join(c if c.isprintable() else "?" for c in refusal.check)
            if refusal.seen >= 0:
                raise _SeenAnother(f"refused: {shown}", refusal.seen)
            raise ProtocolViolation(f"refused: {shown}")

    def _max_reply_bytes(self, stage: Stage) -> int:
        """Return the longest reply that is read at a stage."""
        more = MAX_LEDGER_BYTES if self.plan.privacy.is_private else 0
        return max(stage.max_reply_bytes + more, MAX_REFUSAL_BYTES)

    def _take_ledger(self, stage: Stage, silo: int, reply: BytesLike) -> BytesLike:
        """Return a reply without the head of the silo's ledger, which is recorded.

        Only the answer to a training with a privacy mechanism has one, and must.
        """
        if stage.name not in WITH_LEDGER or not self.plan.privacy.is_private:
            return reply
        if stage.name == REFERENCE and not self.plan.evaluation.is_noised:
            return reply
        _, body = open_envelope(self.plan, reply, sender=silo, kinds=(Kind.LEDGER,))
        notice = LedgerNotice.from_body(body)
        if read_header(notice.reply).sender != silo:
            raise ProtocolViolation("a reply of another silo within its own")
        self.transcript.append(
            records.LedgerSeen(
                round_number=stage.round_number,
                silo=self.plan.silos[silo].name,
                size=notice.size,
                head=notice.head,
            )
        )
        return notice.reply

    def _note_accusation(self, accuser: int, accused: int) -> None:
        """Remember which silo another one holds at fault."""
        if 0 <= accused < len(self.plan.silos) and accused != accuser:
            self.accusations.setdefault(accused, set()).add(accuser)

    def _record_traffic(
        self,
        stage: Stage,
        silo: int,
        request: BytesLike,
        reply: BytesLike,
        vector_bytes: int,
    ) -> None:
        """Record the bytes of one silo's exchange, as the silo counts them."""
        self._on_bytes(len(reply), len(request))
        self.transcript.append(
            records.Traffic(
                round_number=stage.round_number,
                stage=stage.name,
                silo=self.plan.silos[silo].name,
                sent_bytes=len(reply),
                received_bytes=len(request),
                vector_bytes=vector_bytes,
                broadcast_bytes=broadcast_bytes(request),
            )
        )
