"""What silos measure on their own models: mean and spread arrive, nothing else."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from audits.report.page import write_report
from crypto.frame import OVERHEAD_BYTES, read_header
from crypto.frame import Kind as SecAggKind
from diffusion.checkpoint import load_checkpoint
from diffusion.config import SamplerConfig
from diffusion.evaluation import evaluate
from diffusion.features import load_extractor
from diffusion.fid import load_statistics, save_statistics
from diffusion.model import make_model
from diffusion.parts import part_of
from protocol.aggregation_settings import EvaluationConfig
from protocol.envelope import Kind
from protocol.measurement import silo_seed
from protocol.model_records import MeasuredInSilos, MeasurementSkipped
from protocol.transcript import read_records
from protocol.update_settings import ProtectionConfig, UpdateConfig
from silo.evaluation import SiloReport, load_report
from tests.end_to_end.conftest import Crash, Harness, tiny_draft
from tests.end_to_end.test_noisy_runs import noisy_draft

Make = Callable[..., Harness]

EVALUATION = EvaluationConfig(
    in_silos=True,
    num_samples=12,
    extractor="fd-small-digits",
    sampler=SamplerConfig(kind="ddim", num_steps=2),
)


def measured_draft(selection: str = "udec", **changes: Any) -> Any:
    sections = {
        "evaluation": EVALUATION,
        "update": UpdateConfig(rounding="nearest", selection=selection),  # type: ignore[arg-type]
    }
    return tiny_draft(**(sections | changes))


def reports(harness: Harness) -> dict[str, SiloReport]:
    """Return what every silo measured, from its own folder."""
    found = {}
    for silo in harness.plan.silos:
        report = load_report(harness.federation.silo(silo.name).run(harness.plan))
        if report is not None:
            found[silo.name] = report
    return found


def told(harness: Harness) -> MeasuredInSilos | MeasurementSkipped:
    """Return the one record of the aggregator about the measurement."""
    folder = harness.federation.aggregator.run(harness.plan) / "transcript"
    (record,) = [
        entry.record
        for entry in read_records(folder)
        if isinstance(entry.record, MeasuredInSilos | MeasurementSkipped)
    ]
    return record


def check_told(harness: Harness, silos: set[str]) -> MeasuredInSilos:
    """Check that the record is the mean of these silos' own reports; return it."""
    record = told(harness)
    assert isinstance(record, MeasuredInSilos)
    assert set(record.survivors) == silos
    own = [r.frechet_distance for n, r in reports(harness).items() if n in silos]
    assert record.mean == pytest.approx(np.mean(own), abs=1e-5)
    assert record.standard_deviation == pytest.approx(np.std(own, ddof=1), abs=5e-3)
    return record


def failures(harness: Harness) -> list[str]:
    audit = run_audit(load_evidence(harness.federation.root, None))
    return [f.statement for f in audit.findings if f.severity == Severity.FAIL]


@pytest.mark.parametrize("method", ["mask", "none"])
@pytest.mark.parametrize("selection", ["udec", "full"])
def test_mean_and_spread_are_those_of_the_silos_own_reports(
    harness: Make, method: str, selection: str
) -> None:
    protection = ProtectionConfig(slots_per_setup=2, method=method)  # type: ignore[arg-type]
    made = harness(measured_draft(selection, protection=protection))
    made.run()
    record = check_told(made, {"silo-1", "silo-2", "silo-3"})
    distances = {r.frechet_distance for r in reports(made).values()}
    assert len(distances) == 3
    references = {r.reference for r in reports(made).values()}
    assert references == {record.reference}
    assert not failures(made)
    write_report(
        run_audit(load_evidence(made.federation.root, None)), None, made.federation.root
    )
    for name in ("report.md", "report.html"):
        assert "their own word" in (made.federation.root / name).read_text()
    report = json.loads((made.federation.root / "report.json").read_text())
    assert report["measurement"]["mean"] == record.mean
    assert report["rounds"][-1]["outcome"] == "measured in the silos"


def test_the_silo_measures_the_model_that_it_ends_with(harness: Make) -> None:
    made = harness(measured_draft())
    made.run()
    extractor = load_extractor("fd-small-digits")
    reference = load_statistics(made.federation.reference, extractor)
    for index, (name, report) in enumerate(reports(made).items()):
        folder = made.federation.silo(name).run(made.plan)
        again = evaluate(
            load_checkpoint(folder / "model.safetensors"),
            extractor,
            reference,
            seed=silo_seed(made.plan, index),
            num_samples=12,
            device=torch.device("cpu"),
        )
        assert again.frechet_distance == report.frechet_distance


