"""A silo's journal goes back in time, or is damaged; its state is intact.

Such a journal is not taken up at all, but for a last record that was cut off by a
crash: nothing had been done yet in reliance on it.
"""

import pytest

from crypto.errors import MalformedMessage, ProtocolViolation
from crypto.secagg.journal import RECORD_BYTES, Journal, Promise, Stage
from crypto.secagg.silo_side import SiloSide
from tests.attacks.remembering import Remembering, revealed
from tests.attacks.test_rollback import confirm_others
from tests.crypto.secagg.federation import Federation

OWNER = b"silo 0"


def journal_file(tmp_path, f: Remembering) -> bytes:
    """Write silo 0's promises to a file of their own; return its content."""
    path = tmp_path / "journal"
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
    ("reveal", 3, "REVEAL"),
    ("reveal", 0, "READY"),
    ("confirm", 1, "MASKED"),
    ("masked", 1, "MASKED"),
    ("masked", 0, "READY"),
    ("ready", 0, "READY"),
]


@pytest.mark.parametrize(("state", "records", "lacks"), OLDER)
def test_a_journal_that_is_older_than_the_state_is_refused(
    tmp_path, state, records, lacks
):
    f = revealed()
    data = journal_file(tmp_path, f)
    older = data[: records * RECORD_BYTES]
    with pytest.raises(MalformedMessage, match=f"journal lacks {lacks} of slot 0"):
        load(tmp_path, older, f.saved[state], f)
    assert load(tmp_path, data, f.saved[state], f)


def test_without_the_record_of_confirm_the_state_still_binds(tmp_path):
    """Semi-honest slots have no such record; of CONFIRM the state itself is proof."""
    f = revealed()
    older = journal_file(tmp_path, f)[: 2 * RECORD_BYTES]
    f.silos[0] = load(tmp_path, older, f.saved["confirm"], f)
    before = f.silos[0].to_bytes()
    with pytest.raises(ProtocolViolation, match="differ"):
        confirm_others(f)
    assert f.silos[0].to_bytes() == before


def test_a_journal_with_any_bit_changed_is_refused(tmp_path):
    f = revealed()
    data = journal_file(tmp_path, f)
    assert len(data) == 4 * RECORD_BYTES
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
    "an unknown stage": lambda data: b"\x05" + data[1:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_journal_in_another_order_is_refused(tmp_path, damage):
    data = journal_file(tmp_path, revealed())
    path = tmp_path / "damaged"
    path.write_bytes(damage(data))
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
        assert not journal.has(Stage.REVEAL, 1, 0) and journal.revealed_round == 0
        journal.promise(promise)
    assert path.read_bytes() == data


def test_a_journal_is_readable_by_its_owner_alone(tmp_path):
    journal_file(tmp_path, revealed())
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
