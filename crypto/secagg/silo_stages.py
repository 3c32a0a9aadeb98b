"""What a silo does in every slot, whether its vector is masked or encrypted.

::

    ready → (the vector leaves) → confirm → (the sum is opened) → close_slot

The two stages in brackets, and the secrets behind them, are those of ``silo_side``
(masks) and ``crypto.bfv.silo_side`` (encryption). The rules are ``silo_side``'s.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar, Generic, Self, TypeVar

from crypto import labels
from crypto.encoding import BytesLike, Writer, digest
from crypto.errors import ProtocolViolation
from crypto.frame import Header, Kind, make_frame
from crypto.keys import IdentityKey
from crypto.secagg.checks import check_same, require_call
from crypto.secagg.journal import Journal, Promise, Stage
from crypto.secagg.messages import DIGEST_BYTES, SumNotice, Survivors
from crypto.secagg.ready import HEAD_BYTES, NO_HEAD, Ready
from crypto.secagg.setup import Setup
from crypto.secagg.silo_slot import accept_survivors, check_sum
from crypto.secagg.silo_state import SlotProgress, StagesState

S = TypeVar("S", bound=StagesState)


class SiloStages(ABC, Generic[S]):
    """One silo's part in one setup, and the stages that all slots have.

    ``confirm_stage`` is what CONFIRM promises: one list for a slot, or for a round.

    Raises:
        ValueError: the identity is not that of the roster's entry.
    """

    confirm_stage: ClassVar[Stage]
    _state: S

    def __init__(
        self, setup: Setup, identity: IdentityKey, index: int, journal: Journal
    ) -> None:
        if not 0 <= index < setup.config.num_silos or (
            setup.roster[index] != identity.public
        ):
            raise ValueError(f"index: this identity key is not silo {index}'s")
        self._setup, self._config = setup, setup.config
        self._identity, self._index = identity, index
        self._journal = journal

    @property
    @abstractmethod
    def members_digest(self) -> bytes:
        """T2, over the keys and members of the setup.

        Raises:
            RuntimeError: this silo is no member yet.
        """

    @abstractmethod
    def _is_spent(self, slot: int) -> bool:
        """Return whether a slot of the setup was used or passed over."""

    @abstractmethod
    def _forget_before(self, slot: int, state: S) -> S:
        """Return the state without the secrets of the slots below one."""

    @abstractmethod
    def _encode(self, state: S) -> bytes:
        """Return a state as bytes. SECRET."""

    @abstractmethod
    def _decode(self, data: bytes) -> S:
        """Return the state of :meth:`_encode`.

        Raises:
            MalformedMessage: torn, or the state of other arguments.
        """

    def to_bytes(self) -> bytes:
        """Return the whole state. SECRET."""
        return self._encode(replace(self._state, journal_link=self._journal.link))

    def restore(self, data: bytes) -> Self:
        """Take up the state of :meth:`to_bytes`; return this side.

        Raises:
            MalformedMessage: torn, the state of other arguments, or newer than the
                journal: an older journal, or an empty one, was put in its place.
        """
        state = self._decode(data)
        self._journal.check_link(state.journal_link)
        self._state = state
        return self

    def ready(
        self,
        slot: int,
        round_number: int,
        model_digest: bytes,
        head: bytes = NO_HEAD,
    ) -> bytes:
        """Return the READY frame: this silo has trained from this model.

        The secrets of all earlier slots are destroyed: a slot that failed before REVEAL
        (with encryption before CONFIRM) is given up by asking for a later one, with the
        same round and update.

        Args:
            slot: 0 to ``slots_per_setup`` - 1, above every slot used before.
            round_number: from 0, which is what is summed before the first round.
            model_digest: 32 bytes, over the shared parameters as received.
            head: 104 bytes, what this silo was shown of the aggregator's transcript.

        Raises:
            ValueError: the digest does not have 32 bytes, or the head not 104.
            ProtocolViolation: the slot was used for another request or passed over, or
                does not exist; or the round, or a later one, can have no further slot.
        """
        state, progress = self._state, self._state.progress
        require_call(bool(state.members), "ready() before this silo is a member")
        if len(model_digest) != DIGEST_BYTES:
            raise ValueError(f"model_digest: {len(model_digest)} bytes")
        if len(head) != HEAD_BYTES:
            raise ValueError(f"head: {len(head)} bytes")
        if progress is None or progress.slot != slot:
            self._check_new_slot(slot, round_number)
            progress = SlotProgress(slot, round_number, model_digest, head)
        asked = (round_number, model_digest, head)
        promised = (progress.round_number, progress.model_digest, progress.head)
        check_same(asked == promised, "request for READY", f"slot {slot}")
        body = self._expected_ready(progress).to_bytes()
        self._promise(Stage.READY, progress, body)
        self._state = self._forget_before(slot, replace(state, progress=progress))
        header = self._setup.silo_header(Kind.READY, self._index, slot)
        return make_frame(self._identity, header, body)

    def confirm(self, survivors: BytesLike) -> bytes:
        """Return the CONFIRM frame: the one list of survivors this silo will accept.

        Raises:
            CryptoError: no vector left in the slot, or for another cohort; survivors
                are too few, are not all of the cohort, or lack this silo; or another
                list was confirmed before.
        """
        progress = self._accept_survivors(survivors, self._progress("confirm"))
        body = self._survivors_body(progress)
        self._promise(self.confirm_stage, progress, body)
        self._state = replace(self._state, progress=progress)
        header = self._setup.silo_header(Kind.CONFIRM, self._index, progress.slot)
        return make_frame(self._identity, header, body)

    def close_slot(self, notice: BytesLike) -> bytes:
        """Take note of SUM; return the digest that the aggregator gives the sum.

        What was kept for a resend is deleted: the slot is over, and so is its round,
        whether this silo has helped to open the sum or not.

        Raises:
            CryptoError: SUM of another slot, cohort or survivors than this silo's, or
                another one than before.
        """
        progress = self._progress("close_slot")
        header = self._setup.aggregator_header(Kind.SUM, progress.slot)
        message = SumNotice.from_bytes(
            self._open(notice, header), self._config.num_silos
        )
        progress = self._check_sum(progress, message)
        self._promise(Stage.SUM, progress, message.to_bytes(self._config.num_silos))
        self._state = self._forget_before(
            progress.slot + 1, replace(self._state, progress=progress)
        )
        return progress.sum_digest

    @property
    def setup_number(self) -> int:
        """The number of the setup that this side belongs to."""
        return self._setup.number

    @property
    def has_joined(self) -> bool:
        """Whether this silo has what the others dealt to it: it is a member."""
        return bool(self._state.members)

    @property
    def members(self) -> tuple[int, ...]:
        """U2: the silos of the setup; empty before this silo is one."""
        return self._state.members

    @property
    def has_slot(self) -> bool:
        """Whether :meth:`ready` was ever answered in this setup."""
        return self._state.progress is not None

    @property
    def latest_slot(self) -> SlotProgress:
        """How far this silo has come in its latest slot.

        Raises:
            RuntimeError: called before :meth:`ready`.
        """
        return self._progress("latest_slot")

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}(silo {self._index}, setup {self._setup.number})"

    def _check_sum(self, progress: SlotProgress, notice: SumNotice) -> SlotProgress:
        """Return the slot closed by the digest of its sum."""
        return check_sum(progress, notice)

    def _expected_ready(self, progress: SlotProgress) -> Ready:
        """Return what this silo signs in READY, and expects every other to sign."""
        return Ready(
            self.members_digest,
            progress.round_number,
            progress.model_digest,
            progress.head,
        )

    def _check_new_slot(self, slot: int, round_number: int) -> None:
        """Refuse a slot that is spent; the journal refuses rounds that had their sum.

        Raises:
            ProtocolViolation: no such slot or round, or one not above all used before.
        """
        num_slots = self._config.slots_per_setup
        if not 0 <= slot < num_slots:
            raise ProtocolViolation(f"slot {slot} of a setup with {num_slots} slots")
        if self._is_spent(slot):
            raise ProtocolViolation(f"slot {slot} is spent: slots only go up")
        if not 0 <= round_number < 1 << 32:
            raise ProtocolViolation(f"round {round_number} does not exist")

    def _promise(self, stage: Stage, progress: SlotProgress, content: bytes) -> None:
        """Put a promise into the journal."""
        place = (self._setup.number, progress.slot, progress.round_number)
        self._journal.promise(
            Promise(stage, *place, digest(labels.PROMISE, self._owner(), content))
        )

    def _survivors_body(self, progress: SlotProgress) -> bytes:
        """Return what CONFIRM says and the opening of the sum relies on."""
        body = Survivors(progress.slot_digest, progress.survivors)
        return body.to_bytes(self._config.num_silos)

    def _accept_survivors(
        self, data: BytesLike, progress: SlotProgress
    ) -> SlotProgress:
        """Open SURVIVORS and return the progress that is bound to them."""
        header = self._setup.aggregator_header(Kind.SURVIVORS, progress.slot)
        body = self._open(data, header)
        message = Survivors.from_bytes(body, self._config.num_silos)
        return accept_survivors(self._setup, self._index, progress, message)

    def _open(self, data: BytesLike, header: Header) -> memoryview:
        """Return the body of a frame of the aggregator with this header."""
        body, _ = self._setup.open_from_aggregator(data, header)
        return body

    def _owner(self) -> bytes:
        """Return the digest of setup and silo that the state belongs to."""
        index = Writer().integer(self._index, 2).to_bytes()
        return digest(labels.SILO_STATE, self._setup.digest, index)

    def _progress(self, method: str) -> SlotProgress:
        """Return the latest slot."""
        if self._state.progress is None:
            raise RuntimeError(f"{method}() before ready()")
        return self._state.progress
