"""The benchmark counts what must not happen, instead of trusting that it does not."""

import json
from random import Random

import pytest

from benchmarks import he_fuzz, results_file
from crypto.errors import WorkerFailed
from tests.crypto.bfv.hostile import WRONG, Sum


class Made:
    """Says in turn what a case may come to."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.counts = {}

    def play(self, random):
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def test_what_must_not_happen_is_counted_and_the_first_is_shown():
    made = Made("exact", WRONG, WorkerFailed("died"), KeyError("ours"), "malformed")
    outcome = he_fuzz.play_cases(made, Random(1), 5)
    counts = outcome.num_played, outcome.num_wrong, outcome.num_crashed
    assert (*counts, outcome.num_unexpected) == (5, 1, 1, 1)
    assert "WorkerFailed: died" in outcome.first_traceback


@pytest.mark.parametrize("is_broken", [False, True])
def test_the_counts_are_written(is_broken, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    monkeypatch.setattr(he_fuzz, "NUM_CASES", 12)
    if is_broken:

        def broken(*arguments):
            raise KeyError

        monkeypatch.setattr(Sum, "play", broken)
    he_fuzz.main()
    rows = json.loads((tmp_path / "he_fuzz.json").read_text())["rows"]
    values = {row["name"]: row["value"] for row in rows}
    assert values["hostile sums"] == 12
    assert values["other exceptions"] == (12 if is_broken else 0)
    assert values["wrong values accepted"] == values["children that died"] == 0
    assert ("Traceback" in capsys.readouterr().out) == is_broken
