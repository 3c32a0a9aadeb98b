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
from crypto.encoding import BytesLike, digest
from crypto.errors import ProtocolViolation
from crypto.frame import Kind, make_frame, read_header
from crypto.keys import IdentityKey
from crypto.secagg.checks import check_same, require_call
from crypto.secagg.config import SecAggConfig
from crypto.secagg.digests import keys_digest, members_digest
from crypto.secagg.journal import Journal, Stage
from crypto.secagg.masks import add_masks
from crypto.secagg.messages import (
    Confirms,
)
from crypto.secagg.parts import Parts, whole
from crypto.secagg.ready import Active
from crypto.secagg.setup import Setup
from crypto.secagg.silo_setup import SiloSetup
from crypto.secagg.silo_slot import (
    check_active,
    check_confirms,
    check_upload,
    choose_shares,
    own_masks,
)
from crypto.secagg.silo_state import (
    SiloState,
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
        pinned = Setup(config, tuple(roster), aggregator_public, run, setup)
        super().__init__(pinned, identity, index, journal)

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
        expected = self._expected_ready(before)
        progress = check_active(
            self._setup, self._index, state.members, expected, before, message, parts
        )
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

    def _stands_for_confirms(self, data: BytesLike) -> bool:
        """Whether these are SURVIVORS, and the parameters do without CONFIRM."""
        semi_honest = self._config.trust == "semi-honest"
        return semi_honest and read_header(data).kind == Kind.SURVIVORS

    @property
    def members_digest(self) -> bytes:
        """T2, over the keys and members of the setup.

        Raises:
            RuntimeError: called before :meth:`receive_shares`.
        """
        require_call(self.has_joined, "members_digest before receive_shares()")
        agreed = keys_digest(self._setup.digest, self._state.keys)
        return members_digest(agreed, self.members, self._config.num_silos)

    def _encode(self, state: SiloState) -> bytes:
        """Return a state as bytes. SECRET: keys, seeds and shares."""
        return encode_state(state, self._owner(), self._config.num_silos)

    def _decode(self, data: bytes) -> SiloState:
        """Return the state of :meth:`_encode`."""
        return decode_state(data, self._owner(), self._config.num_silos)

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
        return side.restore(data)

    def _is_spent(self, slot: int) -> bool:
        """Return whether the slot's secrets are gone."""
        return slot not in self._state.secrets

    def _forget_before(self, slot: int, state: SiloState) -> SiloState:
        """Return the state without the secrets and shares of the slots below one."""
        return forget_before(slot, state)
