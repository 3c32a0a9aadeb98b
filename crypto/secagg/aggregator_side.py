"""The aggregator's side of secure aggregation: it carries messages and sees one sum.

::

    add_advertisement … keys → add_shares … close_members → envelopes    for the setup
    open_slot → AggregatorSlot                                          for each slot

``add_…`` takes one silo's frame. A bad frame raises a ``CryptoError`` that names the
silo and leaves the state as it was: the caller goes on without that silo. The same
frame a second time changes nothing; a different one for the same stage, and one that
comes after its stage was closed, are refused.

``keys``, ``close_members``, and in a slot ``active``, ``survivors`` and ``confirms``
close a stage. They raise ``ProtocolViolation`` when too few silos have answered, and
give the same bytes whenever they are called again. The caller saves ``to_bytes()``
before they leave.

Every method raises ``RuntimeError`` when it is called before its predecessor: that is
the caller's bug.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from crypto.frame import Kind
from crypto.keys import IdentityKey
from crypto.secagg.aggregator_base import AggregatorBase
from crypto.secagg.aggregator_setup import check_shares, make_envelopes
from crypto.secagg.aggregator_slot import AggregatorSlot
from crypto.secagg.aggregator_state import SlotState
from crypto.secagg.config import SecAggConfig
from crypto.secagg.setup import Setup

Words = npt.NDArray[np.uint64]


class AggregatorSide(AggregatorBase[AggregatorSlot]):
    """The aggregator's part in one setup with masks, and its slots.

    Args: as for ``SiloSide``; ``identity`` is the key whose public half silos pinned.

    Raises:
        ValueError: the arguments do not fit together.
    """

    dealt: ClassVar[Kind] = Kind.SHARES
    handed: ClassVar[Kind] = Kind.ENVELOPES

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
        return cls(config, roster, identity, run, setup).restore(data)

    def _check_dealt(self, silo: int, body: bytes) -> None:
        """Check SHARES."""
        check_shares(self._setup, self._state, body)

    def _make_envelopes(self, silo: int) -> bytes:
        """Return the body of ENVELOPES."""
        return make_envelopes(self._setup, self._state, self.members, silo)

    def _open(self, state: SlotState) -> AggregatorSlot:
        """Return a new slot."""
        return AggregatorSlot.opened(*self._slot_arguments(), state)

    def _resume(self, data: bytes, total: Words | None) -> AggregatorSlot:
        """Return a slot that was saved."""
        return AggregatorSlot.from_bytes(data, total, *self._slot_arguments())

    def _slot_arguments(self) -> tuple[Setup, IdentityKey, bytes, tuple[int, ...]]:
        """Return what every slot of this setup is made of."""
        return (self._setup, self._identity, self._state.keys, self.members)
