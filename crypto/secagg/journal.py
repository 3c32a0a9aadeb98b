"""What one silo has promised in one run, in a file that only grows.

A promise is on disk before what it allows is made: a slot is burnt before its mask is
used, and a CONFIRM or REVEAL is fixed before it is signed. Whatever happens to the
silo's other state (a crash between two writes, a folder restored from a backup), the
same request gets the same answer again and another one is refused:

* one promise for each slot and stage, ever: READY for one round and model, MASKED for
  one T3 and one vector, CONFIRM and REVEAL for one list of survivors;
* slots only go up, over all setups of the run;
* after REVEAL of a round no further slot serves that round or an earlier one.

Keep the file apart from the state it guards, so that one backup does not restore both.
Records are 77 bytes::

    stage 1 | setup 4 | slot 4 | round 4 | digest 32 | link 32

``link`` is a digest over the link before it and the record: a record that was changed,
left out or moved is noticed. A last record that was cut off by a crash was never
relied on, and is removed.
"""

import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Self

from crypto import labels
from crypto.encoding import Reader, Writer, digest
from crypto.errors import MalformedMessage, ProtocolViolation
from crypto.secagg.silo_state import SlotProgress

DIGEST_BYTES = 32
RECORD_BYTES = 13 + 2 * DIGEST_BYTES
_JOURNAL_MODE = 0o600


class Stage(IntEnum):
    """The four promises of a slot, in their order."""

    READY = 1
    MASKED = 2
    CONFIRM = 3
    REVEAL = 4


@dataclass(frozen=True)
class Promise:
    """To answer one stage of one slot in one way only."""

    stage: Stage
    setup: int
    slot: int
    round_number: int
    digest: bytes

    def to_bytes(self) -> bytes:
        """Return 45 bytes."""
        writer = Writer().integer(self.stage, 1).integer(self.setup, 4)
        writer.integer(self.slot, 4).integer(self.round_number, 4)
        return writer.fixed(self.digest, DIGEST_BYTES).to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Promise":
        """Parse; ``MalformedMessage`` for a stage that does not exist."""
        reader = Reader(data)
        stage, setup = reader.integer(1), reader.integer(4)
        slot, round_number = reader.integer(4), reader.integer(4)
        if stage not in set(Stage):
            raise MalformedMessage(f"a promise for stage {stage}")
        content = reader.fixed(DIGEST_BYTES)
        return cls(Stage(stage), setup, slot, round_number, content)


class Journal:
    """The promises of one silo in one run.

    Args:
        path: the file; it is made, readable by its owner alone, where it is missing.
            None keeps the promises in memory only, where nothing outlives the process.
        owner: what the journal belongs to, e.g. run and silo.

    Raises:
        MalformedMessage: damaged, or another owner's.
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None, owner: bytes) -> None:
        self._link = digest(labels.JOURNAL, owner)
        self._promises: dict[tuple[int, int, Stage], Promise] = {}
        self._latest = (-1, -1)
        self._revealed_round = 0
        self._descriptor: int | None = None
        if path is not None:
            self._descriptor = _open(path)
            self._read(path)

    def __enter__(self) -> Self:
        """Return the journal."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; no further promise can be made."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def revealed_round(self) -> int:
        """The highest round of which a share was revealed; 0 for none."""
        return self._revealed_round

    def has(self, stage: Stage, setup: int, slot: int) -> bool:
        """Whether a stage of a slot was promised."""
        return (setup, slot, stage) in self._promises

    def promise(self, promise: Promise) -> None:
        """Make a promise; it is on disk when this returns.

        The same promise a second time changes nothing.

        Raises:
            ProtocolViolation: the stage was promised otherwise, the slot is below a
                later one, or a share of the round was revealed.
            OSError: the disk refuses; nothing was promised then.
        """
        key = (promise.setup, promise.slot, promise.stage)
        made = self._promises.get(key)
        if made == promise:
            return
        self._check(promise, made)
        record = promise.to_bytes()
        link = digest(labels.JOURNAL, self._link, record)
        self._append(record + link)
        self._keep(promise, link)

    def _check(self, promise: Promise, made: Promise | None) -> None:
        """Refuse a promise that contradicts those that were made."""
        name = f"{promise.stage.name} in slot {promise.slot}, setup {promise.setup}"
        if made is not None:
            raise ProtocolViolation(f"{name}: was promised otherwise")
        if (promise.setup, promise.slot) < self._latest:
            raise ProtocolViolation(
                f"{name}: is spent, slot {self._latest[1]} of setup {self._latest[0]} "
                "has begun"
            )
        is_new_slot = promise.stage == Stage.READY
        if is_new_slot and promise.round_number <= self._revealed_round:
            raise ProtocolViolation(
                f"round {promise.round_number}: shares of round "
                f"{self._revealed_round} have been revealed, no further slot serves it"
            )

    def _keep(self, promise: Promise, link: bytes) -> None:
        """Remember a promise that is on disk."""
        self._link = link
        self._promises[promise.setup, promise.slot, promise.stage] = promise
        self._latest = max(self._latest, (promise.setup, promise.slot))
        if promise.stage == Stage.REVEAL:
            self._revealed_round = max(self._revealed_round, promise.round_number)

    def _append(self, record: bytes) -> None:
        """Write a record behind the last whole one, and wait for the disk."""
        if self._descriptor is None:
            return
        offset = len(self._promises) * RECORD_BYTES
        if os.pwrite(self._descriptor, record, offset) != len(record):
            raise OSError("the journal could not be written whole")
        os.fsync(self._descriptor)

    def _read(self, path: Path) -> None:
        """Read every whole record; what a crash cut off is removed."""
        data = path.read_bytes()
        whole = len(data) - len(data) % RECORD_BYTES
        if whole and not any(data[whole - RECORD_BYTES : whole]):
            whole -= RECORD_BYTES  # The file grew, but the record never arrived.
        for start in range(0, whole, RECORD_BYTES):
            record = data[start : start + RECORD_BYTES]
            body, link = record[:-DIGEST_BYTES], record[-DIGEST_BYTES:]
            if digest(labels.JOURNAL, self._link, body) != link:
                raise MalformedMessage(
                    f"{path}: record {start // RECORD_BYTES + 1} is damaged, or the "
                    "journal belongs to another run or silo"
                )
            self._keep(Promise.from_bytes(body), link)
        if self._descriptor is not None and whole < len(data):
            os.ftruncate(self._descriptor, whole)
            os.fsync(self._descriptor)


def check_journal(journal: Journal, setup: int, progress: SlotProgress | None) -> None:
    """Refuse a journal that lacks what a slot's state says was promised.

    Raises:
        MalformedMessage: naming stage and slot.
    """
    if progress is None:
        return
    reached = {
        Stage.READY: True,
        Stage.MASKED: bool(progress.slot_digest),
        Stage.REVEAL: bool(progress.reveal),
    }
    for stage, is_reached in reached.items():
        if is_reached and not journal.has(stage, setup, progress.slot):
            raise MalformedMessage(
                f"the journal lacks {stage.name} of slot {progress.slot}, setup "
                f"{setup}: it is older than the saved state"
            )


def _open(path: Path) -> int:
    """Return a descriptor of the file, whose name is on disk too."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(path, flags, _JOURNAL_MODE)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return descriptor
