"""Runs whose silos plant canaries: committed before training, opened at the end."""

import json
import stat

import pytest

import silo.private_round
import silo.session
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from audits.membership import analyse_canaries
from protocol import records
from protocol.aggregation_settings import EvaluationConfig
from protocol.audit_records import CanariesCommitted, CanariesOpened
from protocol.canaries import canary_commitment, draw_included
from protocol.envelope import Kind
from protocol.privacy_settings import PrivacyConfig
from protocol.transcript import read_records
from protocol.update_settings import ProtectionConfig
from silo.errors import ConfigRejected, StateBroken
from tests.end_to_end.conftest import Harness
from tests.end_to_end.test_private_runs import (
    Killed,
    diverged,
    private_draft,
    run_folder,
)
from tests.end_to_end.test_private_runs import records_of as records_of_kind

SILO = "silo-1"


def plant(run: Harness, gradient: int = 0, images: int = 0) -> None:
    """Ask for canaries in a silo's own configuration."""
    path = run.federation.silo(SILO).config
    head, _, _ = path.read_text().partition("[canaries]")
    path.write_text(f"{head}[canaries]\ngradient = {gradient}\nimages = {images}\n")


def failures(run: Harness):
    audit = run_audit(load_evidence(run.federation.root, None))
    return audit.with_severity(Severity.FAIL)


def killed(moment, kind, index):
    if kind == Kind.ROUND:
        raise Killed


def test_gradient_canaries_from_the_commitment_to_the_audit(harness):
    run = harness(private_draft())
    plant(run, gradient=40)
    modes = []

    def look(moment, kind, index):
        if kind == Kind.ROUND and index == 0:
            path = run_folder(run) / "canaries-gradient"
            modes.append(stat.S_IMODE(path.stat().st_mode))
            seed = json.loads(path.read_text())["seed"].encode()
            for file in (run_folder(run) / "transcript").iterdir():
                assert seed not in file.read_bytes()

    run.run(look)
    assert set(modes) == {0o600}
    entries = [e.record for e in read_records(run_folder(run) / "transcript")]
    kinds = [record.kind for record in entries]
    assert kinds.index("canaries-committed") < kinds.index("round-opened")
    last_spent = len(kinds) - 1 - kinds[::-1].index("privacy-spent")
    assert last_spent < kinds.index("canaries-opened") < kinds.index("finished")
    (committed,) = records_of_kind(run, SILO, CanariesCommitted)
    (opened,) = records_of_kind(run, SILO, CanariesOpened)
    seed = bytes.fromhex(opened.seed)
    assert committed.commitment == canary_commitment(seed, 40, "gradient").hex()
    spent = records_of_kind(run, SILO, records.PrivacySpent)[-1]
    assert opened.num_steps == sum(event.steps for event in spent.events) == 8
    assert len(opened.scores) == len(set(opened.scores)) == 40
    assert not failures(run)
    assert not records_of_kind(run, "silo-2", CanariesCommitted)
    assert not list(run_folder(run, "silo-2").glob("canaries-*"))


def test_beside_a_noisy_reference_they_are_in_the_training_steps_alone(harness):
    """Its one event, with other noise, is on account and in no score."""
    evaluation = EvaluationConfig(
        every_rounds=1,
        num_samples=8,
        extractor="fd-small-digits",
        reference="federation",
        min_reference_count=16,
        reference_clipping=40.0,
        reference_noise_multiplier=64.0,
    )
    run = harness(private_draft(evaluation=evaluation, num_rounds=1))
    plant(run, gradient=40)
    run.run()
    (opened,) = records_of_kind(run, SILO, CanariesOpened)
    spent = records_of_kind(run, SILO, records.PrivacySpent)[-1]
    assert (opened.num_steps, sum(event.steps for event in spent.events)) == (4, 5)
    audit = run_audit(load_evidence(run.federation.root, None))
    assert not audit.with_severity(Severity.FAIL)
    (found,) = analyse_canaries(audit.accounts)
    assert found.expected_gap == pytest.approx(4 * run.plan.privacy.sample_rate)
    assert found.expected_stddev == pytest.approx(2.0)


