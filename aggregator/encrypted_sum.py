"""Secure aggregation with encryption: silos that share a key decrypt the sum alone.

What the silos do is ``crypto.bfv.silo_side``. A silo that is lost costs nothing; one
that decrypts another sum than the others is found out, as long as no more than
``max_colluding`` silos lie.
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from functools import partial

from aggregator.errors import CohortTooSmall, RoundAborted
from aggregator.exchanges import HANDED, Exchanges
from aggregator.secure_sum import SecureSum
from aggregator.slot_store import SlotStore
from aggregator.sums import Sum, Task
from aggregator.witnessing import Witnesses
from crypto.bfv.aggregator_side import BfvAggregatorSide
from crypto.bfv.aggregator_slot import BfvSlot
from crypto.bfv.workers import Workers
from crypto.encoding import BytesLike
from crypto.errors import ProtocolViolation, WorkerFailed
from crypto.frame import Kind as SecAggKind
from crypto.secagg.parts import total_words, within
from protocol.packing import layouts
from protocol.sum_records import Decrypted, KeyShared

logger = logging.getLogger(__name__)

DECRYPT = "decrypt"


class EncryptedSum(SecureSum[BfvAggregatorSide, BfvSlot]):
    """Sums of encrypted updates, decrypted by some of the silos whose updates they are.

    Args: as for ``SecureSum``, and
        workers: the processes that expand seeds; whoever made them closes them.
    """

    dealing, handing = "key", HANDED
    secrets, opening = "the shared key", "confirmations"

    def __init__(
        self,
        exchanges: Exchanges,
        store: SlotStore,
        witnesses: Witnesses,
        *,
        workers: Workers,
        excluded: Iterable[int] = (),
    ) -> None:
        self._workers = workers  # What was saved is taken up with them.
        super().__init__(exchanges, store, witnesses, excluded=excluded)

    def _new_side(self, setup: int) -> BfvAggregatorSide:
        """Return the aggregator's side of a new setup."""
        plan = self._plan
        return BfvAggregatorSide(
            self._config,
            plan.roster,
            self._exchanges.identity,
            plan.run,
            setup,
            workers=self._workers,
            layouts_of=partial(layouts, plan),
        )

    def _note_dealt(self, side: BfvAggregatorSide, dealt: Collection[int]) -> None:
        """Leave a silo alone that was to make the key and did not.

        Without the key the setup is lost; in the next one another silo makes it.
        """
        if side.key_maker not in dealt:
            self._members.rest(side.key_maker)

    def _deliver_envelopes(self, side: BfvAggregatorSide) -> None:
        """Hand the key on; another silo makes the next one if too few can open it.

        Raises:
            CohortTooSmall: too few can join; the setup is dead.
        """
        try:
            super()._deliver_envelopes(side)
        except CohortTooSmall:
            if self._exchanges.accusations.get(side.key_maker):
                self._members.rest(side.key_maker)
            raise

    def _record_setup(self, side: BfvAggregatorSide) -> None:
        """Record who made the key of a setup, and the commitment to it."""
        self._exchanges.transcript.append(
            KeyShared(
                setup=self._setup,
                maker=self._plan.silos[side.key_maker].name,
                commitment=side.commitment.hex(),
            )
        )

    def _collect_vectors(self, slot: BfvSlot, task: Task) -> None:
        """Take the encrypted updates as they arrive; fix the survivors."""

        def take(silo: int, reply: BytesLike) -> int:
            slot.add_encrypted(reply)
            self._record_upload(slot, silo, reply)
            return slot.upload_bytes(silo)

        if not slot.survivor_indices:
            self._exchanges.ask(
                self._stage(
                    SecAggKind.ENCRYPTED,
                    "encrypted",
                    task.round_number,
                    num_ciphertexts=slot.num_ciphertexts,
                ),
                dict.fromkeys(slot.cohort, slot.active()),
                take,
            )
            try:
                self._close_survivors(slot)
            except WorkerFailed as error:
                logger.warning("round %d: %s", task.round_number, error)
                raise CohortTooSmall(f"the sum was not finished: {error}") from None
        self._record_survivors(slot)

    def _collect_confirms(self, slot: BfvSlot, task: Task) -> None:
        """Have the survivors sign their list, the only one that they sign in a round.

        Raises:
            RoundAborted: too few did.
        """
        try:
            super()._collect_confirms(slot, task)
        except CohortTooSmall as error:
            raise RoundAborted(str(error)) from None

    def _open_sum(self, slot: BfvSlot, task: Task) -> Sum:
        """Have silos decrypt the sum until enough of them agree on it.

        They are asked in the order of the plan, from another one in every round on; no
        more of them than must agree, as long as all answer alike. Those that did not
        confirm come last: they are lost, or refuse. Without a sum the next round has a
        new setup.
        """
        survivors, confirmed = slot.survivor_indices, slot.confirmed_silos
        first = task.round_number % len(survivors)
        waiting = sorted(
            (*survivors[first:], *survivors[:first]),
            key=lambda silo: silo not in confirmed,
        )
        while waiting and len(slot.agreeing_silos) < slot.num_witnesses:
            number = slot.num_witnesses - len(slot.agreeing_silos)
            self._ask_to_decrypt(slot, task, waiting[:number])
            waiting = waiting[number:]
        try:
            words = slot.decrypted_sum()
        except ProtocolViolation as error:
            self._is_dead = True  # Whoever has refused uses this key no more.
            raise RoundAborted(self._disagreement(slot, str(error))) from None
        self._save(slot)
        self._drop_liars(slot, task)
        self._record_sum(slot, self._decrypted(slot))
        return Sum(words, survivors, within(slot.parts, survivors))

    def _ask_to_decrypt(self, slot: BfvSlot, task: Task, silos: Sequence[int]) -> None:
        """Have some silos decrypt the sum. The request is large, and is not kept."""
        stage = self._stage(
            SecAggKind.DECRYPTED,
            DECRYPT,
            task.round_number,
            num_words=total_words(slot.parts),
        )

        def take(silo: int, reply: BytesLike) -> int:
            slot.add_decrypted(reply)
            return 0

        request = slot.decrypt_request()
        self._exchanges.ask(stage, dict.fromkeys(silos, request), take)

    def _drop_liars(self, slot: BfvSlot, task: Task) -> None:
        """Record who has decrypted another sum than the one that is taken."""
        agreeing = ", ".join(self._exchanges.names(slot.agreeing_silos))
        for silo in sorted(set(slot.decrypted_silos) - set(slot.agreeing_silos)):
            name = self._plan.silos[silo].name
            self._exchanges.drop(
                DECRYPT,
                task.round_number,
                silo,
                f"{name} decrypted another sum than {agreeing}",
            )

    def _disagreement(self, slot: BfvSlot, reason: str) -> str:
        """Say why there is no sum, and whose sums differ."""
        found = slot.decrypted_silos
        if set(found) == set(slot.agreeing_silos):
            return reason
        names = ", ".join(self._exchanges.names(found))
        return f"{reason}; those of {names} differ"

    def _decrypted(self, slot: BfvSlot) -> Decrypted:
        """Return the record of the sum and who has decrypted it."""
        names = self._exchanges.names
        return Decrypted(
            **self._place(slot),
            silos=names(slot.agreeing_silos),
            survivors=names(slot.survivor_indices),
            sum=slot.sum_digest.hex(),
        )
