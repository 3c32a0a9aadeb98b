"""The setups of secure aggregation: who takes part, and who holds which secrets.

In a setup the silos exchange keys, deal secrets to each other, and are handed them:
shares of mask seeds, or a key that all of them have. ``aggregator.secure_sum`` adds the
slots.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar, Generic, TypeVar

from aggregator.errors import CohortTooSmall
from aggregator.exchanges import Exchanges, Stage, taking
from aggregator.membership import Membership
from aggregator.opened_slots import OpenedSlots
from aggregator.slot_store import SlotStore, load_side
from aggregator.witnessing import Witnesses
from crypto.encoding import BytesLike
from crypto.errors import ProtocolViolation
from crypto.frame import Kind as SecAggKind
from crypto.secagg.aggregator_base import AggregatorBase
from crypto.secagg.setup import max_frame_bytes
from protocol import records
from protocol.envelope import Kind, open_envelope
from protocol.errors import EnvelopeRejected

T = TypeVar("T")
SideT = TypeVar("SideT", bound=AggregatorBase[Any])


class SecureSetup(ABC, Generic[SideT]):
    """The latest setup of a run, and how the next one is made.

    ``dealing`` and ``handing`` are the stages at which silos deal secrets to each other
    and are handed them; ``secrets`` says what these are.

    Args:
        excluded: silos that are left out of every setup, after a restart.

    Raises:
        StateBroken: the saved state is damaged.
    """

    dealing: ClassVar[str]
    handing: ClassVar[str]
    secrets: ClassVar[str]

    def __init__(
        self,
        exchanges: Exchanges,
        store: SlotStore,
        witnesses: Witnesses,
        *,
        excluded: Iterable[int] = (),
    ) -> None:
        self._exchanges, self._store, self._witnesses = exchanges, store, witnesses
        self._plan = exchanges.plan
        self._opened = OpenedSlots(store, exchanges.transcript)
        self._config = self._plan.secagg_config()
        self._members = Membership(
            len(self._plan.silos), self._config.max_colluding, excluded
        )
        self._side: SideT | None
        self._setup, self._side = load_side(store, self._new_side)
        self._given_up: tuple[int, int] | None = None
        self._last_notice = b""
        self._joined: set[int] = set()
        self._is_dead = False

    @abstractmethod
    def _new_side(self, setup: int) -> SideT:
        """Return the aggregator's side of a new setup."""

    def _note_dealt(self, side: SideT, dealt: Collection[int]) -> None:
        """Look at who of a setup has dealt its secrets."""

    def _record_setup(self, side: SideT) -> None:
        """Record what is known of a new setup beside its keys and members."""

    def _open_setup(self, round_number: int) -> SideT:
        """Exchange keys and secrets for the slots of a new setup."""
        self._setup += 1
        self._side, self._joined, self._is_dead = None, set(), False
        self._exchanges.accusations.clear()
        ask, side = self._exchanges.ask, self._new_side(self._setup)
        request = self._exchanges.envelope(
            Kind.OPEN_SETUP, self._last_notice, setup=self._setup, slot=0
        )
        silos = ask(
            self._stage(SecAggKind.ADVERTISE, "setup", 0),
            dict.fromkeys(self._members.invited, request),
            taking(side.add_advertisement),
        )
        keys = self._closing(side.keys)
        self._store.save_setup(self._setup, side.to_bytes())
        dealt = ask(
            self._stage(side.dealt, self.dealing, 0),
            dict.fromkeys(silos, keys),
            taking(side.add_shares),
        )
        self._note_dealt(side, dealt)
        self._closing(side.close_members)
        self._store.save_setup(self._setup, side.to_bytes())
        self._side = side
        self._exchanges.transcript.append(
            records.SetupOpened(
                setup=self._setup,
                members=self._exchanges.names(side.members),
                advertisements=hashlib.sha256(keys).hexdigest(),
            )
        )
        self._record_setup(side)
        self._deliver_envelopes(side)
        self._members.note_setup(self._joined, round_number)
        return side

    def _deliver_envelopes(self, side: SideT) -> None:
        """Hand every member what the others sealed to it, unless it has said so.

        After a restart all are asked again; whoever has joined says just that. The
        longest answer is a refusal.

        Raises:
            CohortTooSmall: too few can join; the setup is dead.
        """
        missing = set(side.members) - self._joined
        if not missing:
            return

        def take(silo: int, reply: BytesLike) -> int:
            header, _ = open_envelope(
                self._plan, reply, sender=silo, kinds=(Kind.JOINED,)
            )
            if header.setup != self._setup:
                raise EnvelopeRejected(f"JOINED of setup {header.setup}")
            self._joined.add(silo)
            return 0

        self._exchanges.ask(
            self._stage(SecAggKind.READY, self.handing, 0),
            {silo: side.envelopes(silo) for silo in sorted(missing)},
            take,
        )
        if len(self._joined) < self._config.min_survivors:
            self._is_dead = True
            raise CohortTooSmall(
                f"{self.secrets} reached {len(self._joined)} silos, at least "
                f"{self._config.min_survivors} are needed"
            )

    def _exclude_accused(self) -> None:
        """Leave out whom more silos accuse than may be lying; record why."""
        for silo, reason in self._members.exclude_accused(self._exchanges.accusations):
            self._exchanges.transcript.append(
                records.SiloExcluded(
                    setup=self._setup, silo=self._plan.silos[silo].name, reason=reason
                )
            )

    def _stage(
        self,
        kind: SecAggKind,
        name: str,
        round_number: int,
        seconds: float | None = None,
        *,
        num_words: int = 0,
        num_ciphertexts: int = 0,
    ) -> Stage:
        """Return a stage with its deadline and the longest reply of its kind."""
        return Stage(
            name=name,
            round_number=round_number,
            deadline_seconds=seconds or self._plan.deadlines.exchange_seconds,
            max_reply_bytes=max_frame_bytes(
                kind, self._config, num_words, num_ciphertexts=num_ciphertexts
            ),
        )

    def _closing(self, close: Callable[[], T]) -> T:
        """Close a stage; too few silos are a :class:`CohortTooSmall`."""
        try:
            return close()
        except ProtocolViolation as error:
            raise CohortTooSmall(str(error)) from None
