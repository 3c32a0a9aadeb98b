"""The aggregator's part in one slot: from READY to one sum.

::

    add_ready … active → add_masked … survivors → add_confirm … confirms
      → add_reveal … unmask → sum_notice

``add_…`` takes one silo's frame, and a stage is closed by the call that makes its
broadcast, as in ``aggregator_side``. Under ``trust="semi-honest"`` the two calls about
CONFIRM may be left out.
"""

import numpy as np
import numpy.typing as npt

from crypto import labels
from crypto.encoding import BytesLike, digest
from crypto.errors import MalformedMessage, ProtocolViolation
from crypto.frame import Kind, make_frame
from crypto.keys import IdentityKey
from crypto.ring import add_into
from crypto.secagg.aggregator_state import SlotState, decode_slot, encode_slot
from crypto.secagg.checks import (
    check_enough,
    check_part,
    check_threshold,
    is_new,
    naming,
    require_call,
)
from crypto.secagg.digests import (
    keys_digest,
    members_digest,
    slot_digest,
    sum_digest,
)
from crypto.secagg.messages import (
    Confirms,
    Masked,
    Reveal,
    SumNotice,
    Survivors,
)
from crypto.secagg.parts import (
    Parts,
    check_groups,
    check_parts,
    contributors_of,
    own_places,
    total_words,
    within,
    words_of,
)
from crypto.secagg.ready import Active, Ready
from crypto.secagg.setup import Setup
from crypto.secagg.unmasking import take_masks_away

Words = npt.NDArray[np.uint64]


