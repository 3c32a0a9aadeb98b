"""Secure aggregation of a round's updates, driven through the exchanges.

Its state is on disk before anything that depends on it leaves; started again after a
crash it goes on with the very slot that was in work, and silos answer with the
identical bytes.
"""

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from aggregator.errors import CohortTooSmall, RoundAborted
from aggregator.exchanges import ENVELOPES, Exchanges, Stage, taking
from aggregator.membership import Membership
from aggregator.opened_slots import OpenedSlots
from aggregator.slot_store import SlotStore, load_side
from aggregator.sums import Sum, Task, agreed_in
from aggregator.witnessing import Place, Witnesses
from crypto.encoding import BytesLike
from crypto.errors import InvalidShare, ProtocolViolation
from crypto.frame import Kind as SecAggKind
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.aggregator_slot import AggregatorSlot
from crypto.secagg.parts import total_words, within, words_of
from crypto.secagg.setup import max_frame_bytes
from protocol import records
from protocol.envelope import Kind, open_envelope
from protocol.errors import EnvelopeRejected
from protocol.heads import Head
from protocol.plan import AGGREGATOR_NAME
from protocol.stretches import dealt_record

MAX_ATTEMPTS = 3

T = TypeVar("T")


class SecureSum:
    """Secure aggregation with dropout recovery, resumable at every stage.

    Args:
        excluded: silos that are left out of every setup, after a restart.

    Raises:
        StateBroken: the saved state is damaged.
    """

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
        self._setup, self._side = load_side(store, self._plan, exchanges.identity)
        self._given_up: tuple[int, int] | None = None
        self._last_notice = b""
        self._joined: set[int] = set()
        self._is_dead = False

    def sum_round(self, task: Task) -> Sum:
        """Return the sum of a round; a failed attempt is repeated in the next slot.

        Raises:
            CohortTooSmall: three attempts have failed; nothing was revealed.
            RoundAborted: the round is closed without a sum.
        """
        reason = ""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                slot = self._prepare_slot(task, attempt)
                self._collect_ready(slot, task, attempt)
                self._collect_masked(slot, task)
                if not self._plan.skips_confirm:
                    self._collect_confirms(slot, task)
                return self._collect_reveals(slot, task)
            except CohortTooSmall as error:
                reason = str(error)
                self._give_up()
        raise CohortTooSmall(reason)

    def sum_notice(self) -> bytes:
        """Return the SUM frame of the latest slot, nothing if it has no sum."""
        side = self._side
        if side is None or not side.has_slot or not side.slot.sum_digest:
            return b""
        return side.slot.sum_notice()

    # ------------------------------------------------------------------- setup

    def _give_up(self) -> None:
        """Note that the open slot failed before REVEAL: the next one is used."""
        side = self._side
        if side is not None and side.has_slot:
            self._given_up = (self._setup, side.slot.slot)
        # A setup deals a round in one way only; the lost silos would be counted on.
        self._is_dead |= self._plan.update.is_dealt

    def _prepare_slot(self, task: Task, attempt: int) -> AggregatorSlot:
        """Return the open slot of this round.

        Raises:
            CohortTooSmall: too few silos for a setup.
            RoundAborted: shares were asked for in a slot that was not finished.
        """
        side, digest = self._side, task.model_digest()
        latest = side.slot if side is not None and side.has_slot else None
        if latest is not None and latest.round_number == task.round_number:
            is_given_up = self._given_up == (self._setup, latest.slot)
            if latest.model_digest == digest and not is_given_up:
                return latest
            if latest.is_last:
                raise RoundAborted(
                    "shares were asked for, and the slot was not finished"
                )
        self._last_notice = self.sum_notice() or self._last_notice
        self._exclude_accused()
        number = latest.slot + 1 if latest else 0
        number = self._opened.number(self._setup, number, task)
        if side is None or self._is_used_up(side, number, task.round_number, attempt):
            side, number = self._open_setup(task.round_number), 0
        parts = task.dealing(self._plan, agreed_in(side)).parts
        head = self._opened.head(self._setup, number, task).to_bytes()
        return self._closing(
            lambda: side.open_slot(number, task.round_number, digest, parts, head)
        )

    def _is_used_up(
        self, side: AggregatorSide, slot: int, round_number: int, attempt: int
    ) -> bool:
        """Return whether a setup has no such slot, or should be made anew.

        Whoever was lost when the sealed shares went out is asked for once more first.
        """
        if slot >= self._plan.protection.slots_per_setup or self._is_dead:
            return True
        self._deliver_envelopes(side)
        return self._members.wants_setup(
            self._joined, round_number, attempt, members=side.members
        )

    def _open_setup(self, round_number: int) -> AggregatorSide:
        """Exchange keys and shares for the slots of a new setup."""
        self._setup += 1
        self._side, self._joined, self._is_dead = None, set(), False
        self._exchanges.accusations.clear()
        plan, ask = self._plan, self._exchanges.ask
        side = AggregatorSide(
            self._config,
            plan.roster,
            self._exchanges.identity,
            plan.run,
            self._setup,
        )
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
        ask(
            self._stage(SecAggKind.SHARES, "shares", 0),
            dict.fromkeys(silos, keys),
            taking(side.add_shares),
        )
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
        self._deliver_envelopes(side)
        self._members.note_setup(self._joined, round_number)
        return side

    def _deliver_envelopes(self, side: AggregatorSide) -> None:
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
            self._stage(SecAggKind.READY, ENVELOPES, 0),
            {silo: side.envelopes(silo) for silo in sorted(missing)},
            take,
        )
        if len(self._joined) < self._config.min_survivors:
            self._is_dead = True
            raise CohortTooSmall(
                f"the shares of the others reached {len(self._joined)} silos, at least "
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

    # -------------------------------------------------------------------- slot

    def _collect_ready(self, slot: AggregatorSlot, task: Task, attempt: int) -> None:
        """Send the model; wait until silos have trained; fix the cohort."""
        if not slot.cohort:
            self._exchanges.transcript.append(
                records.RoundOpened(
                    **self._place(slot),
                    attempt=attempt,
                    model=task.model_digest().hex(),
                    field_bits=task.field_bits,
                )
            )
            if len(slot.parts) > 1 and self._side is not None:
                dealing = task.dealing(self._plan, agreed_in(self._side))
                record = dealt_record(self._plan, self._place(slot), dealing)
                self._exchanges.transcript.append(record)
            make = partial(task.request, attempt=attempt, sum_notice=self._last_notice)
            seconds = self._plan.deadlines.training_seconds
            self._witnesses.ask(
                self._stage(SecAggKind.READY, task.stage, task.round_number, seconds),
                dict.fromkeys(sorted(self._joined), make),
                Head.from_bytes(slot.head, AGGREGATOR_NAME),
                taking(slot.add_ready),
                Place(task.kind, self._setup, slot.slot),
            )
            self._joined -= self._exchanges.refused  # It may have lost its shares.
            self._closing(slot.active)
            self._save(slot)
        cohort = self._exchanges.names(slot.cohort)
        self._exchanges.transcript.append(
            records.Cohort(round_number=task.round_number, silos=cohort)
        )
        self._witnesses.record(self._place(slot), slot.active())

    def _collect_masked(self, slot: AggregatorSlot, task: Task) -> None:
        """Take the masked updates as they arrive; fix the survivors."""
        place = self._place(slot)

        def take(silo: int, reply: BytesLike) -> int:
            slot.add_masked(reply)
            self._exchanges.transcript.append(
                records.Masked(
                    **place,
                    silo=self._plan.silos[silo].name,
                    upload=hashlib.sha256(reply).hexdigest(),
                    size_bytes=len(reply),
                    protection="mask",
                )
            )
            return 8 * words_of(slot.parts, silo)

        if not slot.survivor_indices:
            self._exchanges.ask(
                self._stage(
                    SecAggKind.MASKED,
                    "masked",
                    task.round_number,
                    num_words=total_words(slot.parts),
                ),
                dict.fromkeys(slot.cohort, slot.active()),
                take,
            )
            self._closing(slot.survivors)
            self._store.save_sum(self._setup, slot.slot, slot.total)
            self._save(slot)
        survivors = self._exchanges.names(slot.survivor_indices)
        self._exchanges.transcript.append(records.Survivors(**place, silos=survivors))

    def _collect_confirms(self, slot: AggregatorSlot, task: Task) -> None:
        """Have the survivors sign their list."""
        if not slot.is_revealing:
            self._exchanges.ask(
                self._stage(SecAggKind.CONFIRM, "confirm", task.round_number),
                dict.fromkeys(slot.survivor_indices, slot.survivors()),
                taking(slot.add_confirm),
            )
            self._closing(slot.confirms)
            self._save(slot)
        names = self._exchanges.names(slot.confirmed_silos)
        self._exchanges.transcript.append(
            records.Confirmed(**self._place(slot), silos=names)
        )

    def _collect_reveals(self, slot: AggregatorSlot, task: Task) -> Sum:
        """Ask for the shares that are missing, and take the masks off the sum."""

        def take(silo: int, reply: BytesLike) -> int:
            slot.add_reveal(reply)
            self._save(slot)
            return 0

        survivors = slot.survivor_indices
        skips = self._plan.skips_confirm
        request = slot.survivors() if skips else slot.confirms()
        missing = set(survivors) - set(slot.revealed_silos)
        self._exchanges.ask(
            self._stage(SecAggKind.REVEAL, "reveal", task.round_number),
            dict.fromkeys(sorted(missing), request),
            take,
        )
        try:
            words = slot.unmask()
        except (ProtocolViolation, InvalidShare) as error:
            self._members.convict(error.silo)
            raise RoundAborted(str(error)) from None
        self._save(slot)
        self._record_sum(slot)
        return Sum(words, survivors, within(slot.parts, survivors))

    def _record_sum(self, slot: AggregatorSlot) -> None:
        """Record what was revealed, and the digest of the sum."""
        survivors = set(slot.survivor_indices)
        place, names = self._place(slot), self._exchanges.names
        self._exchanges.transcript.append(
            records.Revealed(
                **place,
                silos=names(slot.revealed_silos),
                self_masks_of=names(survivors),
                slot_keys_of=names(set(slot.cohort) - survivors),
            )
        )
        self._exchanges.transcript.append(
            records.Summed(**place, sum=slot.sum_digest.hex())
        )

    # ----------------------------------------------------------------- helpers

    def _place(self, slot: AggregatorSlot) -> dict[str, int]:
        """Return round, setup and slot, as records hold them."""
        return {
            "round_number": slot.round_number,
            "setup": self._setup,
            "slot": slot.slot,
        }

    def _stage(
        self,
        kind: SecAggKind,
        name: str,
        round_number: int,
        seconds: float | None = None,
        *,
        num_words: int = 0,
    ) -> Stage:
        """Return a stage with its deadline and the longest reply of its kind."""
        return Stage(
            name=name,
            round_number=round_number,
            deadline_seconds=seconds or self._plan.deadlines.exchange_seconds,
            max_reply_bytes=max_frame_bytes(kind, self._config, num_words),
        )

    def _closing(self, close: Callable[[], T]) -> T:
        """Close a stage; too few silos are a :class:`CohortTooSmall`."""
        try:
            return close()
        except ProtocolViolation as error:
            raise CohortTooSmall(str(error)) from None

    def _save(self, slot: AggregatorSlot) -> None:
        """Put the slot's state on disk before anything that depends on it leaves."""
        self._store.save_slot(self._setup, slot.slot, slot.to_bytes())
