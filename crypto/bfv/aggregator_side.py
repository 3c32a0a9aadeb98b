"""The aggregator's side of secure aggregation by encryption: it sees one sum.

::

    add_advertisement … keys → add_shares … close_members → envelopes    for the setup
    open_slot → BfvSlot                                                  for each slot

The methods and rules are those of ``crypto.secagg.aggregator_side``; in place of shares
it carries the key that one silo has sealed to each other one.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from crypto.bfv.aggregator_slot import BfvSlot
from crypto.bfv.digits import LayoutsOf
from crypto.bfv.messages import Dealt, Handed
from crypto.bfv.shared_key import key_maker
from crypto.bfv.workers import Workers
from crypto.errors import ProtocolViolation
from crypto.frame import Kind
from crypto.keys import IdentityKey
from crypto.secagg.aggregator_base import AggregatorBase
from crypto.secagg.aggregator_state import SlotState, decode_slot
from crypto.secagg.config import SecAggConfig
from crypto.secagg.digests import keys_digest

Words = npt.NDArray[np.uint64]


class BfvAggregatorSide(AggregatorBase[BfvSlot]):
    """The aggregator's part in one setup with encryption, and its slots.

    Args: as for ``AggregatorSide``, and
        workers: the processes that expand seeds; they hold no key.
        layouts_of: how the parts of a round are read; it follows from the plan.

    Raises:
        ValueError: the arguments do not fit together.
    """

    dealt: ClassVar[Kind] = Kind.DEALT
    handed: ClassVar[Kind] = Kind.HANDED

    def __init__(
        self,
        config: SecAggConfig,
        roster: Sequence[bytes],
        identity: IdentityKey,
        run: bytes,
        setup: int,
        *,
        workers: Workers,
        layouts_of: LayoutsOf,
    ) -> None:
        super().__init__(config, roster, identity, run, setup)
        self._workers, self._layouts_of = workers, layouts_of

    @property
    def key_maker(self) -> int:
        """The silo that makes the key of this setup, once KEYS was sent."""
        return key_maker(self._config, self._state.advertised)

    @property
    def commitment(self) -> bytes:
        """What the maker committed its key to, once the members stand."""
        return self._commitment()

    def _check_dealt(self, silo: int, body: bytes) -> None:
        """Check DEALT: only the maker deals a key."""
        message = self._read(body, is_maker=silo == self.key_maker)
        if message.keys_digest != self._agreed():
            raise ProtocolViolation("DEALT answers another KEYS")

    def _check_members(self, members: tuple[int, ...]) -> None:
        """Refuse a setup without a key."""
        if self.key_maker not in members:
            raise ProtocolViolation(
                f"silo {self.key_maker}, which makes the key, has dealt none"
            )

    def _make_envelopes(self, silo: int) -> bytes:
        """Return the body of HANDED for one member."""
        maker, order = self.key_maker, sorted(self._state.advertised)
        dealt = self._read(self._state.shares[maker], is_maker=True)
        peers = [peer for peer in order if peer != maker]
        sealed = b"" if silo == maker else dealt.sealed[peers.index(silo)]
        handed = Handed(self._agreed(), self.members, dealt.commitment, sealed)
        return handed.to_bytes(self._config.num_silos)

    def _commitment(self) -> bytes:
        """Return the maker's commitment to the key, which T2 covers."""
        body = self._state.shares[self.key_maker]
        return self._read(body, is_maker=True).commitment

    def _read(self, body: bytes, *, is_maker: bool) -> Dealt:
        """Parse DEALT."""
        num_peers = len(self._state.advertised) - 1
        return Dealt.from_bytes(body, num_peers, is_maker=is_maker)

    def _agreed(self) -> bytes:
        """Return T1."""
        return keys_digest(self._setup.digest, self._state.keys)

    def _open(self, state: SlotState) -> BfvSlot:
        """Return a new slot."""
        slot = self._slot_of(state)
        slot.check_new()
        return slot

    def _resume(self, data: bytes, total: Words | None) -> BfvSlot:
        """Return a slot that was saved."""
        saved = decode_slot(data, self._setup.digest, self._config.num_silos)
        slot = self._slot_of(saved)
        slot.resume(total)
        return slot

    def _slot_of(self, state: SlotState) -> BfvSlot:
        """Return a slot with this state."""
        return BfvSlot(
            self._setup,
            self._identity,
            self.members_digest,
            self.members,
            state,
            workers=self._workers,
            layouts=self._layouts_of(state.round_number, state.parts),
        )