class AggregatorSlot:
    """One slot of a setup whose members stand. Made by ``AggregatorSide.open_slot``."""

    def __init__(
        self,
        setup: Setup,
        identity: IdentityKey,
        keys: bytes,
        members: tuple[int, ...],
        state: SlotState,
    ) -> None:
        self._setup, self._config, self._identity = setup, setup.config, identity
        self._keys, self._members, self._state = keys, members, state
        self._total = np.zeros(0, np.uint64)
        self._is_unmasked = False

    @classmethod
    def opened(
        cls,
        setup: Setup,
        identity: IdentityKey,
        keys: bytes,
        members: tuple[int, ...],
        state: SlotState,
    ) -> "AggregatorSlot":
        """Return a new slot with an empty sum.

        Raises:
            ValueError: the parts are none, too many or too long.
            ProtocolViolation: too few members contribute to a part.
        """
        check_parts(state.parts)
        check_groups(state.parts, members, setup.config.min_cohort, "the dealing")
        slot = cls(setup, identity, keys, members, state)
        slot._total = np.zeros(total_words(state.parts), np.uint64)
        return slot

    def add_ready(self, data: BytesLike) -> None:
        """Take one READY.

        Raises:
            CryptoError: forged, malformed, or for another model, round, setup or head;
                of a silo that is no member; a second one; or ACTIVE has been sent.
        """
        state = self._state
        silo, signed = self._setup.open_from_silo(data, Kind.READY, state.slot)
        with naming(silo):
            check_part((silo,), self._members, "READY")
            if Ready.from_bytes(signed.body) != self._expected_ready():
                raise ProtocolViolation("READY for another model, round, setup or head")
            if is_new(state.ready, silo, signed.signature, bool(state.active)):
                state.ready[silo] = signed.signature

    def active(self) -> bytes:
        """Return the ACTIVE frame for the cohort; no further READY is taken.

        Raises:
            ProtocolViolation: the cohort is too small, in all or in a part.
        """
        state = self._state
        if not state.active:
            check_enough(self._config, state.ready, "ACTIVE")
            check_groups(state.parts, state.ready, self._config.min_cohort, "ACTIVE")
            message = Active(self._expected_ready(), state.ready)
            state.active = message.to_bytes(self._config.num_silos)
        return self._broadcast(Kind.ACTIVE, state.active)

    @property
    def cohort(self) -> tuple[int, ...]:
        """A: the silos that are to send a vector; empty before :meth:`active`."""
        return tuple(sorted(self._state.ready)) if self._state.active else ()

    def add_masked(self, data: BytesLike) -> None:
        """Take one MASKED and add its words to the sum.

        Raises:
            CryptoError: forged, malformed, of another length, or masked for another
                cohort; of a silo outside the cohort; a second one; or SURVIVORS has
                been sent.
        """
        state = self._state
        require_call(bool(state.active), "add_masked() before active()")
        silo, signed = self._setup.open_from_silo(
            data, Kind.MASKED, state.slot, total_words(state.parts)
        )
        with naming(silo):
            check_part((silo,), self.cohort, "MASKED")
            message = Masked.from_bytes(signed.body, words_of(state.parts, silo))
            self._check_digest(message.slot_digest)
            if is_new(state.masked, silo, signed.signature, bool(state.survivors)):
                words = np.frombuffer(message.words, "<u8")
                for _, own, whole in own_places(state.parts, silo):
                    add_into(self._total[whole], words[own])
                state.masked[silo] = signed.signature

    def survivors(self) -> bytes:
        """Return the SURVIVORS frame; no further MASKED is taken.

        Before it leaves the caller saves :meth:`to_bytes` and :attr:`total`.

        Raises:
            ProtocolViolation: the survivors are too few, in all or in a part: the slot
                is lost.
        """
        state = self._state
        require_call(bool(state.active), "survivors() before active()")
        if not state.survivors:
            check_enough(self._config, state.masked, "SURVIVORS")
            min_cohort = self._config.min_cohort
            check_groups(state.parts, state.masked, min_cohort, "SURVIVORS")
            state.masked_digest = _digest_of(self._total)
            state.survivors = self._survivors().to_bytes(self._config.num_silos)
        return self._broadcast(Kind.SURVIVORS, state.survivors)

    @property
    def survivor_indices(self) -> tuple[int, ...]:
        """U3: the silos whose vectors are summed; empty before :meth:`survivors`."""
        return tuple(sorted(self._state.masked)) if self._state.survivors else ()

    def add_confirm(self, data: BytesLike) -> None:
        """Take one CONFIRM.

        Raises:
            CryptoError: forged, malformed, or of other survivors; of a silo outside the
                cohort; a second one; or CONFIRMS has been sent.
        """
        state = self._state
        require_call(bool(state.survivors), "add_confirm() before survivors()")
        silo, signed = self._setup.open_from_silo(data, Kind.CONFIRM, state.slot)
        with naming(silo):
            check_part((silo,), self.cohort, "CONFIRM")
            if signed.body != state.survivors:
                raise ProtocolViolation("CONFIRM of other survivors")
            if is_new(state.confirmed, silo, signed.signature, bool(state.confirms)):
                state.confirmed[silo] = signed.signature

    def confirms(self) -> bytes:
        """Return the CONFIRMS frame. From here on only this very slot can be completed.

        Raises:
            ProtocolViolation: fewer confirmations than the threshold.
        """
        state = self._state
        require_call(bool(state.survivors), "confirms() before survivors()")
        if not state.confirms:
            check_threshold(self._config, state.confirmed, "CONFIRM")
            message = Confirms(self._survivors(), state.confirmed)
            state.confirms = message.to_bytes(self._config.num_silos)
        return self._broadcast(Kind.CONFIRMS, state.confirms)

    @property
    def confirmed_silos(self) -> tuple[int, ...]:
        """The silos whose CONFIRM was taken."""
        return tuple(sorted(self._state.confirmed))

    @property
    def is_revealing(self) -> bool:
        """Whether silos may have revealed shares: the slot can only be completed."""
        semi_honest = self._config.trust == "semi-honest"
        return bool(self._state.confirms or (semi_honest and self._state.survivors))

    def add_reveal(self, data: BytesLike) -> None:
        """Take one REVEAL; the caller saves :meth:`to_bytes` with each.

        Raises:
            CryptoError: forged, malformed, or for another cohort; of a silo outside the
                cohort; or a second one.
        """
        state = self._state
        require_call(self.is_revealing, "add_reveal() before confirms()")
        silo, signed = self._setup.open_from_silo(data, Kind.REVEAL, state.slot)
        body = bytes(signed.body)
        with naming(silo):
            check_part((silo,), self.cohort, "REVEAL")
            concerned = contributors_of(state.parts, self.cohort)
            self._check_digest(Reveal.from_bytes(body, len(concerned)).slot_digest)
            if is_new(state.reveals, silo, body, is_closed=False):
                state.reveals[silo] = body

    @property
    def revealed_silos(self) -> tuple[int, ...]:
        """The silos whose REVEAL was taken."""
        return tuple(sorted(self._state.reveals))

    def unmask(self) -> Words:
        """Return the sum of the survivors' packed vectors.

        Guarantees: every seed and key that is taken from the sum equals what its silo
        committed to, so that wrong shares are noticed and never change the sum.

        Returns:
            uint64 ``[w]``, all parts in a row; the sum itself, not a copy.

        Raises:
            ProtocolViolation: fewer REVEALs than the threshold: the slot waits for
                more, or is lost.
            InvalidShare: no subset of the shares gives what a silo committed to. The
                sum stays masked; further REVEALs may help.
        """
        state, cohort = self._state, self.cohort
        require_call(self.is_revealing, "unmask() before confirms()")
        if self._is_unmasked:
            return self._total
        check_threshold(self._config, state.reveals, "REVEAL")
        advertised = self._setup.advertised(self._keys, cohort)
        take_masks_away(
            self._setup,
            self._total,
            state.slot,
            advertised=advertised,
            survivors=self.survivor_indices,
            parts=within(state.parts, cohort),
            slot_digest=self._slot_digest(),
            reveals=state.reveals,
        )
        self._is_unmasked = True
        state.sum_digest = sum_digest(self._slot_digest(), self._total.data.cast("B"))
        return self._total

    def sum_notice(self) -> bytes:
        """Return the SUM frame: it names the survivors and the digest of their sum.

        It goes to every silo of the cohort; those that get another one can prove it.
        """
        state = self._state
        require_call(bool(state.sum_digest), "sum_notice() before unmask()")
        notice = SumNotice(self._survivors(), state.sum_digest)
        return self._broadcast(Kind.SUM, notice.to_bytes(self._config.num_silos))

    @property
    def slot(self) -> int:
        """Number of the slot in its setup, from 0."""
        return self._state.slot

    @property
    def round_number(self) -> int:
        """The round that the slot serves."""
        return self._state.round_number

    @property
    def model_digest(self) -> bytes:
        """The digest of the model that silos trained from."""
        return self._state.model_digest

    @property
    def head(self) -> bytes:
        """What silos are shown of the aggregator's transcript."""
        return self._state.head

    @property
    def parts(self) -> Parts:
        """The parts of the vector, with their contributors among all members."""
        return self._state.parts

    @property
    def sum_digest(self) -> bytes:
        """The digest of the sum that SUM names; empty before :meth:`unmask`."""
        return self._state.sum_digest

    @property
    def total(self) -> Words:
        """The sum so far, uint64 ``[w]``, masked until :meth:`unmask`."""
        return self._total

    def to_bytes(self) -> bytes:
        """Return the state without the sum. Keep it private."""
        return encode_slot(self._state, self._setup.digest, self._config.num_silos)

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        total: Words | None,
        setup: Setup,
        identity: IdentityKey,
        keys: bytes,
        members: tuple[int, ...],
    ) -> "AggregatorSlot":
        """Return the slot as it was when :meth:`to_bytes` was called.

        Args:
            total: the masked sum as it was when the survivors were closed, uint64
                ``[w]``, writeable; None before, and once the slot is over.

        Raises:
            MalformedMessage: torn, the state of another setup, or another sum.
        """
        state = decode_slot(data, setup.digest, setup.config.num_silos)
        if not state.survivors:
            return cls.opened(setup, identity, keys, members, state)
        slot = cls(setup, identity, keys, members, state)
        if total is not None:
            if _digest_of(total) != state.masked_digest:
                raise MalformedMessage("the saved sum is damaged, or of another slot")
            slot._total = total
        elif not state.sum_digest:
            raise MalformedMessage("the saved sum of this slot is missing")
        return slot

    def _expected_ready(self) -> Ready:
        """Return what every silo of the cohort must have signed in READY."""
        agreed = members_digest(
            keys_digest(self._setup.digest, self._keys),
            self._members,
            self._config.num_silos,
        )
        state = self._state
        return Ready(agreed, state.round_number, state.model_digest, state.head)

    def _slot_digest(self) -> bytes:
        """Return T3, once the cohort stands."""
        state = self._state
        return slot_digest(
            self._expected_ready().members_digest,
            state.slot,
            state.round_number,
            state.model_digest,
            state.ready,
            state.parts,
            self._config.num_silos,
        )

    def _check_digest(self, found: bytes) -> None:
        """Raise ``ProtocolViolation`` if an answer is bound to another T3."""
        if found != self._slot_digest():
            raise ProtocolViolation("an answer to another cohort, model or setup")

    def _broadcast(self, kind: Kind, body: bytes) -> bytes:
        """Return a frame of the aggregator to everyone."""
        header = self._setup.aggregator_header(kind, self._state.slot)
        return make_frame(self._identity, header, body)

    def _survivors(self) -> Survivors:
        """Return what SURVIVORS says and every CONFIRM signs."""
        return Survivors(self._slot_digest(), tuple(sorted(self._state.masked)))


def _digest_of(words: Words) -> bytes:
    """Return the digest of a sum, masked or not."""
    return digest(labels.SLOT_STATE, words.data.cast("B"))
