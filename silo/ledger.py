"""A privacy ledger: what a silo's mechanisms released in one run, signed and chained.

::

    ledgers/
      tags.key              key of the units' tags; never leaves, never replaced
      <ledger>/             appears whole (temporary folder, rename), mode 0700
        tags                the units' tags (silo/tags.py)
        ledger.jsonl        one entry a line, appended

A line is canonical JSON, ``{"body":…,"index":…,"kind":…,"previous":…,"signature":…,
"time":…}``: ``previous`` is the SHA-256 of the line before (zeros in the first),
``signature`` the silo's own over the line without it. So no entry can be changed, left
out or moved, and a folder not be taken for another. That lines are missing at the end
shows only beside a head that was kept elsewhere: :meth:`LedgerContent.contains`.

An append returns when its line is on disk. A last line that was cut off by a crash was
never on disk by that rule, so nothing can depend on it, and it is removed; any other
damage is :class:`LedgerBroken`.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from crypto import labels
from crypto.encoding import BytesLike
from crypto.errors import InvalidSignature
from crypto.keys import IdentityKey
from crypto.signatures import sign, verify
from protocol.encoding import decode, encode, from_table, to_table
from protocol.errors import EncodingError
from protocol.files import check_secret, load_secret, save_secret, whole_folder
from silo.entries import ENTRY_KINDS, Entry, Opened, Spending
from silo.entries import LedgerHead as LedgerHead
from silo.errors import SiloError
from silo.tags import Tags, commitment, load_tags, save_tags

ENTRIES_FILE = "ledger.jsonl"
TAGS_FILE = "tags"
MAX_LINE_BYTES = 1 << 20
FIRST_LINK = bytes(32).hex()
_FIELDS = {"body", "index", "kind", "previous", "signature", "time"}


class LedgerBroken(SiloError):
    """A ledger that was edited, cut off, or belongs to others; nothing is trained."""


@dataclass(frozen=True)
class LedgerContent:
    """The entries of a ledger, and the SHA-256 of each line in hexadecimal."""

    name: str
    entries: tuple[Entry, ...]
    digests: tuple[str, ...]

    @property
    def opened(self) -> Opened:
        """The first entry."""
        first = self.entries[0]
        assert isinstance(first, Opened)  # noqa: S101 - every reader has checked it.
        return first

    @property
    def head(self) -> LedgerHead:
        """The number of entries and the digest of the last."""
        return LedgerHead(size=len(self.digests), digest=self.digests[-1])

    @cached_property
    def spending(self) -> Spending:
        """What the entries come to."""
        return Spending.of(self.entries)

    def contains(self, head: LedgerHead) -> bool:
        """Return whether the ledger now, or at an earlier time, had this head."""
        if head.size == 0:
            return head.digest == FIRST_LINK
        return (
            0 < head.size <= len(self.digests)
            and self.digests[head.size - 1] == head.digest
        )


class Ledger:
    """One run's ledger, held by one process at a time, to append to.

    Raises:
        LedgerBroken: damaged, of another silo, or held by another process.
        KeyFileRejected: others may read it.
        OSError: the file system refuses.
    """

    def __init__(
        self,
        folder: Path,
        identity: IdentityKey,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identity, self._clock = identity, clock
        path = folder / ENTRIES_FILE
        check_present(folder)
        check_secret(path)
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = os.pread(self._file, os.fstat(self._file).st_size, 0)
            whole = _without_torn_line(data)
            self.content = _parse(folder.name, whole, identity.public)
            if len(whole) < len(data):
                os.ftruncate(self._file, len(whole))
            os.fsync(self._file)  # What a killed process wrote may not be on disk yet.
        except BlockingIOError:
            self.close()
            raise LedgerBroken(f"{path}: another process holds it") from None
        except BaseException:
            self.close()
            raise
        self._size = len(whole)

    def __enter__(self) -> Self:
        """Return the ledger."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; nothing more is appended. Closed again, it stays so."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def append(self, entry: Entry) -> LedgerHead:
        """Write an entry at the end; it is on disk when this returns.

        Returns:
            The head of the ledger with it.

        Raises:
            ValueError: the entry does not fit what came before; nothing is written.
            OSError: the disk refuses. The ledger must be opened anew then: whether the
                entry is in it shows only on reading, and it counts if it is.
        """
        content = self.content
        spending = content.spending.after(entry)
        line = _make_line(
            entry, content.head, _utc(self._clock()), identity=self._identity
        )
        try:
            if os.pwrite(self._file, line + b"\n", self._size) != len(line) + 1:
                raise OSError("the ledger could not be written whole")
            os.fsync(self._file)
        except OSError:
            self.close()
            raise
        self._size += len(line) + 1
        self.content = LedgerContent(
            content.name,
            (*content.entries, entry),
            (*content.digests, hashlib.sha256(line).hexdigest()),
        )
        self.content.__dict__["spending"] = spending
        return self.content.head


