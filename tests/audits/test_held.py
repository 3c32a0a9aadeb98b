"""Models that were broadcast: an honest run passes, every other one is named."""

import dataclasses
from pathlib import Path

import pytest

from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from protocol import records as r
from protocol.model_records import ModelHeld
from protocol.update_settings import UpdateConfig
from tests.audits.evidence_builder import (
    AGGREGATOR,
    SILOS,
    Edit,
    Parties,
    Script,
    change,
    digest,
    make_parties,
    omit,
    script,
    write_run,
)


def broadcasting(bits: int = 8) -> Parties:
    parties = make_parties()
    update = UpdateConfig(broadcast_bits=bits)
    plan = dataclasses.replace(parties.plan, update=update)
    return Parties(plan, parties.keys)


def with_broadcasts(actions: Script) -> Script:
    """Return a script with what all record when a model is broadcast."""
    found: Script = []
    for party, item in actions:
        is_aggregator = party == AGGREGATOR
        is_round = isinstance(item, r.RoundOpened) and item.round_number > 1
        if is_aggregator and (is_round or isinstance(item, r.Finished)):
            number = item.round_number if is_round else 0  # type: ignore[union-attr]
            model = digest("parameters", (number or 4) - 1)
            for silo in SILOS:
                held = ModelHeld(round_number=number, silo=silo, parameters=model)
                found += [(silo, held), (AGGREGATOR, held)]
        found.append((party, item))
    return found


ROWS: list[tuple[str, tuple[Edit, ...], str]] = [
    (
        "a silo was brought to another model",
        (
            change("basel", ModelHeld, 2, parameters=digest("lie")),
            change(AGGREGATOR, ModelHeld, 2, silo="basel", parameters=digest("lie")),
        ),
        "basel was brought to another model before round 2",
    ),
    (
        "a silo held another model at the end",
        (change("cork", ModelHeld, 0, parameters=digest("parameters", 2)),),
        "cork was brought to another model before the end",
    ),
    (
        "the aggregator invents a silo's word",
        (omit("basel", ModelHeld, 3),),
        "basel held a model before round 3, and the silo never recorded it",
    ),
    (
        "the aggregator says that its round ended with another model",
        (change(AGGREGATOR, r.RoundClosed, 1, parameters=digest("lie")),),
        "amsterdam was brought to another model before round 2",
    ),
]


def failures(run: Path) -> list[str]:
    audit = run_audit(load_evidence(run, None))
    return [
        finding.statement
        for finding in audit.with_severity(Severity.FAIL)
        if finding.check == "held"
    ]


def test_an_honest_run(tmp_path: Path) -> None:
    write_run(tmp_path, broadcasting(), with_broadcasts(script()))
    assert failures(tmp_path) == []
    audit = run_audit(load_evidence(tmp_path, None))
    passed = [f.statement for f in audit.with_severity(Severity.PASS)]
    assert any("9 times a silo held the model" in text for text in passed)


@pytest.mark.parametrize(("name", "edits", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_a_lie_is_named(
    tmp_path: Path, name: str, edits: tuple[Edit, ...], words: str
) -> None:
    actions = with_broadcasts(script())
    for edit in edits:
        actions = edit(actions)
    write_run(tmp_path, broadcasting(), actions)
    assert any(words in statement for statement in failures(tmp_path))


def test_a_broadcast_against_the_plan(tmp_path: Path) -> None:
    write_run(tmp_path, broadcasting(bits=0), with_broadcasts(script()))
    assert failures(tmp_path) == ["amsterdam was broadcast a model against the plan."]
