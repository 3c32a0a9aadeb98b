import base64
import dataclasses
import errno
import hashlib
import itertools
import json
import os
import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.merkle import verify_consistency
from protocol import records
from protocol.errors import EncodingError, TranscriptBroken
from protocol.heads import Head, ShownHead
from protocol.transcript import (
    HEADS_FILE,
    MAX_LINE_BYTES,
    RECORDS_FILE,
    TranscriptWriter,
    read_heads,
    read_records,
)
from tests.crypto.references import merkle_root
from tests.protocol.examples import IDENTITIES, make_identity

IDENTITY, OTHER_IDENTITY = IDENTITIES[:2]
DIGEST, OTHER_DIGEST = bytes(range(32)), bytes(32)


def open_writer(folder, *, party="silo-0", digest=DIGEST, identity=IDENTITY, start=0):
    ticks = itertools.count(start)
    return TranscriptWriter(
        folder,
        party=party,
        plan_digest=digest,
        identity=identity,
        clock=lambda: float(next(ticks)),
    )


def lost(number):
    return records.RoundLost(round_number=number, reason="too few")


def write_example(folder, *, num_records=5, heads_after=(2, 5)):
    """Write a transcript with heads after some of its records."""
    with open_writer(folder) as writer:
        for number in range(1, num_records + 1):
            writer.append(lost(number))
            if number in heads_after:
                writer.sign_head()


@pytest.fixture
def folder(tmp_path):
    write_example(tmp_path)
    return tmp_path


def lines_of(folder, name=RECORDS_FILE):
    """Return the records of a transcript, or its heads, each a note of six lines."""
    lines = (folder / name).read_bytes().splitlines(keepends=True)
    if name == HEADS_FILE:
        return [b"".join(lines[i : i + 6]) for i in range(0, len(lines), 6)]
    return lines


def check_all(folder):
    """Check every head against the records, with the slow definition of the root."""
    leaves = [entry.line for entry in read_records(folder)]
    heads = list(read_heads(folder))
    for head in heads:
        head.check(DIGEST, IDENTITY.public)
        assert head.root == merkle_root(leaves[: head.size]).hex()
    return [entry.record for entry in read_records(folder)], heads


