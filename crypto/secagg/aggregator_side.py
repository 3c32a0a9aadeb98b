"""The aggregator's side of secure aggregation: it carries messages and sees one sum.

::

    add_advertisement … keys → add_shares … envelopes          once for the setup
    open_slot → add_ready … active → add_masked … survivors    for each slot
      → add_confirm … confirms → add_reveal … unmask

``add_…`` takes one silo's frame. A bad frame raises a ``CryptoError`` that names the
silo and leaves the state as it was: the caller goes on without that silo. The same
frame a second time changes nothing; a different one for the same stage, and one that
comes after its stage was closed, are refused.

``keys``, ``envelopes``, ``active``, ``survivors`` and ``confirms`` close a stage. They
raise ``ProtocolViolation`` when too few silos have answered, and give the same bytes
whenever they are called again. The caller saves ``to_bytes()`` before they leave.

Every method raises ``RuntimeError`` when it is called before its predecessor: that is
the caller's bug. Under ``trust="semi-honest"`` the two calls about CONFIRM may be left
out.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crypto import labels
from crypto.encoding import BytesLike, digest
from crypto.errors import ProtocolViolation
from crypto.frame import NO_SLOT, Kind, make_frame
from crypto.keys import IdentityKey
from crypto.ring import add_into
from crypto.secagg.aggregator_setup import (
    check_publics,
    make_envelopes,
    make_keys,
    parse_entry,
    parse_shares,
)
from crypto.secagg.aggregator_slot import (
    agreed_digest,
    check_digest,
    check_new_slot,
    expected_ready,
    is_revealing,
    take_masks_away,
)
from crypto.secagg.aggregator_state import (
    AggregatorState,
    SlotSum,
    decode_state,
    encode_state,
)
from crypto.secagg.checks import (
    check_enough,
    check_part,
    check_threshold,
    is_new,
    naming,
    require_call,
)
from crypto.secagg.config import MAX_WORDS, SecAggConfig
from crypto.secagg.messages import (
    Active,
    Confirms,
    Masked,
    Ready,
    Reveal,
    Survivors,
    encode_silos,
)
from crypto.secagg.setup import Setup

Words = npt.NDArray[np.uint64]


class AggregatorSide:
    """The aggregator's part in one setup and its slots.

    Args: as for ``SiloSide``; ``identity`` is the key whose public half silos pinned.

    Raises:
        ValueError: the arguments do not fit together.
    """

    def __init__(
        self,
        config: SecAggConfig,
        roster: Sequence[bytes],
        identity: IdentityKey,
        run: bytes,
        setup: int,
    ) -> None:
        self._setup = Setup(config, tuple(roster), identity.public, run, setup)
        self._config = config
        self._identity = identity
        self._state = AggregatorState()

    def add_advertisement(self, data: BytesLike) -> None:
        """Take one ADVERTISE.

        Raises:
            CryptoError: forged or malformed; a key of low order or that another silo
                has too; a second one; or KEYS has been sent.
        """
        state = self._state
        silo, signed = self._setup.open_from_silo(data, Kind.ADVERTISE)
        entry = bytes(signed.body) + signed.signature
        with naming(silo):
            if is_new(state.advertised, silo, entry, bool(state.keys)):
                check_publics(self._setup, state, parse_entry(self._setup, entry))
                state.advertised[silo] = entry

    def keys(self) -> bytes:
        """Return the KEYS frame for every silo; no further ADVERTISE is taken.

        Raises:
            ProtocolViolation: fewer silos than a cohort needs.
        """
        state = self._state
        if not state.keys:
            check_enough(self._config, state.advertised, "KEYS")
            state.keys = make_keys(self._setup, state)
        return self._broadcast(Kind.KEYS, NO_SLOT, state.keys)

    def add_shares(self, data: BytesLike) -> None:
        """Take one SHARES.

        Raises:
            CryptoError: forged, malformed, or an answer to another KEYS; a second one;
                or ENVELOPES have been sent.
        """
        state = self._state
        require_call(bool(state.keys), "add_shares() before keys()")
        silo, signed = self._setup.open_from_silo(data, Kind.SHARES)
        body = bytes(signed.body)
        with naming(silo):
            check_part((silo,), state.advertised, "SHARES")
            if is_new(state.shares, silo, body, bool(state.members)):
                parse_shares(self._setup, state, body)
                state.shares[silo] = body

    def envelopes(self, silo: int) -> bytes:
        """Return the ENVELOPES frame for one member; no further SHARES are taken.

        Raises:
            RuntimeError: for a silo that is no member.
            ProtocolViolation: fewer members than a cohort needs.
        """
        state, config = self._state, self._config
        require_call(bool(state.keys), "envelopes() before keys()")
        if not state.members:
            check_enough(config, state.shares, "ENVELOPES")
            state.members = encode_silos(state.shares, config.num_silos)
        require_call(silo in self.members, f"envelopes() for silo {silo}, no member")
        body = make_envelopes(self._setup, state, self.members, silo)
        header = self._setup.aggregator_header(Kind.ENVELOPES, recipient=silo)
        return make_frame(self._identity, header, body)

    @property
    def members(self) -> tuple[int, ...]:
        """U2: the silos of the setup; empty before :meth:`envelopes`."""
        return tuple(sorted(self._state.shares)) if self._state.members else ()

    @property
    def sharers(self) -> tuple[int, ...]:
        """The silos whose SHARES were taken so far; the next members."""
        return tuple(sorted(self._state.shares))

    def open_slot(
        self, slot: int, round_number: int, model_digest: bytes, num_words: int
    ) -> None:
        """Begin a slot; an earlier one that was not finished is given up.

        Args:
            slot: above every slot opened before.
            round_number: from 1.
            model_digest: 32 bytes, over the shared parameters that silos trained from.
            num_words: length of every masked vector.

        Raises:
            RuntimeError: before :meth:`envelopes`; a slot that is spent or does not
                exist; or a round in which CONFIRMS was sent: that slot can only be
                completed, or the round closed without a sum.
            ValueError: the vector is empty or too long.
        """
        state = self._state
        check_new_slot(self._setup, state, slot, round_number)
        if not 1 <= num_words <= MAX_WORDS:
            raise ValueError(f"num_words: must be 1 to {MAX_WORDS}, is {num_words}")
        total = np.zeros(num_words, np.uint64)
        state.slot = SlotSum(slot, round_number, bytes(model_digest), total)

    def add_ready(self, data: BytesLike) -> None:
        """Take one READY.

        Raises:
            CryptoError: forged, malformed, or for another model, round or setup; of a
                silo that is no member; a second one; or ACTIVE has been sent.
        """
        slot = self._slot()
        silo, signed = self._setup.open_from_silo(data, Kind.READY, slot.slot)
        with naming(silo):
            check_part((silo,), self.members, "READY")
            if Ready.from_bytes(signed.body) != expected_ready(
                self._setup, self._state, slot
            ):
                raise ProtocolViolation("READY for another model, round or setup")
            if is_new(slot.ready, silo, signed.signature, bool(slot.active)):
                slot.ready[silo] = signed.signature

    def active(self) -> bytes:
        """Return the ACTIVE frame for the cohort; no further READY is taken.

        Raises:
            ProtocolViolation: the cohort is too small.
        """
        slot = self._slot()
        if not slot.active:
            check_enough(self._config, slot.ready, "ACTIVE")
            message = Active(expected_ready(self._setup, self._state, slot), slot.ready)
            slot.active = message.to_bytes(self._config.num_silos)
        return self._broadcast(Kind.ACTIVE, slot.slot, slot.active)

    @property
    def cohort(self) -> tuple[int, ...]:
        """A: the silos that are to send a vector; empty before :meth:`active`."""
        slot = self._slot()
        return tuple(sorted(slot.ready)) if slot.active else ()

    def add_masked(self, data: BytesLike) -> None:
        """Take one MASKED and add its words to the sum.

        Raises:
            CryptoError: forged, malformed, of another length, or masked for another
                cohort; of a silo outside the cohort; a second one; or SURVIVORS has
                been sent.
        """
        slot = self._slot()
        require_call(bool(slot.active), "add_masked() before active()")
        silo, signed = self._setup.open_from_silo(
            data, Kind.MASKED, slot.slot, slot.total.size
        )
        with naming(silo):
            check_part((silo,), self.cohort, "MASKED")
            message = Masked.from_bytes(signed.body, slot.total.size)
            check_digest(self._setup, self._state, slot, message.slot_digest)
            if is_new(slot.masked, silo, signed.signature, bool(slot.survivors)):
                add_into(slot.total, np.frombuffer(message.words, "<u8"))
                slot.masked[silo] = signed.signature

    def survivors(self) -> bytes:
        """Return the SURVIVORS frame; no further MASKED is taken.

        Raises:
            ProtocolViolation: the survivors are too few: the slot is lost.
        """
        slot = self._slot()
        require_call(bool(slot.active), "survivors() before active()")
        if not slot.survivors:
            check_enough(self._config, slot.masked, "SURVIVORS")
            message = self._survivors(slot)
            slot.survivors = message.to_bytes(self._config.num_silos)
        return self._broadcast(Kind.SURVIVORS, slot.slot, slot.survivors)

    @property
    def survivor_indices(self) -> tuple[int, ...]:
        """U3: the silos whose vectors are summed; empty before :meth:`survivors`."""
        slot = self._slot()
        return tuple(sorted(slot.masked)) if slot.survivors else ()

    def add_confirm(self, data: BytesLike) -> None:
        """Take one CONFIRM.

        Raises:
            CryptoError: forged, malformed, or of other survivors; of a silo outside the
                cohort; a second one; or CONFIRMS has been sent.
        """
        slot = self._slot()
        require_call(bool(slot.survivors), "add_confirm() before survivors()")
        silo, signed = self._setup.open_from_silo(data, Kind.CONFIRM, slot.slot)
        with naming(silo):
            check_part((silo,), self.cohort, "CONFIRM")
            if signed.body != slot.survivors:
                raise ProtocolViolation("CONFIRM of other survivors")
            if is_new(slot.confirmed, silo, signed.signature, bool(slot.confirms)):
                slot.confirmed[silo] = signed.signature

    def confirms(self) -> bytes:
        """Return the CONFIRMS frame. From here on only this very slot can be completed.

        Raises:
            ProtocolViolation: fewer confirmations than the threshold.
        """
        slot = self._slot()
        require_call(bool(slot.survivors), "confirms() before survivors()")
        if not slot.confirms:
            check_threshold(self._config, slot.confirmed, "CONFIRM")
            message = Confirms(self._survivors(slot), slot.confirmed)
            slot.confirms = message.to_bytes(self._config.num_silos)
        return self._broadcast(Kind.CONFIRMS, slot.slot, slot.confirms)

    def add_reveal(self, data: BytesLike) -> None:
        """Take one REVEAL.

        Raises:
            CryptoError: forged, malformed, or for another cohort; of a silo outside the
                cohort; or a second one.
        """
        slot = self._slot()
        require_call(is_revealing(self._setup, slot), "add_reveal() before confirms()")
        silo, signed = self._setup.open_from_silo(data, Kind.REVEAL, slot.slot)
        body = bytes(signed.body)
        with naming(silo):
            check_part((silo,), self.cohort, "REVEAL")
            message = Reveal.from_bytes(body, len(self.cohort))
            check_digest(self._setup, self._state, slot, message.slot_digest)
            if is_new(slot.reveals, silo, body, is_closed=False):
                slot.reveals[silo] = body

    def unmask(self) -> Words:
        """Return the sum of the survivors' packed vectors.

        Guarantees: every seed and key that is taken from the sum equals what its silo
        committed to, so that wrong shares are noticed and never change the sum.

        Returns:
            uint64 ``[w]``; the sum itself, not a copy.

        Raises:
            ProtocolViolation: fewer REVEALs than the threshold: the slot waits for
                more, or is lost.
            InvalidShare: no subset of the shares gives what a silo committed to. The
                sum stays masked; further REVEALs may help.
        """
        slot = self._slot()
        require_call(is_revealing(self._setup, slot), "unmask() before confirms()")
        if slot.is_unmasked:
            return slot.total
        check_threshold(self._config, slot.reveals, "REVEAL")
        take_masks_away(self._setup, self._state, slot)
        slot.is_unmasked = True
        return slot.total

    @property
    def latest_slot(self) -> SlotSum | None:
        """The slot that was opened last, to be read only; None before the first."""
        return self._state.slot

    @property
    def is_revealing(self) -> bool:
        """Whether silos may have revealed shares: the slot can only be completed."""
        slot = self._state.slot
        return slot is not None and is_revealing(self._setup, slot)

    def to_bytes(self) -> bytes:
        """Return the whole state, the sum so far included. Keep it private."""
        return encode_state(self._state, self._owner())

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        config: SecAggConfig,
        roster: Sequence[bytes],
        identity: IdentityKey,
        run: bytes,
        setup: int,
    ) -> "AggregatorSide":
        """Return the aggregator's side as it was when :meth:`to_bytes` was called.

        Raises:
            ValueError: the arguments do not fit together.
            MalformedMessage: torn, or the state of other arguments.
        """
        side = cls(config, roster, identity, run, setup)
        side._state = decode_state(data, side._owner())
        return side

    def _owner(self) -> bytes:
        """Return the digest of the setup that the state belongs to."""
        return digest(labels.AGGREGATOR_STATE, self._setup.digest)

    def _slot(self) -> SlotSum:
        """Return the latest slot."""
        if self._state.slot is None:
            raise RuntimeError("no slot is open")
        return self._state.slot

    def _broadcast(self, kind: Kind, slot: int, body: bytes) -> bytes:
        """Return a frame of the aggregator to everyone."""
        header = self._setup.aggregator_header(kind, slot)
        return make_frame(self._identity, header, body)

    def _survivors(self, slot: SlotSum) -> Survivors:
        """Return what SURVIVORS says and every CONFIRM signs."""
        digest = agreed_digest(self._setup, self._state, slot)
        return Survivors(digest, tuple(sorted(slot.masked)))
