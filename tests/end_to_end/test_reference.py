"""The federation's own reference: summed once, exact or noisy, and measured against."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.errors import StateBroken
from aggregator.reference import REFERENCE_FILE
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Finding, Severity
from crypto.frame import AGGREGATOR, read_header
from crypto.frame import Kind as SecAggKind
from diffusion.config import SamplerConfig
from diffusion.features import load_extractor
from diffusion.fid import (
    FeatureStatistics,
    empty_statistics,
    frechet_distance,
    load_statistics,
    save_statistics,
)
from protocol.aggregation_settings import EvaluationConfig
from protocol.audit_records import ReferencePooled, ReferenceSkipped
from protocol.envelope import Kind, make_envelope
from protocol.files import load_identity
from protocol.heads import Head, ShownHead
from protocol.model_records import Evaluated, MeasuredInSilos
from protocol.privacy_settings import PrivacyConfig
from protocol.records import LedgerSeen, PrivacySpent
from protocol.reference import ReferenceRequest
from protocol.reference_settings import reference_events
from protocol.settings import TrainingConfig
from protocol.transcript import read_records
from protocol.update_settings import ProtectionConfig
from silo.config import load_config
from silo.data import ImageSet, load_images
from simulation.federation import make_federation
from simulation.settings import PartitionConfig, SimulationConfig
from simulation.transport import open_session
from tests.end_to_end.conftest import Crash, Harness, tiny_draft
from tests.end_to_end.ledgers import check_ledgers
from tests.end_to_end.test_canaries import plant

Make = Callable[..., Harness]

EVALUATION = EvaluationConfig(
    every_rounds=2,
    num_samples=8,
    extractor="fd-small-digits",
    sampler=SamplerConfig(kind="ddim", num_steps=2),
    reference="federation",
    min_reference_count=16,
)
NOISED = dataclasses.replace(
    EVALUATION, reference_noise_multiplier=0.2, reference_clipping=40.0
)
PRIVACY = PrivacyConfig(
    mechanism="dp-sgd", delta=1e-3, noise_multiplier=2.0, sample_rate=0.1
)


def pooled_draft(**changes: Any) -> Any:
    return tiny_draft(**({"num_rounds": 1, "evaluation": EVALUATION} | changes))


def private_draft(evaluation: EvaluationConfig = NOISED, **changes: Any) -> Any:
    return tiny_draft(
        num_rounds=1,
        evaluation=evaluation,
        privacy=dataclasses.replace(PRIVACY, **changes),
        training=TrainingConfig(local_steps=1, examples_per_step=4, learning_rate=1e-2),
    )


def records_of(folder: Path, kind: type) -> list[Any]:
    records = [entry.record for entry in read_records(folder / "transcript")]
    return [record for record in records if isinstance(record, kind)]


def told(made: Harness) -> ReferencePooled | ReferenceSkipped:
    """Return the one record of the aggregator about the reference."""
    folder = made.federation.aggregator.run(made.plan)
    (record,) = records_of(folder, ReferencePooled | ReferenceSkipped)
    return record


def images_of(made: Harness, name: str) -> ImageSet:
    folder = made.federation.silo(name)
    return load_images(load_config(folder).data, folder.root)


def statistics_of(made: Harness, names: set[str]) -> FeatureStatistics:
    """Return the statistics of some silos' images, merged: the slow reference."""
    extractor = load_extractor("fd-small-digits")
    result = empty_statistics(extractor)
    for name in sorted(names):
        images = images_of(made, name)
        batch = images.batch(np.arange(len(images)))
        result = result.update(extractor.features(batch))
    return result


def pooled_file(made: Harness) -> FeatureStatistics:
    path = made.federation.aggregator.run(made.plan) / REFERENCE_FILE
    return load_statistics(path, load_extractor("fd-small-digits"))


def findings(made: Harness) -> list[Finding]:
    return list(run_audit(load_evidence(made.federation.root, None)).findings)


def failures(made: Harness) -> list[str]:
    return [f.statement for f in findings(made) if f.severity == Severity.FAIL]


def all_silos(made: Harness) -> set[str]:
    return {silo.name for silo in made.plan.silos}


