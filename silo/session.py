"""One silo's part in one run: a request in, a reply out.

The session verifies who asks, lets the policy decide, trains, and hands the packed
update to secure aggregation. Order of every answer: check → compute → save (``fsync``)
→ write the transcript → reply. Asked again after a crash it answers with the identical
bytes, or refuses; it never trains twice for one round and never uses a slot twice.

========== =================== ==================================================
request    reply               what happens
========== =================== ==================================================
OPEN_SETUP ADVERTISE           fresh keys for the slots of a setup
KEYS       SHARES              shares of the slot keys and seeds, sealed pairwise
ROUND      READY (or PLAIN)    training, update, quantisation
ACTIVE     MASKED              the update leaves, masked
SURVIVORS  CONFIRM             this silo signs whose updates the sum holds
CONFIRMS   REVEAL              shares of the masks; the update is destroyed
END        END_SEEN            the run is over; nothing else is answered from now on
========== =================== ==================================================

What happens in a slot belongs to the round that the slot was made ready for, whatever
the aggregator asked for in between.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch

from crypto.errors import CryptoError, ProtocolViolation
from crypto.frame import AGGREGATOR, Header, read_header
from crypto.frame import Kind as SecAggKind
from crypto.keys import IdentityKey
from crypto.secagg.config import SecAggConfig
from crypto.secagg.messages import Confirms
from crypto.secagg.silo_side import SiloSide
from diffusion.errors import DiffusionError
from privacy.errors import NotFinite, PrivacyError
from protocol.envelope import (
    EndReply,
    EndRequest,
    Kind,
    Refusal,
    RoundRequest,
    make_envelope,
    open_envelope,
)
from protocol.errors import KeyFileRejected, ProtocolError
from protocol.plan import RunPlan
from silo.data import ImageSet
from silo.errors import DataError, PolicyViolation, SiloError, StateBroken
from silo.evidence import Evidence
from silo.policy import Policy, check_plan
from silo.store import RunStore
from silo.trainer import RoundTrainer
from silo.training import Progress, TrainingDiverged

logger = logging.getLogger(__name__)

STAGES: Mapping[int, str] = {
    Kind.OPEN_SETUP: "setup",
    SecAggKind.KEYS: "shares",
    Kind.ROUND: "ready",
    SecAggKind.ACTIVE: "masked",
    SecAggKind.SURVIVORS: "confirm",
    SecAggKind.CONFIRMS: "reveal",
    Kind.END: "end",
}
"""What a silo may be asked, and the name of the stage."""

OUTSIDE_ROUNDS = ("setup", "shares", "end")
"""Stages that belong to no round; their records carry round 0."""

IN_SLOT = ("masked", "confirm", "reveal")
"""Stages that belong to the round of the latest slot."""

WITHOUT_MASKS = ("ready", "end")
"""The only stages of a run whose updates leave in the clear."""

Refusable = (
    CryptoError,
    ProtocolError,
    PrivacyError,
    DiffusionError,
    SiloError,
)

LocalTrouble = (DataError, StateBroken, KeyFileRejected, TrainingDiverged, NotFinite)
"""Errors whose text names this silo's files or depends on its data: it is for the
operator alone."""


@dataclass(frozen=True, kw_only=True)
class LocalResources:
    """What belongs to this silo alone: its key, images, policy, device, eyes."""

    identity: IdentityKey
    images: ImageSet
    policy: Policy
    device: torch.device
    observe: Callable[[Progress], None] = lambda progress: None


class SiloSession:
    """One silo's state within a run; :meth:`handle` answers one message.

    Raises:
        PolicyViolation: this silo's policy refuses the plan.
        SiloError, ProtocolError: images or saved state do not fit the plan.
    """

    def __init__(
        self, plan: RunPlan, store: RunStore, resources: LocalResources
    ) -> None:
        check_plan(resources.policy, plan)
        self._plan, self._store = plan, store
        self._identity = resources.identity
        self._silo = plan.silo_index(resources.identity.public)
        self._trainer = RoundTrainer(
            plan,
            self._silo,
            store,
            resources.images,
            resources.device,
            resources.observe,
        )
        trained = store.load_trained()
        self._asked_round = trained.round_number if trained else 0
        self._side = self._load_side()
        self._evidence = Evidence(
            store.transcript, plan, self._silo, resources.identity
        )

    @property
    def is_finished(self) -> bool:
        """Whether the run is over for this silo."""
        return self._store.is_finished()

    def close(self) -> None:
        """Close the transcript."""
        self._evidence.close()

    def handle(self, request: bytes) -> bytes:
        """Answer one message of the aggregator.

        Guarantees: whatever the request holds, the answer is a reply of the protocol
        or a signed refusal that names the failed check; nothing else leaves.
        """
        stage, vector_bytes = "unknown", 0
        try:
            stage, header, body = self._open(request)
            reply, vector_bytes = self._answer(stage, header, body, request)
        except Refusable as error:
            reply = self._refuse(stage, error)
        number = self._round_number(stage)
        self._evidence.exchange(number, stage, request, reply, vector_bytes)
        if stage == "end" and self.is_finished:
            self._evidence.sign_head()
        return reply

    def _open(self, request: bytes) -> tuple[str, Header, memoryview]:
        """Return stage, header and body of a request, its origin verified."""
        kind = read_header(request).kind
        if kind not in STAGES:
            raise PolicyViolation(f"a request of kind {kind}")
        header, body = open_envelope(
            self._plan, request, sender=AGGREGATOR, kinds=(kind,)
        )
        return STAGES[kind], header, body

    def _answer(
        self, stage: str, header: Header, body: memoryview, request: bytes
    ) -> tuple[bytes, int]:
        """Return the reply to a verified request, and the bytes of its vector."""
        self._check_stage(stage)
        if stage == "setup":
            return self._open_setup(header), 0
        if stage == "shares":
            return self._share(request), 0
        if stage == "ready":
            return self._enter_round(header, RoundRequest.from_body(body))
        if stage == "masked":
            return self._mask(header, request)
        if stage == "confirm":
            return self._confirm(header, request), 0
        if stage == "reveal":
            return self._reveal(header, body, request), 0
        return self._end(EndRequest.from_body(body)), 0

    def _check_stage(self, stage: str) -> None:
        """Refuse what a finished run, or a run without masks, does not have.

        Raises:
            PolicyViolation: with the reason.
        """
        if self.is_finished and stage != "end":
            raise PolicyViolation("the run is over")
        if self._plan.protection.method == "none" and stage not in WITHOUT_MASKS:
            raise PolicyViolation(f"{stage} in a run without secure aggregation")

    def _refuse(self, stage: str, error: Exception) -> bytes:
        """Record a refusal; return the signed envelope that says so."""
        check = str(error)[:400]
        if isinstance(error, LocalTrouble):
            logger.warning("refused at %s: %s", stage, error)
            check = "this silo cannot train: its operator was told why"
        else:
            logger.info("refused at %s: %s", stage, error)
        self._evidence.refuse(self._round_number(stage), stage, check)
        refusal = Refusal(stage=stage, check=check)
        return self._envelope(Kind.REFUSED, refusal.to_body())

    def _round_number(self, stage: str) -> int:
        """Return the round that a stage's records belong to, if any, else 0."""
        if stage in OUTSIDE_ROUNDS:
            return 0
        if stage in IN_SLOT and self._side is not None:
            with suppress(RuntimeError):  # There is no slot yet.
                return self._side.latest_slot.round_number
        return self._asked_round

    def _open_setup(self, header: Header) -> bytes:
        """Begin a setup with fresh keys; an older setup is forgotten."""
        if self._side is None or header.setup > self._side.setup_number:
            revealed = self._side.revealed_round if self._side else 0
            arguments = self._side_arguments(header.setup)
            self._side = SiloSide(*arguments, revealed_round=revealed)
        elif header.setup < self._side.setup_number:
            raise PolicyViolation(f"setup {header.setup} is over")
        reply = self._side.advertise()
        self._save_side()
        return reply

    def _share(self, request: bytes) -> bytes:
        """Answer the advertised keys with sealed shares."""
        with self._in_order("shares") as side:
            reply = side.share(request)
        self._save_side()
        return reply

    def _enter_round(self, header: Header, request: RoundRequest) -> tuple[bytes, int]:
        """Train, unless this round is trained already; say READY."""
        self._asked_round = request.round_number
        self._trainer.check_round(request)
        self._check_setup(header)
        digest = request.model_digest()
        field_bits = self._trainer.field_bits(request.round_number)
        self._evidence.see_head(request.head, request.round_number)
        self._evidence.enter_round(
            self._place("ready", header), request, digest, field_bits
        )
        self._trainer.train_once(request)
        if self._plan.protection.method == "none":
            return self._send_plain(header, request)
        with self._in_order("ready") as side:
            if request.envelopes:
                side.receive_shares(request.envelopes)
            reply = side.ready(header.slot, request.round_number, digest)
        self._save_side()
        return reply, 0

    def _check_setup(self, header: Header) -> None:
        """Refuse a round of another setup than the one this silo is in.

        Raises:
            PolicyViolation: with both numbers.
        """
        if self._plan.protection.method == "none":
            return
        with self._in_order("ready") as side:
            if header.setup != side.setup_number:
                raise PolicyViolation(
                    f"a round in setup {header.setup}, this silo is in setup "
                    f"{side.setup_number}"
                )

    def _send_plain(self, header: Header, request: RoundRequest) -> tuple[bytes, int]:
        """Return the packed update in the clear, where the policy permits that."""
        body = self._trainer.update(request.round_number).tobytes()
        reply = self._envelope(Kind.PLAIN, body, setup=header.setup, slot=header.slot)
        self._evidence.upload(self._place("ready", header), reply, "none")
        return reply, len(body)

    def _mask(self, header: Header, request: bytes) -> tuple[bytes, int]:
        """Let the update leave, masked; the slot is burnt on disk before."""
        with self._in_order("masked") as side:
            words = self._trainer.update(side.latest_slot.round_number)
            reply = side.mask(request, words)
        self._save_side()
        self._evidence.upload(self._place("masked", header), reply, "mask")
        return reply, words.nbytes

    def _confirm(self, header: Header, request: bytes) -> bytes:
        """Sign the list of survivors."""
        with self._in_order("confirm") as side:
            reply = side.confirm(request)
            survivors = side.latest_slot.survivors
        self._save_side()
        self._evidence.confirm(self._place("confirm", header), survivors)
        return reply

    def _reveal(self, header: Header, body: memoryview, request: bytes) -> bytes:
        """Reveal shares for the confirmed survivors; destroy the update."""
        with self._in_order("reveal") as side:
            reply = side.reveal(request)
            survivors = set(side.latest_slot.survivors)
            lost = set(side.latest_slot.cohort) - survivors
        confirms = Confirms.from_bytes(bytes(body), len(self._plan.silos))
        place = self._place("reveal", header)
        self._save_side()
        self._store.destroy_update(place["round_number"])
        self._evidence.reveal(
            place, confirmed=confirms.signatures, survivors=survivors, lost=lost
        )
        return reply

    def _end(self, request: EndRequest) -> bytes:
        """Take note of the end; answer with the head of this silo's transcript.

        Asked again, it answers with the same head.
        """
        parameters = self._trainer.digest_of(request.parameters)
        average = self._trainer.digest_of(request.average)
        self._evidence.see_head(request.head, request.round_number)
        if (last_reply := self._store.load_last_reply()) is not None:
            return last_reply
        self._trainer.save_model(request.average)
        head = self._evidence.finish(request.round_number, parameters, average)
        reply = self._envelope(Kind.END_SEEN, EndReply(head=head).to_body())
        self._store.save_finished(reply)
        self._side = None
        return reply

    def _place(self, stage: str, header: Header) -> dict[str, int]:
        """Return round, setup and slot of a stage, as records hold them."""
        return {
            "round_number": self._round_number(stage),
            "setup": header.setup,
            "slot": header.slot,
        }

    @contextmanager
    def _in_order(self, stage: str) -> Iterator[SiloSide]:
        """Lend the side of secure aggregation; a call out of order is a refusal."""
        if self._side is None:
            raise PolicyViolation(f"{stage} before any setup")
        try:
            yield self._side
        except RuntimeError as error:
            raise ProtocolViolation(f"{stage} out of order: {error}") from None

    def _load_side(self) -> SiloSide | None:
        """Return the saved state of secure aggregation, if any."""
        saved = self._store.load_secagg()
        if saved is None:
            return None
        setup, state = saved
        return SiloSide.from_bytes(state, *self._side_arguments(setup))

    def _side_arguments(
        self, setup: int
    ) -> tuple[SecAggConfig, tuple[bytes, ...], bytes, IdentityKey, int, bytes, int]:
        """Return what the side of a setup is made of."""
        plan = self._plan
        return (
            plan.secagg_config(),
            plan.roster,
            plan.aggregator_key,
            self._identity,
            self._silo,
            plan.run,
            setup,
        )

    def _save_side(self) -> None:
        """Put the state of secure aggregation on disk, before a reply leaves."""
        if self._side is not None:
            self._store.save_secagg(self._side.setup_number, self._side.to_bytes())

    def _envelope(
        self, kind: int, body: bytes, *, setup: int = 0, slot: int = 0
    ) -> bytes:
        """Return a signed envelope of this silo."""
        return make_envelope(
            self._plan,
            self._identity,
            kind,
            body,
            sender=self._silo,
            setup=setup,
            slot=slot,
        )
