"""Which slot was opened last, and the head that silos are shown in it, on disk.

Every silo answers READY of a slot in one way only, and READY holds the head that it was
shown. Started again, the aggregator goes on with the slot that it had opened, and asks
in the very same words.
"""

from aggregator.slot_store import OpenedSlot, SlotStore
from aggregator.sums import Task
from protocol.heads import Head
from protocol.transcript import TranscriptWriter


class OpenedSlots:
    """The slots in which READY was asked for."""

    def __init__(self, store: SlotStore, transcript: TranscriptWriter) -> None:
        self._store, self._transcript = store, transcript

    def number(self, setup: int, first: int, task: Task) -> int:
        """Return the slot for a task: ``first``, or later if one was opened before."""
        opened = self._store.load_opened(setup)
        if opened is None or opened.slot < first:
            return first
        return opened.slot if _is_for(opened, task) else opened.slot + 1

    def head(self, setup: int, slot: int, task: Task) -> Head:
        """Return what silos are shown in a slot; it is on disk when this returns."""
        opened = self._store.load_opened(setup)
        if opened is not None and opened.slot == slot and _is_for(opened, task):
            return opened.head
        head = self._transcript.sign_head()
        opened = OpenedSlot(
            slot=slot,
            round_number=task.round_number,
            model=task.model_digest().hex(),
            head=head,
        )
        self._store.save_opened(setup, opened)
        return head


def _is_for(opened: OpenedSlot, task: Task) -> bool:
    """Return whether a slot was opened for a task's round and model."""
    return (opened.round_number, opened.model) == (
        task.round_number,
        task.model_digest().hex(),
    )
