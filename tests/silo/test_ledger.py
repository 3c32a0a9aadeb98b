import hashlib
import itertools
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crypto import labels
from crypto.keys import IdentityKey
from crypto.signatures import sign, verify
from privacy.events import SampledGaussian
from protocol.encoding import decode, encode, to_table
from protocol.errors import KeyFileRejected
from silo.entries import (
    Closed,
    EarlierLedger,
    Entry,
    Interrupted,
    LedgerHead,
    Opened,
    Released,
    Reserved,
    Spending,
    Taken,
)
from silo.ledger import (
    FIRST_LINK,
    Ledger,
    LedgerBroken,
    load_ledger,
    load_ledger_tags,
    make_ledger,
)
from silo.tags import commitment

KEY = IdentityKey.from_bytes(bytes(range(32)))
TAGS = np.frombuffer(bytes(range(64)), "S32")
NONCE = bytes(32)
EVENT = SampledGaussian(
    sample_rate=0.5, noise_multiplier=1.5, clipping_norm=1.0, steps=10
)
OPENED = Opened(
    ledger="run",
    plan="ab" * 32,
    unit="example",
    delta=1e-5,
    commitment=commitment(TAGS, NONCE).hex(),
    nonce=NONCE.hex(),
    tag_key="cd" * 32,
    fresh=False,
    randomness="operating-system",
    earlier=(EarlierLedger(ledger="old", head=LedgerHead(size=3, digest="ef" * 32)),),
)
ENTRIES: tuple[Entry, ...] = (
    Released(event=EVENT.times(1), what="central images"),
    Reserved(round_number=1, event=EVENT, checkpoint_steps=4),
    Taken(round_number=1, steps=4),
    Interrupted(round_number=1, steps=4),
    Reserved(round_number=1, event=EVENT.times(6), checkpoint_steps=4),
    Taken(round_number=1, steps=4),
    Taken(round_number=1, steps=2),
    Closed(round_number=1),
)


def new_ledger(root: Path, *entries: Entry) -> Path:
    folder = root / "run"
    make_ledger(folder, KEY, OPENED, TAGS, clock=lambda: 0.0)
    with Ledger(folder, KEY, clock=lambda: 60.0) as ledger:
        for entry in entries:
            ledger.append(entry)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return new_ledger(tmp_path, *ENTRIES)


def lines_of(folder: Path) -> list[bytes]:
    return (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)


def broken(folder: Path, key: IdentityKey = KEY) -> str:
    """Return the one line of the error; readers and writers give the same."""
    before = (folder / "ledger.jsonl").read_bytes()
    with pytest.raises(LedgerBroken) as reading:
        load_ledger(folder, key.public)
    with pytest.raises(LedgerBroken) as writing:
        Ledger(folder, key)
    assert str(reading.value) == str(writing.value)
    assert "\n" not in str(reading.value)
    assert (folder / "ledger.jsonl").read_bytes() == before
    return str(reading.value)


