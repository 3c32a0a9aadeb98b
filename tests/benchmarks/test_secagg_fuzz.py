"""The fuzzing benchmark counts what must not happen, instead of trusting that it does
not."""

import json
from random import Random

import pytest

from benchmarks import results_file, secagg_fuzz
from benchmarks.secagg_fuzz import send_messages
from crypto.secagg.aggregator_slot import AggregatorSlot
from crypto.secagg.silo_side import SiloSide
from tests.attacks.fuzzing import Fuzzer


def test_nothing_is_counted_while_all_is_well():
    fuzzer = Fuzzer()
    outcome = send_messages(fuzzer, Random(1), 300)
    assert outcome == secagg_fuzz.Outcome(num_sent=300)
    assert sum(n for name, n in fuzzer.counts.items() if "played" not in name) == 300


def test_an_unexpected_exception_is_counted_and_the_first_is_shown(monkeypatch):
    fuzzer = Fuzzer()
    calls = []

    def broken(side, *arguments):
        calls.append(side)
        raise KeyError(f"call {len(calls)}")

    monkeypatch.setattr(SiloSide, "share", broken)
    outcome = send_messages(fuzzer, Random(1), 300)
    assert outcome.num_unexpected == len(calls) > 1
    assert (outcome.num_sent, outcome.num_wrong_sums) == (300, 0)
    assert "KeyError: 'call 1'" in outcome.first_traceback


def test_a_wrong_sum_is_counted_and_the_next_run_is_right(monkeypatch):
    fuzzer = Fuzzer()
    unmask, wrong = AggregatorSlot.unmask, []

    def unmask_wrongly(slot):
        total = unmask(slot)
        if not wrong:
            wrong.append(slot)
            total += 1
        return total

    monkeypatch.setattr(AggregatorSlot, "unmask", unmask_wrongly)
    outcome = send_messages(fuzzer, Random(1), 5000)
    assert (outcome.num_wrong_sums, outcome.num_unexpected) == (1, 0)
    assert "WrongSum" in outcome.first_traceback
    assert fuzzer.counts["played on: the sum is exact"]


@pytest.mark.parametrize("is_broken", [False, True])
def test_the_counts_are_written(is_broken, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    monkeypatch.setattr(secagg_fuzz, "NUM_MESSAGES", 100)
    if is_broken:

        def broken(*arguments, **options):
            raise KeyError

        monkeypatch.setattr(Fuzzer, "send", broken)
    secagg_fuzz.main()
    rows = json.loads((tmp_path / "secagg_fuzz.json").read_text())["rows"]
    values = {row["name"]: row["value"] for row in rows}
    assert values["mutated messages"] == 100
    expected = 100 if is_broken else 0
    assert values["other exceptions, or a changed memory"] == expected
    assert values["wrong sums"] == 0
    assert ("Traceback" in capsys.readouterr().out) == is_broken
