"""What silos measure on their own models: mean and spread arrive, nothing else."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from aggregator.state import shared_layout
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from audits.report.content import NO_INPUTS
from audits.report.page import write_report
from crypto.frame import AGGREGATOR, OVERHEAD_BYTES, read_header
from crypto.frame import Kind as SecAggKind
from diffusion.checkpoint import load_checkpoint
from diffusion.config import SamplerConfig
from diffusion.errors import ImagesRejected
from diffusion.evaluation import evaluate
from diffusion.features import load_extractor
from diffusion.fid import load_statistics, save_statistics
from diffusion.model import make_model
from diffusion.parts import Part, part_of
from protocol.aggregation_settings import EvaluationConfig
from protocol.envelope import Kind, make_envelope
from protocol.files import load_identity
from protocol.heads import Head, ShownHead
from protocol.measurement import MAX_DISTANCE, MeasureRequest, silo_seed
from protocol.model_records import MeasuredInSilos, MeasurementSkipped
from protocol.records import HeadSeen
from protocol.transcript import TranscriptWriter, read_records
from protocol.update_settings import ProtectionConfig, UpdateConfig
from silo.check import explain
from silo.evaluation import SiloReport, load_report
from silo.policy import Policy, refusals
from simulation.transport import open_session
from tests.end_to_end.conftest import Crash, Harness, tiny_draft
from tests.end_to_end.test_noisy_runs import noisy_draft
from tests.protocol.examples import make_example

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


@pytest.mark.parametrize(
    ("selection", "method", "trust"),
    [
        ("udec", "mask", "malicious"),
        ("udec", "none", "malicious"),
        ("full", "mask", "semi-honest"),
        ("usplit", "mask", "malicious"),
    ],
)
def test_mean_and_spread_are_those_of_the_silos_own_reports(
    harness: Make, selection: str, method: str, trust: str
) -> None:
    protection = ProtectionConfig(slots_per_setup=2, method=method, trust=trust)  # type: ignore[arg-type]
    num_silos = 6 if selection == "usplit" else 3
    made = harness(measured_draft(selection, protection=protection), num_silos)
    made.run()
    record = check_told(made, {silo.name for silo in made.plan.silos})
    assert len({r.frechet_distance for r in reports(made).values()}) == num_silos
    assert {r.reference for r in reports(made).values()} == {record.reference}
    assert not failures(made)
    check_measured_model(made)
    check_written(made, record)
    if method == "none":
        check_nothing_else_left(made)


def test_what_is_measured_is_dealt_to_nobody(harness: Make) -> None:
    """With USplit the parts of a round are dealt, the two words behind them are not."""
    made = harness(measured_draft("usplit"), 6)
    made.run()
    check_told(made, {f"silo-{number}" for number in range(1, 7)})
    assert not failures(made)


def check_written(made: Harness, record: MeasuredInSilos) -> None:
    """Check that the report says what was measured, and on whose word."""
    root = made.federation.root
    write_report(run_audit(load_evidence(root, None)), NO_INPUTS, root)
    for name in ("report.md", "report.html"):
        assert "their own word" in (root / name).read_text()
    report = json.loads((root / "report.json").read_text())
    assert report["measurement"]["mean"] == record.mean
    assert report["rounds"][-1]["outcome"] == "measured in the silos"


def check_measured_model(made: Harness) -> None:
    """Check that each silo measured the very model that it ends with."""
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


def check_nothing_else_left(made: Harness) -> None:
    """Check that the decoder left in each round, 16 bytes in the measurement; no more.

    Without masks the length of each vector is that of the shared layout.
    """
    plain = [
        len(reply) - OVERHEAD_BYTES
        for _, request, reply in made.wire
        if read_header(request).kind == Kind.MEASURE
    ]
    assert plain == [16] * 3
    trained = {
        len(reply) - OVERHEAD_BYTES
        for _, request, reply in made.wire
        if read_header(request).kind == Kind.ROUND
    }
    size = shared_layout(made.plan).size
    assert trained == {made.plan.vector_bytes(number, size) for number in (1, 2)}
    replies = b"".join(reply for _, _, reply in made.wire)
    parts = part_of(make_model(made.plan.model, 0))
    for name, report in reports(made).items():
        folder = made.federation.silo(name).run(made.plan)
        model = load_checkpoint(folder / "model.safetensors")
        for parameter, value in model.parameters.items():
            if parts[parameter] != Part.DECODER and value.count_nonzero() >= 4:
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


@dataclasses.dataclass
class Dishonest:
    """An aggregator that asks one silo to measure what it likes, round after round."""

    made: Harness

    def __post_init__(self) -> None:
        """Play the rounds of the run, honestly, up to the measurement."""

        def fault(moment: str, kind: int, silo: int) -> bool:
            if kind == Kind.MEASURE:
                raise Crash
            return False

        with pytest.raises(Crash):
            self.made.run(fault)
        self.identity = load_identity(self.made.federation.aggregator.identity)
        self.session = open_session(
            self.made.federation, self.made.plan, "silo-1", lambda *seen: None
        )

    def ask(self, scale: float, **changes: np.ndarray) -> tuple[int, bytes]:
        """Ask for a measurement of a crafted average, with crafted statistics."""
        made, size = self.made, shared_layout(self.made.plan).size
        average = np.random.default_rng(0).normal(size=size) * scale
        folder = made.federation.aggregator.run(made.plan) / "transcript"
        with contextlib.closing(
            TranscriptWriter(
                folder,
                party="aggregator",
                plan_digest=made.plan.digest,
                identity=self.identity,
            )
        ) as transcript:
            own = made.federation.silo("silo-1").run(made.plan) / "transcript"
            seen = [e.record for e in read_records(own)]
            last = [r.size for r in seen if isinstance(r, HeadSeen)][-1]
            shown = transcript.show(transcript.sign_head(), last)
        with np.load(made.federation.reference) as file:
            arrays = {name: file[name] for name in file.files}
        statistics = io.BytesIO()
        np.savez(statistics, **(arrays | changes))
        request = MeasureRequest(
            round_number=made.plan.num_rounds + 1,
            attempt=1,
            shown=shown,
            average=average.astype("<f4").tobytes(),
            statistics=statistics.getvalue(),
        )
        setup = max(read_header(request).setup for _, request, _ in made.wire)
        message = make_envelope(
            made.plan,
            self.identity,
            Kind.MEASURE,
            request.to_body(),
            sender=AGGREGATOR,
            setup=setup,
            slot=0,
        )
        reply = bytes(self.session.handle(message))
        return read_header(reply).kind, reply


@pytest.fixture
def dishonest(harness: Make) -> Iterator[Dishonest]:
    protection = ProtectionConfig(slots_per_setup=2)  # the measurement has a new one
    made = Dishonest(harness(measured_draft(protection=protection)))
    yield made
    made.session.close()


DIMS = 64


@pytest.mark.parametrize(
    ("scale", "statistics"),
    [
        (1e20, {}),  # samples that are not finite
        (1.0, {"covariance": np.full((DIMS, DIMS), 5e305)}),
        (1.0, {"mean": np.full(DIMS, 1e200)}),
        (1.0, {"mean": np.full(DIMS, 1e200), "covariance": 5e305 * np.eye(DIMS)}),
    ],
)
def test_whether_a_silo_answers_tells_nothing_of_its_parts(
    dishonest: Dishonest, scale: float, statistics: dict[str, np.ndarray]
) -> None:
    kind, reply = dishonest.ask(scale, **statistics)
    assert kind == SecAggKind.READY, reply
    assert reports(dishonest.made)["silo-1"].frechet_distance == MAX_DISTANCE
    kind, reply = dishonest.ask(scale / 2, **statistics)
    assert kind == Kind.REFUSED
    assert b"another model already" in reply


def test_a_measurement_that_was_begun_is_finished_or_none_is(
    dishonest: Dishonest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, reply = dishonest.ask(1.0, covariance=np.zeros((2, 2)))
    assert (kind, b"no feature statistics" in reply) == (Kind.REFUSED, True)
    with monkeypatch.context() as patch:
        patch.setattr("silo.evaluation.evaluate", crash)
        with pytest.raises(Crash):
            dishonest.ask(1.0)
    kind, reply = dishonest.ask(2.0)
    assert (kind, b"another model already" in reply) == (Kind.REFUSED, True)
    kind, _ = dishonest.ask(1.0)
    assert kind == SecAggKind.READY


def crash(*arguments: Any, **options: Any) -> None:
    raise Crash


def test_noise_inside_the_sum_is_neither_made_nor_charged_for_it(harness: Make) -> None:
    draft = noisy_draft("silo", evaluation=EVALUATION)
    made = harness(draft, num_silos=5)
    made.run()
    check_told(made, {silo.name for silo in made.plan.silos})
    assert not failures(made)


def ask(made: Harness, number: int) -> tuple[int, bytes]:
    """Ask the first silo to measure; return kind and content of its answer."""
    identity = load_identity(made.federation.aggregator.identity)
    head = Head(party="aggregator", size=0, root="00" * 32, signature="00" * 64)
    request = MeasureRequest(
        round_number=number,
        attempt=1,
        shown=ShownHead(head=head),
        average=b"",
        statistics=b"",
    )
    body = request.to_body()
    message = make_envelope(
        made.plan, identity, Kind.MEASURE, body, sender=AGGREGATOR, setup=1
    )
    session = open_session(made.federation, made.plan, "silo-1", lambda *seen: None)
    try:
        reply = bytes(session.handle(message))
    finally:
        session.close()
    return read_header(reply).kind, reply


@pytest.mark.parametrize(
    ("asked", "number", "words"),
    [(False, 3, b"asks for no"), (True, 2, b"expected 3"), (True, 3, b"before any")],
)
def test_a_measurement_out_of_place_is_refused(
    harness: Make, asked: bool, number: int, words: bytes
) -> None:
    made = harness(measured_draft() if asked else tiny_draft())
    kind, reply = ask(made, number)
    assert kind == Kind.REFUSED
    assert words in reply
    assert not reports(made)


def test_the_operator_reads_of_it_and_may_refuse() -> None:
    asking = make_example({"evaluation.in_silos": True})
    said = "\n".join(explain(asking, Policy()))
    assert "Measured in the silos" in said
    assert "Epsilon does not cover them" in said
    assert "Measured in the silos" not in "\n".join(explain(make_example(), Policy()))
    (reason,) = refusals(Policy(permit_measurement=False), asking)
    assert "evaluation.in_silos" in reason
    assert not refusals(Policy(permit_measurement=False), make_example())


def test_an_extractor_for_other_images_is_refused_before_the_run(
    harness: Make,
) -> None:
    fashion = dataclasses.replace(EVALUATION, extractor="fd-small-fashion")
    with pytest.raises(ImagesRejected):
        harness(measured_draft(evaluation=fashion))
    made = harness(measured_draft())
    plan = dataclasses.replace(made.plan, evaluation=fashion)
    with pytest.raises(ImagesRejected, match="1 × 28 × 28, the model makes 1 × 8 × 8"):
        open_session(made.federation, plan, "silo-1", lambda *seen: None)
