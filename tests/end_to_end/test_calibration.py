"""Runs that train after the mean, from the plan to the audit: each of the four sources
of auxiliary images, each trigger, and a crash at every step of the way."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import aggregator.auxiliary
import aggregator.calibrator
import silo.auxiliary
from aggregator.errors import CohortTooSmall, ConfigRejected, StateBroken
from aggregator.state import RoundState
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from crypto.frame import read_header
from protocol import records
from protocol.calibration_settings import CalibrationConfig
from protocol.envelope import Kind
from protocol.mechanism import round_event, steps_of_run, steps_per_round
from protocol.model_records import AuxiliaryImages, AuxiliarySent, Calibrated
from protocol.plan import PlanDraft
from protocol.privacy_settings import PrivacyConfig
from protocol.transcript import read_records
from tests.end_to_end.conftest import Crash, Harness, equal_parameters, tiny_draft

TINY = tiny_draft()
SAMPLER = replace(
    TINY.evaluation, sampler=replace(TINY.evaluation.sampler, num_steps=3)
)
EVERY = CalibrationConfig(
    when="every-round",
    images="silo-models",
    num_images=9,
    local_steps=2,
    steps=2,
    learning_rate=1e-2,
    examples_per_step=4,
)
SAMPLES = replace(EVERY, images="silo-samples")
AGGREGATE = replace(EVERY, images="aggregate", local_steps=0, source_round=1)
PRIVACY = PrivacyConfig(
    mechanism="dp-sgd",
    noise_multiplier=1.0,
    delta=1e-3,
    sample_rate=0.25,
    multiplicity=2,
    spare_steps=4,
)


def draft(calibration: CalibrationConfig, **changes: Any) -> PlanDraft:
    return replace(TINY, calibration=calibration, evaluation=SAMPLER, **changes)


def public_file(path: Path) -> CalibrationConfig:
    """Write a public data set; return the section of a plan that names it."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (12, 8, 8), np.uint8)
    np.savez(buffer, images=pixels)
    path.write_bytes(buffer.getvalue())
    return replace(
        EVERY,
        images="public",
        num_images=0,
        local_steps=0,
        name="random dots",
        sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
    )


def said(run: Harness, kind: type, party: str = "aggregator") -> list[Any]:
    folder = run.federation.aggregator.run(run.plan)
    if party != "aggregator":
        folder = run.federation.silo(party).run(run.plan)
    entries = read_records(folder / "transcript")
    return [entry.record for entry in entries if isinstance(entry.record, kind)]


def audit_of(run: Harness) -> Any:
    return run_audit(load_evidence(run.federation.root, None))


def check_audit(run: Harness) -> Any:
    audit = audit_of(run)
    assert [f.statement for f in audit.with_severity(Severity.FAIL)] == []
    return audit


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RoundState:
    """Return the end of the same run without any training after the mean."""
    from tests.end_to_end.conftest import make_harness

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("plain") / "run"
    return make_harness(root, replace(TINY, evaluation=SAMPLER)).run()


@pytest.mark.parametrize(
    "source", ["public", "aggregate", "silo-samples", "silo-models"]
)
def test_each_source_of_images(
    harness: Callable[..., Harness], tmp_path: Path, plain: RoundState, source: str
) -> None:
    path = tmp_path / "public.npz"
    config = {
        "public": public_file(path),
        "aggregate": AGGREGATE,
        "silo-samples": SAMPLES,
        "silo-models": EVERY,
    }[source]
    run = harness(draft(config), auxiliary=str(path) if source == "public" else "")
    end = run.run()
    assert not equal_parameters(end, plain)
    (images,) = said(run, AuxiliaryImages)
    assert images.label == source
    assert images.num_images == (12 if source == "public" else 9)
    rounds = [2] if source == "aggregate" else [1, 2]
    trained = said(run, Calibrated)
    assert [record.round_number for record in trained] == rounds
    assert all(record.examples == 8 for record in trained)
    silos = [silo.name for silo in run.plan.silos]
    assert [len(said(run, AuxiliarySent, name)) for name in silos] == [
        int(config.asks_silos)
    ] * 3
    audit = check_audit(run)
    assert any(finding.check == "auxiliary" for finding in audit.findings)
    is_told = any("in the clear" in finding.statement for finding in audit.findings)
    assert is_told == config.asks_silos


def test_the_signed_model_is_the_trained_one(harness: Callable[..., Harness]) -> None:
    run = harness(draft(EVERY))
    run.run()
    closed = said(run, records.RoundClosed)[-1].parameters
    assert said(run, records.Finished, "silo-1")[0].parameters == closed


def test_one_correction_when_learning_is_slow(harness: Callable[..., Harness]) -> None:
    slow = replace(EVERY, when="slow-learning", window=1, min_improvement=0.9, steps=3)
    run = harness(draft(slow, num_rounds=4))
    run.run()
    (record,) = said(run, Calibrated)
    assert (record.round_number, record.triggered) == (2, True)
    check_audit(run)


WRITES = [
    (aggregator.calibrator, "save_images", "before", 1),
    (aggregator.calibrator, "save_images", "after", 1),
    (aggregator.calibrator, "calibrate", "after", 2),
    (aggregator.calibrator, "save_safetensors", "after", 2),
    (silo.auxiliary, "save_secret", "before", 2),
    (silo.auxiliary, "save_secret", "after", 2),
    (aggregator.calibrator.Calibrator, "is_saved", "before", 1),
]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> RoundState:
    """Return the end of an undisturbed run with auxiliary images of the silos."""
    from tests.end_to_end.conftest import make_harness

    torch.set_num_threads(1)
    return make_harness(tmp_path_factory.mktemp("whole") / "run", draft(EVERY)).run()