class TestOnDisk:
    def test_comes_back(self, folder):
        content = load_ledger(folder, KEY.public)
        assert content.entries == (OPENED, *ENTRIES)
        assert content.opened == OPENED
        assert content.head.size == 9
        with Ledger(folder, KEY) as ledger:
            assert ledger.content == content

    def test_a_line_by_hand(self, folder):
        lines = lines_of(folder)
        table = json.loads(lines[3])
        assert table["previous"] == hashlib.sha256(lines[2][:-1]).hexdigest()
        assert table["index"] == 3
        assert table["kind"] == "taken"
        assert table["body"] == {"round_number": 1, "steps": 4}
        assert table["time"] == "1970-01-01T00:01:00Z"
        assert encode(table) + b"\n" == lines[3]
        signature = bytes.fromhex(table.pop("signature"))
        verify(KEY.public, labels.LEDGER_ENTRY, encode(table), signature)
        assert json.loads(lines[0])["previous"] == FIRST_LINK

    def test_only_the_owner_may_read(self, folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        (folder / "ledger.jsonl").chmod(0o640)
        with pytest.raises(KeyFileRejected, match="other users"):
            load_ledger(folder, KEY.public)
        with pytest.raises(KeyFileRejected, match="other users"):
            Ledger(folder, KEY)

    def test_the_head_is_returned_when_the_line_is_synced(self, folder, monkeypatch):
        synced: list[bytes] = []
        real = os.fsync

        def fsync(descriptor: int) -> None:
            real(descriptor)
            synced.append((folder / "ledger.jsonl").read_bytes())

        with Ledger(folder, KEY) as ledger:
            monkeypatch.setattr(os, "fsync", fsync)
            head = ledger.append(Released(event=EVENT, what="more"))
        line = synced[-1].splitlines()[-1]
        assert head == LedgerHead(size=10, digest=hashlib.sha256(line).hexdigest())

    def test_one_process_at_a_time(self, folder):
        with Ledger(folder, KEY) as ledger:
            with pytest.raises(LedgerBroken, match="another process holds it"):
                Ledger(folder, KEY)
            assert load_ledger(folder, KEY.public) == ledger.content
        Ledger(folder, KEY).close()

    def test_exists(self, folder):
        with pytest.raises(OSError, match="not empty"):
            make_ledger(folder, KEY, OPENED, TAGS)
        assert load_ledger(folder, KEY.public).head.size == 9

    def test_tags(self, folder):
        assert np.array_equal(load_ledger_tags(folder, OPENED), TAGS)
        data = bytearray((folder / "tags").read_bytes())
        data[-1] ^= 1
        (folder / "tags").write_bytes(data)
        with pytest.raises(LedgerBroken, match="committed to others"):
            load_ledger_tags(folder, OPENED)


class TestHead:
    def test_contains_every_head_it_had(self, folder):
        content = load_ledger(folder, KEY.public)
        for size, line in enumerate(lines_of(folder), start=1):
            digest = hashlib.sha256(line[:-1]).hexdigest()
            assert content.contains(LedgerHead(size=size, digest=digest))
            assert not content.contains(LedgerHead(size=size + 1, digest=digest))
        assert content.contains(LedgerHead(size=0, digest=FIRST_LINK))
        assert not content.contains(LedgerHead(size=0, digest="ab" * 32))
        assert not content.contains(LedgerHead(size=4, digest="ab" * 32))

    def test_an_old_backup_lacks_the_newest(self, folder):
        head = load_ledger(folder, KEY.public).head
        (folder / "ledger.jsonl").write_bytes(b"".join(lines_of(folder)[:-1]))
        assert not load_ledger(folder, KEY.public).contains(head)

    @pytest.mark.parametrize(("size", "digest"), [(-1, "ab" * 32), (1, "AB" * 32)])
    def test_malformed(self, size, digest):
        with pytest.raises(ValueError, match=r"size|digest"):
            LedgerHead(size=size, digest=digest)


class TestTornLine:
    """A last line that a crash cut off was never on disk, so it is removed."""

    def test_at_every_byte(self, folder):
        whole = (folder / "ledger.jsonl").read_bytes()
        last = len(lines_of(folder)[-1])
        for kept in range(len(whole) - last, len(whole)):
            (folder / "ledger.jsonl").write_bytes(whole[:kept])
            assert load_ledger(folder, KEY.public).entries == (OPENED, *ENTRIES[:-1])
            with Ledger(folder, KEY) as ledger:
                assert ledger.content.entries == (OPENED, *ENTRIES[:-1])
            assert len((folder / "ledger.jsonl").read_bytes()) == len(whole) - last

    @pytest.mark.parametrize("kept", ["begin", "end"])
    def test_with_a_sector_that_was_never_written(self, folder, kept):
        *lines, last = lines_of(folder)
        half = len(last) // 2
        torn = (
            last[:half] + bytes(len(last) - half)
            if kept == "begin"
            else bytes(half) + last[half:]
        )
        (folder / "ledger.jsonl").write_bytes(b"".join(lines) + torn)
        with Ledger(folder, KEY) as ledger:
            assert ledger.content.entries == (OPENED, *ENTRIES[:-1])
            ledger.append(ENTRIES[-1])
        assert load_ledger(folder, KEY.public).entries == (OPENED, *ENTRIES)

    def test_the_first_line_came_whole_with_its_folder(self, tmp_path):
        folder = new_ledger(tmp_path)
        whole = (folder / "ledger.jsonl").read_bytes()
        for kept in (0, 1, len(whole) - 1):
            (folder / "ledger.jsonl").write_bytes(whole[:kept])
            assert broken(folder) == "ledger run: is empty or was cut off"

    def test_a_disk_that_refuses(self, folder, monkeypatch):
        def full(descriptor: int, data: bytes, offset: int) -> int:
            real(descriptor, data[:20], offset)
            raise OSError(28, "No space left on device")

        real = os.pwrite
        entry = Released(event=EVENT, what="more")
        with Ledger(folder, KEY) as ledger:
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", full)
                with pytest.raises(OSError, match="No space"):
                    ledger.append(entry)
            with pytest.raises(OSError, match="Bad file descriptor"):
                ledger.append(entry)  # What is on disk is not known any more.
        with Ledger(folder, KEY) as ledger:
            assert ledger.content.head.size == 9
            ledger.append(entry)


def signed(key: IdentityKey, table: dict) -> bytes:
    rest = {name: item for name, item in table.items() if name != "signature"}
    signature = sign(key, labels.LEDGER_ENTRY, encode(rest))
    return encode(rest | {"signature": signature.hex()}) + b"\n"


class TestDamage:
    @pytest.mark.parametrize("index", range(9))
    def test_any_changed_character(self, folder, index):
        lines = lines_of(folder)
        for place in range(0, len(lines[index]) - 1, 37):
            changed = bytearray(lines[index])
            changed[place] ^= 1
            data = b"".join([*lines[:index], changed, *lines[index + 1 :]])
            (folder / "ledger.jsonl").write_bytes(data)
            assert broken(folder).startswith(f"ledger run, entry {index}: ")

    @pytest.mark.parametrize("index", range(8))
    def test_a_line_left_out(self, folder, index):
        lines = lines_of(folder)
        del lines[index]
        (folder / "ledger.jsonl").write_bytes(b"".join(lines))
        assert f"entry {index}: says it is entry {index + 1}" in broken(folder)

    @pytest.mark.parametrize(
        ("first", "second"), list(itertools.combinations(range(9), 2))[::5]
    )
    def test_lines_swapped(self, folder, first, second):
        lines = lines_of(folder)
        lines[first], lines[second] = lines[second], lines[first]
        (folder / "ledger.jsonl").write_bytes(b"".join(lines))
        assert f"entry {first}: says it is entry {second}" in broken(folder)

    def test_cut_in_the_middle(self, folder):
        data = (folder / "ledger.jsonl").read_bytes()
        (folder / "ledger.jsonl").write_bytes(data[:700] + data[900:])
        assert broken(folder).startswith("ledger run, entry ")

    def test_a_line_of_another_ledger_of_this_silo(self, folder):
        lines = lines_of(folder)
        other = decode(lines[4][:-1]) | {"previous": "ab" * 32}
        lines[4] = signed(KEY, other)
        (folder / "ledger.jsonl").write_bytes(b"".join(lines))
        assert "entry 4: does not follow the entry before it" in broken(folder)

    def test_a_line_that_another_key_signed(self, folder):
        lines = lines_of(folder)
        lines[8] = signed(IdentityKey.generate(), decode(lines[8][:-1]))
        (folder / "ledger.jsonl").write_bytes(b"".join(lines))
        assert "entry 8: not signed by the key" in broken(folder)

    def test_another_silo(self, folder):
        assert "entry 0: not signed by" in broken(folder, IdentityKey.generate())

    def test_another_folder(self, folder):
        moved = folder.rename(folder.with_name("other"))
        assert broken(moved) == "ledger other: was made as 'run'"

    @pytest.mark.parametrize("name", ["tags", "ledger.jsonl"])
    def test_a_missing_file(self, folder, name):
        (folder / name).unlink()
        for opening in (
            lambda: load_ledger(folder, KEY.public),
            lambda: Ledger(folder, KEY),
        ):
            with pytest.raises(LedgerBroken, match=f"{name}: is missing"):
                opening()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"kind": "gift"}, "unknown kind 'gift'"),
            ({"body": {"round_number": 1}}, "steps: is missing"),
            ({"body": {"round_number": 1, "steps": -4}}, "-4 steps"),
            ({"body": {"round_number": 2, "steps": 4}}, "round 2 is not open"),
            ({"index": 3.0}, "says it is entry 3.0"),
            ({"more": 1}, "must hold exactly"),
        ],
    )
    def test_a_line_that_this_silo_signed_by_mistake(self, folder, change, words):
        lines = lines_of(folder)
        lines[3] = signed(KEY, decode(lines[3][:-1]) | change)
        (folder / "ledger.jsonl").write_bytes(b"".join(lines[:4]))
        assert words in broken(folder)


