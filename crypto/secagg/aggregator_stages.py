"""What the aggregator does in every slot, whether vectors are masked or encrypted.

::

    add_ready … active → (vectors arrive) … survivors → add_confirm … confirms
      → (the sum is opened) → sum_notice

The stages in brackets are those of ``aggregator_slot`` (masks) and
``crypto.bfv.aggregator_slot`` (encryption). ``add_…`` takes one silo's frame, and a
stage is closed by the call that makes its broadcast, as in ``aggregator_side``.
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from crypto import labels
from crypto.encoding import BytesLike, digest
from crypto.errors import ProtocolViolation
from crypto.frame import Kind, make_frame
from crypto.keys import IdentityKey
from crypto.secagg.aggregator_state import SlotState, encode_slot
from crypto.secagg.checks import (
    check_enough,
    check_part,
    check_threshold,
    is_new,
    naming,
    require_call,
)
from crypto.secagg.digests import slot_digest
from crypto.secagg.messages import Confirms, SumNotice, Survivors
from crypto.secagg.parts import Parts, check_groups
from crypto.secagg.ready import Active, Ready
from crypto.secagg.setup import Setup

Words = npt.NDArray[np.uint64]


class AggregatorStages(ABC):
    """One slot of a setup whose members stand, without what hides its vectors.

    Args:
        agreed: T2.
        members: U2.
    """

    def __init__(
        self,
        setup: Setup,
        identity: IdentityKey,
        agreed: bytes,
        members: tuple[int, ...],
        state: SlotState,
    ) -> None:
        self._setup, self._config, self._identity = setup, setup.config, identity
        self._agreed, self._members, self._state = agreed, members, state
        self._total = np.zeros(0, np.uint64)

    @abstractmethod
    def _close_total(self) -> None:
        """Finish the hidden sum: nothing more is added to it."""

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

    def survivors(self) -> bytes:
        """Return the SURVIVORS frame; no further vector is taken.

        Before it leaves the caller saves :meth:`to_bytes` and :attr:`total`.

        Raises:
            ProtocolViolation: the survivors are too few, in all or in a part: the slot
                is lost.
        """
        state = self._state
        require_call(bool(state.active), "survivors() before active()")
        if not state.survivors:
            self._check_sum_so_far()
            self._close_total()
            state.masked_digest = digest_of(self._total)
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
        """Return the CONFIRMS frame; no further CONFIRM is taken, and :attr:`is_last`.

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
        """Whether silos may have helped to open the sum."""
        semi_honest = self._config.trust == "semi-honest"
        return bool(self._state.confirms or (semi_honest and self._state.survivors))

    @property
    def is_last(self) -> bool:
        """Whether the slot can only be completed: no further one serves its round."""
        return self.is_revealing

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
        """The sum so far, uint64 ``[…]``, hidden until it is opened."""
        return self._total

    def to_bytes(self) -> bytes:
        """Return the state without the sum. Keep it private."""
        return encode_slot(self._state, self._setup.digest, self._config.num_silos)

    def _expected_ready(self) -> Ready:
        """Return what every silo of the cohort must have signed in READY."""
        state = self._state
        return Ready(self._agreed, state.round_number, state.model_digest, state.head)

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

    def _check_sum_so_far(self) -> None:
        """Refuse too few survivors, in all or in a part."""
        check_enough(self._config, self._state.masked, "SURVIVORS")
        min_cohort = self._config.min_cohort
        check_groups(self._state.parts, self._state.masked, min_cohort, "SURVIVORS")


def digest_of(words: Words) -> bytes:
    """Return the digest of a sum, hidden or not."""
    return digest(labels.SLOT_STATE, words.data.cast("B"))