def test_opened_after_what_an_unfinished_round_has_spent(harness, monkeypatch):
    """The silo fails in the last round, and the others go on without it."""
    spare = ProtectionConfig(slots_per_setup=2, threshold=3, max_colluding=0)
    run = harness(private_draft(protection=spare), num_silos=4)
    plant(run, gradient=6)
    real = silo.private_round.train_privately

    def diverge(*arguments, **options):
        if options["canaries"] is not None and options["round_number"] == 2:
            options["keep"] = diverged
        return real(*arguments, **options)

    monkeypatch.setattr(silo.private_round, "train_privately", diverge)
    run.run()
    entries = [e.record for e in read_records(run_folder(run) / "transcript")]
    kinds = [record.kind for record in entries]
    assert kinds.count("privacy-spent") > 2
    last_spent = len(kinds) - 1 - kinds[::-1].index("privacy-spent")
    assert last_spent < kinds.index("canaries-opened")
    assert not failures(run)


@pytest.mark.parametrize("mechanism", ["none", "dp-sgd"])
def test_planted_images(harness, mechanism):
    """With DP beside gradient canaries, under a seed of their own, over a restart:
    another set of images would be another ledger's data, and be refused."""
    changes = {"privacy": PrivacyConfig()} if mechanism == "none" else {}
    run = harness(private_draft(num_rounds=1, **changes))
    plant(run, images=12, gradient=0 if mechanism == "none" else 6)
    with pytest.raises(Killed):
        run.run(killed)
    run.run()
    committed = records_of_kind(run, SILO, CanariesCommitted)
    opened = {o.form: o for o in records_of_kind(run, SILO, CanariesOpened)}
    assert [c.form for c in committed] == list(opened)
    assert len({o.seed for o in opened.values()}) == len(opened)
    images = opened["input"]
    seed = bytes.fromhex(images.seed)
    assert committed[-1].commitment == canary_commitment(seed, 12, "input").hex()
    assert len(images.scores) == 12
    assert all(score < 0 for score in images.scores)
    assert 0 < draw_included(seed, 12).sum() <= 12
    assert not failures(run)


def test_what_a_run_began_with_holds_and_is_opened_once(harness, monkeypatch):
    run = harness(private_draft(num_rounds=1))
    plant(run, gradient=5)
    with pytest.raises(Killed):
        run.run(killed)
    plant(run, gradient=7)
    real, deaths = silo.session.RunStore.save_finished, []

    def save(self, reply):
        if not deaths:
            deaths.append(reply)
            raise Killed
        real(self, reply)

    monkeypatch.setattr(silo.session.RunStore, "save_finished", save)
    with pytest.raises(Killed):
        run.run()
    run.run()
    (opened,) = records_of_kind(run, SILO, CanariesOpened)
    assert len(opened.scores) == 5


@pytest.mark.parametrize(
    ("before", "lost", "after", "error", "reason"),
    [
        ({"gradient": 5}, True, {}, StateBroken, "restore it from a backup"),
        ({}, False, {"gradient": 5}, ConfigRejected, "has begun without them"),
    ],
)
def test_changed_in_the_middle(harness, before, lost, after, error, reason):
    run = harness(private_draft(num_rounds=1))
    plant(run, **before)
    with pytest.raises(Killed):
        run.run(killed)
    if lost:
        (run_folder(run) / "canaries-gradient").unlink()
    plant(run, **after)
    with pytest.raises(error, match=reason):
        run.run()


def test_a_plan_without_noise_refuses_gradient_canaries(harness):
    run = harness(private_draft(privacy=PrivacyConfig()))
    plant(run, gradient=5)
    with pytest.raises(ConfigRejected, match="only where DP-SGD adds noise"):
        run.run()
    assert not (run_folder(run) / "transcript").exists()


def test_a_training_that_failed_is_on_account_and_not_scored(harness, monkeypatch):
    """No crash: the same process tries again, and the audit knows why steps lack."""
    run = harness(private_draft(num_rounds=1))
    plant(run, gradient=6)
    real, failures_seen = silo.private_round.train_privately, []

    def diverge(*arguments, **options):
        if failures_seen or options["canaries"] is None:
            return real(*arguments, **options)
        failures_seen.append(options["round_number"])
        return real(*arguments, **options | {"keep": diverged})

    monkeypatch.setattr(silo.private_round, "train_privately", diverge)
    run.run()
    (opened,) = records_of_kind(run, SILO, CanariesOpened)
    spent = records_of_kind(run, SILO, records.PrivacySpent)[-1]
    assert (opened.num_steps, sum(event.steps for event in spent.events)) == (4, 8)
    assert "canaries" not in {finding.check for finding in failures(run)}