def test_no_local_part_and_no_distance_leaves(harness: Make) -> None:
    protection = ProtectionConfig(method="none")
    made = harness(measured_draft(protection=protection))
    made.run()
    replies = b"".join(reply for _, _, reply in made.wire)
    plain = [
        len(reply) - OVERHEAD_BYTES
        for _, request, reply in made.wire
        if read_header(request).kind == Kind.MEASURE
    ]
    assert plain == [16] * 3
    parts = part_of(make_model(made.plan.model, 0))
    for name, report in reports(made).items():
        folder = made.federation.silo(name).run(made.plan)
        model = load_checkpoint(folder / "model.safetensors")
        for parameter, value in model.parameters.items():
            if parts[parameter] != "decoder" and value.count_nonzero() >= 4:
                assert value.numpy().astype("<f4").tobytes() not in replies
        assert repr(report.frechet_distance).encode() not in replies


def lose(silo: int, kind: int, number: int) -> Callable[[str, int, int], bool]:
    """Lose a silo's replies to one kind of request from its so-manieth on."""
    seen = 0

    def fault(moment: str, asked: int, who: int) -> bool:
        nonlocal seen
        if moment != "after" or asked != kind or who != silo:
            return False
        seen += 1
        return seen >= number

    return fault


def test_a_silo_that_drops_out_is_not_in_the_mean(harness: Make) -> None:
    made = harness(measured_draft(), num_silos=4)
    made.run(lose(2, SecAggKind.ACTIVE, 3))
    check_told(made, {"silo-1", "silo-2", "silo-4"})
    assert len(reports(made)) == 4
    assert not failures(made)


def test_with_too_few_silos_it_is_skipped_and_the_run_ends(harness: Make) -> None:
    made = harness(measured_draft())
    made.run(lambda moment, kind, silo: kind == Kind.MEASURE and silo == 1)
    record = told(made)
    assert isinstance(record, MeasurementSkipped)
    assert (made.federation.aggregator.run(made.plan) / "model.safetensors").exists()
    assert not failures(made)
    audit = run_audit(load_evidence(made.federation.root, None))
    (finding,) = [f for f in audit.findings if f.check == "measurement"]
    assert finding.severity == Severity.WARN


@pytest.mark.parametrize(
    ("moment", "kind"),
    [
        ("after", Kind.MEASURE),
        ("after", SecAggKind.ACTIVE),
        ("before", SecAggKind.CONFIRMS),
        ("after", SecAggKind.CONFIRMS),
        ("before", Kind.END),
    ],
)
def test_after_a_crash_the_same_is_told(harness: Make, moment: str, kind: int) -> None:
    made = harness(measured_draft())
    rounds = 0

    def fault(when: str, asked: int, silo: int) -> bool:
        nonlocal rounds
        rounds += when == "before" and asked == Kind.MEASURE and silo == 0
        if rounds and (when, asked, silo) == (moment, kind, 1):
            raise Crash
        return False

    with pytest.raises(Crash):
        made.run(fault)
    before = reports(made)
    made.run()
    check_told(made, {"silo-1", "silo-2", "silo-3"})
    after = reports(made)
    assert before.items() <= after.items()
    assert all(len(replies) == 1 for replies in made.masked.values())
    assert not failures(made)


def test_a_second_model_is_refused(harness: Make) -> None:
    made = harness(measured_draft())

    def fault(moment: str, kind: int, silo: int) -> bool:
        if moment == "after" and kind == Kind.MEASURE:
            raise Crash
        return False

    with pytest.raises(Crash):
        made.run(fault)
    made.federation.reference.write_bytes(other_reference(made))
    made.run()
    assert isinstance(told(made), MeasurementSkipped)
    refusals = [reply for _, _, reply in made.wire if b"another model already" in reply]
    assert refusals


def other_reference(made: Harness) -> bytes:
    """Return other statistics of the same extractor."""
    extractor = load_extractor("fd-small-digits")
    loaded = load_statistics(made.federation.reference, extractor)
    path = made.federation.root / "other.npz"
    save_statistics(path, dataclasses.replace(loaded, mean=loaded.mean + 1))
    return path.read_bytes()


def test_a_semi_honest_run_measures_without_confirmations(harness: Make) -> None:
    protection = ProtectionConfig(slots_per_setup=2, trust="semi-honest")
    made = harness(measured_draft(protection=protection))
    made.run()
    check_told(made, {"silo-1", "silo-2", "silo-3"})
    assert not failures(made)


def test_noise_inside_the_sum_is_neither_made_nor_charged_for_it(harness: Make) -> None:
    draft = noisy_draft("silo", evaluation=EVALUATION)
    made = harness(draft, num_silos=5)
    made.run()
    check_told(made, {silo.name for silo in made.plan.silos})
    assert not failures(made)


def test_nobody_measures_where_the_plan_does_not_ask(harness: Make) -> None:
    made = harness(tiny_draft())
    made.run()
    assert not [1 for _, request, _ in made.wire
                if read_header(request).kind == Kind.MEASURE]  # fmt: skip
