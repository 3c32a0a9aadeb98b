"""The transcript: a party's signed, append-only evidence of a run.

A transcript is a folder with two files. ``transcript.jsonl`` holds one record a line,
in canonical form: ``{"body":…,"index":…,"kind":…,"time":…}``. The lines are the leaves
of an RFC 6962 Merkle tree. ``heads.txt`` holds signed heads (``protocol.heads``): size
and root of the tree at some moment, each a signed note of five lines with an empty one
behind it. A head commits to every record before it, so that none can be altered,
removed, swapped or inserted; the heads that other parties were shown keep the tail from
being cut off.
"""

import io
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from crypto.keys import IdentityKey
from crypto.merkle import ProvingTree
from protocol import heads
from protocol.encoding import decode, encode, from_table, to_table
from protocol.errors import EncodingError, TranscriptBroken
from protocol.files import sync_folder
from protocol.heads import NOTE_LINES, Head, ShownHead
from protocol.records import RECORD_KINDS, Record

RECORDS_FILE = "transcript.jsonl"
HEADS_FILE = "heads.txt"
MAX_LINE_BYTES = 1 << 20
MAX_NOTE_LINE_BYTES = 1 << 9
"""Of a head; its longest lines hold the digest of the plan and a name."""


@dataclass(frozen=True)
class Entry:
    """One record of a transcript with its place, its time (UTC), and its bytes."""

    index: int
    time: str
    record: Record
    line: bytes


