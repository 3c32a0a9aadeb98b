"""A silo's journal goes back in time, or is damaged; its state is intact.

Such a journal is not taken up at all, but for a last record that was cut off by a
crash: nothing had been done yet in reliance on it.
"""

import pytest

from crypto.errors import MalformedMessage
from crypto.secagg.journal import (
    NAME_BYTES,
    NO_ROUND,
    RECORD_BYTES,
    Journal,
    Promise,
    Stage,
)
from crypto.secagg.silo_side import SiloSide
from tests.attacks.remembering import Remembering, revealed
from tests.crypto.secagg.federation import Federation

OWNER = b"silo 0"


def journal_file(tmp_path, f: Remembering) -> bytes:
    """Write silo 0's promises to a file with their links; return its content."""
    path = tmp_path / "journal"
    path.write_bytes(f.journals[0]._name)
    with Journal(path, OWNER) as journal:
        for promise in f.journals[0]._promises.values():
            journal.promise(promise)
    return path.read_bytes()


def load(tmp_path, data: bytes, state: bytes, f: Federation) -> SiloSide:
    """Restart silo 0 with a state and a journal of this content."""
    path = tmp_path / "other"
    path.write_bytes(data)
    with Journal(path, OWNER) as journal:
        arguments = (*f.silo_arguments(0)[:-1], journal)
        return SiloSide.from_bytes(state, *arguments)


OLDER = [
    ("reveal", 3),
    ("reveal", 0),
    ("confirm", 2),
    ("confirm", 1),
    ("masked", 1),
    ("masked", 0),
    ("ready", 0),
]


@pytest.mark.parametrize(("state", "records"), OLDER)
def test_a_journal_that_is_older_than_the_state_is_refused(tmp_path, state, records):
    f = revealed()
    data = journal_file(tmp_path, f)
    older = data[: NAME_BYTES + records * RECORD_BYTES]
    with pytest.raises(MalformedMessage, match="older than the saved state"):
        load(tmp_path, older, f.saved[state], f)
    assert load(tmp_path, data, f.saved[state], f)


@pytest.mark.parametrize("state", ["advertise", "shares", "ready", "reveal"])
def test_a_journal_that_was_begun_anew_is_refused(tmp_path, state):
    """Even in a setup that has no slot yet: what was promised before it is lost."""
    f = revealed()
    data = journal_file(tmp_path, f)
    for other in (b"", bytes(NAME_BYTES), bytes(range(NAME_BYTES))):
        with pytest.raises(MalformedMessage, match="or another one"):
            load(tmp_path, other, f.saved[state], f)
    assert load(tmp_path, data, f.saved[state], f)


def test_a_journal_that_is_older_than_a_new_setup_is_refused(tmp_path):
    """The state of setup 2 has no slot; the journal lacks the REVEAL of setup 1."""
    f = revealed()
    data = journal_file(tmp_path, f)
    config, roster, aggregator, identity, index, run, _, journal = f.silo_arguments(0)
    arguments = (config, roster, aggregator, identity, index, run, 2)
    side = SiloSide(*arguments, journal)
    side.advertise()
    state = side.to_bytes()
    path = tmp_path / "other"
    path.write_bytes(data[:-RECORD_BYTES])
    with (
        Journal(path, OWNER) as older,
        pytest.raises(MalformedMessage, match="older than the saved state"),
    ):
        SiloSide.from_bytes(state, *arguments, older)


def test_one_process_holds_a_journal(tmp_path):
    path = tmp_path / "journal"
    with (
        Journal(path, OWNER),
        pytest.raises(BlockingIOError, match="another process holds"),
    ):
        Journal(path, OWNER)
    Journal(path, OWNER).close()


def test_a_record_of_which_a_sector_is_missing_was_never_relied_on(tmp_path):
    path = tmp_path / "journal"
    with Journal(path, OWNER) as journal:
        for slot in range(7):
            promise = Promise(Stage.READY, 1, slot, slot + 1, bytes([7]) * 32)
            journal.promise(promise)
    data = path.read_bytes()
    assert len(data) - RECORD_BYTES < 512 < len(data)
    path.write_bytes(data[:512] + bytes(len(data) - 512))
    with Journal(path, OWNER) as journal:
        assert not journal.has(Stage.READY, 1, 6) and journal.has(Stage.READY, 1, 5)
    head = 512 - (len(data) - RECORD_BYTES)
    path.write_bytes(data[:-RECORD_BYTES] + bytes(head) + data[512:])
    with Journal(path, OWNER) as journal:
        assert not journal.has(Stage.READY, 1, 6) and journal.has(Stage.READY, 1, 5)
    path.write_bytes(data[:513] + bytes(len(data) - 513))
    with pytest.raises(MalformedMessage, match="record 7 is damaged"):
        Journal(path, OWNER)