def check_exact(made: Harness, silos: set[str]) -> ReferencePooled:
    """Check that the reference is the pooled statistics of these silos, and used."""
    record = told(made)
    assert isinstance(record, ReferencePooled)
    assert set(record.survivors) == silos
    expected, found = statistics_of(made, silos), pooled_file(made)
    assert record.count == found.count == expected.count
    assert np.abs(found.mean - expected.mean).max() < 5e-7
    assert np.abs(found.covariance - expected.covariance).max() < 5e-7
    assert frechet_distance(found, expected) < 1e-6
    folder = made.federation.aggregator.run(made.plan)
    used = records_of(folder, Evaluated)
    assert used and {r.reference for r in used} == {record.reference}
    assert {r.reference_count for r in used} == {expected.count}
    return record


def lose(silo: int, kind: int) -> Callable[[str, int, int], bool]:
    """Lose a silo's replies to one kind of request."""
    return lambda moment, asked, who: (moment, asked, who) == ("after", kind, silo)


def test_it_is_the_pooled_statistics_to_six_decimals(harness: Make) -> None:
    evaluation = dataclasses.replace(EVALUATION, in_silos=True)
    uneven = PartitionConfig(kind="quantity-skew", concentration=30.0)
    made = harness(pooled_draft(num_rounds=2, evaluation=evaluation), partition=uneven)
    sizes = {name: len(images_of(made, name)) for name in all_silos(made)}
    assert len(set(sizes.values())) > 1, "the silos are meant to be uneven"
    assert min(sizes.values()) >= EVALUATION.min_reference_count
    made.run()
    record = check_exact(made, all_silos(made))
    folder = made.federation.aggregator.run(made.plan)
    (measured,) = records_of(folder, MeasuredInSilos)
    assert measured.reference == record.reference
    assert not failures(made)
    (passed,) = [f for f in findings(made) if f.check == "reference"]
    assert passed.severity == Severity.PASS
    assert not made.federation.reference.exists()


def test_a_silo_that_drops_out_is_not_in_it(harness: Make) -> None:
    protection = ProtectionConfig(slots_per_setup=2, trust="semi-honest")
    made = harness(pooled_draft(protection=protection), num_silos=4)
    made.run(lose(2, SecAggKind.ACTIVE))
    check_exact(made, all_silos(made) - {"silo-3"})
    assert not failures(made)


@pytest.mark.parametrize("has_published", [True, False])
def test_without_enough_silos_a_published_reference_takes_its_place(
    harness: Make, has_published: bool
) -> None:
    made = harness(pooled_draft())
    if has_published:
        save_statistics(made.federation.reference, statistics_of(made, {"silo-1"}))
    made.run(lambda moment, kind, silo: kind == Kind.REFERENCE and silo == 1)
    assert isinstance(told(made), ReferenceSkipped)
    folder = made.federation.aggregator.run(made.plan)
    assert len(records_of(folder, Evaluated)) == has_published
    assert not failures(made)
    (finding,) = [f for f in findings(made) if f.check == "reference"]
    assert finding.severity == Severity.WARN


@pytest.mark.parametrize(
    ("moment", "kind"),
    [
        ("after", SecAggKind.ACTIVE),
        ("after", SecAggKind.CONFIRMS),
        ("before", Kind.ROUND),
    ],
)
def test_after_a_crash_it_is_the_same(harness: Make, moment: str, kind: int) -> None:
    made = harness(pooled_draft())

    def fault(when: str, asked: int, silo: int) -> bool:
        if (when, asked, silo) == (moment, kind, 1):
            raise Crash
        return False

    with pytest.raises(Crash):
        made.run(fault)
    made.run()
    check_exact(made, all_silos(made))
    assert all(len(replies) == 1 for replies in made.masked.values())
    assert not failures(made)


def test_a_resumed_run_needs_the_very_file(harness: Make) -> None:
    made = harness(pooled_draft())

    def fault(moment: str, kind: int, silo: int) -> bool:
        if kind == Kind.ROUND:
            raise Crash
        return False

    with pytest.raises(Crash):
        made.run(fault)
    path = made.federation.aggregator.run(made.plan) / REFERENCE_FILE
    save_statistics(path, statistics_of(made, {"silo-1"}))
    with pytest.raises(StateBroken, match="is not the reference"):
        made.run()