def test_records_and_heads_by_hand(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.append(records.Resumed(software="cloister"))
        writer.append(lost(2))
        head = writer.sign_head()
        assert writer.size == 2
    first = (
        b'{"body":{"software":"cloister"},"index":0,"kind":"resumed",'
        b'"time":"1970-01-01T00:00:00Z"}'
    )
    second = (
        b'{"body":{"reason":"too few","round_number":2},"index":1,'
        b'"kind":"round-lost","time":"1970-01-01T00:00:01Z"}'
    )
    assert (tmp_path / RECORDS_FILE).read_bytes() == first + b"\n" + second + b"\n"
    assert head.root == merkle_root([first, second]).hex()
    assert (head.party, head.size) == ("silo-0", 2)
    name = f"cloister/{DIGEST.hex()}/silo-0"
    public = IDENTITY.public
    key_id = hashlib.sha256(f"{name}\n\1".encode() + public).digest()[:4]
    encoded = base64.b64encode(key_id + bytes.fromhex(head.signature)).decode()
    top = base64.b64encode(bytes.fromhex(head.root)).decode()
    note = f"{name}\n2\n{top}\n\n\u2014 {name} {encoded}\n"
    assert (tmp_path / HEADS_FILE).read_text() == note + "\n"
    text = f"{name}\n2\n{top}\n".encode()
    Ed25519PublicKey.from_public_bytes(public).verify(
        bytes.fromhex(head.signature), text
    )


def test_what_was_written_is_read(folder):
    entries = list(read_records(folder))
    assert [entry.record for entry in entries] == [lost(n) for n in range(1, 6)]
    assert [entry.index for entry in entries] == [0, 1, 2, 3, 4]
    assert entries[3].time == "1970-01-01T00:00:03Z"
    _, heads = check_all(folder)
    assert [head.size for head in heads] == [2, 5]


def test_the_same_records_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_example(tmp_path / name)
    for file in (RECORDS_FILE, HEADS_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (
            tmp_path / "b" / file
        ).read_bytes()


def test_an_empty_transcript_has_a_head(tmp_path):
    with open_writer(tmp_path) as writer:
        assert writer.sign_head().root == merkle_root([]).hex()
    with open_writer(tmp_path) as writer:
        assert writer.size == 0
    check_all(tmp_path)


def test_a_run_goes_on(folder):
    with open_writer(folder, start=9) as writer:
        assert writer.size == 5
        writer.append(lost(6))
        writer.sign_head()
    found, heads = check_all(folder)
    assert found == [lost(n) for n in range(1, 7)]
    assert [head.size for head in heads] == [2, 5, 6]


def test_records_after_the_last_head_are_kept(tmp_path):
    write_example(tmp_path, heads_after=(2,))
    with open_writer(tmp_path) as writer:
        assert writer.size == 5
        writer.sign_head()
    check_all(tmp_path)


@pytest.mark.parametrize("name", [RECORDS_FILE, HEADS_FILE])
def test_a_torn_last_line_is_cut_wherever_it_is_torn(name, tmp_path):
    write_example(tmp_path, num_records=6, heads_after=(2, 6))
    whole = lines_of(tmp_path, name)
    heads = lines_of(tmp_path, HEADS_FILE)
    for cut in range(1, len(whole[-1])):
        (tmp_path / HEADS_FILE).write_bytes(heads[0])
        (tmp_path / name).write_bytes(b"".join(whole[:-1]) + whole[-1][:cut])
        with open_writer(tmp_path, start=cut) as writer:
            assert writer.size == (5 if name == RECORDS_FILE else 6)
            writer.append(lost(7))
            writer.sign_head()
        check_all(tmp_path)
        (tmp_path / RECORDS_FILE).write_bytes(
            b"".join(lines_of(tmp_path)[: 5 if name == RECORDS_FILE else 6])
        )


def test_a_torn_first_line_is_cut(tmp_path):
    (tmp_path / RECORDS_FILE).write_bytes(b'{"body":{"reas')
    with open_writer(tmp_path) as writer:
        assert writer.size == 0
        writer.append(lost(1))
    assert [entry.record for entry in read_records(tmp_path)] == [lost(1)]


def test_a_torn_line_of_the_largest_size_is_cut(tmp_path):
    write_example(tmp_path)
    with (tmp_path / RECORDS_FILE).open("ab") as file:
        file.write(b"x" * MAX_LINE_BYTES)
    with open_writer(tmp_path) as writer:
        assert writer.size == 5


def test_a_line_torn_before_the_last_head_is_refused(folder):
    path = folder / RECORDS_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TranscriptBroken, match="4 records, but the last head signed 5"):
        open_writer(folder)


def edit(old, new):
    return lambda lines: [line.replace(old, new) for line in lines]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda lines: lines[:-1], id="last removed"),
        pytest.param(lambda lines: [], id="all removed"),
        pytest.param(lambda lines: lines[1:], id="first removed"),
        pytest.param(lambda lines: lines[::-1], id="reversed"),
        pytest.param(lambda lines: [*lines[:2], *lines[3:]], id="one removed"),
        pytest.param(lambda lines: [lines[0], *lines], id="one twice"),
        pytest.param(edit(b'"round_number":2', b'"round_number":9'), id="number"),
        pytest.param(edit(b"00:00:02Z", b"00:00:00Z"), id="time"),
        pytest.param(edit(b"too few", b"too odd"), id="text"),
        pytest.param(edit(b'"index":4', b'"index":5'), id="index"),
    ],
)
def test_signed_records_that_changed_are_not_continued(change, folder):
    (folder / RECORDS_FILE).write_bytes(b"".join(change(lines_of(folder))))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TranscriptBroken):
        open_writer(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@settings(max_examples=200)
@given(st.data())
def test_no_changed_byte_of_signed_records_is_continued(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_example(folder, num_records=3, heads_after=(3,))
        content = bytearray((folder / RECORDS_FILE).read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        (folder / RECORDS_FILE).write_bytes(content)
        with pytest.raises(TranscriptBroken):
            open_writer(folder)


@pytest.mark.parametrize(
    "party",
    [
        pytest.param({"party": "silo-1"}, id="another party"),
        pytest.param({"digest": OTHER_DIGEST}, id="another plan"),
        pytest.param({"identity": OTHER_IDENTITY}, id="another key"),
    ],
)
def test_only_the_same_party_of_the_same_plan_goes_on(party, folder):
    with pytest.raises(TranscriptBroken):
        open_writer(folder, **party)
    open_writer(folder).close()


def line(place, **changes):
    table = {
        "index": place,
        "time": "1970-01-01T00:00:09Z",
        "kind": "round-lost",
        "body": {"round_number": 1, "reason": "x"},
    }
    table = {name: value for name, value in (table | changes).items() if value != ...}
    return json.dumps(table, sort_keys=True, separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (line(6), "record 5: says it is record 6"),
        (line(4), "record 5: says it is record 4"),
        (line("5"), "record 5: says it is record '5'"),
        (line(5.0), "record 5: says it is record 5.0"),
        (line(5, index=...), "record 5: must hold exactly"),
        (line(5, time=...), "record 5: must hold exactly"),
        (line(5, extra=1), "record 5: must hold exactly"),
        (line(5, time=0), "record 5: its time is not text"),
        (line(5, kind="lost"), "record 5: unknown kind 'lost'"),
        (line(5, kind=["round-lost"]), "record 5: unknown kind"),
        (line(5, body={}), "record 5: round_number: is missing"),
        (line(5, body=[]), "record 5: input: must be a table"),
        (
            line(5, body={"round_number": 1, "reason": "x", "note": "y"}),
            "record 5: note: unknown field",
        ),
        (
            line(5, body={"round_number": True, "reason": "x"}),
            "record 5: round_number: must be a whole number",
        ),
        (
            line(5, kind="evaluated", body={"frechet_distance": 10**400}),
            "record 5: int too large for frechet_distance",
        ),
        (line(5).replace(b":", b": "), "record 5: not in canonical form"),
        (line(5)[:-1] + b" \n", "record 5: not in canonical form"),
        (line(5)[:-1] + b"\r\n", "record 5: not in canonical form"),
        (b"\n", "record 5: not valid JSON"),
        (b"5\n", "record 5: must hold exactly"),
        (b"[5]\n", "record 5: must hold exactly"),
        (b'["body","index","kind","time"]\n', "record 5: must hold exactly"),
        (b"[" * 1000 + b"]" * 1000 + b"\n", "record 5: "),
        (b"\xff\n", "record 5: not valid JSON"),
        (line(5)[:-1], "line 5: is cut off"),
        (b'"' + b"x" * MAX_LINE_BYTES + b'"\n', "line 5: is cut off"),
    ],
)
def test_a_reader_names_the_line_that_is_wrong(added, message, folder):
    with (folder / RECORDS_FILE).open("ab") as file:
        file.write(added)
    entries = read_records(folder)
    assert [next(entries).index for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(TranscriptBroken) as caught:
        next(entries)
    assert str(caught.value).startswith(f"{RECORDS_FILE}, {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda note: note[:-1], "head 2: must be a note and an empty line"),
        (lambda note: note[:-2], "line 16: is cut off"),
        (lambda note: note[:-1] + b"x\n", "head 2: must be a note and an empty line"),
        (lambda note: b"{}\n", "head 2: must be a note and an empty line"),
        (lambda note: b"\n" * 6, "head 2: its root or its signature"),
        (lambda note: note.replace(b"\n\n", b"\nx\n", 1), "head 2: must be three"),
        (lambda note: note.replace(b"\n5\n", b"\n05\n"), "head 2: its size is not"),
        (lambda note: note.replace(b"\n5\n", b"\n-5\n"), "head 2: its size is not"),
        (lambda note: note.replace(b"\n5\n", b"\n\xd9\xa5\n"), "head 2: its size"),
        (
            lambda note: note.replace(b"\n5\n", b"\n9223372036854775808\n"),
            "head 2: its size",
        ),
        (lambda note: note.replace(b"=\n", b"\n", 1), "head 2: its root or its sig"),
        (lambda note: note.replace(b"\xe2\x80\x94", b"-"), "head 2: its root or"),
        (lambda note: note.replace(b"\xe2\x80\x94", b"\xff"), "head 2: is not UTF-8"),
        (lambda note: note.replace(b"cloister/", b"clo/"), "head 2: is no head"),
        (lambda note: note.replace(b"cloister/", b"a/cloister/", 1), "head 2: is no"),
        (lambda note: note.replace(b"/silo-0 ", b"/silo-1 "), "head 2: is no head"),
    ],
)
def test_a_wrong_head_is_named(change, message, folder):
    note = lines_of(folder, HEADS_FILE)[-1]
    assert change(note) != note
    with (folder / HEADS_FILE).open("ab") as file:
        file.write(change(note))
    with pytest.raises(TranscriptBroken) as caught:
        list(read_heads(folder))
    assert str(caught.value).startswith(f"{HEADS_FILE}, {message}")


def test_a_note_that_says_more_than_its_signature_is_not_continued(folder):
    """The head in it is sound; the name that other tools read is not."""
    *heads, note = lines_of(folder, HEADS_FILE)
    other = note.replace(DIGEST.hex().encode(), OTHER_DIGEST.hex().encode())
    (folder / HEADS_FILE).write_bytes(b"".join(heads) + other)
    list(read_heads(folder))[-1].check(DIGEST, IDENTITY.public)
    with pytest.raises(TranscriptBroken, match="last head signed 5"):
        open_writer(folder)


@pytest.mark.parametrize("size", range(1, 6))
def test_a_head_is_shown_with_a_proof_from_what_was_seen(size, folder):
    leaves = [entry.line for entry in read_records(folder)]
    for open_again in (True, False):
        with open_writer(folder) as writer:
            if not open_again:
                writer.append(lost(6))
            head = list(read_heads(folder))[1]
            shown = writer.show(head, size)
            assert writer.show(head, 0) == ShownHead(head=head)
            with pytest.raises(ValueError, match="old_size"):
                writer.show(head, 6)
        assert (shown.head, shown.old_size) == (head, size)
        roots = merkle_root(leaves[:size]), bytes.fromhex(head.root)
        verify_consistency(size, 5, *roots, shown.proof)


def test_a_missing_transcript_is_named(tmp_path):
    for read, name in ((read_records, RECORDS_FILE), (read_heads, HEADS_FILE)):
        with pytest.raises(TranscriptBroken, match=rf"{name}: No such file"):
            list(read(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"party": "silo-1"},
        {"size": 4},
        {"root": "00" * 32},
        {"signature": "00" * 64},
        {"signature": ""},
        {"signature": "zz"},
    ],
)
def test_a_changed_head_is_not_believed(changes, folder):
    head = list(read_heads(folder))[-1]
    head.check(DIGEST, IDENTITY.public)
    with pytest.raises(TranscriptBroken, match="wrong signature"):
        dataclasses.replace(head, **changes).check(DIGEST, IDENTITY.public)


def test_a_signature_is_written_in_one_way_only(folder):
    head = list(read_heads(folder))[-1]
    for other in (head.signature.upper(), f" {head.signature}", f"{head.signature}\n"):
        with pytest.raises(TranscriptBroken, match="wrong signature"):
            dataclasses.replace(head, signature=other).check(DIGEST, IDENTITY.public)


def test_a_head_belongs_to_one_key_and_one_plan(folder):
    head = list(read_heads(folder))[-1]
    for digest, key in (
        (OTHER_DIGEST, IDENTITY.public),
        (DIGEST, OTHER_IDENTITY.public),
        (DIGEST, b""),
    ):
        with pytest.raises(TranscriptBroken, match="wrong signature"):
            head.check(digest, key)


def test_a_head_signed_by_another_key_is_not_continued(folder):
    with tempfile.TemporaryDirectory() as name:
        other = Path(name)
        with open_writer(other, identity=make_identity("stranger")) as writer:
            for number in range(1, 6):
                writer.append(lost(number))
            writer.sign_head()
        (folder / HEADS_FILE).write_bytes((other / HEADS_FILE).read_bytes())
    with pytest.raises(TranscriptBroken, match="wrong signature"):
        open_writer(folder)


def test_records_are_on_disk_before_a_head_is_signed(tmp_path, monkeypatch):
    writer = open_writer(tmp_path)
    writer.append(lost(1))
    sizes = []

    def fsync(descriptor):
        sizes.append(
            [(tmp_path / n).stat().st_size for n in (RECORDS_FILE, HEADS_FILE)]
        )

    monkeypatch.setattr(os, "fsync", fsync)
    writer.sign_head()
    writer.close()
    (line_bytes, no_head), (_, head_bytes) = sizes
    assert (line_bytes > 0, no_head, head_bytes > 0) == (True, 0, True)


def test_no_head_is_signed_where_records_cannot_be_saved(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    with open_writer(tmp_path) as writer:
        writer.append(lost(1))
        with monkeypatch.context() as patch, pytest.raises(OSError):
            patch.setattr(os, "fsync", refuse)
            writer.sign_head()
    assert list(read_heads(tmp_path)) == []


class SmallDisk:
    """A file on a disk with room for so many bytes, written a few at a time."""

    def __init__(self, file, room):
        self._file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        count = self._file.write(data[: min(self.room, 40)])
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= count
        return count


@pytest.mark.parametrize("room", [0, 1, 39, 40, 41, 90])
def test_a_full_disk_leaves_the_transcript_as_it_was(room, tmp_path):
    with open_writer(tmp_path) as writer:
        writer.append(lost(1))
        before = (tmp_path / RECORDS_FILE).read_bytes()
        disk = writer._records = SmallDisk(writer._records, room)
        with pytest.raises(OSError, match="No space left"):
            writer.append(lost(2))
        assert (tmp_path / RECORDS_FILE).read_bytes() == before
        assert writer.size == 1
        disk.room = 1000
        writer.append(lost(3))
        writer.sign_head()
    found, _ = check_all(tmp_path)
    assert found == [lost(1), lost(3)]


def test_a_full_disk_leaves_the_heads_as_they_were(folder):
    with open_writer(folder) as writer:
        disk = writer._heads = SmallDisk(writer._heads, 50)
        with pytest.raises(OSError, match="No space left"):
            writer.sign_head()
        disk.room = 1000
        writer.sign_head()
    _, heads = check_all(folder)
    assert [head.size for head in heads] == [2, 5, 5]


def test_a_record_that_is_too_large_is_refused_whole(folder):
    before = (folder / RECORDS_FILE).read_bytes()
    with open_writer(folder) as writer:
        with pytest.raises(TranscriptBroken, match="too large"):
            writer.append(
                records.RoundLost(round_number=1, reason="x" * MAX_LINE_BYTES)
            )
        with pytest.raises(EncodingError):
            writer.append(records.RoundLost(round_number=1, reason=b"x"))
        assert writer.size == 5
    assert (folder / RECORDS_FILE).read_bytes() == before


def test_head_is_a_plain_value():
    head = Head(party="a", size=1, root="00", signature="00")
    with pytest.raises(dataclasses.FrozenInstanceError):
        head.size = 2


def test_records_can_be_forced_to_disk_without_a_head(tmp_path, monkeypatch):
    synced = []
    with open_writer(tmp_path) as writer:
        writer.append(lost(1))
        monkeypatch.setattr(os, "fsync", synced.append)
        writer.sync()
        assert synced == [writer._records.fileno()]
    assert list(read_heads(tmp_path)) == []
