"""What one silo has promised in one run, in a file that only grows.

A promise is on disk before what it allows is made: a slot is burnt before its mask is
used, and a CONFIRM or REVEAL is fixed before it is signed. Whatever happens to the
silo's other state (a crash between two writes, a folder restored from a backup), the
same request gets the same answer again and another one is refused:

* one promise for each slot and stage, ever: READY for one round and model, MASKED for
  one T3 and one vector, CONFIRM and REVEAL for one list of survivors;
* slots only go up, over all setups of the run;
* after REVEAL or SUM of a round no further slot serves that round or an earlier one;
  with encryption neither does any after CONFIRM;
* after a ciphertext was refused no further slot of its setup is served: the key that
  opens it is used no more.

Keep the file apart from the state it guards, so that one backup does not restore both.
It begins with 32 random bytes; records are 77 bytes::

    stage 1 | setup 4 | slot 4 | round 4 | digest 32 | link 32

``link`` is a digest over the link before it and the record: a record that was changed,
left out or moved is noticed. The state holds the last link of its time, so that a
journal that is older than the state, or was begun anew, is noticed too. A last record
that was cut off by a crash was never relied on, and is removed.
"""

import errno
import fcntl
import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Self

from crypto import labels
from crypto.encoding import Reader, Writer, digest
from crypto.errors import MalformedMessage, ProtocolViolation

DIGEST_BYTES = 32
NAME_BYTES = 32
RECORD_BYTES = 13 + 2 * DIGEST_BYTES
SECTOR_BYTES = 512
"""What a disk writes whole; of a record across two, the second may be missing."""
NO_ROUND = -1
"""Below every round: 0 is what is summed before the first one."""
_JOURNAL_MODE = 0o600


class Stage(IntEnum):
    """The promises of a slot, in their order. SUM ends its round for this silo.

    ``ONE_CONFIRM`` stands in for CONFIRM with encryption: one list for the whole round,
    since a single silo is enough to open the sum over a list that was confirmed.
    ``REFUSED`` is the end of a setup for this silo: what it was to decrypt was not the
    confirmed sum.
    """

    READY = 1
    MASKED = 2
    CONFIRM = 3
    REVEAL = 4
    SUM = 5
    ONE_CONFIRM = 6
    REFUSED = 7