def test_noise_is_on_account_and_in_the_sum(harness: Make) -> None:
    made = harness(private_draft())
    made.run()
    record, found = told(made), pooled_file(made)
    assert isinstance(record, ReferencePooled)
    assert record.noise_multiplier == 0.2
    exact = statistics_of(made, all_silos(made))
    assert 1e-3 < np.abs(found.mean - exact.mean).max() < 5.0
    assert np.linalg.eigvalsh(found.covariance).min() > -1e-9
    (event,) = reference_events(made.plan)
    for name in all_silos(made):
        folder = made.federation.silo(name).run(made.plan)
        spent = records_of(folder, PrivacySpent)
        assert spent[0].round_number == 0
        assert spent[0].events == (event,)
        assert spent[-1].events[0] == event
        assert sum(e.steps for e in spent[-1].events) == 1 + made.plan.num_rounds
    folder = made.federation.aggregator.run(made.plan)
    seen = [r for r in records_of(folder, LedgerSeen) if r.round_number == 0]
    assert len(seen) == 3
    assert not failures(made)
    check_ledgers(made)


def test_noise_that_was_lost_in_a_crash_is_charged_again(
    harness: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = harness(private_draft(spare_steps=1))
    with monkeypatch.context() as patch:
        patch.setattr("silo.reference_share.to_words", crash)
        with pytest.raises(Crash):
            made.run()
    made.run()
    (event,) = reference_events(made.plan)
    folder = made.federation.silo("silo-1").run(made.plan)
    (first, *_) = records_of(folder, PrivacySpent)
    assert first.events == (event.times(2),)
    assert not failures(made)


def test_planted_canaries_are_in_no_reference(harness: Make) -> None:
    """They are in the ledger's data set, and trained on, and not what is measured."""
    made = harness(private_draft(clipping_norm=1e-3, noise_multiplier=50.0))
    plant(made, images=12)
    made.run()
    assert isinstance(told(made), ReferencePooled)
    exact = harness(pooled_draft())
    plant(exact, images=12)
    exact.run()
    check_exact(exact, all_silos(exact))


def crash(*arguments: Any, **options: Any) -> None:
    raise Crash


def test_exact_statistics_in_a_private_run_are_said_to_be_uncovered(
    harness: Make,
) -> None:
    evaluation = dataclasses.replace(EVALUATION, reference_uncovered=True)
    made = harness(private_draft(evaluation))
    made.run()
    check_exact(made, all_silos(made))
    warned = [f for f in findings(made) if f.check == "reference"]
    assert [f.severity for f in warned] == [Severity.PASS, Severity.WARN]
    assert not failures(made)
    check_ledgers(made)


# ------------------------------------------------------------------ attacks


def ask(made: Harness, **changes: Any) -> bytes:
    """Ask the first silo for its sums of features, as a dishonest aggregator would."""
    identity = load_identity(made.federation.aggregator.identity)
    digest = load_extractor("fd-small-digits").digest
    request = ReferenceRequest(
        **(  # type: ignore[arg-type]
            {
                "attempt": 1,
                "shown": ShownHead(
                    head=Head(
                        party="aggregator", size=0, root="00" * 32, signature="00" * 64
                    )
                ),
                "extractor_digest": digest,
            }
            | changes
        )
    )
    message = make_envelope(
        made.plan,
        identity,
        Kind.REFERENCE,
        request.to_body(),
        sender=AGGREGATOR,
        setup=1,
        slot=1,
    )
    session = open_session(made.federation, made.plan, "silo-1", lambda *seen: None)
    try:
        return bytes(session.handle(message))
    finally:
        session.close()


def stop_at(kind: int) -> Callable[[str, int, int], bool]:
    def fault(moment: str, asked: int, silo: int) -> bool:
        if (moment, asked, silo) == ("after", kind, 2):
            raise Crash
        return False

    return fault


@pytest.mark.parametrize(
    ("stopped_at", "asked", "changes", "words"),
    [
        (SecAggKind.KEYS, False, {}, b"asks for no reference"),
        (SecAggKind.KEYS, True, {"extractor_digest": "00" * 32}, b"are not this"),
        (SecAggKind.CONFIRMS, True, {}, b"were revealed already"),
        (Kind.ROUND, True, {}, b"before round 1"),
        (Kind.END, True, {}, b"the run is over"),
    ],
    ids=["not asked", "other weights", "with another cohort", "in a round", "late"],
)
def test_a_request_out_of_place_is_refused(
    harness: Make,
    stopped_at: int,
    asked: bool,
    changes: dict[str, Any],
    words: bytes,
) -> None:
    made = harness(pooled_draft() if asked else tiny_draft())
    with pytest.raises(Crash):
        made.run(stop_at(stopped_at))
    reply = ask(made, **changes)
    assert read_header(reply).kind == Kind.REFUSED
    assert words in reply, reply


def again(made: Harness, root: Path, draft: Any, *, changed: int = 0) -> Harness:
    """Return another run of the same silos' memory and images, some of them changed."""
    config = SimulationConfig(num_silos=3, num_images=90)
    federation = make_federation(root, draft, config)
    other = Harness(federation, federation.load_plan())
    for name in all_silos(made):
        old, new = made.federation.silo(name), federation.silo(name)
        old.references.rename(new.references)
        with np.load(old.root / "data.npz") as file:
            images = file["images"].copy()
        images[:changed, 0, 0] = 1 - images[:changed, 0, 0] / 16
        np.savez(new.root / "data.npz", images=images)
    return other


@pytest.mark.parametrize(
    ("changed", "may_repeat", "is_summed"),
    [(0, False, False), (29, False, False), (30, False, True), (0, True, True)],
    ids=["same images", "one is left", "all are others", "deliberately"],
)
def test_no_image_enters_a_second_exact_sum(
    harness: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: int,
    may_repeat: bool,
    is_summed: bool,
) -> None:
    made = harness(pooled_draft())
    with pytest.raises(Crash):
        made.run(stop_at(SecAggKind.CONFIRMS))
    other = again(made, tmp_path / "other", pooled_draft(), changed=changed)
    if may_repeat:
        deliberately(monkeypatch)
    other.run()
    assert isinstance(told(other), ReferencePooled) == is_summed
    if not is_summed:
        assert any(b"its operator was told why" in reply for *_, reply in other.wire)
        assert not any(
            made.plan.digest.hex()[:16].encode() in r for *_, r in other.wire
        )


def deliberately(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every silo start with --repeat-reference."""
    from silo.join import resources_of

    monkeypatch.setattr(
        "simulation.transport.resources_of",
        lambda *a: dataclasses.replace(resources_of(*a), repeat_reference=True),
    )


def test_no_second_sum_where_state_and_journal_are_lost(harness: Make) -> None:
    """Begun anew under the same plan, perhaps over other silos."""
    made = harness(pooled_draft())
    with pytest.raises(Crash):
        made.run(stop_at(SecAggKind.CONFIRMS))
    shutil.rmtree(made.federation.aggregator.run(made.plan))
    for name in all_silos(made):
        shutil.rmtree(made.federation.silo(name).run(made.plan))
        made.federation.silo(name).journal(made.plan).unlink()
    made.run()
    assert isinstance(told(made), ReferenceSkipped)


def test_what_never_left_may_enter_another_sum(harness: Make, tmp_path: Path) -> None:
    """READY alone shows nothing; the images are still free."""
    made = harness(pooled_draft())
    with pytest.raises(Crash):
        made.run(stop_at(Kind.REFERENCE))
    other = again(made, tmp_path / "other", pooled_draft())
    other.run()
    assert isinstance(told(other), ReferencePooled)


def test_too_few_images_and_too_large_features_are_refused_without_a_word(
    harness: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = dataclasses.replace(EVALUATION, min_reference_count=31)
    made = harness(pooled_draft(evaluation=evaluation))
    made.run()
    assert isinstance(told(made), ReferenceSkipped)
    refused = [r for *_, r in made.wire if read_header(r).kind == Kind.REFUSED]
    refused = [r for r in refused if b"has seen a head" not in r]
    assert refused
    assert all(
        b"its operator was told why" in r and b"30" not in r[20:-64] for r in refused
    )
    monkeypatch.setattr("silo.reference_share.MAX_FEATURE", 0.5)
    made = harness(pooled_draft())
    made.run()
    assert isinstance(told(made), ReferenceSkipped)