class TranscriptWriter:
    """Appends records to a transcript and signs heads. One writer at a time.

    Guarantees: a head is signed only over records that are on disk (``fsync``). After
    a crash the transcript is continued from its last whole line; the last signed head
    must still hold, or it is refused.

    Raises:
        TranscriptBroken: the files do not match each other.
    """

    def __init__(
        self,
        folder: Path,
        *,
        party: str,
        plan_digest: bytes,
        identity: IdentityKey,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._party, self._plan_digest = party, plan_digest
        self._identity, self._clock = identity, clock
        folder.mkdir(parents=True, exist_ok=True)
        self._tree, self._signed = _continue_tree(
            folder, party, plan_digest, identity.public
        )
        self._records = (folder / RECORDS_FILE).open("ab", buffering=0)
        self._heads = (folder / HEADS_FILE).open("ab", buffering=0)
        sync_folder(folder)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self.close()

    @property
    def size(self) -> int:
        """The number of records."""
        return self._tree.size

    @property
    def is_signed(self) -> bool:
        """Whether the last head covers every record."""
        return self._signed == self.size

    def append(self, record: Record) -> None:
        """Write one record at the end, whole or not at all.

        Raises:
            OSError: the file system refuses, as when the disk is full; the transcript
                stands as before.
        """
        line = encode(
            {
                "index": self._tree.size,
                "time": _utc(self._clock()),
                "kind": record.kind,
                "body": to_table(record),
            }
        )
        if len(line) > MAX_LINE_BYTES:
            raise TranscriptBroken(f"a record of {len(line):,} bytes is too large")
        _write_whole(self._records, line + b"\n")
        self._tree.append(line)

    def sync(self) -> None:
        """Return when all records are on disk."""
        os.fsync(self._records.fileno())

    def sign_head(self) -> Head:
        """Sign the tree as it stands, once its records are on disk."""
        os.fsync(self._records.fileno())
        head = heads.sign(
            self._identity,
            self._plan_digest,
            self._party,
            self._tree.size,
            self._tree.root(),
        )
        note = head.to_note(self._plan_digest, self._identity.public)
        _write_whole(self._heads, f"{note}\n".encode())
        os.fsync(self._heads.fileno())
        self._signed = head.size
        return head

    def show(self, head: Head, old_size: int) -> ShownHead:
        """Return a head of this transcript for who has seen its first records, or none.

        Raises:
            ValueError: the transcript, or the head, is shorter than what was seen.
        """
        proof = self._tree.consistency_proof(old_size, head.size) if old_size else ()
        return ShownHead(head=head, old_size=old_size, proof=tuple(proof))

    def close(self) -> None:
        """Close the files; nothing is signed."""
        self._records.close()
        self._heads.close()


def read_records(folder: Path) -> Iterator[Entry]:
    """Yield a transcript's records in order, in bounded memory.

    Raises:
        TranscriptBroken: a line is malformed, not canonical, out of order, of an
            unknown kind, or cut off; the message names the file and line.
    """
    path = folder / RECORDS_FILE
    for index, line in enumerate(_lines(path)):
        try:
            yield _parse(index, line)
        except EncodingError as error:
            raise TranscriptBroken(f"{path.name}, record {index}: {error}") from None


def read_heads(folder: Path) -> Iterator[Head]:
    """Yield a transcript's signed heads in order; signatures are not verified.

    Raises:
        TranscriptBroken: a head is malformed.
    """
    for head, _ in read_notes(folder):
        yield head


def read_notes(folder: Path) -> Iterator[tuple[Head, str]]:
    """Yield a transcript's heads, each with its note as it stands in the file.

    A note holds names that a head does not: compare it with :meth:`Head.to_note`.

    Raises:
        TranscriptBroken: a head is malformed.
    """
    path = folder / HEADS_FILE
    lines = _lines(path, MAX_NOTE_LINE_BYTES)
    for number in itertools.count():
        found = list(itertools.islice(lines, NOTE_LINES + 1))
        if not found:
            return
        try:
            yield _parse_note(found)
        except EncodingError as error:
            raise TranscriptBroken(f"{path.name}, head {number}: {error}") from None


def _parse_note(lines: list[bytes]) -> tuple[Head, str]:
    """Return the head of six lines, of which the last is empty."""
    if len(lines) != NOTE_LINES + 1 or lines[-1]:
        raise EncodingError("must be a note and an empty line")
    try:
        note = b"".join(line + b"\n" for line in lines[:-1]).decode()
    except UnicodeDecodeError:
        raise EncodingError("is not UTF-8") from None
    return Head.from_note(note), note


def _parse(index: int, line: bytes) -> Entry:
    """Return the entry of one line."""
    table = decode(line)
    if not isinstance(table, dict) or set(table) != {"index", "time", "kind", "body"}:
        raise EncodingError("must hold exactly index, time, kind and body")
    if type(table["index"]) is not int or table["index"] != index:
        raise EncodingError(f"says it is record {table['index']!r:.20}")
    if not isinstance(table["time"], str):
        raise EncodingError("its time is not text")
    kind = RECORD_KINDS.get(str(table["kind"]))
    if kind is None:
        raise EncodingError(f"unknown kind {table['kind']!r:.40}")
    record: Record = from_table(kind, table["body"])
    return Entry(index, table["time"], record, line)


def _lines(path: Path, max_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """Yield the lines of a file without their ends; refuse one without an end."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise TranscriptBroken(f"{path}: {error.strerror}") from None
    with file:
        number = 0
        while line := file.readline(max_bytes + 1):
            if not line.endswith(b"\n"):
                raise TranscriptBroken(f"{path.name}, line {number}: is cut off")
            yield line[:-1]
            number += 1


def _continue_tree(
    folder: Path, party: str, plan_digest: bytes, public_key: bytes
) -> tuple[ProvingTree, int]:
    """Return the tree of a transcript that may exist, and the size last signed.

    A torn end of a file is removed.
    """
    records, notes = folder / RECORDS_FILE, folder / HEADS_FILE
    for path, cut in ((records, _cut_torn_line), (notes, _cut_torn_note)):
        path.touch()
        cut(path)
    last, note = next(iter(deque(read_notes(folder), maxlen=1)), (None, ""))
    tree = ProvingTree()
    for entry in read_records(folder):
        tree.append(entry.line)
        if last and tree.size == last.size and tree.root().hex() != last.root:
            raise TranscriptBroken(f"{records}: differs from its last signed head")
    if last:
        last.check(plan_digest, public_key)
        is_own = last.party == party and note == last.to_note(plan_digest, public_key)
        if not is_own or tree.size < last.size:
            raise TranscriptBroken(
                f"{records}: {tree.size} records, but the last head signed {last.size}"
            )
    return tree, last.size if last else 0


def _write_whole(file: io.FileIO, data: bytes) -> None:
    """Write at the end of an unbuffered file, whole or not at all."""
    end = os.fstat(file.fileno()).st_size
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except BaseException:
        file.truncate(end)
        raise


def _cut_torn_line(path: Path) -> None:
    """Remove the end of a file that a crash left without its line end."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - MAX_LINE_BYTES - 1)
        file.seek(start)
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)


def _cut_torn_note(path: Path) -> None:
    """Remove the end of a file that a crash left without the last lines of a note."""
    with path.open("rb+") as file:
        whole, lines = 0, 0
        while file.readline(MAX_NOTE_LINE_BYTES).endswith(b"\n"):
            lines += 1
            if lines % (NOTE_LINES + 1) == 0:
                whole = file.tell()
        if file.read(1) == b"":
            file.truncate(whole)


def _utc(seconds: float) -> str:
    """Return a moment as text, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