def spending(*entries: Entry) -> Spending:
    return Spending.of((OPENED, *entries))


def steps(of: Spending) -> list[int]:
    return [event.steps for event in of.events]


class TestSpending:
    def test_what_is_reserved_counts_until_it_is_given_back(self):
        total, rows = [], (OPENED, *ENTRIES)
        for end in range(1, len(rows) + 1):
            total.append(sum(steps(Spending.of(rows[:end]))))
        #   opened, released, reserved 10, taken 4, interrupted 4, reserved 6, …
        assert total == [0, 1, 11, 11, 11, 15, 15, 15, 15]

    def test_equal_neighbours_are_one_event(self):
        other = replace(EVENT, noise_multiplier=3.0)
        found = spending(*ENTRIES, Released(event=other.times(2), what="x"))
        assert found.events == (EVENT.times(15), other.times(2))

    def test_a_closed_round_gives_back_what_is_left(self):
        found = spending(*ENTRIES[1:3], Closed(round_number=1))
        assert steps(found) == [4]
        assert found.open_round is None
        assert found.last_round == 1

    @pytest.mark.parametrize(
        ("entries", "expected"),
        [
            (ENTRIES[1:2], 4),
            (ENTRIES[1:3], 4),
            ((*ENTRIES[1:3], ENTRIES[2]), 2),
            (ENTRIES[1:4], 0),
            (ENTRIES[1:7], 0),
        ],
    )
    def test_steps_that_may_have_been_taken(self, entries, expected):
        current = spending(*entries).open_round
        assert current is not None
        assert current.uncertain_steps == expected

    def test_more_than_was_reserved_counts(self):
        found = spending(ENTRIES[1], Taken(round_number=1, steps=13))
        assert steps(found) == [13]

    def test_ledgers_compose(self):
        one, other = spending(*ENTRIES), spending(*ENTRIES[1:3])
        assert steps(Spending.joined([one, other])) == [15 + 10]
        assert Spending.joined([]).events == ()

    @pytest.mark.parametrize(
        "entries",
        [
            (OPENED,),
            (Taken(round_number=1, steps=1),),
            (Closed(round_number=1),),
            (ENTRIES[1], ENTRIES[1]),
            (ENTRIES[1], Taken(round_number=1, steps=0)),
            (ENTRIES[1], Taken(round_number=2, steps=1)),
            (*ENTRIES[1:4], Taken(round_number=1, steps=1)),
            (*ENTRIES[1:4], Interrupted(round_number=1, steps=1)),
            (ENTRIES[1], Reserved(round_number=2, event=EVENT, checkpoint_steps=1)),
            (
                Reserved(round_number=2, event=EVENT, checkpoint_steps=1),
                Closed(round_number=2),
                ENTRIES[1],
            ),
            (Reserved(round_number=-1, event=EVENT, checkpoint_steps=1),),
        ],
    )
    def test_what_cannot_follow(self, tmp_path, entries):
        with pytest.raises(ValueError, match=r"\w"):
            spending(*entries)
        folder = new_ledger(tmp_path, *entries[:-1])
        before = lines_of(folder)
        with Ledger(folder, KEY) as ledger, pytest.raises(ValueError, match=r"\w"):
            ledger.append(entries[-1])
        assert lines_of(folder) == before

    def test_nothing_comes_before_the_opening(self):
        with pytest.raises(ValueError, match="by its first entry"):
            Spending.of(ENTRIES)

    def test_entries_survive_their_encoding(self):
        for entry in (OPENED, *ENTRIES):
            assert decode(encode(to_table(entry))) == to_table(entry)

    def test_no_interval(self):
        with pytest.raises(ValueError, match="checkpoint_steps"):
            Reserved(round_number=1, event=EVENT, checkpoint_steps=0)

    @pytest.mark.parametrize(
        "change",
        [{"delta": 0.0}, {"delta": 1.0}, {"nonce": "ab"}, {"tag_key": "AB" * 32}],
    )
    def test_a_malformed_opening(self, change):
        with pytest.raises(ValueError, match=next(iter(change))):
            replace(OPENED, **change)