def make_ledger(
    folder: Path,
    identity: IdentityKey,
    opened: Opened,
    tags: Tags,
    *,
    clock: Callable[[], float] = time.time,
) -> None:
    """Make a ledger that holds its first entry and the tags, whole or not at all.

    Raises:
        OSError: the file system refuses, or the ledger exists.
    """
    before = LedgerHead(size=0, digest=FIRST_LINK)
    line = _make_line(opened, before, _utc(clock()), identity=identity)
    with whole_folder(folder) as partial:
        save_tags(partial / TAGS_FILE, tags)
        save_secret(partial / ENTRIES_FILE, line + b"\n")


def load_ledger(folder: Path, public: bytes) -> LedgerContent:
    """Return what a ledger holds that another process may be appending to.

    Raises:
        LedgerBroken: damaged, or of another silo.
        KeyFileRejected: others may read it.
    """
    check_present(folder)
    data = _without_torn_line(load_secret(folder / ENTRIES_FILE))
    return _parse(folder.name, data, public)


def load_ledger_tags(folder: Path, opened: Opened) -> Tags:
    """Return the tags of a ledger's units.

    Raises:
        LedgerBroken: they are not those that the ledger is committed to.
        StateBroken, KeyFileRejected: the file cannot be used.
    """
    tags = load_tags(folder / TAGS_FILE)
    if commitment(tags, bytes.fromhex(opened.nonce)).hex() != opened.commitment:
        raise LedgerBroken(f"{folder / TAGS_FILE}: the ledger is committed to others")
    return tags


def check_present(folder: Path) -> None:
    """Raise :class:`LedgerBroken` unless both files of a ledger are there."""
    for name in (TAGS_FILE, ENTRIES_FILE):
        if not (folder / name).is_file():
            raise LedgerBroken(f"{folder / name}: is missing")


def _make_line(
    entry: Entry, before: LedgerHead, moment: str, *, identity: IdentityKey
) -> bytes:
    """Return the signed line of an entry, without its end."""
    table = {
        "index": before.size,
        "previous": before.digest,
        "time": moment,
        "kind": entry.kind,
        "body": to_table(entry),
    }
    signature = sign(identity, labels.LEDGER_ENTRY, encode(table))
    return encode(table | {"signature": signature.hex()})


def _parse(name: str, data: BytesLike, public: bytes) -> LedgerContent:
    """Return the entries of whole lines, each verified.

    Raises:
        LedgerBroken: the message names the ledger and the entry.
    """
    entries: list[Entry] = []
    digests: list[str] = []
    spending = Spending()
    for line in bytes(data).split(b"\n")[:-1]:
        previous = digests[-1] if digests else FIRST_LINK
        try:
            entry = _parse_line(line, len(entries), previous, public)
            spending = spending.after(entry)
        except (EncodingError, InvalidSignature, ValueError) as error:
            raise LedgerBroken(
                f"ledger {name}, entry {len(entries)}: {error}"
            ) from None
        entries.append(entry)
        digests.append(hashlib.sha256(line).hexdigest())
    if not entries:
        raise LedgerBroken(f"ledger {name}: is empty or was cut off")
    content = LedgerContent(name, tuple(entries), tuple(digests))
    if content.opened.ledger != name:
        raise LedgerBroken(f"ledger {name}: was made as {content.opened.ledger!r:.100}")
    content.__dict__["spending"] = spending
    return content


def _parse_line(line: bytes, index: int, previous: str, public: bytes) -> Entry:
    """Return the entry of one line, its place, chain and signature verified."""
    if len(line) > MAX_LINE_BYTES:
        raise EncodingError(f"{len(line):,} bytes are too many")
    table = decode(line)
    if not isinstance(table, dict) or set(table) != _FIELDS:
        raise EncodingError(f"must hold exactly {', '.join(sorted(_FIELDS))}")
    if type(table["index"]) is not int or table["index"] != index:
        raise EncodingError(f"says it is entry {table['index']!r:.20}")
    if table["previous"] != previous:
        raise EncodingError("does not follow the entry before it")
    kind = ENTRY_KINDS.get(str(table["kind"]))
    if kind is None:
        raise EncodingError(f"unknown kind {table['kind']!r:.40}")
    signature = bytes.fromhex(str(table.pop("signature")))
    verify(public, labels.LEDGER_ENTRY, encode(table), signature)
    entry: Entry = from_table(kind, table["body"])
    return entry


def _without_torn_line(data: bytes) -> bytes:
    """Return the lines that were written whole.

    A crash while a line was appended leaves part of it: no line end, or zeros where a
    sector was never written (canonical JSON holds none). Only the last line can be so;
    the first one came with its folder, whole.
    """
    end = data.rfind(b"\n") + 1
    start = data.rfind(b"\n", 0, max(0, end - 1)) + 1
    if 0 < start < end and b"\0" in data[start:end]:
        return data[:start]
    return data[:end]


def _utc(seconds: float) -> str:
    """Return a moment as text, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
