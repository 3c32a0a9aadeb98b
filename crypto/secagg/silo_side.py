"""The silo's side of secure aggregation: one silo, one setup, bytes in and bytes out.

::

    advertise → share → receive_shares                once for the setup
    ready → mask → confirm → reveal → close_slot      once for each slot

Rules (docs/protocol.md):

1. Nothing of a message is used before its length, signature and header are checked.
2. Every stage answers one request. The same request gets the identical reply, also
   after the state was saved and loaded; another request is refused.
3. Slots are used in ascending order. READY of a slot destroys the secrets of all
   earlier ones; REVEAL destroys those of its own.
4. Of one silo, only one kind of share is ever revealed in a slot, and only after enough
   of the cohort have signed the same list of survivors.
5. Once a share was revealed in a round, or its sum announced, no further slot serves
   that round.

What is promised in a slot is in the journal, on disk, before it is done: rules 2, 3 and
5 hold even if the other state is lost or goes back in time. The caller saves
``to_bytes()`` before any reply leaves. A method called before its predecessor is the
caller's bug: ``RuntimeError``. A message that may not be answered is the aggregator's
fault: a ``CryptoError``, and state and journal are unchanged.
"""

from collections.abc import Sequence
from dataclasses import replace

from crypto import labels
from crypto.encoding import BytesLike, Writer, digest
from crypto.errors import ProtocolViolation
from crypto.frame import Kind, make_frame, read_header
from crypto.keys import IdentityKey
from crypto.secagg.checks import check_same, require_call
from crypto.secagg.config import SecAggConfig
from crypto.secagg.digests import keys_digest, members_digest
from crypto.secagg.journal import Journal, Promise, Stage
from crypto.secagg.masks import add_masks
from crypto.secagg.messages import (
    DIGEST_BYTES,
    Confirms,
    SumNotice,
    Survivors,
)
from crypto.secagg.parts import Parts, whole
from crypto.secagg.ready import HEAD_BYTES, NO_HEAD, Active
from crypto.secagg.setup import Setup
from crypto.secagg.silo_setup import SiloSetup
from crypto.secagg.silo_slot import (
    accept_survivors,
    check_active,
    check_confirms,
    check_new_slot,
    check_sum,
    check_upload,
    choose_shares,
    expected_ready,
    own_masks,
)
from crypto.secagg.silo_state import (
    SlotProgress,
    decode_state,
    encode_state,
    forget_before,
    pairs_of,
)
from crypto.secagg.upload import Upload


