"""One silo's part in one run: a request in, a reply out.

The session verifies who asks, lets the policy decide, trains, and hands the packed
update to secure aggregation. Order of every answer: check → compute → save (``fsync``)
→ write the transcript → reply. Asked again after a crash it answers with the identical
bytes, or refuses; it never trains twice for one round and never uses a slot twice. What
it may be asked is in ``silo.stages``.

What happens in a slot belongs to the round that the slot was made ready for, whatever
the aggregator asked for in between.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from crypto.encoding import BytesLike
from crypto.frame import AGGREGATOR, Header, read_header
from crypto.secagg.upload import Upload
from protocol.auxiliary import STAGE as AUXILIARY
from protocol.auxiliary import AuxiliaryRequest
from protocol.broadcast import Broadcast, Held
from protocol.envelope import (
    EndReply,
    EndRequest,
    Kind,
    RoundRequest,
    open_envelope,
)
from protocol.measurement import MEASURE, WORD_BITS, MeasureRequest
from protocol.plan import RunPlan
from protocol.reference import REFERENCE, REFERENCE_ROUND, ReferenceRequest
from protocol.stretches import Dealing, without_setup
from silo.errors import PolicyViolation
from silo.refusals import Refusable, refusal_of
from silo.resources import LocalResources
from silo.run_parts import open_parts
from silo.stages import IN_SLOT, OUTSIDE_ROUNDS, check_stage, stage_of
from silo.store import RunStore


class SiloSession:
    """One silo's state within a run; :meth:`handle` answers one message.

    Raises:
        PolicyViolation: this silo's policy refuses the plan.
        SiloError, ProtocolError: images or saved state do not fit the plan.
    """

    def __init__(
        self, plan: RunPlan, store: RunStore, resources: LocalResources
    ) -> None:
        parts = open_parts(plan, store, resources)
        self._plan, self._store, self._silo = plan, store, parts.silo
        self._trainer, self._evaluation = parts.trainer, parts.evaluation
        self._reference, self._auxiliary = parts.reference, parts.auxiliary
        self._private, self._canaries = parts.private, parts.canaries
        self._secure, self._replies = parts.secure, parts.replies
        self._evidence, self._witness = parts.evidence, parts.witness
        self._opened = parts.opened
        trained = store.load_trained()
        self._asked_round = trained.round_number if trained else 0
        self._held_round = 0

    @property
    def is_finished(self) -> bool:
        """Whether the run is over for this silo."""
        return self._store.is_finished()

    def close(self) -> None:
        """Close transcript, journal and ledger; end the processes that encrypt."""
        self._opened.close()

    def note_connection(self, sent_bytes: int, received_bytes: int) -> None:
        """Record the handshake of a connection, before its answer leaves."""
        self._evidence.connection(sent_bytes, received_bytes)

    def handle(self, request: BytesLike) -> BytesLike:
        """Answer one message of the aggregator.

        Guarantees: whatever the request holds, the answer is a reply of the protocol
        or a signed refusal that names the failed check; nothing else leaves.
        """
        stage, header, vector_bytes = "unknown", None, 0
        try:
            stage, header, body = self._open(request)
            reply, vector_bytes = self._answer(stage, header, body, request)
        except Refusable as error:
            reply = self._refuse(stage, header, error)
        number = self._round_number(stage)
        self._evidence.exchange(number, stage, request, reply, vector_bytes)
        if stage == "end" and self.is_finished:
            self._evidence.sign_head()
        return reply

    def _open(self, request: BytesLike) -> tuple[str, Header, memoryview]:
        """Return stage, header and body of a request, its origin verified."""
        kind = read_header(request).kind
        stage = stage_of(self._plan, kind)
        header, body = open_envelope(
            self._plan, request, sender=AGGREGATOR, kinds=(kind,)
        )
        return stage, header, body

    def _answer(
        self, stage: str, header: Header, body: memoryview, request: BytesLike
    ) -> tuple[BytesLike, int]:
        """Return the reply to a verified request, and the bytes of its vector."""
        check_stage(self._plan, stage, is_finished=self.is_finished)
        if stage == AUXILIARY:
            return self._give_auxiliary(header, AuxiliaryRequest.from_body(body)), 0
        if stage == "setup":
            self._close_slot(body)
            return self._secure.open_setup(header.setup), 0
        if stage == self._secure.dealing:
            return self._secure.share(request), 0
        if stage == self._secure.handing:
            return self._join(header, request), 0
        if stage == "broadcast":
            return self._hold(Broadcast.from_body(body)), 0
        if stage == "ready":
            return self._enter_round(header, RoundRequest.from_body(body))
        if stage == MEASURE:
            return self._measure(header, MeasureRequest.from_body(body))
        if stage == REFERENCE:
            return self._sum_features(header, ReferenceRequest.from_body(body)), 0
        if stage in ("masked", "encrypted"):
            return self._send(stage, header, body, request)
        if stage == "confirm":
            return self._confirm(header, request), 0
        if stage in ("reveal", "decrypt"):
            return self._open_sum(stage, header, request), 0
        return self._end(EndRequest.from_body(body)), 0

    def _refuse(self, stage: str, header: Header | None, error: Exception) -> bytes:
        """Record a refusal; return the signed envelope that says so.

        It carries setup and slot of the request, where that could be read. To ask for
        another proof is no refusal, and not recorded as one.
        """
        refusal = refusal_of(stage, error)
        if refusal.seen < 0:
            self._evidence.refuse(self._round_number(stage), stage, refusal.check)
        place = {"setup": header.setup, "slot": header.slot} if header else {}
        return self._replies.envelope(Kind.REFUSED, refusal.to_body(), **place)

    def _round_number(self, stage: str) -> int:
        """Return the round that a stage's records belong to, if any, else 0."""
        if stage in OUTSIDE_ROUNDS:
            return 0
        if stage == "broadcast":
            return self._held_round
        latest = self._secure.latest_slot
        if stage in IN_SLOT and latest is not None:
            return latest.round_number
        return self._asked_round

    def _join(self, header: Header, request: BytesLike) -> bytes:
        """Take what the others have sealed to this silo; say JOINED."""
        self._secure.join(request)
        if (shared := self._secure.shared_key) is not None:
            self._evidence.share_key(
                header.setup, maker=shared.maker, commitment=shared.commitment
            )
        return self._replies.envelope(Kind.JOINED, b"", setup=header.setup)

    def _enter_round(self, header: Header, request: RoundRequest) -> tuple[bytes, int]:
        """Train, unless this round is trained already; say READY."""
        self._asked_round = request.round_number
        self._trainer.check_round(request)
        is_hidden = self._plan.protection.is_hidden
        if is_hidden:
            self._secure.check_setup(header.setup)
        digest = request.model_digest()
        field_bits = self._trainer.field_bits(request.round_number)
        self._witness.see(request.shown, request.round_number, "ready")
        self._close_slot(request.sum_notice)
        self._evidence.enter_round(
            self._place("ready", header), request, digest, field_bits
        )
        dealing = self._dealing(request.round_number)
        if self._plan.update.is_dealt:
            self._evidence.dealt(self._place("ready", header), dealing)
        self._auxiliary.close()
        with self._on_account(request.round_number):
            self._trainer.train_once(request, dealing.stretches_of(self._silo))
        if not is_hidden:
            reply, vector_bytes = self._send_plain(header, request.round_number)
            return self._replies.with_ledger(header, reply), vector_bytes
        ready = self._secure.ready(
            header.slot, request.round_number, digest, request.shown.head
        )
        return self._replies.with_ledger(header, ready), 0

    def _hold(self, message: Broadcast) -> bytes:
        """Move to the next global model; say which one this silo holds.

        After the end of the run nothing moves any more.
        """
        number = message.round_number
        if number > self._plan.num_rounds or 0 < number < self._asked_round:
            raise PolicyViolation(f"a broadcast for round {number}")
        self._held_round = number
        held = self._trainer.held.digest()
        if not self.is_finished:
            held = self._trainer.held.take(message)
        if held == message.model:
            self._evidence.hold(number, held)
        return self._replies.envelope(Kind.HELD, Held(model=held).to_body())

    def _dealing(self, round_number: int) -> Dealing:
        """Return which silos fill which stretch of a round's vector."""
        if not self._plan.protection.is_hidden:
            return self._trainer.dealing(without_setup(self._plan), round_number)
        return self._trainer.dealing(self._secure.agreed(), round_number)

    def _measure(self, header: Header, request: MeasureRequest) -> tuple[bytes, int]:
        """Measure this silo's finished model, unless that is done; say READY."""
        if self._evaluation is None:
            raise PolicyViolation("the plan asks for no measurement in the silos")
        self._evaluation.check(request)
        self._asked_round = request.round_number
        is_hidden = self._plan.protection.is_hidden
        if is_hidden:
            self._secure.check_setup(header.setup)
        digest = request.model_digest()
        model = self._trainer.finished_model(self._trainer.shared(request.average))
        self._witness.see(request.shown, request.round_number, MEASURE)
        self._close_slot(request.sum_notice)
        place = self._place(MEASURE, header)
        self._evidence.enter_round(place, request, digest, WORD_BITS)
        ledger = self._private.head if self._private is not None else None
        self._evaluation.measure_once(request, model, ledger)
        if not is_hidden:
            return self._send_plain(header, request.round_number)
        number, head = request.round_number, request.shown.head
        return self._secure.ready(header.slot, number, digest, head), 0

    def _sum_features(self, header: Header, request: ReferenceRequest) -> bytes:
        """Sum up this silo's features, unless that is done; say READY."""
        if self._reference is None:
            raise PolicyViolation("the plan asks for no reference of the silos")
        self._reference.check(request, self._asked_round)
        self._secure.check_setup(header.setup)
        self._witness.see(request.shown, REFERENCE_ROUND, REFERENCE)
        self._close_slot(request.sum_notice)
        digest, place = request.model_digest(), self._place(REFERENCE, header)
        head = request.shown.head
        self._evidence.enter_round(place, request, digest, WORD_BITS)
        if not self._reference.is_charged:
            self._reference.sum_once(request)
            return self._secure.ready(header.slot, REFERENCE_ROUND, digest, head)
        with self._on_account(REFERENCE_ROUND):
            self._reference.sum_once(request)
        ready = self._secure.ready(header.slot, REFERENCE_ROUND, digest, head)
        return self._replies.with_ledger(header, ready)

    def _upload(self, round_number: int) -> Upload:
        """Return what leaves in a round: the update, or what stands around them."""
        if self._reference is not None and round_number == REFERENCE_ROUND:
            return self._reference.upload()
        if self._evaluation is not None and round_number > self._plan.num_rounds:
            return self._evaluation.upload()
        return self._trainer.update(round_number)

    def _give_auxiliary(self, header: Header, request: AuxiliaryRequest) -> bytes:
        """Let this silo's own model leave, or samples of it, as the plan says."""
        self._auxiliary.check(request, self._asked_round)
        with self._on_account(0):
            given = self._auxiliary.reply()
        sent = self._replies.envelope(Kind.AUXILIARY_SENT, given.to_body())
        self._evidence.auxiliary(given.label, sent)
        return self._replies.with_ledger(header, sent)

    @contextmanager
    def _on_account(self, round_number: int) -> Iterator[None]:
        """Record what the mechanism released in a training, unless that was done.

        Also where the training fails: its noised steps are on account.
        """
        head = self._private.head if self._private is not None else None
        try:
            yield
        except Refusable:
            if self._private is not None and self._private.head != head:
                self._evidence.spend(self._private.record(round_number))
            raise
        if self._private is not None:
            self._evidence.spend(self._private.record(round_number))

    def _close_slot(self, notice: BytesLike) -> None:
        """Take note of the sum of the slot before, which the aggregator announces."""
        slot = self._secure.close_slot(notice) if notice else None
        self._trainer.residual.settle(self._secure.latest_slot)
        if slot is not None:
            self._evidence.sum(slot, setup=read_header(notice).setup)

    def _send_plain(self, header: Header, round_number: int) -> tuple[bytes, int]:
        """Return the packed vector in the clear, where the policy permits that."""
        body = self._upload(round_number).words.tobytes()
        plain = self._replies.envelope(
            Kind.PLAIN, body, setup=header.setup, slot=header.slot
        )
        self._evidence.upload(self._place("ready", header), plain, "none")
        return plain, len(body)

    def _send(
        self, stage: str, header: Header, body: memoryview, request: BytesLike
    ) -> tuple[BytesLike, int]:
        """Let the update leave, masked or encrypted."""
        latest = self._secure.latest_slot
        if latest is None:
            raise PolicyViolation(f"{stage} before ready")
        number = latest.round_number
        if header.setup == self._secure.setup_number:
            self._witness.check_cohort(header, body, latest)
        is_update = REFERENCE_ROUND < number <= self._plan.num_rounds
        parts = self._dealing(number).parts if is_update else None
        sent = self._secure.send(request, self._upload(number), parts)
        self._evidence.cohort(number, sent.cohort)
        place = self._place(stage, header)
        self._evidence.upload(place, sent.reply, self._secure.protection)
        return sent.reply, sent.vector_bytes

    def _confirm(self, header: Header, request: BytesLike) -> bytes:
        """Sign the list of survivors."""
        reply, slot = self._secure.confirm(request)
        self._evidence.confirm(self._place("confirm", header), slot.survivors)
        return reply

    def _open_sum(self, stage: str, header: Header, request: BytesLike) -> bytes:
        """Reveal shares, or decrypt, for the confirmed survivors.

        The update is destroyed.
        """
        opened, place = self._secure.open_sum(request), self._place(stage, header)
        self._evidence.confirmed(place, opened.signers)
        survivors = set(opened.slot.survivors)
        if stage == "decrypt":
            self._evidence.decrypt(place, survivors, opened.sum_digest)
        else:
            lost = set(opened.slot.cohort) - survivors
            self._evidence.reveal(place, survivors=survivors, lost=lost)
        return opened.reply

    def _end(self, request: EndRequest) -> bytes:
        """Take note of the end; answer with the head of this silo's transcript.

        Asked again, it answers with the same head.
        """
        average = self._trainer.last_average(request)
        self._witness.see(request.shown, request.round_number, "end")
        if (last_reply := self._store.load_last_reply()) is not None:
            return last_reply
        self._close_slot(request.sum_notice)
        self._trainer.save_model(average)
        self._trainer.residual.forget()
        self._auxiliary.destroy()
        if self._private is not None:
            ledger_head = self._private.head
            self._private.finish()
            if self._private.head != ledger_head:
                number = min(self._asked_round, self._plan.num_rounds)
                self._evidence.spend(self._private.record(number))
        self._canaries.open(self._evidence, self._trainer.finished_model(average))
        digests = (request.model, self._trainer.held.digest_of(average))
        head = self._evidence.finish(request.round_number, *digests)
        last = EndReply(head=head, seen=request.shown.head)
        reply = self._replies.envelope(Kind.END_SEEN, last.to_body())
        self._store.save_finished(reply)
        return reply

    def _place(self, stage: str, header: Header) -> dict[str, int]:
        """Return round, setup and slot of a stage, as records hold them."""
        return {
            "round_number": self._round_number(stage),
            "setup": header.setup,
            "slot": header.slot,
        }
