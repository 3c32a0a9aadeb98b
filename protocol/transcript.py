"""The transcript: a party's signed, append-only evidence of a run.

A transcript is a folder with two files. ``transcript.jsonl`` holds one record a line,
in canonical form: ``{"body":…,"index":…,"kind":…,"time":…}``. The lines are the leaves
of an RFC 6962 Merkle tree. ``heads.jsonl`` holds signed heads: size and root of the
tree at some moment, under the party's identity key and the digest of the plan. A head
commits to every record before it, so that none can be altered, removed, swapped or
inserted; the heads that other parties were shown keep the tail from being cut off.
"""

import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from crypto import labels
from crypto.encoding import BytesLike
from crypto.errors import InvalidSignature
from crypto.keys import IdentityKey
from crypto.merkle import HASH_BYTES, MerkleTree
from crypto.signatures import SIGNATURE_BYTES, sign, verify
from protocol.encoding import decode, encode, from_table, to_table
from protocol.errors import EncodingError, TranscriptBroken
from protocol.files import sync_folder
from protocol.records import RECORD_KINDS, Record

RECORDS_FILE = "transcript.jsonl"
HEADS_FILE = "heads.jsonl"
MAX_LINE_BYTES = 1 << 20
HEAD_BYTES = 8 + HASH_BYTES + SIGNATURE_BYTES


@dataclass(frozen=True, kw_only=True)
class Head:
    """A signed head: the first ``size`` records have this root (hexadecimal)."""

    party: str
    size: int
    root: str
    signature: str

    def check(self, plan_digest: bytes, public_key: bytes) -> None:
        """Raise :class:`TranscriptBroken` unless the party signed this head."""
        message = _head_bytes(plan_digest, self.party, self.size, self.root)
        try:
            signature = bytes.fromhex(self.signature)
            if signature.hex() != self.signature:
                raise ValueError("not the one way to write these bytes")
            verify(public_key, labels.TRANSCRIPT_HEAD, message, signature)
        except (InvalidSignature, ValueError):
            raise TranscriptBroken(
                f"head of {self.party} at size {self.size}: wrong signature"
            ) from None

    def to_bytes(self) -> bytes:
        """Return size (8 bytes, big-endian), root and signature: what messages hold.

        Always :data:`HEAD_BYTES`, so that the length of a message tells nothing.
        """
        return b"".join(
            (
                self.size.to_bytes(8, "big"),
                bytes.fromhex(self.root),
                bytes.fromhex(self.signature),
            )
        )

    @classmethod
    def from_bytes(cls, data: BytesLike, party: str) -> "Head":
        """Return a party's head of a message; its signature is not verified here.

        Raises:
            ValueError: another length, or a size of 2^63 or more.
        """
        content = bytes(data)
        if len(content) != HEAD_BYTES:
            raise ValueError(f"a head of {len(content)} bytes, expected {HEAD_BYTES}")
        size = int.from_bytes(content[:8], "big")
        if size >> 63:
            raise ValueError("a head's size must be 0 to 2^63 - 1")
        root, signature = content[8 : 8 + HASH_BYTES], content[8 + HASH_BYTES :]
        return cls(party=party, size=size, root=root.hex(), signature=signature.hex())


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
        self._tree = _continue_tree(folder, party, plan_digest, identity.public)
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
        _write_line(self._records, line)
        self._tree.append(line)

    def sync(self) -> None:
        """Return when all records are on disk."""
        os.fsync(self._records.fileno())

    def sign_head(self) -> Head:
        """Sign the tree as it stands, once its records are on disk."""
        os.fsync(self._records.fileno())
        size, root = self._tree.size, self._tree.root().hex()
        message = _head_bytes(self._plan_digest, self._party, size, root)
        signature = sign(self._identity, labels.TRANSCRIPT_HEAD, message)
        head = Head(party=self._party, size=size, root=root, signature=signature.hex())
        _write_line(self._heads, encode(to_table(head)))
        os.fsync(self._heads.fileno())
        return head

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
        TranscriptBroken: a line is malformed.
    """
    path = folder / HEADS_FILE
    for index, line in enumerate(_lines(path)):
        try:
            yield from_table(Head, decode(line))
        except EncodingError as error:
            raise TranscriptBroken(f"{path.name}, head {index}: {error}") from None


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


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file without their ends; refuse one without an end."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise TranscriptBroken(f"{path}: {error.strerror}") from None
    with file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            if not line.endswith(b"\n"):
                raise TranscriptBroken(f"{path.name}, line {number}: is cut off")
            yield line[:-1]
            number += 1


def _continue_tree(
    folder: Path, party: str, plan_digest: bytes, public_key: bytes
) -> MerkleTree:
    """Return the tree of a transcript that may exist, a torn last line removed."""
    records, heads = folder / RECORDS_FILE, folder / HEADS_FILE
    for path in (records, heads):
        path.touch()
        _cut_torn_line(path)
    signed = list(read_heads(folder))
    last = signed[-1] if signed else None
    tree = MerkleTree()
    for entry in read_records(folder):
        tree.append(entry.line)
        if last and tree.size == last.size and tree.root().hex() != last.root:
            raise TranscriptBroken(f"{records}: differs from its last signed head")
    if last:
        last.check(plan_digest, public_key)
        if last.party != party or tree.size < last.size:
            raise TranscriptBroken(
                f"{records}: {tree.size} records, but the last head signed {last.size}"
            )
    return tree


def _write_line(file: io.FileIO, line: bytes) -> None:
    """Write a line at the end of an unbuffered file, whole or not at all."""
    end = os.fstat(file.fileno()).st_size
    rest = memoryview(line + b"\n")
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


def _head_bytes(plan_digest: bytes, party: str, size: int, root: str) -> bytes:
    """Return the canonical bytes that a head's signature covers."""
    return encode([plan_digest.hex(), party, size, root])


def _utc(seconds: float) -> str:
    """Return a moment as text, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
