import dataclasses

import pytest

from audits.findings import (
    MAX_FAILURES,
    MAX_TEXT,
    Finding,
    Severity,
    count,
    fail,
    listing,
    passed,
    settle,
    warn,
    worst,
)


def test_a_finding_is_frozen_and_of_a_known_check() -> None:
    finding = passed("rounds", "All is well.")
    with pytest.raises(dataclasses.FrozenInstanceError):
        finding.statement = "else"  # type: ignore[misc]
    with pytest.raises(ValueError, match="'round'"):
        Finding(check="round", severity=Severity.PASS, statement="")


def test_texts_from_transcripts_cannot_steer_a_terminal_or_fill_a_page() -> None:
    finding = fail("rounds", "\x1b[2Jgone\n" + "x" * 10_000, "\x07bell")
    assert "\x1b" not in finding.statement and "\n" not in finding.statement
    assert len(finding.statement) == MAX_TEXT + 1
    assert finding.evidence == ("�bell",)


def test_settle_lists_failures_first_and_counts_the_rest() -> None:
    found = [warn("rounds", "odd"), *(fail("rounds", f"{n}") for n in range(50))]
    listed = settle("rounds", found, "fine")
    assert len(listed) == MAX_FAILURES + 1
    assert listed[0].severity == Severity.FAIL
    assert listed[-1].severity == Severity.FAIL
    assert listed[-1].statement.startswith("31 more")
    assert settle("rounds", [], "fine", "proof") == [passed("rounds", "fine", "proof")]


def test_worst_is_fail_before_warn_before_pass() -> None:
    fine, odd, bad = passed("rounds", ""), warn("rounds", ""), fail("rounds", "")
    assert worst([]) == worst([fine]) == Severity.PASS
    assert worst([fine, odd]) == Severity.WARN
    assert worst([odd, bad, fine]) == Severity.FAIL


def test_words_for_lists_and_counts() -> None:
    assert listing([]) == "nobody"
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing(str(n) for n in range(100)).endswith("9 and 90 others")
    assert count(1, "silo") == "1 silo" and count(1000, "silo") == "1,000 silos"
