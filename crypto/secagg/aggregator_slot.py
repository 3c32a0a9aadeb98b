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

from crypto.encoding import BytesLike
from crypto.errors import MalformedMessage
from crypto.frame import Kind
from crypto.keys import IdentityKey
from crypto.ring import add_into
from crypto.secagg.aggregator_stages import AggregatorStages, digest_of
from crypto.secagg.aggregator_state import SlotState, decode_slot
from crypto.secagg.checks import (
    check_part,
    check_threshold,
    is_new,
    naming,
    require_call,
)
from crypto.secagg.digests import (
    keys_digest,
    members_digest,
    sum_digest,
)
from crypto.secagg.messages import (
    Masked,
    Reveal,
)
from crypto.secagg.parts import (
    check_groups,
    check_parts,
    contributors_of,
    own_places,
    total_words,
    within,
    words_of,
)
from crypto.secagg.setup import Setup
from crypto.secagg.unmasking import take_masks_away

Words = npt.NDArray[np.uint64]


class AggregatorSlot(AggregatorStages):
    """One slot of a setup whose members stand. Made by ``AggregatorSide.open_slot``."""

    def __init__(
        self,
        setup: Setup,
        identity: IdentityKey,
        keys: bytes,
        members: tuple[int, ...],
        state: SlotState,
    ) -> None:
        agreed = members_digest(
            keys_digest(setup.digest, keys), members, setup.config.num_silos
        )
        super().__init__(setup, identity, agreed, members, state)
        self._keys = keys
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
            if digest_of(total) != state.masked_digest:
                raise MalformedMessage("the saved sum is damaged, or of another slot")
            slot._total = total
        elif not state.sum_digest:
            raise MalformedMessage("the saved sum of this slot is missing")
        return slot

    def _close_total(self) -> None:
        """Do nothing: a masked sum is complete as it is."""
