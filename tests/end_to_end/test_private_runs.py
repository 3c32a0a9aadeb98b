"""Runs with DP-SGD, from the plan to the audit: every step on account, also after
crashes, and nothing trained beyond a limit."""

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import silo.private_round
from aggregator.errors import CohortTooSmall
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from crypto.frame import read_header
from diffusion.checkpoint import load_checkpoint
from diffusion.errors import WeightsUnavailable
from diffusion.model import make_model
from diffusion.parameters import make_layout, parameters_of, save_safetensors
from diffusion.parts import SELECTIONS
from privacy.accounting import Budget, epsilon
from protocol import records
from protocol.envelope import Kind
from protocol.mechanism import round_event, run_epsilon, steps_per_round
from protocol.plan import PlanDraft, make_plan
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import InitialConfig
from protocol.transcript import read_records
from silo.config import load_config
from silo.errors import DataError
from silo.join import train_without_others
from silo.ledger import LedgerBroken
from silo.policy import load_policy
from silo.resources import LocalPrivacy
from silo.spent import explain_spent, runs_spent
from silo.training import TrainingDiverged
from simulation.transport import open_session
from tests.end_to_end.conftest import Harness, tiny_draft

DELTA = 1e-3
PRIVACY = PrivacyConfig(
    mechanism="dp-sgd",
    noise_multiplier=1.0,
    delta=DELTA,
    sample_rate=0.25,
    multiplicity=2,
    spare_steps=4,
)
TINY = tiny_draft()


def private_draft(**changes) -> PlanDraft:
    training = replace(TINY.training, local_steps=4)
    return replace(TINY, **({"privacy": PRIVACY, "training": training} | changes))


def run_folder(run: Harness, silo: str = "silo-1"):
    return run.federation.silo(silo).run(run.plan)


def records_of(run: Harness, silo: str, kind: type):
    """Return one kind of record of a silo, in order."""
    entries = read_records(run_folder(run, silo) / "transcript")
    return [entry.record for entry in entries if isinstance(entry.record, kind)]


def audit(run: Harness):
    return run_audit(load_evidence(run.federation.root, None))


def limit(run: Harness, silo: str, max_epsilon: float) -> None:
    """Set what a silo may ever spend."""
    path = run.federation.silo(silo).policy
    text = path.read_text()
    assert "max_epsilon = inf" in text
    path.write_text(text.replace("max_epsilon = inf", f"max_epsilon = {max_epsilon}"))


def test_a_private_run_is_on_account_and_passes_the_audit(harness):
    run = harness(private_draft())
    run.run()
    plan = run.plan
    for party in plan.silos:
        spent = records_of(run, party.name, records.PrivacySpent)
        assert [one.round_number for one in spent] == [1, 2]
        for one in spent:
            whole = round_event(plan).times(steps_per_round(plan) * one.round_number)
            assert one.events == (whole,)
            assert one.epsilon == epsilon((whole,), DELTA)
    found = audit(run)
    assert not found.with_severity(Severity.FAIL)
    checks = {f.check: f.severity for f in found.findings}
    for name in ("privacy", "mechanism", "epsilon", "ledgers", "randomness"):
        assert checks[name] == Severity.PASS, name


def test_the_answer_to_a_round_carries_the_head_of_the_ledger(harness):
    run = harness(private_draft())
    run.run()
    answers = [
        read_header(reply).kind
        for _, request, reply in run.wire
        if read_header(request).kind == Kind.ROUND
    ]
    assert answers == [Kind.LEDGER] * 6


def test_without_masks_it_is_the_same(harness):
    protection = replace(TINY.protection, method="none")
    run = harness(private_draft(protection=protection))
    run.run()
    assert not audit(run).with_severity(Severity.FAIL)


def test_what_stays_in_the_silo_is_trained_privately_too(harness):
    run = harness(private_draft(update=replace(TINY.update, selection="udec")))
    run.run()
    trained = load_checkpoint(run_folder(run) / "model.safetensors").parameters
    first = parameters_of(make_model(run.plan.model, run.plan.seed_for("model")))
    for name, value in trained.items():
        # Noise alone moves every value: no value is trained beside the mechanism.
        assert (value != first[name]).all(), name


def test_frozen_parts_stay_as_the_run_began(harness):
    update = replace(TINY.update, selection="udec")
    training = replace(TINY.training, local_parts="frozen")
    run = harness(private_draft(update=update, training=training))
    run.run()
    model = make_model(run.plan.model, run.plan.seed_for("model"))
    shared = set(make_layout(model, SELECTIONS["udec"]).names)
    trained = load_checkpoint(run_folder(run) / "model.safetensors").parameters
    for name, value in parameters_of(model).items():
        assert torch.equal(value, trained[name]) == (name not in shared), name


class Killed(BaseException):
    """The silo's process ends here."""