def check_end(run: Harness, calibrated: RoundState) -> None:
    """Finish a run that was killed, and compare it with an undisturbed one."""
    assert equal_parameters(run.run(), calibrated)
    given = {
        (silo, reply)
        for silo, _, reply in run.wire
        if read_header(reply).kind == Kind.AUXILIARY_SENT
    }
    assert len(given) == 3
    assert len(said(run, AuxiliaryImages)) == 1
    assert [record.round_number for record in said(run, Calibrated)] == [1, 2]
    check_audit(run)


@pytest.mark.parametrize(
    ("kind", "moment"), [(Kind.AUXILIARY, "before"), (Kind.AUXILIARY, "after")]
)
def test_all_processes_die_at_the_exchange(
    harness: Callable[..., Harness], calibrated: RoundState, kind: int, moment: str
) -> None:
    run = harness(draft(EVERY))

    def fault(when: str, at: int, silo_index: int) -> None:
        if (when, at, silo_index) == (moment, kind, 1):
            raise Crash

    with pytest.raises(Crash):
        run.run(fault)
    check_end(run, calibrated)


@pytest.mark.parametrize(
    ("owner", "name", "moment", "call"), WRITES, ids=lambda value: str(value)[-20:]
)
def test_all_processes_die_around_a_write(
    harness: Callable[..., Harness],
    calibrated: RoundState,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    moment: str,
    call: int,
) -> None:
    original, calls = getattr(owner, name), 0

    def dying(*arguments: Any, **named: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call and moment == "before":
            raise Crash
        result = original(*arguments, **named)
        if calls == call:
            raise Crash
        return result

    run = harness(draft(EVERY))
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, dying)
        with pytest.raises(Crash):
            run.run()
    check_end(run, calibrated)


def dying_at_once(*arguments: Any) -> None:
    raise Crash


def test_what_was_trained_is_not_trained_again_after_a_crash(
    harness: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = harness(draft(EVERY))
    original = aggregator.calibrator.Calibrator._record

    def dying(*arguments: Any) -> None:
        original(*arguments)
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(aggregator.calibrator.Calibrator, "_record", dying)
        with pytest.raises(Crash):
            run.run()
    trained = []
    calibrate = aggregator.calibrator.calibrate

    def counting(*arguments: Any, **named: Any) -> RoundState:
        trained.append(arguments[1].round_number)
        return calibrate(*arguments, **named)

    monkeypatch.setattr(aggregator.calibrator, "calibrate", counting)
    run.run()
    assert trained == [2]


def test_images_that_are_lost_are_not_made_anew(
    harness: Callable[..., Harness],
) -> None:
    run = harness(draft(AGGREGATE, num_rounds=3))

    def fault(when: str, at: int, silo_index: int) -> None:
        done = len(said(run, records.RoundClosed)) if when == "before" else 0
        if at == Kind.ROUND and done == 2:
            raise Crash

    with pytest.raises(Crash):
        run.run(fault)
    folder = run.federation.aggregator.run(run.plan)
    stored = (folder / "auxiliary.safetensors").read_bytes()
    (folder / "auxiliary.safetensors").write_bytes(
        stored[:-1] + bytes([stored[-1] ^ 1])
    )
    with pytest.raises(StateBroken, match="damaged"):
        run.run()
    (folder / "auxiliary.safetensors").unlink()
    with pytest.raises(StateBroken, match="is missing"):
        run.run()


def test_a_silo_that_does_not_answer_is_left_out(
    harness: Callable[..., Harness],
) -> None:
    run = harness(draft(EVERY), num_silos=4)
    run.run(lambda when, kind, silo_index: kind == Kind.AUXILIARY and silo_index == 3)
    (images,) = said(run, AuxiliaryImages)
    assert images.silos == ("silo-1", "silo-2", "silo-3")
    assert images.num_images == 6
    assert ("auxiliary", "silo-4") in {
        (dropped.stage, dropped.silo) for dropped in said(run, records.Dropped)
    }
    check_audit(run)


def test_too_few_silos_give_something(harness: Callable[..., Harness]) -> None:
    run = harness(draft(SAMPLES))
    with pytest.raises(CohortTooSmall, match="gave auxiliary images"):
        run.run(
            lambda when, kind, silo_index: kind == Kind.AUXILIARY and not silo_index
        )


def test_the_public_file_must_be_the_one_of_the_plan(
    harness: Callable[..., Harness], tmp_path: Path
) -> None:
    path = tmp_path / "public.npz"
    run = harness(draft(public_file(path)))
    with pytest.raises(ConfigRejected, match="--auxiliary"):
        run.run()
    path = run.federation.aggregator.auxiliary
    path.write_bytes(b"another file")
    with pytest.raises(ConfigRejected, match="has SHA-256"):
        run.run()


def test_with_dp_sgd_the_pre_training_is_on_account(
    harness: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a crash that comes when it is trained and before it is kept."""
    training = replace(TINY.training, local_steps=1)
    config = replace(SAMPLES, local_steps=3)
    run = harness(draft(config, privacy=PRIVACY, training=training))
    with monkeypatch.context() as patched:
        patched.setattr(silo.auxiliary, "save_secret", dying_at_once)
        with pytest.raises(Crash):
            run.run()
    run.run()
    spent = said(run, records.PrivacySpent, "silo-1")
    steps = [sum(event.steps for event in record.events) for record in spent]
    assert (spent[0].round_number, steps[0]) == (0, 3)
    assert steps[-1] == 3 + 2 * steps_per_round(run.plan) == steps_of_run(run.plan) - 4
    assert spent[-1].events == (round_event(run.plan).times(steps[-1]),)
    told = said(run, records.LedgerSeen)
    assert {(one.silo, one.round_number) for one in told} >= {
        (silo.name, 0) for silo in run.plan.silos
    }
    check_audit(run)
