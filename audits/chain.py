"""One transcript against its own signed heads, in one pass.

Memory does not grow with the number of records: the tree keeps its right edge only,
heads are read one by one beside the records they sign.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from audits.evidence import Transcript
from audits.findings import Finding, count, fail, passed, warn
from crypto.merkle import EMPTY_ROOT, MerkleTree
from protocol.errors import TranscriptBroken
from protocol.heads import Head
from protocol.transcript import (
    HEADS_FILE,
    MAX_LINE_BYTES,
    RECORDS_FILE,
    Entry,
    read_notes,
    read_records,
)


@dataclass(frozen=True)
class Chain:
    """What one pass over a transcript showed.

    ``held`` is the size at the last head that was signed and had the right root: the
    records before it are what the party signed. ``num_records`` is what could be read.
    ``intact`` says whether nothing contradicted the heads.
    """

    num_records: int
    held: int
    intact: bool
    readable: bool
    findings: tuple[Finding, ...]


def walk(
    transcript: Transcript,
    plan_digest: bytes,
    public_key: bytes,
    add: Callable[[Entry], None],
    mark: Callable[[int, str], None],
) -> Chain:
    """Read a transcript once, and compare it with its heads.

    Args:
        transcript: where it lies, and whose it is.
        plan_digest: what its heads must be signed for.
        public_key: the party's identity key in the plan.
        add: receives every record that can be read, in order.
        mark: receives size and time at every head that held.
    """
    party, folder = transcript.party, transcript.folder
    tree, broken = MerkleTree(), ""
    heads = _Heads(transcript, plan_digest, public_key)
    try:
        for entry in read_records(folder):
            tree.append(entry.line)
            add(entry)
            if heads.compare(tree):
                mark(tree.size, entry.time)
    except TranscriptBroken as error:
        broken = (
            f"{RECORDS_FILE} is missing"
            if not (folder / RECORDS_FILE).is_file()
            else f"{error}{_explain(folder / RECORDS_FILE, tree.size)}"
        )
    heads.finish(tree.size, readable=not broken)
    findings = [
        *_records_findings(party, heads, tree.size, broken),
        *heads.signature_findings(),
    ]
    intact = not broken and heads.mismatch is None and not heads.beyond
    return Chain(tree.size, heads.held, intact, not broken, tuple(findings))


class _Heads:
    """Compares the signed heads of a transcript with its tree as it grows."""

    def __init__(self, transcript: Transcript, digest: bytes, public: bytes) -> None:
        self._transcript, self._digest, self._public = transcript, digest, public
        self._heads = self._numbered()
        self._note = ""
        self.held = 0
        self.mismatch: int | None = None
        self.beyond = 0
        self.num_heads = 0
        self.largest = 0
        self.unsigned: list[int] = []
        self.trouble = ""
        self._next = next(self._heads, None)

    def compare(self, tree: MerkleTree) -> bool:
        """Check the heads over exactly these records; say whether one held."""
        held = False
        while self._next is not None and self._next.size <= tree.size:
            held = self._check(self._next, tree) or held
            self._next = next(self._heads, None)
        return held

    def finish(self, size: int, *, readable: bool) -> None:
        """Take in the heads over more records than were read."""
        while self._next is not None:
            if self._is_signed(self._next) and readable:
                self.beyond = max(self.beyond, self._next.size)
            self._next = next(self._heads, None)

    def signature_findings(self) -> list[Finding]:
        """Return what is to be said of the heads themselves."""
        party = self._transcript.party
        found = []
        if self.trouble:
            found.append(fail("signatures", f"{party}: {self.trouble}.", party=party))
        if self.unsigned:
            shown = ", ".join(map(str, self.unsigned[:8]))
            found.append(
                fail(
                    "signatures",
                    f"{len(self.unsigned):,} of {count(self.num_heads, 'head')} of "
                    f"{party} are not signed by the key that the plan names for it, "
                    "or not for this plan.",
                    f"{HEADS_FILE}, heads {shown}",
                    party=party,
                )
            )
        if not self.largest and not self.trouble:
            over = "over any record" if self.num_heads else "at all"
            found.append(
                fail("signatures", f"{party} signed no head {over}.", party=party)
            )
        return found or [
            passed(
                "signatures",
                f"{party}: {count(self.num_heads, 'head')} signed by its key, for "
                "this plan.",
                party=party,
            )
        ]

    def _numbered(self) -> Iterator[Head]:
        """Yield the heads; stop at one that cannot be read, and remember why."""
        folder = self._transcript.folder
        try:
            for head, note in read_notes(folder):
                self.num_heads += 1
                self.largest = max(self.largest, head.size)
                self._note = note
                yield head
        except TranscriptBroken as error:
            missing = not (folder / HEADS_FILE).is_file()
            self.trouble = f"{HEADS_FILE} is missing" if missing else str(error)

    def _check(self, head: Head, tree: MerkleTree) -> bool:
        """Return whether a head is signed and has the root of the tree."""
        if not self._is_signed(head):
            return False
        if head.size != tree.size and head.size != 0:
            self.trouble = self.trouble or (
                f"{HEADS_FILE}, head {self.num_heads - 1} is out of place: it signs "
                f"{head.size:,} records; heads were swapped or inserted"
            )
            return False
        root = tree.root() if head.size else EMPTY_ROOT
        if root.hex() != head.root:
            self.mismatch = self.mismatch or head.size
            return False
        self.held = max(self.held, head.size)
        return head.size > 0

    def _is_signed(self, head: Head) -> bool:
        """Return whether the party of this transcript signed a head for this plan."""
        try:
            head.check(self._digest, self._public)
        except TranscriptBroken:
            signed = False
        else:
            note = head.to_note(self._digest, self._public)
            signed = head.party == self._transcript.party and note == self._note
        if not signed:
            self.unsigned.append(self.num_heads - 1)
        return signed


def _records_findings(
    party: str, heads: _Heads, size: int, broken: str
) -> Iterator[Finding]:
    """Yield what is to be said of the records."""
    held = f"the last head that holds signs records 0 to {heads.held - 1:,}"
    if not heads.held:
        held = "no head holds"
    if broken:
        yield fail("records", f"{party}: {broken}.", held, party=party)
    if heads.mismatch is not None:
        yield fail(
            "records",
            f"{party}: a record was altered, inserted or removed between record "
            f"{heads.held:,} and record {heads.mismatch - 1:,}.",
            held,
            f"the head over {heads.mismatch:,} records signs another root",
            party=party,
        )
    if heads.beyond:
        lost = f"record {size:,} is"
        if heads.beyond > size + 1:
            lost = f"records {size:,} to {heads.beyond - 1:,} are"
        yield fail(
            "records",
            f"{party}: the tail is cut off: {lost} signed but missing.",
            f"{size:,} records, signed head over {heads.beyond:,}",
            party=party,
        )
    if broken or heads.mismatch is not None or heads.beyond:
        return
    if size > heads.held:
        yield warn(
            "records",
            f"{party}: records {heads.held:,} to {size - 1:,} follow the last signed "
            "head; nothing protects them.",
            held,
            party=party,
        )
        return
    yield passed("records", f"{party}: {size:,} records, all signed.", party=party)


def _explain(path: Path, index: int) -> str:
    """Return what the index that a line says tells of its fate."""
    here, after = (_index_of(line) for line in _raw_lines(path, index, index + 2))
    if here is None or here == index:
        return "; the line is damaged or was altered"
    if here > index and after == index:
        return f"; records {index:,} and {here:,} were swapped"
    if here > index:
        gone = (
            f"record {index:,} was"
            if here == index + 1
            else (f"records {index:,} to {here - 1:,} were")
        )
        return f"; {gone} removed"
    return "; a record was inserted or repeated"


def _index_of(line: bytes) -> int | None:
    """Return the index that a line says, if it says one."""
    try:
        table = json.loads(line)
        index = table["index"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return index if isinstance(index, int) else None


def _raw_lines(path: Path, start: int, stop: int) -> list[bytes]:
    """Return so many raw lines of a file, empty ones where there are none."""
    with path.open("rb") as file:
        lines = iter(lambda: file.readline(MAX_LINE_BYTES + 1), b"")
        found = list(itertools.islice(lines, start, stop))
    return [*found, *(b"" for _ in range(stop - start - len(found)))]


def roots_at(folder: Path, sizes: set[int]) -> tuple[dict[int, str], int]:
    """Return the roots of a transcript at some sizes, and its number of lines.

    Only hashes: lines are not parsed, so that a transcript that is broken somewhere
    can still be compared with what others saw of it.
    """
    tree, roots = MerkleTree(), {}
    if not (folder / RECORDS_FILE).is_file():
        return {}, 0
    with (folder / RECORDS_FILE).open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            tree.append(line.removesuffix(b"\n"))
            if tree.size in sizes:
                roots[tree.size] = tree.root().hex()
    return roots, tree.size