class SiloSide(SiloSetup):
    """One silo's part in one setup and its slots.

    Guarantees: see ``SecAggConfig`` for what stays hidden, and from whom; this class
    keeps the silo's half of it whatever the aggregator sends.

    Args:
        config: the pinned parameters.
        roster: the pinned Ed25519 public keys of all silos, by index.
        aggregator_public: the aggregator's pinned Ed25519 public key.
        identity: this silo's key; its public half stands in the roster.
        index: this silo's place in the roster.
        run: 16 bytes that name the run.
        setup: number of the setup, never used twice in a run.
        journal: this silo's promises in this run, the same for all its setups.

    Raises:
        ValueError: the arguments do not fit together.
    """

    def __init__(
        self,
        config: SecAggConfig,
        roster: Sequence[bytes],
        aggregator_public: bytes,
        identity: IdentityKey,
        index: int,
        run: bytes,
        setup: int,
        journal: Journal,
    ) -> None:
        super().__init__(
            Setup(config, tuple(roster), aggregator_public, run, setup), identity, index
        )
        self._journal = journal

    def ready(
        self,
        slot: int,
        round_number: int,
        model_digest: bytes,
        head: bytes = NO_HEAD,
    ) -> bytes:
        """Return the READY frame: this silo has trained from this model.

        The secrets of all earlier slots are destroyed: a slot that failed before REVEAL
        is given up by asking for a later one, with the same round and update.

        Args:
            slot: 0 to ``slots_per_setup`` - 1, above every slot used before.
            round_number: from 0, which is what is summed before the first round.
            model_digest: 32 bytes, over the shared parameters as received.
            head: 104 bytes, what this silo was shown of the aggregator's transcript.

        Raises:
            ValueError: the digest does not have 32 bytes, or the head not 104.
            ProtocolViolation: the slot was used for another request or passed over, or
                does not exist; or a share was revealed in this round or a later one.
        """
        state, progress = self._state, self._state.progress
        require_call(bool(state.members), "ready() before receive_shares()")
        if len(model_digest) != DIGEST_BYTES:
            raise ValueError(f"model_digest: {len(model_digest)} bytes")
        if len(head) != HEAD_BYTES:
            raise ValueError(f"head: {len(head)} bytes")
        if progress is None or progress.slot != slot:
            check_new_slot(self._setup, state, slot, round_number)
            progress = SlotProgress(slot, round_number, model_digest, head)
        asked = (round_number, model_digest, head)
        promised = (progress.round_number, progress.model_digest, progress.head)
        check_same(asked == promised, "request for READY", f"slot {slot}")
        body = expected_ready(self._setup, state, progress).to_bytes()
        self._promise(Stage.READY, progress, body)
        self._state = forget_before(slot, replace(state, progress=progress))
        header = self._setup.silo_header(Kind.READY, self._index, slot)
        return make_frame(self._identity, header, body)

    def mask(
        self, active: BytesLike, upload: Upload, parts: Parts | None = None
    ) -> memoryview:
        """Return the MASKED frame that answers ACTIVE; the slot is burnt before.

        Args:
            active: the ACTIVE frame.
            upload: holds the packed words of this silo's parts in a row; consumed. For
                a resend after a crash the caller fills another one with the very same
                words: it keeps them on disk until it has revealed.
            parts: of the vector, as this silo computes them from the plan; by default
                one, to which every member contributes.

        Raises:
            ValueError: the upload is sealed, or not as long as this silo's parts.
            CryptoError: a silo has signed another model, round, setup or head; the
                cohort is too small, in all or in a part, has a stranger or lacks this
                silo; or this slot has masked other words, or for another cohort or
                other parts, or is revealed. The upload is unchanged.
        """
        state, before = self._state, self._progress("mask")
        header = self._setup.aggregator_header(Kind.ACTIVE, before.slot)
        body = self._open(active, header)
        message = Active.from_bytes(body, self._config.num_silos)
        parts = parts or whole(upload.words.size, state.members)
        check_upload(upload, parts, self._index)
        progress = check_active(self._setup, self._index, state, before, message, parts)
        content = digest(labels.REQUEST_DIGEST, upload.words.data)
        progress = replace(progress, words_digest=content)
        if before.slot_digest:
            same = progress == before
            check_same(same, "ACTIVE or vector", f"slot {before.slot}")
        if before.slot not in state.secrets:
            raise ProtocolViolation(f"slot {before.slot} has been revealed")
        own = state.secrets[before.slot]
        masks = own_masks(self._setup, self._index, state.keys, own, progress)
        self._promise(Stage.MASKED, progress, progress.slot_digest + content)
        add_masks(upload.words, masks)
        self._state = replace(state, progress=progress)
        header = self._setup.silo_header(Kind.MASKED, self._index, before.slot)
        return upload.seal(self._identity, header, progress.slot_digest)

    def confirm(self, survivors: BytesLike) -> bytes:
        """Return the CONFIRM frame: the one list of survivors this silo will accept.

        Raises:
            CryptoError: the slot has masked nothing, or for another cohort; survivors
                are too few, are not all of the cohort, or lack this silo; or another
                list was confirmed before.
        """
        progress = self._accept_survivors(survivors, self._progress("confirm"))
        body = self._survivors_body(progress)
        self._promise(Stage.CONFIRM, progress, body)
        self._state = replace(self._state, progress=progress)
        header = self._setup.silo_header(Kind.CONFIRM, self._index, progress.slot)
        return make_frame(self._identity, header, body)

    def reveal(self, confirms: BytesLike) -> bytes:
        """Return the REVEAL frame; the slot's secrets and shares are then deleted.

        Of every contributor that survived it holds the share of the mask seed, of
        every one that was lost that of the slot's agreement key.

        Args:
            confirms: the CONFIRMS frame; under ``trust="semi-honest"`` the SURVIVORS
                frame may stand in for it, and :meth:`confirm` be left out.

        Raises:
            CryptoError: this silo confirmed nothing, or another list; confirmations are
                too few, forged, or of silos outside the cohort; or the slot was closed.
        """
        progress = self._progress("reveal")
        if self._stands_for_confirms(confirms):
            progress = self._accept_survivors(confirms, progress)
        else:
            header = self._setup.aggregator_header(Kind.CONFIRMS, progress.slot)
            body = self._open(confirms, header)
            message = Confirms.from_bytes(body, self._config.num_silos)
            check_confirms(self._setup, progress, message)
        if not progress.reveal:
            progress = self._reveal_shares(progress)
        return progress.reveal

    def _reveal_shares(self, progress: SlotProgress) -> SlotProgress:
        """Make the one REVEAL of a slot and delete what it was made from."""
        if progress.is_over:
            raise ProtocolViolation(f"slot {progress.slot} is closed")
        self._promise(Stage.REVEAL, progress, self._survivors_body(progress))
        message = choose_shares(progress, pairs_of(self._state, progress.slot))
        header = self._setup.silo_header(Kind.REVEAL, self._index, progress.slot)
        frame = make_frame(self._identity, header, message.to_bytes())
        progress = replace(progress, reveal=frame)
        state = replace(self._state, progress=progress)
        self._state = forget_before(progress.slot + 1, state)
        return progress

    def close_slot(self, notice: BytesLike) -> bytes:
        """Take note of SUM; return the digest that the aggregator gives the sum.

        The REVEAL frame, kept for a resend, is deleted: the slot is over, and so is its
        round, whether this silo has revealed its shares or not.

        Raises:
            CryptoError: SUM of another slot, cohort or survivors than this silo's, or
                another one than before.
        """
        progress = self._progress("close_slot")
        header = self._setup.aggregator_header(Kind.SUM, progress.slot)
        message = SumNotice.from_bytes(
            self._open(notice, header), self._config.num_silos
        )
        progress = check_sum(progress, message)
        self._promise(Stage.SUM, progress, message.to_bytes(self._config.num_silos))
        self._state = forget_before(
            progress.slot + 1, replace(self._state, progress=progress)
        )
        return progress.sum_digest

    def _promise(self, stage: Stage, progress: SlotProgress, content: bytes) -> None:
        """Put a promise into the journal."""
        place = (self._setup.number, progress.slot, progress.round_number)
        self._journal.promise(
            Promise(stage, *place, digest(labels.PROMISE, self._owner(), content))
        )

    def _survivors_body(self, progress: SlotProgress) -> bytes:
        """Return what CONFIRM says and REVEAL relies on."""
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

    def _stands_for_confirms(self, data: BytesLike) -> bool:
        """Whether these are SURVIVORS, and the parameters do without CONFIRM."""
        semi_honest = self._config.trust == "semi-honest"
        return semi_honest and read_header(data).kind == Kind.SURVIVORS

    @property
    def setup_number(self) -> int:
        """The number of the setup that this side belongs to."""
        return self._setup.number

    @property
    def has_joined(self) -> bool:
        """Whether :meth:`receive_shares` has succeeded: this silo is a member."""
        return bool(self._state.members)

    @property
    def members(self) -> tuple[int, ...]:
        """U2: the silos of the setup; empty before :meth:`receive_shares`."""
        return self._state.members

    @property
    def members_digest(self) -> bytes:
        """T2, over the keys and members of the setup.

        Raises:
            RuntimeError: called before :meth:`receive_shares`.
        """
        require_call(self.has_joined, "members_digest before receive_shares()")
        agreed = keys_digest(self._setup.digest, self._state.keys)
        return members_digest(agreed, self.members, self._config.num_silos)

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

    def to_bytes(self) -> bytes:
        """Return the whole state. SECRET: keys, seeds and shares."""
        state = replace(self._state, journal_link=self._journal.link)
        return encode_state(state, self._owner(), self._config.num_silos)

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        config: SecAggConfig,
        roster: Sequence[bytes],
        aggregator_public: bytes,
        identity: IdentityKey,
        index: int,
        run: bytes,
        setup: int,
        journal: Journal,
    ) -> "SiloSide":
        """Return the silo's side as it was when :meth:`to_bytes` was called.

        Raises:
            ValueError: the arguments do not fit together.
            MalformedMessage: torn, the state of other arguments, or newer than the
                journal: an older journal, or an empty one, was put in its place.
        """
        side = cls(
            config, roster, aggregator_public, identity, index, run, setup, journal
        )
        side._state = decode_state(data, side._owner(), config.num_silos)
        journal.check_link(side._state.journal_link)
        return side

    def __repr__(self) -> str:
        return f"SiloSide(silo {self._index}, setup {self._setup.number})"

    def _owner(self) -> bytes:
        """Return the digest of setup and silo that the state belongs to."""
        index = Writer().integer(self._index, 2).to_bytes()
        return digest(labels.SILO_STATE, self._setup.digest, index)

    def _progress(self, method: str) -> SlotProgress:
        """Return the latest slot."""
        if self._state.progress is None:
            raise RuntimeError(f"{method}() before ready()")
        return self._state.progress