@pytest.mark.parametrize("moment", ["in training", "before the checkpoint", "after it"])
def test_what_a_killed_silo_may_have_taken_is_counted(harness, monkeypatch, moment):
    run = harness(private_draft())
    real_train, real_save = (
        silo.private_round.train_privately,
        silo.private_round.save_partial,
    )
    deaths = []

    def die():
        if not deaths:
            deaths.append(moment)
            raise Killed

    def train(*arguments, **options):
        if moment == "in training":
            real_train(*arguments, **options | {"keep": lambda kept: die()})
        return real_train(*arguments, **options)

    def save(*arguments):
        if moment == "before the checkpoint":
            die()
        real_save(*arguments)
        if moment == "after it":
            die()

    monkeypatch.setattr(silo.private_round, "train_privately", train)
    monkeypatch.setattr(silo.private_round, "save_partial", save)
    with pytest.raises(Killed):
        run.run()
    run.run()
    steps = steps_per_round(run.plan)
    again = 0 if moment == "after it" else steps
    spent = records_of(run, "silo-1", records.PrivacySpent)[-1]
    assert sum(event.steps for event in spent.events) == 2 * steps + again
    failed = {f.check for f in audit(run).with_severity(Severity.FAIL)}
    assert not failed & {"mechanism", "ledgers", "epsilon"}


def diverged(kept):
    raise TrainingDiverged("the parameters are not finite")


def test_what_a_failed_training_spent_is_in_the_transcript(harness, monkeypatch):
    run = harness(private_draft(num_rounds=1))
    real = silo.private_round.train_privately
    deaths = []

    def diverge(*arguments, **options):
        if deaths:
            return real(*arguments, **options)
        deaths.append(options["round_number"])
        return real(*arguments, **options | {"keep": diverged})

    monkeypatch.setattr(silo.private_round, "train_privately", diverge)
    run.run()  # The round is tried again.
    spent = records_of(run, "silo-1", records.PrivacySpent)
    assert [one.events[0].steps for one in spent] == [4, 8]
    refused = records_of(run, "silo-1", records.Refused)
    assert {one.check for one in refused} == {
        "this silo cannot train: its operator was told why"
    }


def test_nobody_gets_more_steps_than_the_plan_has(harness, monkeypatch):
    """An aggregator may ask for a round again, with another model, until it fails."""
    run = harness(private_draft(num_rounds=1))
    real = silo.private_round.train_privately

    def diverge(*arguments, **options):
        return real(*arguments, **options | {"keep": diverged})

    monkeypatch.setattr(silo.private_round, "train_privately", diverge)
    for _ in range(4):
        with pytest.raises(CohortTooSmall):
            run.run()
    spent = records_of(run, "silo-1", records.PrivacySpent)[-1]
    assert sum(event.steps for event in spent.events) == 8  # 4, and 4 spare ones.


class RoundOne(BaseException):
    """The run is interrupted when round 1 is over."""


@pytest.mark.parametrize("how", ["deleted", "restored"])
def test_a_ledger_that_lost_a_round_is_refused(harness, how):
    run = harness(private_draft())
    ledger = run.federation.silo("silo-1").ledgers / run_folder(run).name
    rounds, backup = [], ledger.parent.parent / "backup"

    def interrupt(moment, kind, index):
        if moment == "before" and kind == Kind.ROUND and index == 0:
            rounds.append(kind)
            if len(rounds) == 1:
                shutil.copytree(ledger, backup)
            else:
                raise RoundOne

    with pytest.raises(RoundOne):
        run.run(interrupt)
    shutil.rmtree(ledger)
    if how == "restored":
        shutil.copytree(backup, ledger)
    with pytest.raises(LedgerBroken, match="lacks entries that this silo has written"):
        run.run()


def test_a_plan_dearer_than_the_silos_limit_is_refused(harness):
    run = harness(private_draft())
    limit(run, "silo-1", 0.5 * run_epsilon(run.plan, DELTA))
    with pytest.raises(Exception, match="the plan's epsilon is"):
        run.run()


def second_run(run: Harness) -> Harness:
    """Return another run of the same silos on the same images."""
    draft = private_draft(name="again")
    plan = make_plan(draft, run.plan.aggregator_key, run.plan.silos)
    return Harness(run.federation, plan)


def test_two_runs_on_the_same_images_share_one_account(harness):
    first = harness(private_draft())
    first.run()
    again = second_run(first)
    again.run()
    spent = records_of(again, "silo-1", records.PrivacySpent)[-1]
    whole = round_event(first.plan).times(2 * steps_per_round(first.plan))
    assert (spent.events, spent.earlier) == ((whole,), (whole,))
    assert spent.account_epsilon == epsilon((whole, whole), DELTA) > spent.epsilon


