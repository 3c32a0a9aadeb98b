"""Signatures of silos under heads of the aggregator: enough, valid, of one story."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Finding, Severity
from protocol import records as r
from protocol.audit_records import HeadConflict
from protocol.heads import Head, sign
from protocol.transcript import read_heads
from tests.audits.evidence_builder import (
    AGGREGATOR,
    SILOS,
    Item,
    Parties,
    Script,
    SeeHead,
    Witness,
    folder_of,
    make_parties,
    one_more_round,
    script,
    silo_head,
    witnessed,
    write_run,
)

Change = Callable[[Script, Parties], Script]


@pytest.fixture(scope="module")
def parties() -> Parties:
    return make_parties()


def witnesses(run: Path, severity: Severity | None = None) -> list[Finding]:
    """Return what the audit says of witnesses, of one severity if one is given."""
    found = run_audit(load_evidence(run)).findings
    return [
        finding
        for finding in found
        if finding.check == "witnesses" and severity in (None, finding.severity)
    ]


def replace_item(actions: Script, kind: type, number: int, item: Item) -> Script:
    """Put another item in the place of the aggregator's of a kind and round."""
    at = next(
        place
        for place, (party, old) in enumerate(actions)
        if (party, type(old)) == (AGGREGATOR, kind)
        and getattr(old, "round_number", number) == number
    )
    return [*actions[:at], (AGGREGATOR, item), *actions[at + 1 :]]


def head_at(run: Path, party: str, number: int) -> Head:
    """Return one of a party's heads, as an honest run has it."""
    return list(read_heads(folder_of(run, party)))[number]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, parties: Parties) -> Path:
    run = tmp_path_factory.mktemp("honest") / "run"
    write_run(run, parties, script())
    return run


def test_an_honest_run_is_witnessed(honest: Path) -> None:
    (finding,) = witnesses(honest)
    assert finding.severity == Severity.PASS
    assert "at least 2 silos signed one head" in finding.statement
    assert finding.evidence == ()


def test_who_is_absent_is_named(parties: Parties, tmp_path: Path) -> None:
    fewer = Witness(2, 1, 1, silos=("amsterdam", "cork"))
    write_run(tmp_path, parties, replace_item(script(), Witness, 2, fewer))
    (finding,) = witnesses(tmp_path)
    assert finding.severity == Severity.PASS
    assert finding.evidence == ("round 2: without basel",)


def test_fewer_than_the_threshold_is_a_warning(
    parties: Parties, tmp_path: Path
) -> None:
    fewer = Witness(2, 1, 1, silos=("cork",))
    write_run(tmp_path, parties, replace_item(script(), Witness, 2, fewer))
    (finding,) = witnesses(tmp_path)
    assert (finding.severity, finding.round_number) == (Severity.WARN, 2)
    assert "is not witnessed: 1 silo signed" in finding.statement
    assert finding.evidence == ("signed by cork",)


def test_a_closed_round_that_nobody_signed_fails(
    parties: Parties, tmp_path: Path
) -> None:
    actions = [
        (party, item)
        for party, item in script()
        if not (isinstance(item, Witness) and item.round_number == 3)
    ]
    write_run(tmp_path, parties, actions)
    (finding,) = witnesses(tmp_path, Severity.FAIL)
    assert (finding.party, finding.round_number) == (AGGREGATOR, 3)
    assert "Round 3 was closed, but no silo has signed" in finding.statement


def test_a_signature_in_another_slot_does_not_count(
    parties: Parties, tmp_path: Path
) -> None:
    actions = replace_item(script(), Witness, 2, Witness(2, 1, 9))
    write_run(tmp_path, parties, actions)
    slot, finding = witnesses(tmp_path)
    assert (slot.severity, finding.severity) == (Severity.FAIL, Severity.FAIL)
    assert "it says nothing of that slot" in slot.evidence
    assert "no silo has signed" in finding.statement
    assert finding.round_number == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "0f" * 32}, "amsterdam, basel and cork did not sign the READY"),
        ({"agreed": "0f" * 32}, "amsterdam, basel and cork did not sign"),
        ({"slot": 2}, "amsterdam, basel and cork did not sign"),
        ({"silos": ("basel", "amsterdam", "cork")}, "basel and amsterdam did not sign"),
        ({"signatures": ("00" * 64,) * 3}, "amsterdam, basel and cork did not sign"),
        ({"signatures": ("00" * 63, "", "x")}, "holds no signatures of READY"),
        ({"silos": ("basel",)}, "holds no signatures of READY"),
        ({"root": "0f" * 31}, "holds no signatures of READY"),
        ({"agreed": "0f" * 31}, "holds no signatures of READY"),
    ],
)
def test_signatures_that_do_not_hold(
    changes: dict[str, object],
    words: str,
    parties: Parties,
    honest: Path,
    tmp_path: Path,
) -> None:
    true = witnessed(parties, Witness(1, 1, 0), head_at(honest, AGGREGATOR, 1))
    false = dataclasses.replace(true, **changes)  # type: ignore[arg-type]
    write_run(tmp_path, parties, replace_item(script(), Witness, 1, false))
    failed = witnesses(tmp_path, Severity.FAIL)
    assert any(words in finding.statement for finding in failed), failed
    assert {finding.party for finding in failed} == {AGGREGATOR}