CLOSING = (Stage.REVEAL, Stage.SUM, Stage.ONE_CONFIRM)
"""After these no further slot serves the round."""


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
        path: the file; it is made, readable by its owner alone, where it is missing,
            and held by one journal at a time. None keeps the promises in memory only,
            where nothing outlives the process.
        owner: what the journal belongs to, e.g. run and silo.
        may_begin: whether the journal may be one that holds nothing yet.

    Raises:
        MalformedMessage: damaged, another owner's, or empty where it may not be.
        OSError: the file cannot be read or written, or another process holds it.
    """

    def __init__(
        self, path: Path | None, owner: bytes, *, may_begin: bool = True
    ) -> None:
        self._owner = owner
        self._promises: dict[tuple[int, int, Stage], Promise] = {}
        self._latest = (-1, -1)
        self._closed_round = NO_ROUND
        self._refused: set[int] = set()
        self._descriptor: int | None = None
        if path is None:
            self._begin(os.urandom(NAME_BYTES))
            return
        self._descriptor = _open(path)
        try:
            self._read(self._descriptor, path, may_begin)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return the journal."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; no further promise can be made. Closed again, stays so."""
        if self._descriptor is not None and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def closed_round(self) -> int:
        """The highest round that no further slot serves; ``NO_ROUND`` for none."""
        return self._closed_round

    @property
    def link(self) -> bytes:
        """The link of the last promise: it stands for the journal up to now."""
        return self._link

    def check_link(self, link: bytes) -> None:
        """Return if this journal, now or at an earlier time, had a last link.

        Raises:
            MalformedMessage: it never had.
        """
        if link not in self._links:
            raise MalformedMessage(
                "the journal is older than the saved state, or another one"
            )

    def has(self, stage: Stage, setup: int, slot: int) -> bool:
        """Whether a stage of a slot was promised."""
        return (setup, slot, stage) in self._promises

    def has_refused(self, setup: int) -> bool:
        """Whether a ciphertext was refused in a setup."""
        return setup in self._refused

    def promise(self, promise: Promise) -> None:
        """Make a promise; it is on disk when this returns.

        The same promise a second time changes nothing.

        Raises:
            ProtocolViolation: the stage was promised otherwise, the slot is below a
                later one, or its round or setup is closed.
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
        if is_new_slot and promise.round_number <= self._closed_round:
            raise ProtocolViolation(
                f"round {promise.round_number}: shares of round {self._closed_round} "
                "were revealed, its only list of survivors confirmed, or its sum "
                "announced; no further slot serves it"
            )
        if is_new_slot and self.has_refused(promise.setup):
            raise ProtocolViolation(
                f"setup {promise.setup}: a ciphertext was refused in it; no further "
                "slot uses its key"
            )

    def _begin(self, name: bytes) -> None:
        """Start the chain of links with the journal's name."""
        self._name = name
        self._link = digest(labels.JOURNAL, self._owner, name)
        self._links = {self._link}

    def _keep(self, promise: Promise, link: bytes) -> None:
        """Remember a promise that is on disk."""
        self._link = link
        self._links.add(link)
        self._promises[promise.setup, promise.slot, promise.stage] = promise
        self._latest = max(self._latest, (promise.setup, promise.slot))
        if promise.stage in CLOSING:
            self._closed_round = max(self._closed_round, promise.round_number)
        if promise.stage == Stage.REFUSED:
            self._refused.add(promise.setup)

    def _append(self, record: bytes) -> None:
        """Write a record behind the last whole one, and wait for the disk."""
        self._write(record, NAME_BYTES + len(self._promises) * RECORD_BYTES)

    def _write(self, data: bytes, offset: int) -> None:
        """Write at a place, and wait for the disk."""
        if self._descriptor is None:
            return
        if os.pwrite(self._descriptor, data, offset) != len(data):
            raise OSError("the journal could not be written whole")
        os.fsync(self._descriptor)

    def _read(self, descriptor: int, path: Path, may_begin: bool) -> None:
        """Read every whole record; what a crash cut off is removed."""
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, size, 0)
        if len(data) < NAME_BYTES or not any(data):
            if not may_begin:
                raise MalformedMessage(f"{path}: is empty")
            data = os.urandom(NAME_BYTES)
            self._write(data, 0)
        self._begin(data[:NAME_BYTES])
        end = NAME_BYTES
        while end + RECORD_BYTES <= len(data):
            record = data[end : end + RECORD_BYTES]
            body, link = record[:-DIGEST_BYTES], record[-DIGEST_BYTES:]
            if digest(labels.JOURNAL, self._link, body) != link:
                if end + 2 * RECORD_BYTES > len(data) and _is_torn(record, end):
                    break
                number = len(self._promises) + 1
                raise MalformedMessage(
                    f"{path}: record {number} is damaged, or the journal belongs to "
                    "another run or silo"
                )
            self._keep(Promise.from_bytes(body), link)
            end += RECORD_BYTES
        if end < size:
            os.ftruncate(descriptor, end)
        os.fsync(descriptor)  # What a killed process wrote may not be on disk yet.


def _is_torn(record: bytes, offset: int) -> bool:
    """Whether the last record never arrived whole: its piece in a sector is zeros.

    The file grew, but not all of its sectors were written before the power failed.
    """
    edge = -offset % SECTOR_BYTES
    pieces = (record[:edge], record[edge:]) if edge < len(record) else (record,)
    return any(piece and not any(piece) for piece in pieces)


def _open(path: Path) -> int:
    """Return a descriptor of the file, held by nobody else; its name is on disk too.

    Raises:
        OSError: it cannot be opened, or another process holds it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(path, flags, _JOURNAL_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BlockingIOError:
        os.close(descriptor)
        raise BlockingIOError(
            errno.EWOULDBLOCK, "another process holds this journal", str(path)
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
