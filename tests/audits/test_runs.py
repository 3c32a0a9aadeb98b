"""Runs that are honest but not smooth: nothing fails, and what is odd is said."""

import shutil
from pathlib import Path

import pytest

from audits.audit import Audit, run_audit
from audits.evidence import load_evidence
from audits.findings import Finding, Severity
from protocol import records as r
from tests.audits.evidence_builder import (
    AGGREGATOR,
    SILOS,
    Script,
    digest,
    find,
    folder_of,
    make_parties,
    repeat,
    script,
    write_run,
)


def audit_of(run: Path) -> Audit:
    return run_audit(load_evidence(run))


def write(run: Path, actions: Script, **options: str) -> Audit:
    write_run(run, make_parties(**options), actions)
    return audit_of(run)


def warnings(audit: Audit) -> dict[str, list[Finding]]:
    assert audit.with_severity(Severity.FAIL) == ()
    found: dict[str, list[Finding]] = {}
    for finding in audit.with_severity(Severity.WARN):
        found.setdefault(finding.check, []).append(finding)
    return found


def test_a_dropout_is_no_failure(tmp_path: Path) -> None:
    audit = write(tmp_path, script(lost={2: "cork"}))
    odd = warnings(audit)
    assert set(odd) == {"traffic", "privacy"}
    assert odd["traffic"][0].party == "cork"
    assert "round 2, masked" in odd["traffic"][0].evidence[0]


def test_updates_in_the_clear_are_said_loudly(tmp_path: Path) -> None:
    odd = warnings(write(tmp_path, script(method="none"), method="none"))
    assert set(odd) == {"protection", "slots", "confirmed", "privacy", "witnesses"}
    assert "in the clear, as the plan says" in odd["protection"][0].statement


def test_a_semi_honest_plan_is_not_held_to_confirmations(tmp_path: Path) -> None:
    actions = [(p, i) for p, i in script() if getattr(i, "stage", "") != "confirm"]
    kept = [(p, i) for p, i in actions if not isinstance(i, r.Confirmed)]
    odd = warnings(write(tmp_path / "without", kept, trust="semi-honest"))
    assert set(odd) == {"confirmed", "privacy"}
    odd = warnings(write(tmp_path / "with", actions, trust="semi-honest"))
    assert set(odd) == {"privacy"}


def test_without_differential_privacy_there_is_a_warning(tmp_path: Path) -> None:
    odd = warnings(write(tmp_path, script()))
    assert "may reveal training examples" in odd["privacy"][0].statement


@pytest.mark.parametrize("party", [AGGREGATOR, "basel"])
def test_a_missing_transcript_is_named_and_limits_the_checks(
    party: str, tmp_path: Path
) -> None:
    write_run(tmp_path, make_parties(), script())
    shutil.rmtree(folder_of(tmp_path, party))
    odd = warnings(audit_of(tmp_path))
    assert party in odd["present"][0].statement
    if party == AGGREGATOR:
        unmade = {"heads-seen", "silo-heads", "uploads", "traffic", "rounds"}
        assert unmade < set(odd)
        assert all("Not checked" in odd[check][0].statement for check in unmade)


def test_only_the_aggregators_transcript_is_left(tmp_path: Path) -> None:
    write_run(tmp_path, make_parties(), script())
    shutil.rmtree(tmp_path / "silos")
    odd = warnings(audit_of(tmp_path))
    assert "amsterdam, basel and cork" in odd["present"][0].statement
    assert {"uploads", "traffic"} < set(odd)


def test_a_run_that_stops_early_is_told_with_its_round(tmp_path: Path) -> None:
    actions = script()
    stop = find(actions, AGGREGATOR, r.RoundOpened, 3)
    odd = warnings(write(tmp_path, actions[:stop]))
    assert {f.party for f in odd["ending"]} == {AGGREGATOR, *SILOS}
    assert "at round 2 of 3" in odd["ending"][0].statement
    assert set(odd) == {"ending", "records", "parameters", "privacy"}


