"""The silos' own reference, in evidence: an honest one passes, lies are named."""

import dataclasses
from pathlib import Path

import pytest

from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Finding, Severity
from protocol import records as r
from protocol.aggregation_settings import EvaluationConfig
from protocol.audit_records import ReferencePooled, ReferenceSkipped
from protocol.reference import reference_digest
from tests.audits.evidence_builder import (
    AGGREGATOR,
    SILOS,
    Edit,
    Parties,
    Script,
    SeeHead,
    Witness,
    change,
    digest,
    find,
    make_parties,
    omit,
    one_more_round,
    repeat,
    script,
    write_run,
)

COUNT = 10_000
EXTRACTOR = digest("extractor")
POOLED = ReferencePooled(
    round_number=0,
    survivors=SILOS,
    extractor="FD-small (fashion)",
    extractor_digest=EXTRACTOR,
    count=COUNT,
    noise_multiplier=0.0,
    reference=digest("reference"),
)
SKIPPED = ReferenceSkipped(round_number=0, reason="1 silo answered")
SIGNED = reference_digest(EXTRACTOR).hex()


def parties(*, asked: bool = True) -> Parties:
    """Return a plan that asks for a reference of the silos, or for a published one."""
    made = make_parties()
    config = EvaluationConfig(every_rounds=1)
    if asked:
        config = dataclasses.replace(config, reference="federation")
    return Parties(dataclasses.replace(made.plan, evaluation=config), made.keys)


def pooled_script(
    record: ReferencePooled | ReferenceSkipped = POOLED, *, slot: int = 9
) -> Script:
    """Return an honest run with a reference between the setup and round 1."""
    actions = script()
    start = find(actions, AGGREGATOR, r.RoundOpened, 1) - 1  # Its head comes first.
    before: Script = []
    for party, item in one_more_round(1):
        changed = item
        if isinstance(item, SeeHead) or hasattr(item, "round_number"):
            changed = dataclasses.replace(item, round_number=0)  # type: ignore[type-var]
        if hasattr(item, "slot"):
            changed = dataclasses.replace(changed, slot=slot)  # type: ignore[type-var]
        if isinstance(changed, r.RoundOpened):
            changed = dataclasses.replace(changed, model=SIGNED, field_bits=64)
        if isinstance(changed, Witness):
            changed = dataclasses.replace(changed, model=SIGNED)
        if isinstance(changed, r.Masked):
            upload = digest(f"features of {changed.silo}")
            changed = dataclasses.replace(changed, upload=upload)
        if isinstance(changed, r.Traffic) and changed.stage == "measure":
            changed = dataclasses.replace(changed, stage="reference")
        before.append((party, changed))
    return [*actions[:start], *before, (AGGREGATOR, record), *actions[start:]]


def findings(
    folder: Path, actions: Script, *, asked: bool = True, edits: tuple[Edit, ...] = ()
) -> list[Finding]:
    for edit in edits:
        actions = edit(actions)
    write_run(folder, parties(asked=asked), actions)
    return list(run_audit(load_evidence(folder, None)).findings)


def failed(found: list[Finding]) -> list[tuple[str, str]]:
    return [(f.check, f.statement) for f in found if f.severity == Severity.FAIL]


def test_an_honest_one_passes_and_says_that_it_is_exact(tmp_path: Path) -> None:
    found = findings(tmp_path, pooled_script())
    assert not failed(found)
    (finding,) = [f for f in found if f.check == "reference"]
    assert finding.severity == Severity.PASS
    assert "10,000 images of 3 silos" in finding.statement
    assert "no differential privacy" in finding.statement


def test_a_skipped_one_is_a_reservation(tmp_path: Path) -> None:
    found = findings(tmp_path, pooled_script(SKIPPED))
    assert not failed(found)
    (finding,) = [f for f in found if f.check == "reference"]
    assert finding.severity == Severity.WARN
    assert "opened all the same" in finding.statement


def moved_behind_round_1(actions: Script) -> Script:
    """The aggregator tells of the reference only after round 1 was opened."""
    index = find(actions, AGGREGATOR, ReferencePooled)
    item = actions[index]
    rest = [*actions[:index], *actions[index + 1 :]]
    place = find(rest, AGGREGATOR, r.RoundOpened, 1) + 1
    return [*rest[:place], item, *rest[place:]]


@pytest.mark.parametrize(
    ("check", "words", "edit"),
    [
        ("reference", "a second reference",
         repeat(AGGREGATOR, ReferencePooled, count=9_999)),
        ("reference", "2 sums of the silos' features",
         repeat(AGGREGATOR, r.Summed, 0, slot=10, sum=digest("another"))),
        ("reference", "2 sums of the silos' features",
         change("cork", r.Summed, 0, sum=digest("another"))),
        ("reference", "other silos in the reference",
         change(AGGREGATOR, ReferencePooled, survivors=SILOS[:2])),
        ("reference", "of 1 silo; the plan asks for 2",
         change(AGGREGATOR, ReferencePooled, survivors=SILOS[:1])),
        ("reference", "counts a silo twice",
         change(AGGREGATOR, ReferencePooled, survivors=(*SILOS, "cork"))),
        ("reference", "299 images; the plan asks for 300",
         change(AGGREGATOR, ReferencePooled, count=299)),
        ("reference", "noise multiplier of 1",
         change(AGGREGATOR, ReferencePooled, noise_multiplier=1.0)),
        ("reference", "another extractor than the one that silos signed",
         change(AGGREGATOR, ReferencePooled, extractor_digest=digest("mine"))),
        ("reference", "a reference of round 1",
         change(AGGREGATOR, ReferencePooled, round_number=1)),
        ("reference", "evaluated against something else",
         change(AGGREGATOR, ReferencePooled, reference=digest("mine"))),
        ("reference", "Round 2: evaluated against something else",
         change(AGGREGATOR, r.Evaluated, 2, reference_count=9_000)),
        ("reference", "after round 1 began", moved_behind_round_1),
        ("reference", "went on without the reference",
         omit(AGGREGATOR, ReferencePooled)),
        ("plausible", "only the aggregator writes",
         lambda actions: [*actions[:1], *actions[1:4], ("cork", POOLED), *actions[4:]]),
        ("same-model", "another model",
         change("basel", r.RoundOpened, 0, model=digest("mine"))),
        ("uploads", "another message",
         change("cork", r.Masked, 0, upload=digest("x"))),
        ("survivors", "other survivors",
         change("cork", r.Survivors, 0, silos=SILOS[:2])),
    ],
)  # fmt: skip
def test_lies_are_named(tmp_path: Path, check: str, words: str, edit: Edit) -> None:
    found = failed(findings(tmp_path, pooled_script(), edits=(edit,)))
    assert any(name == check and words in said for name, said in found), found


def test_it_fails_where_the_plan_does_not_ask(tmp_path: Path) -> None:
    found = failed(findings(tmp_path, pooled_script(), asked=False))
    assert any(c == "reference" and "does not ask for" in said for c, said in found)
    assert any(c == "plausible" and "before the first" in said for c, said in found)


def test_one_without_a_sum_fails(tmp_path: Path) -> None:
    actions = [
        (party, item)
        for party, item in pooled_script()
        if not (isinstance(item, r.Summed) and item.round_number == 0)
    ]
    found = failed(findings(tmp_path, actions))
    assert any("whose sum no record shows" in said for _, said in found)
