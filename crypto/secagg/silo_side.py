"""The silo's side of secure aggregation: one silo, one setup, bytes in and bytes out.

::

    advertise → share → receive_shares           once for the setup
    ready → mask → confirm → reveal              once for each slot

Rules (docs/protocol.md):

1. Nothing of a message is used before its length, signature and header are checked.
2. Every stage answers one request. The same request gets the identical reply, also
   after the state was saved and loaded; another request is refused.
3. Slots are used in ascending order. READY of a slot destroys the secrets of all
   earlier ones; REVEAL destroys those of its own.
4. Of one silo, only one kind of share is ever revealed in a slot, and only after enough
   of the cohort have signed the same list of survivors.
5. Once a share was revealed in a round, no further slot serves that round.

The caller saves ``to_bytes()`` before any reply leaves. A method called before its
predecessor is the caller's bug: ``RuntimeError``. A message that may not be answered is
the aggregator's fault: a ``CryptoError``, and the state is unchanged.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from crypto import labels
from crypto.encoding import BytesLike, Writer, digest
from crypto.errors import ProtocolViolation
from crypto.frame import Header, Kind, make_frame, read_header
from crypto.keys import AgreementKey, IdentityKey
from crypto.secagg.checks import check_same, require_call
from crypto.secagg.config import SecAggConfig
from crypto.secagg.messages import (
    DIGEST_BYTES,
    Active,
    Advertise,
    Confirms,
    Envelopes,
    Survivors,
)
from crypto.secagg.setup import Setup
from crypto.secagg.silo_setup import (
    check_envelopes,
    check_keys,
    deal_shares,
    draw_secrets,
    make_advertise,
    open_envelopes,
)
from crypto.secagg.silo_slot import (
    accept_survivors,
    check_active,
    check_confirms,
    check_new_slot,
    check_words,
    choose_shares,
    expected_ready,
    mask_copy,
)
from crypto.secagg.silo_state import (
    SiloState,
    SlotProgress,
    decode_state,
    encode_state,
    forget_before,
)

Words = npt.NDArray[np.uint64]


class SiloSide:
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
        revealed_round: that of the setup before this one, so that rule 5 outlives it.

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
        *,
        revealed_round: int = 0,
    ) -> None:
        self._setup = Setup(config, tuple(roster), aggregator_public, run, setup)
        if not 0 <= index < config.num_silos or roster[index] != identity.public:
            raise ValueError(f"index: this identity key is not silo {index}'s")
        self._config = config
        self._identity = identity
        self._index = index
        self._state = SiloState(revealed_round=revealed_round)

    def advertise(self) -> bytes:
        """Return the ADVERTISE frame; the first call draws all secrets of the setup."""
        if not self._state.advertisement:
            channel = AgreementKey.generate()
            own = draw_secrets(self._config.slots_per_setup)
            message = make_advertise(self._setup, self._index, channel, own)
            header = self._setup.silo_header(Kind.ADVERTISE, self._index)
            self._state = replace(
                self._state,
                advertisement=make_frame(self._identity, header, message.to_bytes()),
                channel=channel,
                secrets=own,
            )
        return self._state.advertisement

    def share(self, keys: BytesLike) -> bytes:
        """Return the SHARES frame that answers KEYS.

        Raises:
            CryptoError: an advertisement is forged or from elsewhere, a key occurs
                twice, ours was changed or left out, silos are too few; or another KEYS
                was answered before.
        """
        state = self._state
        require_call(bool(state.advertisement), "share() before advertise()")
        body = self._open(keys, self._setup.aggregator_header(Kind.KEYS))
        if state.keys:
            check_same(body == state.keys, "KEYS", "setup")
            return state.shares
        ours = self._own_advertisement(state.advertisement)
        check_keys(self._setup, self._index, body, ours)
        message, held = deal_shares(
            self._setup, self._index, self._channel(), state.secrets, body
        )
        frame = make_frame(
            self._identity,
            self._setup.silo_header(Kind.SHARES, self._index),
            message.to_bytes(self._config.slots_per_setup),
        )
        self._state = replace(state, keys=body, shares=frame, held=held)
        return frame

    def receive_shares(self, envelopes: BytesLike) -> None:
        """Open and keep what the others have sealed to this silo.

        The channel key is deleted: what was sealed cannot be opened again.

        Raises:
            CryptoError: an envelope does not open, members are too few or unknown, this
                silo is not one of them; or other ENVELOPES were accepted before. The
                silo then takes no part in the setup.
        """
        state = self._state
        require_call(bool(state.shares), "receive_shares() before share()")
        header = self._setup.aggregator_header(Kind.ENVELOPES, recipient=self._index)
        body = self._open(envelopes, header)
        request = digest(labels.REQUEST_DIGEST, body)
        if state.envelopes_digest:
            check_same(request == state.envelopes_digest, "ENVELOPES", "setup")
            return
        self._state = replace(
            self._with_envelopes(body), envelopes_digest=request, channel=None
        )

    def _with_envelopes(self, body: bytes) -> SiloState:
        """Return the state with the members and the shares of ENVELOPES."""
        state, config = self._state, self._config
        message = Envelopes.from_bytes(body, config.num_silos, config.slots_per_setup)
        check_envelopes(self._setup, self._index, state.keys, message)
        opened = open_envelopes(
            self._setup, self._index, self._channel(), state.keys, message
        )
        held = {
            slot: pairs | {peer: shares[slot] for peer, shares in opened.items()}
            for slot, pairs in state.held.items()
        }
        return replace(state, members=message.members, held=held)

    def ready(self, slot: int, round_number: int, model_digest: bytes) -> bytes:
        """Return the READY frame: this silo has trained from this model.

        The secrets of all earlier slots are destroyed: a slot that failed before REVEAL
        is given up by asking for a later one, with the same round and update.

        Args:
            slot: 0 to ``slots_per_setup`` - 1, above every slot used before.
            round_number: from 1.
            model_digest: 32 bytes, over the shared parameters as received.

        Raises:
            ValueError: the digest does not have 32 bytes.
            ProtocolViolation: the slot was used for another request or passed over, or
                does not exist; or a share was revealed in this round or a later one.
        """
        state, progress = self._state, self._state.progress
        require_call(bool(state.members), "ready() before receive_shares()")
        if len(model_digest) != DIGEST_BYTES:
            raise ValueError(f"model_digest: {len(model_digest)} bytes")
        if progress is None or progress.slot != slot:
            check_new_slot(self._setup, state, slot, round_number)
            progress = SlotProgress(slot, round_number, model_digest)
        asked = (round_number, model_digest)
        promised = (progress.round_number, progress.model_digest)
        check_same(asked == promised, "request for READY", f"slot {slot}")
        body = expected_ready(self._setup, state, progress).to_bytes()
        self._state = forget_before(slot, replace(state, progress=progress))
        header = self._setup.silo_header(Kind.READY, self._index, slot)
        return make_frame(self._identity, header, body)

    def mask(self, active: BytesLike, words: Words) -> bytes:
        """Return the MASKED frame that answers ACTIVE.

        Args:
            active: the ACTIVE frame.
            words: uint64 ``[w]``, the packed update; copied, not changed. For a resend
                after a crash the caller passes the very same words: it keeps them on
                disk until it has revealed.

        Raises:
            ValueError: ``words`` is not a vector of 64-bit words.
            CryptoError: a silo has signed another model, round or setup, the cohort is
                too small, has a stranger or lacks this silo; or this slot has masked
                other words, or for another cohort, or is revealed.
        """
        state, before = self._state, self._progress("mask")
        check_words(words)
        header = self._setup.aggregator_header(Kind.ACTIVE, before.slot)
        body = self._open(active, header)
        message = Active.from_bytes(body, self._config.num_silos)
        progress = check_active(self._setup, self._index, state, before, message)
        content = digest(labels.REQUEST_DIGEST, np.ascontiguousarray(words).data)
        progress = replace(progress, words_digest=content)
        if before.slot_digest:
            same = progress == before
            check_same(same, "ACTIVE or vector", f"slot {before.slot}")
        if before.slot not in state.secrets:
            raise ProtocolViolation(f"slot {before.slot} has been revealed")
        own = state.secrets[before.slot]
        masked = mask_copy(self._setup, self._index, state.keys, own, progress, words)
        header = self._setup.silo_header(Kind.MASKED, self._index, before.slot)
        self._state = replace(state, progress=progress)
        return make_frame(self._identity, header, masked.prefix(), masked.words)

    def confirm(self, survivors: BytesLike) -> bytes:
        """Return the CONFIRM frame: the one list of survivors this silo will accept.

        Raises:
            CryptoError: the slot has masked nothing, or for another cohort; survivors
                are too few, are not all of the cohort, or lack this silo; or another
                list was confirmed before.
        """
        progress = self._accept_survivors(survivors, self._progress("confirm"))
        self._state = replace(self._state, progress=progress)
        body = Survivors(progress.slot_digest, progress.survivors)
        header = self._setup.silo_header(Kind.CONFIRM, self._index, progress.slot)
        return make_frame(self._identity, header, body.to_bytes(self._config.num_silos))

    def reveal(self, confirms: BytesLike) -> bytes:
        """Return the REVEAL frame; the slot's secrets and shares are then deleted.

        Of every survivor it holds the share of the mask seed, of every dropout that of
        the slot's agreement key.

        Args:
            confirms: the CONFIRMS frame; under ``trust="semi-honest"`` the SURVIVORS
                frame may stand in for it, and :meth:`confirm` be left out.

        Raises:
            CryptoError: this silo confirmed nothing, or another list; confirmations are
                too few, forged, or of silos outside the cohort.
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
        message = choose_shares(progress, self._state.held[progress.slot])
        header = self._setup.silo_header(Kind.REVEAL, self._index, progress.slot)
        frame = make_frame(self._identity, header, message.to_bytes())
        progress = replace(progress, reveal=frame)
        state = replace(
            self._state,
            progress=progress,
            revealed_round=max(self._state.revealed_round, progress.round_number),
        )
        self._state = forget_before(progress.slot + 1, state)
        return progress

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
    def revealed_round(self) -> int:
        """The highest round of which a share was revealed; 0 for none."""
        return self._state.revealed_round

    @property
    def latest_slot(self) -> SlotProgress:
        """How far this silo has come in its latest slot.

        Raises:
            RuntimeError: called before :meth:`ready`.
        """
        return self._progress("latest_slot")

    def to_bytes(self) -> bytes:
        """Return the whole state. SECRET: keys, seeds and shares."""
        return encode_state(self._state, self._owner(), self._config.num_silos)

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
    ) -> "SiloSide":
        """Return the silo's side as it was when :meth:`to_bytes` was called.

        Raises:
            ValueError: the arguments do not fit together.
            MalformedMessage: torn, or the state of other arguments.
        """
        side = cls(config, roster, aggregator_public, identity, index, run, setup)
        side._state = decode_state(data, side._owner(), config.num_silos)
        return side

    def __repr__(self) -> str:
        return f"SiloSide(silo {self._index}, setup {self._setup.number})"

    def _owner(self) -> bytes:
        """Return the digest of setup and silo that the state belongs to."""
        index = Writer().integer(self._index, 2).to_bytes()
        return digest(labels.SILO_STATE, self._setup.digest, index)

    def _open(self, data: BytesLike, header: Header) -> bytes:
        """Return the body of a frame of the aggregator with this header."""
        return bytes(self._setup.open_from_aggregator(data, header))

    def _progress(self, method: str) -> SlotProgress:
        """Return the latest slot."""
        if self._state.progress is None:
            raise RuntimeError(f"{method}() before ready()")
        return self._state.progress

    def _channel(self) -> AgreementKey:
        """Return the key that seals and opens shares, while it exists."""
        if self._state.channel is None:
            raise RuntimeError("the channel key has been deleted")
        return self._state.channel

    def _own_advertisement(self, frame: bytes) -> Advertise:
        """Return what this silo itself has advertised."""
        _, signed = self._setup.open_from_silo(frame, Kind.ADVERTISE)
        return Advertise.from_bytes(signed.body, self._config.slots_per_setup)
