"""The measurement in the silos, in evidence: an honest one passes, lies are named."""

import dataclasses
from pathlib import Path

import pytest

from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Finding, Severity
from protocol import records as r
from protocol.aggregation_settings import EvaluationConfig
from protocol.model_records import MeasuredInSilos, MeasurementSkipped
from tests.audits.evidence_builder import (
    AGGREGATOR,
    ROUNDS,
    SILOS,
    Edit,
    Parties,
    Script,
    change,
    digest,
    make_parties,
    omit,
    one_more_round,
    repeat,
    script,
    write_run,
)

NUMBER = ROUNDS + 1
MEASURED = MeasuredInSilos(
    round_number=NUMBER,
    survivors=SILOS,
    num_silos=3,
    mean=41.5,
    standard_deviation=2.25,
    extractor="FD-small (fashion)",
    extractor_digest=digest("extractor"),
    reference=digest("reference"),
    reference_count=10_000,
    num_samples=500,
    average=digest("average", ROUNDS),
)
SKIPPED = MeasurementSkipped(round_number=NUMBER, reason="1 silo answered")


def parties(*, asked: bool) -> Parties:
    """Return a plan that asks for the measurement, or does not."""
    made = make_parties()
    config = EvaluationConfig(every_rounds=1, in_silos=asked)
    return Parties(dataclasses.replace(made.plan, evaluation=config), made.keys)


def measured_script(record: r.Record = MEASURED) -> Script:
    """Return an honest run with a measurement between the last round and the end."""
    actions = script()
    end = next(i for i, (_, item) in enumerate(actions) if isinstance(item, r.Finished))
    more: Script = [*one_more_round(NUMBER), (AGGREGATOR, record)]
    return [*actions[:end], *more, *actions[end:]]


def findings(
    folder: Path, actions: Script, *, asked: bool = True, edits: tuple[Edit, ...] = ()
) -> list[Finding]:
    for edit in edits:
        actions = edit(actions)
    write_run(folder, parties(asked=asked), actions)
    return list(run_audit(load_evidence(folder, None)).findings)


def failed(found: list[Finding]) -> list[tuple[str, str]]:
    return [(f.check, f.statement) for f in found if f.severity == Severity.FAIL]


def test_an_honest_measurement_passes_and_says_on_whose_word(tmp_path: Path) -> None:
    found = findings(tmp_path, measured_script())
    assert not failed(found)
    (finding,) = [f for f in found if f.check == "measurement"]
    assert finding.severity == Severity.PASS
    assert "41.50 ± 2.25 over 3 silos" in finding.statement
    assert "their own word" in finding.statement


def test_a_skipped_one_is_a_reservation(tmp_path: Path) -> None:
    found = findings(tmp_path, measured_script(SKIPPED))
    assert not failed(found)
    (finding,) = [f for f in found if f.check == "measurement"]
    assert finding.severity == Severity.WARN
    assert "sum was opened all the same" in finding.statement  # as the records say
    unsummed = [
        (party, item)
        for party, item in measured_script(SKIPPED)
        if not (isinstance(item, r.Summed) and item.round_number == NUMBER)
    ]
    found = findings(tmp_path / "other", unsummed)
    (finding,) = [f for f in found if f.check == "measurement"]
    assert "opened" not in finding.statement


@pytest.mark.parametrize(
    ("check", "words", "edit"),
    [
        ("measurement", "2 silos and names 3",
         change(AGGREGATOR, MeasuredInSilos, num_silos=2)),
        ("measurement", "other silos",
         change(AGGREGATOR, MeasuredInSilos, survivors=SILOS[:2], num_silos=2)),
        ("measurement", "another model",
         change(AGGREGATOR, MeasuredInSilos, average=digest("mine"))),
        ("measurement", "the plan says 500",
         change(AGGREGATOR, MeasuredInSilos, num_samples=50)),
        ("measurement", "no distances have",
         change(AGGREGATOR, MeasuredInSilos, mean=1e6)),
        ("measurement", "as round 3",
         change(AGGREGATOR, MeasuredInSilos, round_number=3)),
        ("measurement", "a second measurement",
         repeat(AGGREGATOR, MeasuredInSilos, mean=1.0)),
        ("measurement", "without the measurement",
         omit(AGGREGATOR, MeasuredInSilos)),
        ("plausible", "round 5 of 3",
         change("basel", r.RoundOpened, NUMBER, round_number=5)),
        ("same-model", "another model",
         change("basel", r.RoundOpened, NUMBER, model=digest("mine"))),
        ("uploads", "another message",
         change("cork", r.Masked, NUMBER, upload=digest("x"))),
        ("survivors", "other survivors",
         change("cork", r.Survivors, NUMBER, silos=SILOS[:2])),
        ("revealed", "both kinds of share",
         change("cork", r.Revealed, NUMBER, self_masks_of=SILOS[1:],
                slot_keys_of=SILOS[:1])),
    ],
)  # fmt: skip
def test_lies_are_named(tmp_path: Path, check: str, words: str, edit: Edit) -> None:
    found = failed(findings(tmp_path, measured_script(), edits=(edit,)))
    assert any(name == check and words in said for name, said in found), found


def test_one_more_round_fails_where_the_plan_does_not_ask(tmp_path: Path) -> None:
    found = failed(findings(tmp_path, measured_script(), asked=False))
    assert any(check == "plausible" and "round 4 of 3" in said for check, said in found)


def test_a_round_is_no_measurement(tmp_path: Path) -> None:
    closed = r.RoundClosed(
        round_number=NUMBER, survivors=SILOS, parameters=digest("more")
    )
    actions = [*measured_script(), (AGGREGATOR, closed)]
    found = failed(findings(tmp_path, actions))
    assert any(check == "plausible" for check, _ in found)