def test_signatures_under_a_head_of_another_transcript(
    parties: Parties, honest: Path, tmp_path: Path
) -> None:
    """The silos did sign it, and the aggregator did, too."""
    size = head_at(honest, AGGREGATOR, 1).size
    head = forked(parties, size)
    record = witnessed(parties, Witness(1, 1, 0), head)
    write_run(tmp_path, parties, replace_item(script(), Witness, 1, record))
    both, finding = witnesses(tmp_path)
    assert (both.severity, finding.severity) == (Severity.FAIL, Severity.FAIL)
    assert f"signed two heads over {size} records" in both.statement
    assert "none of the aggregator's transcript" in finding.statement
    assert f"root {head.root}" in finding.evidence[0]
    assert head.signature in finding.evidence[1]


def test_a_measurement_is_witnessed_like_a_round(tmp_path: Path) -> None:
    made = make_parties()
    evaluation = dataclasses.replace(made.plan.evaluation, in_silos=True)
    plan = dataclasses.replace(made.plan, evaluation=evaluation)
    parties = Parties(plan, made.keys)
    measured = r.MeasuredInSilos(
        round_number=4,
        survivors=SILOS,
        num_silos=3,
        mean=1.0,
        standard_deviation=0.1,
        extractor="-",
        extractor_digest="00" * 32,
        reference="00" * 32,
        reference_count=9,
        num_samples=plan.evaluation.num_samples,
        average="00" * 32,
    )
    actions = script()
    end = next(i for i, (_, item) in enumerate(actions) if isinstance(item, r.Finished))
    more = [*one_more_round(4), (AGGREGATOR, measured)]
    write_run(tmp_path / "with", parties, [*actions[:end], *more, *actions[end:]])
    assert witnesses(tmp_path / "with")[0].severity == Severity.PASS
    more = [(party, item) for party, item in more if not isinstance(item, Witness)]
    write_run(tmp_path / "without", parties, [*actions[:end], *more, *actions[end:]])
    (finding,) = witnesses(tmp_path / "without")
    assert (finding.severity, finding.round_number) == (Severity.FAIL, 4)


# ------------------------------------------------------------------ the end


def test_an_acknowledgement_that_the_silo_did_not_sign(
    parties: Parties, honest: Path, tmp_path: Path
) -> None:
    own, seen = head_at(honest, "basel", -2), head_at(honest, AGGREGATOR, -2)
    true = silo_head(parties, "basel", own, seen)
    other = head_at(honest, AGGREGATOR, 1)
    actions = script()
    at = next(
        i
        for i, (_, item) in enumerate(actions)
        if getattr(item, "silo", "") == "basel" and type(item).__name__ == "TellHead"
    )
    lie = dataclasses.replace(
        true,
        seen_size=other.size,
        seen_root=other.root,
        seen_signature=other.signature,
    )
    actions[at] = (AGGREGATOR, lie)
    write_run(tmp_path, parties, actions)
    (finding,) = witnesses(tmp_path, Severity.FAIL)
    assert "The end: basel did not sign" in finding.statement


def test_an_end_that_too_few_acknowledge(parties: Parties, tmp_path: Path) -> None:
    actions = [
        (party, item)
        for party, item in script()
        if type(item).__name__ != "TellHead" or item.silo == "cork"  # type: ignore[union-attr]
    ]
    write_run(tmp_path, parties, actions)
    (finding,) = witnesses(tmp_path)
    assert finding.severity == Severity.WARN
    assert "The end is not witnessed: 1 silo acknowledged" in finding.statement


def test_without_masks_rounds_are_not_witnessed(tmp_path: Path) -> None:
    write_run(tmp_path, make_parties(method="none"), script(method="none"))
    (finding,) = witnesses(tmp_path)
    assert finding.severity == Severity.WARN
    assert "Rounds are not witnessed: without secure aggr" in finding.statement
    assert "12 heads that the silos accepted" in finding.statement