def test_a_journal_with_any_bit_changed_is_refused(tmp_path):
    f = revealed()
    data = journal_file(tmp_path, f)
    assert len(data) == NAME_BYTES + 4 * RECORD_BYTES
    path = tmp_path / "damaged"
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        with pytest.raises(MalformedMessage, match="is damaged, or the journal"):
            Journal(path, OWNER)
        assert path.read_bytes() == changed


def swap(data: bytes) -> bytes:
    return data[77:154] + data[:77] + data[154:]


DAMAGES = {
    "records swapped": swap,
    "the first left out": lambda data: data[77:],
    "one left out": lambda data: data[:77] + data[154:],
    "one twice": lambda data: data[:77] + data,
    "two of zeros in front": lambda data: bytes(154) + data,
    "the last one overwritten": lambda data: data[:-77] + data[:77],
    "an unknown stage": lambda data: b"\x06" + data[1:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_journal_in_another_order_is_refused(tmp_path, damage):
    data = journal_file(tmp_path, revealed())
    path = tmp_path / "damaged"
    path.write_bytes(data[:NAME_BYTES] + damage(data[NAME_BYTES:]))
    with pytest.raises(MalformedMessage, match="damaged"):
        Journal(path, OWNER)


@pytest.mark.parametrize("owner", [b"silo 1", b""])
def test_the_journal_of_another_silo_or_run_is_refused(tmp_path, owner):
    journal_file(tmp_path, revealed())
    with pytest.raises(MalformedMessage, match="another run or silo"):
        Journal(tmp_path / "journal", owner)


TORN = [*range(RECORD_BYTES), "zeros"]


@pytest.mark.parametrize("left", TORN)
def test_a_torn_last_record_was_never_relied_on(tmp_path, left):
    """It is removed, and its promise is made again."""
    f = revealed()
    data = journal_file(tmp_path, f)
    kept, last = data[:-RECORD_BYTES], data[-RECORD_BYTES:]
    path = tmp_path / "torn"
    path.write_bytes(kept + (bytes(RECORD_BYTES) if left == "zeros" else last[:left]))
    promise = Promise.from_bytes(last[:45])
    assert promise.stage == Stage.REVEAL
    with Journal(path, OWNER) as journal:
        assert path.read_bytes() == kept
        assert not journal.has(Stage.REVEAL, 1, 0) and journal.closed_round == NO_ROUND
        journal.promise(promise)
    assert path.read_bytes() == data


def test_a_journal_is_readable_by_its_owner_alone(tmp_path):
    Journal(tmp_path / "journal", OWNER).close()
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600


def test_a_disk_that_refuses_leaves_nothing_promised(tmp_path, monkeypatch):
    """``OSError`` before the record is whole: the next attempt writes over it."""
    f = revealed()
    promises = list(f.journals[0]._promises.values())
    path = tmp_path / "full"
    with Journal(path, OWNER) as journal:
        journal.promise(promises[0])
        before = path.read_bytes()
        monkeypatch.setattr("os.pwrite", lambda *arguments: 40)
        with pytest.raises(OSError, match="written whole"):
            journal.promise(promises[1])
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert not journal.has(Stage.MASKED, 1, 0)
        journal.promise(promises[1])
    with Journal(path, OWNER) as journal:
        assert journal.has(Stage.MASKED, 1, 0)


def test_a_journal_that_is_closed_promises_nothing(tmp_path):
    promise = next(iter(revealed().journals[0]._promises.values()))
    journal = Journal(tmp_path / "journal", OWNER)
    journal.close()
    with pytest.raises(OSError):
        journal.promise(promise)
    assert not journal.has(promise.stage, 1, 0)


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(32), bytes(500), b"short"])
def test_an_empty_journal_is_begun_only_where_it_may(tmp_path, content):
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(MalformedMessage, match="is empty"):
        Journal(path, OWNER, may_begin=False)
    assert path.read_bytes() == content
    with Journal(path, OWNER) as journal:
        journal.promise(Promise(Stage.READY, 1, 0, 1, bytes(32)))
    assert path.stat().st_size == NAME_BYTES + RECORD_BYTES
    with Journal(path, OWNER, may_begin=False) as journal:
        assert journal.has(Stage.READY, 1, 0)