def test_the_operator_can_read_what_was_spent(harness):
    first = harness(private_draft())
    folder = first.federation.silo("silo-1")
    (said,) = [s for s in explain_spent(folder, None) if s.startswith("Nothing")]
    assert "no privacy ledger" in said
    first.run()
    again = second_run(first)
    again.run()
    alone = epsilon((round_event(first.plan).times(8),), DELTA)
    both = epsilon((round_event(first.plan).times(16),), DELTA)
    runs = runs_spent(folder)
    assert [(run.epsilon, run.account) for run in runs] == [(alone, both)] * 2
    said = "\n".join(explain_spent(folder, Budget(30.0, DELTA)))
    assert said.count("8 steps, epsilon") == 2
    assert "on some of the same data" in said
    assert "This silo's limit: epsilon 30 at delta 0.001" in said


def test_training_alone_that_fails_gives_back_what_it_reserved(
    harness, monkeypatch, tmp_path
):
    """Steps that may have been taken stay on account; the round is not left open."""
    run = harness(private_draft())
    folder = run.federation.silo("silo-1")

    def fail(*arguments, **options):
        raise TrainingDiverged("the parameters are not finite")

    monkeypatch.setattr(silo.private_round, "train_privately", fail)
    with pytest.raises(TrainingDiverged):
        train_without_others(
            private_draft(), load_config(folder), folder, tmp_path / "m", print
        )
    (alone,) = runs_spent(folder)
    assert alone.ledger.spending.open_round is None
    assert sum(event.steps for event in alone.ledger.spending.events) == 4
    assert not list(folder.runs.iterdir())


def test_a_second_run_cannot_pass_the_silos_limit(harness):
    first = harness(private_draft())
    three, four = (
        epsilon((round_event(first.plan).times(rounds * 4),), DELTA)
        for rounds in (3, 4)
    )
    for party in first.plan.silos:
        limit(first, party.name, (three + four) / 2)
    first.run()
    again = second_run(first)
    with pytest.raises(CohortTooSmall):
        again.run()
    spent = records_of(again, "silo-1", records.PrivacySpent)
    refused = records_of(again, "silo-1", records.Refused)
    assert [one.round_number for one in spent] == [1]
    assert {one.round_number for one in refused} == {2}
    assert {one.check for one in refused} == {
        "this silo cannot train: its operator was told why"
    }
    most = epsilon((*spent[0].events, *spent[0].earlier), DELTA)
    assert most <= load_policy(first.federation.silo("silo-1")).max_epsilon


def test_a_delta_that_one_image_could_use_up_is_refused(harness):
    run = harness(private_draft(privacy=replace(PRIVACY, delta=0.5)))
    with pytest.raises(DataError, match="not below 1 / 30"):
        run.run()


def name_patients(run: Harness, images_each: int) -> None:
    """Say in every silo whose its images are."""
    for party in run.plan.silos:
        folder = run.federation.silo(party.name)
        path = folder.root / "data.npz"
        with np.load(path) as file:
            arrays = dict(file)
        patients = np.arange(len(arrays["images"])) // images_each
        np.savez(path, **arrays, patients=patients)
        text = folder.config.read_text()
        assert 'patients = ""' in text
        folder.config.write_text(text.replace('patients = ""', 'patients = "patients"'))


def test_patients_are_what_is_protected_and_counted(harness):
    privacy = replace(PRIVACY, unit="patient", max_images_per_patient=2)
    run = harness(private_draft(privacy=privacy))
    name_patients(run, images_each=5)
    run.run()
    found = audit(run)
    assert not found.with_severity(Severity.FAIL)
    (finding,) = [f for f in found.findings if f.check == "privacy"]
    assert "per patient" in finding.statement


def test_patients_cannot_be_protected_where_nobody_knows_them(harness):
    run = harness(private_draft(privacy=replace(PRIVACY, unit="patient")))
    with pytest.raises(DataError, match="do not say whose they are"):
        run.run()


def test_delta_counts_patients_not_images(harness):
    privacy = replace(PRIVACY, unit="patient", delta=0.2)
    run = harness(private_draft(privacy=privacy))
    name_patients(run, images_each=6)
    with pytest.raises(DataError, match="not below 1 / 5"):
        run.run()


def test_a_fixed_seed_fails_the_report(harness, monkeypatch):
    run = harness(private_draft())
    real = LocalPrivacy.__init__

    def seeded(self, **fields):
        real(self, **(fields | {"insecure_seed": 7}))

    monkeypatch.setattr(LocalPrivacy, "__init__", seeded)
    run.run()
    failed = {f.check for f in audit(run).with_severity(Severity.FAIL)}
    assert failed == {"privacy", "randomness"}


def test_a_run_begins_with_the_parameters_that_its_plan_names(harness, tmp_path):
    path = tmp_path / "public.safetensors"
    save_safetensors(path, parameters_of(make_model(TINY.model, 12345)), {})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    initial = InitialConfig(name="public digits", sha256=sha256)
    run = harness(private_draft(initial=initial), initial=str(path))
    state = run.run()
    assert state.round_number == 2
    assert not audit(run).with_severity(Severity.FAIL)
    run.federation.silo("silo-1").initial.write_bytes(b"another file")
    with pytest.raises(WeightsUnavailable, match="has SHA-256"):
        open_session(run.federation, run.plan, "silo-1", lambda *_: None)
