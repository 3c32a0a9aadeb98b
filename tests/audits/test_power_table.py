"""The packaged power table: whole, of actual runs, and every fault is caught."""

import json
from importlib.resources import files

KNOWN_LIMITS = {"tenth-of-canaries-without-noise", "ten-canaries-ten-times"}
"""Leaks at a few canaries; the notes say so."""


def table():
    return json.loads(files("audits").joinpath("power.json").read_text("utf-8"))


def test_rows_are_whole():
    found = table()
    assert found["format"] == 1
    assert len(found["measured"]) == 10
    assert any("one-run bounds cannot catch" in note for note in found["notes"])
    assert any("added after the clip" in note for note in found["notes"])
    for row in found["rows"]:
        assert 0 <= row["caught"] <= row["runs"]
        assert row["runs"] > 0
        assert row["num_canaries"] == 1000


def test_every_fault_is_caught_by_a_check_at_both_claims():
    rows = table()["rows"]
    mutations = {row["mutation"] for row in rows} - {"none"} - KNOWN_LIMITS
    assert len(mutations) == 8
    for epsilon in (10.0, 1.0):
        for mutation in mutations:
            rates = {
                row["check"]: row["caught"] / row["runs"]
                for row in rows
                if (row["mutation"], row["epsilon"]) == (mutation, epsilon)
            }
            assert max(rates.values()) == 1.0, (mutation, epsilon, rates)
            if mutation == "noise-halved" or mutation.startswith("clip-per-draw"):
                assert rates["silo self-test"] == 1.0, (mutation, epsilon)


def test_the_audit_raises_no_false_alarm():
    for row in table()["rows"]:
        is_told = row["check"].startswith("estimate")  # 95 % confidence, each
        if row["mutation"] == "none" and not is_told:
            assert row["caught"] == 0, row
