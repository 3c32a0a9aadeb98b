"""Secure aggregation with masks: they cancel in the sum, but for those of lost silos.

What the silos do is ``crypto.secagg.silo_side``.
"""

from aggregator.errors import RoundAborted
from aggregator.exchanges import ENVELOPES
from aggregator.secure_sum import SecureSum
from aggregator.sums import Sum, Task
from crypto.encoding import BytesLike
from crypto.errors import InvalidShare, ProtocolViolation
from crypto.frame import Kind as SecAggKind
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.aggregator_slot import AggregatorSlot
from crypto.secagg.parts import total_words, within, words_of
from protocol import records


class MaskedSum(SecureSum[AggregatorSide, AggregatorSlot]):
    """Sums of masked updates; the masks that are left are removed with shares."""

    dealing, handing = "shares", ENVELOPES
    secrets, opening = "the shares of the others", "shares"

    def _new_side(self, setup: int) -> AggregatorSide:
        """Return the aggregator's side of a new setup."""
        plan = self._plan
        return AggregatorSide(
            self._config, plan.roster, self._exchanges.identity, plan.run, setup
        )

    def _collect_vectors(self, slot: AggregatorSlot, task: Task) -> None:
        """Take the masked updates as they arrive; fix the survivors."""

        def take(silo: int, reply: BytesLike) -> int:
            slot.add_masked(reply)
            self._record_upload(slot, silo, reply)
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
            self._close_survivors(slot)
        self._record_survivors(slot)

    def _open_sum(self, slot: AggregatorSlot, task: Task) -> Sum:
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
        self._record_sum(slot, self._revealed(slot))
        return Sum(words, survivors, within(slot.parts, survivors))

    def _revealed(self, slot: AggregatorSlot) -> records.Revealed:
        """Return the record of what was revealed."""
        survivors, names = set(slot.survivor_indices), self._exchanges.names
        return records.Revealed(
            **self._place(slot),
            silos=names(slot.revealed_silos),
            self_masks_of=names(survivors),
            slot_keys_of=names(set(slot.cohort) - survivors),
        )
