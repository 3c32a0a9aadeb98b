import stat

import numpy as np
import pytest

from aggregator.errors import StateBroken
from aggregator.slot_store import SlotStore

WORDS = np.arange(5, dtype=np.uint64)


def names(store):
    return sorted(path.name for path in store.folder.iterdir())


def test_nothing_is_there_at_first(tmp_path):
    store = SlotStore(tmp_path)
    assert store.load_setup() is None and store.load_slot(1) is None


def test_what_is_saved_is_loaded(tmp_path):
    store = SlotStore(tmp_path)
    store.save_setup(3, b"setup")
    store.save_slot(3, 1, b"slot before the sum")
    assert store.load_slot(3) == (b"slot before the sum", None)
    store.save_sum(3, 1, WORDS)
    store.save_slot(3, 1, b"slot")
    assert store.load_setup() == (3, b"setup")
    state, total = store.load_slot(3)
    assert state == b"slot" and np.array_equal(total, WORDS)
    total += 1  # It is unmasked in place.
    assert store.load_slot(2) is None


def test_only_the_newest_slot_is_kept(tmp_path):
    store = SlotStore(tmp_path)
    for setup in (1, 2):
        store.save_setup(setup, b"setup")
        for slot in (0, 9, 10):
            store.save_slot(setup, slot, b"slot")
            store.save_sum(setup, slot, WORDS)
    assert names(store) == [
        "secagg-000002-10.slot",
        "secagg-000002-10.sum",
        "secagg-000002.setup",
    ]
    store.clear()
    assert names(store) == []


def test_a_new_setup_forgets_the_slots_of_the_last(tmp_path):
    store = SlotStore(tmp_path)
    store.save_slot(1, 7, b"slot")
    store.save_setup(2, b"setup")
    assert names(store) == ["secagg-000002.setup"]


def test_others_cannot_read_it(tmp_path):
    store = SlotStore(tmp_path)
    store.save_setup(1, b"setup")
    store.save_slot(1, 0, b"slot")
    store.save_sum(1, 0, WORDS)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o600}


def test_a_sum_that_is_cut_off_is_refused(tmp_path):
    store = SlotStore(tmp_path)
    store.save_slot(1, 0, b"slot")
    store.save_sum(1, 0, WORDS)
    path = tmp_path / "secagg-000001-00.sum"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StateBroken, match=r"00\.sum: is cut off"):
        store.load_slot(1)
