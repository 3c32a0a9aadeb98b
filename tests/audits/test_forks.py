"""Two versions of the aggregator's transcript, seen by nobody in the run itself."""

import dataclasses
from pathlib import Path

import pytest

from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Finding, Severity
from protocol import records as r
from protocol.heads import Head, sign
from protocol.model_records import MeasurementSkipped
from protocol.transcript import read_heads
from tests.audits.evidence_builder import (
    AGGREGATOR,
    SILOS,
    Parties,
    Script,
    SeeHead,
    Sign,
    Witness,
    find,
    folder_of,
    make_parties,
    script,
    witnessed,
    write_run,
)


@pytest.fixture(scope="module")
def parties() -> Parties:
    return make_parties()


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, parties: Parties) -> Path:
    run = tmp_path_factory.mktemp("honest") / "run"
    write_run(run, parties, script())
    return run


def failed(run: Path) -> list[Finding]:
    """Return what the audit says of witnesses, and what has failed."""
    findings = run_audit(load_evidence(run)).findings
    return [f for f in findings if (f.check, f.severity) == ("witnesses", "FAIL")]


def heads_of(run: Path) -> list[Head]:
    return list(read_heads(folder_of(run, AGGREGATOR)))


def seen(head: Head, number: int) -> r.HeadSeen:
    return r.HeadSeen(
        round_number=number, size=head.size, root=head.root, signature=head.signature
    )


def at_witness(actions: Script, number: int) -> int:
    return next(
        place
        for place, (_, item) in enumerate(actions)
        if isinstance(item, Witness) and item.round_number == number
    )


@pytest.mark.parametrize("is_kept", [True, False])
def test_two_silos_that_each_saw_one(
    parties: Parties, honest: Path, tmp_path: Path, is_kept: bool
) -> None:
    """No silo has both, and the aggregator need not hand its transcript over."""
    (true, *_) = [head for head in heads_of(honest) if head.size > 5]
    key, digest = parties.keys[AGGREGATOR], parties.plan.digest
    other = sign(key, digest, AGGREGATOR, true.size, bytes(32))
    actions = script()
    place = actions.index(("basel", SeeHead(1)))
    actions[place] = ("basel", seen(other, 1))
    write_run(tmp_path, parties, actions)
    if not is_kept:
        for path in folder_of(tmp_path, AGGREGATOR).iterdir():
            path.unlink()
    (finding,) = failed(tmp_path)
    assert finding.party == AGGREGATOR
    assert f"signed two heads over {true.size} records" in finding.statement
    assert any("of basel" in line for line in finding.evidence)
    assert any("of cork" in line for line in finding.evidence)
    for head in (true, other):
        assert any(head.root in line for line in finding.evidence)
        assert any(head.signature in line for line in finding.evidence)


def test_a_head_that_only_one_silo_saw_against_the_aggregators_own(
    parties: Parties, honest: Path, tmp_path: Path
) -> None:
    true = heads_of(honest)[-1]  # No silo was shown it.
    key, digest = parties.keys[AGGREGATOR], parties.plan.digest
    other = sign(key, digest, AGGREGATOR, true.size, bytes(32))
    write_run(
        tmp_path, parties, [*script(), ("cork", seen(other, 3)), ("cork", Sign())]
    )
    (finding,) = failed(tmp_path)
    assert any("a head of aggregator/transcript" in line for line in finding.evidence)
    assert any(true.signature in line for line in finding.evidence)


def test_a_silo_cannot_make_one_up(
    parties: Parties, honest: Path, tmp_path: Path
) -> None:
    true = heads_of(honest)[1]
    actions = script()
    place = actions.index(("basel", SeeHead(1)))
    actions[place] = ("basel", seen(dataclasses.replace(true, root="0f" * 32), 1))
    write_run(tmp_path, parties, actions)
    assert failed(tmp_path) == []  # `heads-seen` says that it is not signed.


def test_a_head_that_leaves_out_how_the_last_round_ended(
    parties: Parties, honest: Path, tmp_path: Path
) -> None:
    """Silos were shown one old head all the time, so that nothing bound the rest."""
    actions = script()
    old = heads_of(honest)[1]
    for number in (2, 3):
        place = at_witness(actions, number)
        item = actions[place][1]
        assert isinstance(item, Witness)
        actions[place] = (AGGREGATOR, witnessed(parties, item, old))
    write_run(tmp_path, parties, actions)
    second, third = failed(tmp_path)
    assert (second.round_number, third.round_number) == (2, 3)
    assert f"is over {old.size} records and leaves out" in second.statement


def test_an_end_that_leaves_out_the_measurement(
    parties: Parties, tmp_path: Path
) -> None:
    evaluation = dataclasses.replace(parties.plan.evaluation, in_silos=True)
    plan = dataclasses.replace(parties.plan, evaluation=evaluation)
    actions = script()
    shown = find(actions, AGGREGATOR, r.Finished) + 2
    skipped = MeasurementSkipped(round_number=4, reason="nobody answered")
    actions.insert(shown, (AGGREGATOR, skipped))
    write_run(tmp_path, Parties(plan, parties.keys), actions)
    findings = run_audit(load_evidence(tmp_path)).findings
    (finding,) = [finding for finding in findings if finding.check == "witnesses"]
    assert finding.severity == Severity.WARN
    assert "The end is not witnessed: 0 silos" in finding.statement


def test_silos_that_signed_another_model_than_was_sent(
    parties: Parties, tmp_path: Path
) -> None:
    actions, other = script(), "0f" * 32
    place = at_witness(actions, 2)
    actions[place] = (AGGREGATOR, Witness(2, 1, 1, model=other))
    write_run(tmp_path, parties, actions)
    (finding,) = failed(tmp_path)
    assert (finding.party, finding.round_number) == (AGGREGATOR, 2)
    assert "signed another model" in finding.statement
    assert f"signed {other}" in finding.evidence


def test_a_record_repeated_with_false_signatures(
    parties: Parties, honest: Path, tmp_path: Path
) -> None:
    """That the silos signed the first one vouches for nothing else."""
    actions = script()
    place = at_witness(actions, 1)
    true = witnessed(parties, Witness(1, 1, 0), heads_of(honest)[1])
    false = dataclasses.replace(true, signatures=("00" * 64,) * len(SILOS))
    actions.insert(place + 1, (AGGREGATOR, false))
    write_run(tmp_path, parties, actions)
    assert any("did not sign the READY" in f.statement for f in failed(tmp_path))
    assert {f.severity for f in failed(tmp_path)} == {Severity.FAIL}
