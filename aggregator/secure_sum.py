"""Secure aggregation of a round's updates, driven through the exchanges.

What masks and encryption have in common: setups and slots, READY and CONFIRM. How the
vectors are hidden, and their sum is opened, are ``aggregator.masked_sum`` and
``aggregator.encrypted_sum``.

Its state is on disk before anything that depends on it leaves; started again after a
crash it goes on with the very slot that was in work, and silos answer with the
identical bytes.
"""

import hashlib
from abc import abstractmethod
from functools import partial
from typing import ClassVar, Generic, TypeVar

from aggregator.errors import CohortTooSmall, RoundAborted
from aggregator.exchanges import taking
from aggregator.secure_setup import SecureSetup, SideT
from aggregator.sums import Sum, Task, agreed_in
from aggregator.witnessing import Place
from crypto.encoding import BytesLike
from crypto.frame import Kind as SecAggKind
from crypto.secagg.aggregator_stages import AggregatorStages
from protocol import records
from protocol.heads import Head
from protocol.plan import AGGREGATOR_NAME
from protocol.stretches import dealt_record

MAX_ATTEMPTS = 3

SlotT = TypeVar("SlotT", bound=AggregatorStages)


class SecureSum(SecureSetup[SideT], Generic[SideT, SlotT]):
    """Secure aggregation with dropout recovery, resumable at every stage.

    ``opening`` says what silos give for one slot of a round only.
    """

    opening: ClassVar[str]

    def sum_round(self, task: Task) -> Sum:
        """Return the sum of a round; a failed attempt is repeated in the next slot.

        Raises:
            CohortTooSmall: three attempts have failed; nothing was revealed.
            RoundAborted: the round is closed without a sum.
        """
        reason = ""
        self._members.wake()
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                slot = self._prepare_slot(task, attempt)
                self._collect_ready(slot, task, attempt)
                self._collect_vectors(slot, task)
                if not self._plan.skips_confirm:
                    self._collect_confirms(slot, task)
                return self._open_sum(slot, task)
            except CohortTooSmall as error:
                reason = str(error)
                self._give_up()
        raise CohortTooSmall(reason)

    def sum_notice(self) -> bytes:
        """Return the SUM frame of the latest slot, nothing if it has no sum."""
        side = self._side
        if side is None or not side.has_slot or not side.slot.sum_digest:
            return b""
        notice: bytes = side.slot.sum_notice()
        return notice

    # ------------------------------------------------- what the protections add

    @abstractmethod
    def _collect_vectors(self, slot: SlotT, task: Task) -> None:
        """Take the hidden updates as they arrive; fix the survivors."""

    @abstractmethod
    def _open_sum(self, slot: SlotT, task: Task) -> Sum:
        """Have the silos open the sum.

        Raises:
            RoundAborted: they did not, or one has lied.
        """

    # -------------------------------------------------------------------- slot

    def _give_up(self) -> None:
        """Note that the open slot failed before its last stage; the next is used."""
        side = self._side
        if side is not None and side.has_slot:
            self._given_up = (self._setup, side.slot.slot)
        # A setup deals a round in one way only; the lost silos would be counted on.
        self._is_dead |= self._plan.update.is_dealt

    def _prepare_slot(self, task: Task, attempt: int) -> SlotT:
        """Return the open slot of this round.

        Raises:
            CohortTooSmall: too few silos for a setup.
            RoundAborted: a slot that silos were asked to open was not finished.
        """
        side, digest = self._side, task.model_digest()
        latest: SlotT | None = side.slot if side and side.has_slot else None
        if latest is not None and latest.round_number == task.round_number:
            is_given_up = self._given_up == (self._setup, latest.slot)
            if latest.model_digest == digest and not is_given_up:
                return latest
            if latest.is_last:
                raise RoundAborted(
                    f"{self.opening} were asked for, and the slot was not finished"
                )
        self._last_notice = self.sum_notice() or self._last_notice
        self._exclude_accused()
        number = latest.slot + 1 if latest else 0
        number = self._opened.number(self._setup, number, task)
        if side is None or self._is_used_up(side, number, task.round_number, attempt):
            side, number = self._open_setup(task.round_number), 0
        parts = task.dealing(self._plan, agreed_in(side)).parts
        head = self._opened.head(self._setup, number, task).to_bytes()
        opened: SlotT = self._closing(
            lambda: side.open_slot(number, task.round_number, digest, parts, head)
        )
        return opened

    def _is_used_up(
        self, side: SideT, slot: int, round_number: int, attempt: int
    ) -> bool:
        """Return whether a setup has no such slot, or should be made anew.

        Whoever was lost when the sealed secrets went out is asked for once more first.
        """
        if slot >= self._plan.protection.slots_per_setup or self._is_dead:
            return True
        self._deliver_envelopes(side)
        return self._members.wants_setup(
            self._joined, round_number, attempt, members=side.members
        )

    def _collect_ready(self, slot: SlotT, task: Task, attempt: int) -> None:
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
            self._joined -= self._exchanges.refused  # It may have lost its secrets.
            self._closing(slot.active)
            self._save(slot)
        cohort = self._exchanges.names(slot.cohort)
        self._exchanges.transcript.append(
            records.Cohort(round_number=task.round_number, silos=cohort)
        )
        self._witnesses.record(self._place(slot), slot.active())

    def _collect_confirms(self, slot: SlotT, task: Task) -> None:
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

    def _record_upload(self, slot: SlotT, silo: int, reply: BytesLike) -> None:
        """Record a hidden update that was taken."""
        self._exchanges.transcript.append(
            records.Masked(
                **self._place(slot),
                silo=self._plan.silos[silo].name,
                upload=hashlib.sha256(reply).hexdigest(),
                size_bytes=len(reply),
                protection="bfv" if self._plan.protection.is_encrypted else "mask",
            )
        )

    def _close_survivors(self, slot: SlotT) -> None:
        """Fix the survivors; sum and state are on disk before anybody is told."""
        self._closing(slot.survivors)
        self._store.save_sum(self._setup, slot.slot, slot.total)
        self._save(slot)

    def _record_survivors(self, slot: SlotT) -> None:
        """Record whose updates the sum holds."""
        names = self._exchanges.names(slot.survivor_indices)
        self._exchanges.transcript.append(
            records.Survivors(**self._place(slot), silos=names)
        )

    def _record_sum(self, slot: SlotT, opened: records.Record) -> None:
        """Record what the sum was opened with, and its digest."""
        self._exchanges.transcript.append(opened)
        self._exchanges.transcript.append(
            records.Summed(**self._place(slot), sum=slot.sum_digest.hex())
        )

    # ----------------------------------------------------------------- helpers

    def _place(self, slot: SlotT) -> dict[str, int]:
        """Return round, setup and slot, as records hold them."""
        return {
            "round_number": slot.round_number,
            "setup": self._setup,
            "slot": slot.slot,
        }

    def _save(self, slot: SlotT) -> None:
        """Put the slot's state on disk before anything that depends on it leaves."""
        self._store.save_slot(self._setup, slot.slot, slot.to_bytes())
