"""Encrypted sums of an aggregator, or of processes, that die at every point."""

import os
import signal

import numpy as np
import pytest

from aggregator.errors import CohortTooSmall
from aggregator.slot_store import SlotStore
from crypto.errors import WorkerFailed
from crypto.frame import Kind
from protocol import records
from protocol.envelope import Kind as Envelope
from tests.aggregator.encrypting import Crash, check

ASKED = (
    Envelope.OPEN_SETUP,
    Kind.KEYS,
    Kind.HANDED,
    Envelope.ROUND,
    Kind.ACTIVE,
    Kind.SURVIVORS,
    Kind.DECRYPT,
)


@pytest.mark.parametrize("kind", ASKED, ids=lambda kind: kind.name.lower())
def test_an_aggregator_that_dies_goes_on_with_the_very_slot(made, kind):
    """It took the first silo's answer, and never the second's."""
    asked = []

    def die(when, at, silo):
        if (when, at) == ("after", kind):
            asked.append(silo)
            if len(asked) == 2:
                raise Crash

    check(made, made.sum_after_crash(die), (0, 1, 2, 3))
    assert made.records(records.Dropped) == []
    opened = made.records(records.RoundOpened)
    assert len({(record.setup, record.slot) for record in opened}) == 1
    assert len({record.sum for record in made.records(records.Summed)}) == 1


SAVES = [
    ("save_setup", 1, "after"),
    ("save_setup", 2, "after"),
    ("save_opened", 1, "before"),
    ("save_sum", 1, "before"),
    ("save_sum", 1, "after"),
    *(("save_slot", call, "before") for call in (1, 2, 3, 4)),
]


@pytest.mark.parametrize(("name", "call", "moment"), SAVES)
def test_an_aggregator_that_dies_around_a_write_goes_on(
    made, monkeypatch, name, call, moment
):
    original, calls = getattr(SlotStore, name), 0

    def dying(*arguments):
        nonlocal calls
        calls += 1
        if (calls, moment) == (call, "before"):
            raise Crash
        original(*arguments)
        if calls == call:
            raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(SlotStore, name, dying)
        with pytest.raises(Crash):
            made.sum()
    made.restart()
    check(made, made.sum(), (0, 1, 2, 3))
    assert made.records(records.Dropped) == []
    assert len({record.sum for record in made.records(records.Summed)}) == 1


def test_the_summed_ciphertexts_are_written_once(made, monkeypatch):
    saved, original = [], SlotStore.save_sum

    def counted(store, setup, slot, words):
        saved.append((words.dtype, words.shape))
        original(store, setup, slot, words)

    monkeypatch.setattr(SlotStore, "save_sum", counted)
    made.sum()
    assert saved == [(np.uint64, (2 * 4096,))]


def test_a_sum_that_had_its_answers_before_a_crash_is_the_same_again(made):
    """The round was summed, and the process died before its checkpoint."""
    first = made.sum()
    made.restart()
    again = made.sum()
    check(made, again, first.survivors)
    assert (first.words == again.words).all()
    assert made.records(records.Dropped) == []


# ------------------------------------------------------------------ processes fail


def test_a_failed_expansion_fails_the_attempt(made, monkeypatch):
    failed, original = [], made.workers.expand_sum

    def failing(seeds):
        if not failed:
            failed.append(True)
            raise WorkerFailed("a child process was ended by SIGKILL")
        return original(seeds)

    monkeypatch.setattr(made.workers, "expand_sum", failing)
    check(made, made.sum(), (0, 1, 2, 3))
    assert [r.attempt for r in made.records(records.RoundOpened)] == [1, 2]


def test_expansions_that_always_fail_are_one_line(made, monkeypatch):
    def failing(seeds):
        raise WorkerFailed("a child process was ended by SIGKILL")

    monkeypatch.setattr(made.workers, "expand_sum", failing)
    with pytest.raises(CohortTooSmall) as caught:
        made.sum()
    expected = "the sum was not finished: a child process was ended by SIGKILL"
    assert str(caught.value) == expected


def test_a_child_that_is_killed_is_replaced(made):
    """If its death shows where seeds are expanded, the next slot has the sum."""
    killed = []

    def kill(moment, kind, silo):
        if (moment, kind, silo) == ("after", Kind.ACTIVE, 3) and not killed:
            killed.extend(made.workers.process_ids)
            for process in killed:
                os.kill(process, signal.SIGKILL)

    check(made, made.sum(fault=kill), (0, 1, 2, 3))
    assert killed and not set(killed) & set(made.workers.process_ids)