def test_records_after_the_last_head_are_told(tmp_path: Path) -> None:
    actions = script()
    extra = r.Refused(round_number=0, stage="end", check="the run is over")
    odd = warnings(write(tmp_path, [*actions, ("cork", extra)]))
    assert "records 42 to 42 follow" in odd["records"][0].statement
    assert odd["records"][0].party == "cork"
    assert "the run is over" in odd["refusals"][0].statement


def test_a_message_sent_again_after_a_crash_is_no_reuse(tmp_path: Path) -> None:
    actions = script()
    for kind in (r.Masked, r.Confirmed, r.Revealed, r.Finished):
        actions = repeat("cork", kind)(actions)
    confirmed = actions[find(actions, "cork", r.Confirmed)]
    actions.insert(find(actions, "cork", r.Revealed) + 2, confirmed)
    assert set(warnings(write(tmp_path, actions))) == {"privacy"}


def test_traffic_counted_twice_over_a_restart_is_a_warning(tmp_path: Path) -> None:
    actions = repeat("cork", r.Traffic, 2)(script())
    index = find(actions, "cork", r.Traffic, 2)
    actions.insert(index, ("cork", r.Resumed(software="test")))
    odd = warnings(write(tmp_path, actions))
    assert odd["traffic"][0].party == "cork"


def test_an_upload_lost_in_a_restart_of_the_aggregator_is_a_warning(
    tmp_path: Path,
) -> None:
    actions = script(lost={2: "cork"})
    index = find(actions, AGGREGATOR, r.Dropped, 2)
    actions[index] = (AGGREGATOR, r.Resumed(software="test"))
    odd = warnings(write(tmp_path, actions))
    assert odd["uploads"][0].party == "cork"
    assert "started again" in odd["uploads"][0].statement


def test_a_lost_round_is_told(tmp_path: Path) -> None:
    actions = script(rounds=2)
    index = find(actions, AGGREGATOR, r.RoundClosed, 2)
    lost = r.RoundLost(round_number=2, reason="too few shares")
    actions[index] = (AGGREGATOR, lost)
    write_run(tmp_path, make_parties(rounds=2), actions)
    odd = warnings(audit_of(tmp_path))
    assert odd["rounds"][0].round_number == 2
    assert "too few shares" in odd["rounds"][0].statement


def test_attempts_of_a_round_are_one_round(tmp_path: Path) -> None:
    """A round that lost its sum before anything was revealed may be repeated."""
    actions = script()
    for party in (AGGREGATOR, *SILOS):
        actions = repeat(party, r.RoundOpened, 2, attempt=2, slot=7)(actions)
    assert set(warnings(write(tmp_path, actions))) == {"privacy"}


def test_a_tail_cut_off_that_nobody_saw_is_a_warning(tmp_path: Path) -> None:
    """What no head seen by others covers cannot be proved missing, but is told."""
    actions = script()
    stop = find(actions, AGGREGATOR, r.Finished)
    write_run(tmp_path, make_parties(), actions[:stop])
    odd = warnings(audit_of(tmp_path))
    assert "ends early" in odd["ending"][0].statement


def test_disclosures_are_the_silos_own_count_or_the_aggregators(
    tmp_path: Path,
) -> None:
    write_run(tmp_path, make_parties(), script())
    shutil.rmtree(folder_of(tmp_path, "cork"))
    own, _, counted = audit_of(tmp_path).disclosures
    assert (own.witness, counted.witness) == ("amsterdam", AGGREGATOR)
    assert own.total == counted.total
    # Three rounds of ready, masked, confirm, reveal; setup, shares and end once.
    assert own.total.sent == 3 * (160 + 40_160 + 129 + 227) + 656 + 742 + 300
    assert own.total.vector == 3 * 40_000
    assert own.by_round()[2].sent == 160 + 40_160 + 129 + 227
    assert list(own.by_stage()) == [
        "setup",
        "shares",
        "ready",
        "masked",
        "confirm",
        "reveal",
        "end",
    ]
    assert own.by_stage()["reveal"].sent == 3 * 227


def test_digests_in_the_builder_differ() -> None:
    assert digest("a") != digest("b")