# ------------------------------------------------------------------ two transcripts


def forked(parties: Parties, size: int) -> Head:
    """Return a head that the aggregator signed over other records."""
    key = parties.keys[AGGREGATOR]
    return sign(key, parties.plan.digest, AGGREGATOR, size, bytes(range(32)))


def conflict(seen: Head, shown: Head) -> HeadConflict:
    return HeadConflict(
        round_number=2,
        stage="ready",
        seen_size=seen.size,
        seen_root=seen.root,
        seen_signature=seen.signature,
        shown_size=shown.size,
        shown_root=shown.root,
        shown_signature=shown.signature,
    )


def with_conflict(parties: Parties, record: HeadConflict, run: Path) -> list[Finding]:
    """Return the findings of a run in which basel records two heads."""
    actions = script()
    at = next(
        i
        for i, (party, item) in enumerate(actions)
        if party == "basel" and isinstance(item, SeeHead) and item.round_number == 2
    )
    write_run(run, parties, [*actions[:at], ("basel", record), *actions[at:]])
    return witnesses(run)


def test_two_heads_of_one_size_fail_with_both_as_evidence(
    parties: Parties, honest: Path, tmp_path: Path
) -> None:
    seen = head_at(honest, AGGREGATOR, 1)
    shown = forked(parties, seen.size)
    (finding,) = with_conflict(parties, conflict(seen, shown), tmp_path)
    assert (finding.severity, finding.party) == (Severity.FAIL, AGGREGATOR)
    assert f"signed two heads over {seen.size} records" in finding.statement
    assert "of basel" in finding.statement
    for head in (seen, shown):
        assert any(head.root in line for line in finding.evidence)
        assert any(head.signature in line for line in finding.evidence)


def test_a_head_of_another_size_that_the_transcript_lacks(
    parties: Parties, honest: Path, tmp_path: Path
) -> None:
    seen = head_at(honest, AGGREGATOR, 1)
    shown = forked(parties, seen.size + 2)
    (finding,) = with_conflict(parties, conflict(seen, shown), tmp_path / "a")
    assert finding.severity == Severity.FAIL
    assert f"a head over {shown.size} records that is none of its" in finding.statement
    (finding,) = with_conflict(parties, conflict(shown, seen), tmp_path / "b")
    assert finding.severity == Severity.FAIL


def test_two_heads_that_the_transcript_has_are_a_warning(
    parties: Parties, honest: Path, tmp_path: Path
) -> None:
    """An older head was shown: odd, but there is one transcript."""
    heads = [head_at(honest, AGGREGATOR, number) for number in (2, 1)]
    (finding,) = with_conflict(parties, conflict(*heads), tmp_path)
    assert (finding.severity, finding.party) == (Severity.WARN, "basel")
    assert "the aggregator's transcript has both" in finding.statement


def test_a_conflict_that_a_silo_made_up(
    parties: Parties, honest: Path, tmp_path: Path
) -> None:
    seen = head_at(honest, AGGREGATOR, 1)
    shown = dataclasses.replace(seen, root="0f" * 32)
    (finding,) = with_conflict(parties, conflict(seen, shown), tmp_path)
    assert (finding.severity, finding.party) == (Severity.FAIL, "basel")
    assert "a head that the aggregator did not sign" in finding.statement


def test_without_the_aggregators_transcript(
    parties: Parties, honest: Path, tmp_path: Path
) -> None:
    seen = head_at(honest, AGGREGATOR, 1)
    with_conflict(parties, conflict(seen, forked(parties, seen.size)), tmp_path)
    for path in folder_of(tmp_path, AGGREGATOR).iterdir():
        path.unlink()
    found = {finding.severity for finding in witnesses(tmp_path)}
    assert found == {Severity.FAIL, Severity.WARN}


def test_each_signature_is_verified_once(
    parties: Parties, honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import audits.witnesses

    verified = []
    real = audits.witnesses.verify_frame

    def counting(*arguments: object) -> None:
        verified.append(arguments)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(audits.witnesses, "verify_frame", counting)
    actions = script()
    at = next(i for i, (_, item) in enumerate(actions) if isinstance(item, Witness))
    write_run(tmp_path, parties, [*actions[: at + 1], actions[at], *actions[at + 1 :]])
    assert witnesses(tmp_path)[0].severity == Severity.PASS
    assert len(verified) == 3 * 3 + 3  # Three rounds, and the end.
