"""Secure aggregation of a round's updates, driven through the exchanges.

Its state is on disk before anything that depends on it leaves; started again after a
crash it goes on with the very slot that was in work, and silos answer with the
identical bytes.
"""

import hashlib
from collections.abc import Callable

from aggregator.checkpoints import CheckpointStore
from aggregator.errors import CohortTooSmall, RoundAborted
from aggregator.exchanges import Accept, Exchanges, Stage
from aggregator.sums import Sum, Task
from crypto.errors import InvalidShare, ProtocolViolation
from crypto.secagg.aggregator_side import AggregatorSide
from protocol import records
from protocol.envelope import Kind
from protocol.transcript import Head

MAX_ATTEMPTS = 3

Closer = Callable[[], bytes]
"""Closes a stage of secure aggregation and returns what is sent next."""


def taking(add: Callable[[bytes], None]) -> Accept:
    """Return an acceptance that hands a reply on and counts no vector."""

    def accept(silo: int, reply: bytes) -> int:
        add(reply)
        return 0

    return accept


class SecureSum:
    """Secure aggregation with dropout recovery, resumable at every stage.

    Raises:
        MalformedMessage: the saved state is damaged.
    """

    def __init__(self, exchanges: Exchanges, store: CheckpointStore) -> None:
        self._exchanges, self._store = exchanges, store
        self._plan = exchanges.plan
        self._setup, self._side = self._load_side()
        self._given_up: tuple[int, int] | None = None
        self._have_shares: set[int] = set()

    def sum_round(self, task: Task) -> Sum:
        """Return the sum of a round; a failed attempt is repeated in the next slot."""
        reason = ""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                side = self._prepare_slot(task)
                self._collect_ready(side, task, attempt)
                self._collect_masked(side, task)
                self._collect_confirms(side, task)
                return self._collect_reveals(side, task)
            except CohortTooSmall as error:
                reason = str(error)
                self._give_up()
        raise CohortTooSmall(reason)

    # ------------------------------------------------------------------- setup

    def _give_up(self) -> None:
        """Note that the open slot failed before REVEAL: the next one is used."""
        latest = self._side.latest_slot if self._side is not None else None
        self._given_up = (self._setup, latest.slot) if latest else None

    def _prepare_slot(self, task: Task) -> AggregatorSide:
        """Return a side whose open slot is this round's."""
        side, digest = self._side, task.model_digest()
        latest = side.latest_slot if side is not None else None
        if side is not None and latest and latest.round_number == task.round_number:
            is_given_up = self._given_up == (self._setup, latest.slot)
            if latest.model_digest == digest and not is_given_up:
                return side
            if side.is_revealing:
                raise RoundAborted("shares were asked for another model of this round")
        if side is None or self._is_used_up(side):
            side, latest = self._open_setup(), None
        slot = latest.slot + 1 if latest else 0
        side.open_slot(slot, task.round_number, digest, task.num_words)
        return side

    def _is_used_up(self, side: AggregatorSide) -> bool:
        """Return whether a setup has no slot left, or not all silos in it."""
        used = side.latest_slot.slot + 1 if side.latest_slot else 0
        slots = self._plan.protection.slots_per_setup
        return used >= slots or len(side.members) < len(self._plan.silos)

    def _open_setup(self) -> AggregatorSide:
        """Exchange keys and shares for the slots of a new setup."""
        self._setup += 1
        plan, ask = self._plan, self._exchanges.ask
        side = AggregatorSide(
            plan.secagg_config(),
            plan.roster,
            self._exchanges.identity,
            plan.run,
            self._setup,
        )
        request = self._exchanges.envelope(
            Kind.OPEN_SETUP, b"", setup=self._setup, slot=0
        )
        everyone = range(len(plan.silos))
        silos = ask(
            self._stage("setup", 0),
            dict.fromkeys(everyone, request),
            taking(side.add_advertisement),
        )
        keys = self._closing(side.keys)
        self._save(side)
        ask(
            self._stage("shares", 0),
            dict.fromkeys(silos, keys),
            taking(side.add_shares),
        )
        self._closing(lambda: side.envelopes(min(side.sharers, default=-1)))
        self._save(side)
        self._side, self._have_shares = side, set()
        self._exchanges.transcript.append(
            records.SetupOpened(
                setup=self._setup,
                members=self._exchanges.names(side.members),
                advertisements=hashlib.sha256(keys).hexdigest(),
            )
        )
        return side

    # -------------------------------------------------------------------- slot

    def _collect_ready(self, side: AggregatorSide, task: Task, attempt: int) -> None:
        """Send the model; wait until silos have trained; fix the cohort."""
        if not side.cohort:
            head = self._exchanges.transcript.sign_head()
            self._exchanges.transcript.append(
                records.RoundOpened(
                    **self._place(side, task),
                    attempt=attempt,
                    model=task.model_digest().hex(),
                    field_bits=task.field_bits,
                )
            )
            seconds = self._plan.deadlines.training_seconds
            self._exchanges.ask(
                self._stage("ready", task.round_number, seconds),
                self._round_requests(side, task, attempt, head),
                taking(side.add_ready),
            )
            if side.latest_slot is not None:
                self._have_shares |= set(side.latest_slot.ready)
            self._closing(side.active)
            self._save(side)
        cohort = self._exchanges.names(side.cohort)
        self._exchanges.transcript.append(
            records.Cohort(round_number=task.round_number, silos=cohort)
        )

    def _round_requests(
        self, side: AggregatorSide, task: Task, attempt: int, head: Head
    ) -> dict[int, bytes]:
        """Return the request to each member, with the shares that it may lack.

        Members that lack nothing share one message.
        """
        place = {"setup": self._setup, "slot": self._slot(side)}
        plain = task.request(head, attempt, b"").to_body()
        common = self._exchanges.envelope(Kind.ROUND, plain, **place)
        requests = {}
        for silo in side.members:
            requests[silo] = common
            if silo not in self._have_shares:
                body = task.request(head, attempt, side.envelopes(silo)).to_body()
                requests[silo] = self._exchanges.envelope(Kind.ROUND, body, **place)
        return requests

    def _collect_masked(self, side: AggregatorSide, task: Task) -> None:
        """Take the masked updates as they arrive; fix the survivors."""
        place = self._place(side, task)

        def take(silo: int, reply: bytes) -> int:
            side.add_masked(reply)
            self._exchanges.transcript.append(
                records.Masked(
                    **place,
                    silo=self._plan.silos[silo].name,
                    upload=hashlib.sha256(reply).hexdigest(),
                    size_bytes=len(reply),
                    protection="mask",
                )
            )
            return 8 * task.num_words

        if not side.survivor_indices:
            self._exchanges.ask(
                self._stage("masked", task.round_number),
                dict.fromkeys(side.cohort, side.active()),
                take,
            )
            self._closing(side.survivors)
            self._save(side)
        survivors = self._exchanges.names(side.survivor_indices)
        self._exchanges.transcript.append(records.Survivors(**place, silos=survivors))

    def _collect_confirms(self, side: AggregatorSide, task: Task) -> None:
        """Have the survivors sign their list."""
        if not side.is_revealing:
            self._exchanges.ask(
                self._stage("confirm", task.round_number),
                dict.fromkeys(side.survivor_indices, side.survivors()),
                taking(side.add_confirm),
            )
            self._closing(side.confirms)
            self._save(side)
        confirmed = side.latest_slot.confirmed if side.latest_slot else {}
        self._exchanges.transcript.append(
            records.Confirmed(
                **self._place(side, task), silos=self._exchanges.names(confirmed)
            )
        )

    def _collect_reveals(self, side: AggregatorSide, task: Task) -> Sum:
        """Ask for the shares, and take the masks off the sum."""
        survivors = side.survivor_indices
        answered = self._exchanges.ask(
            self._stage("reveal", task.round_number),
            dict.fromkeys(survivors, side.confirms()),
            taking(side.add_reveal),
        )
        try:
            words = side.unmask()
        except (ProtocolViolation, InvalidShare) as error:
            raise RoundAborted(str(error)) from None
        self._exchanges.transcript.append(
            records.Revealed(
                **self._place(side, task),
                silos=self._exchanges.names(answered),
                self_masks_of=self._exchanges.names(survivors),
                slot_keys_of=self._exchanges.names(set(side.cohort) - set(survivors)),
            )
        )
        return Sum(words, survivors)

    # ----------------------------------------------------------------- helpers

    def _place(self, side: AggregatorSide, task: Task) -> dict[str, int]:
        """Return round, setup and slot, as records hold them."""
        return {
            "round_number": task.round_number,
            "setup": self._setup,
            "slot": self._slot(side),
        }

    def _slot(self, side: AggregatorSide) -> int:
        """Return the number of the open slot."""
        if side.latest_slot is None:
            raise RuntimeError("no slot is open")
        return side.latest_slot.slot

    def _stage(
        self, name: str, round_number: int, seconds: float | None = None
    ) -> Stage:
        """Return a stage with its deadline."""
        return Stage(
            name=name,
            round_number=round_number,
            deadline_seconds=seconds or self._plan.deadlines.exchange_seconds,
        )

    def _closing(self, close: Closer) -> bytes:
        """Close a stage; too few silos are a :class:`CohortTooSmall`."""
        try:
            return close()
        except (ProtocolViolation, RuntimeError) as error:
            raise CohortTooSmall(str(error)) from None

    def _save(self, side: AggregatorSide) -> None:
        """Put the state on disk before anything that depends on it leaves."""
        self._store.save_side(self._setup, side.to_bytes())

    def _load_side(self) -> tuple[int, AggregatorSide | None]:
        """Return the newest saved setup, if any."""
        saved = self._store.load_side()
        if saved is None:
            return 0, None
        setup, data = saved
        plan = self._plan
        side = AggregatorSide.from_bytes(
            data,
            plan.secagg_config(),
            plan.roster,
            self._exchanges.identity,
            plan.run,
            setup,
        )
        return setup, side
