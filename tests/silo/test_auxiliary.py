"""What a silo gives for auxiliary images: when, what, once; and what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import silo.auxiliary
import silo.private_round
from diffusion.model import make_model
from diffusion.parameters import flatten, make_layout, parameters_of
from diffusion.parts import SELECTIONS
from diffusion.schedule import make_schedule
from protocol import records
from protocol.auxiliary import AuxiliaryReply, AuxiliaryRequest, samples_per_silo
from protocol.bodies import floats_to_bytes
from protocol.calibration_settings import CalibrationConfig
from protocol.envelope import Kind, open_envelope
from protocol.model_records import AuxiliarySent
from protocol.plan import RunPlan
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig
from silo.auxiliary import pre_training
from silo.check import explain
from silo.errors import PolicyViolation
from silo.policy import Policy, refusals
from silo.resources import LocalPrivacy
from silo.training import TrainingState, train
from tests.silo.conftest import CPU, Federation, tiny_images, tiny_plan

MODELS = CalibrationConfig(
    when="every-round",
    images="silo-models",
    num_images=6,
    local_steps=2,
    steps=1,
    learning_rate=0.01,
)
SAMPLES = replace(MODELS, images="silo-samples")
ALL = Policy(permitted_auxiliary_images=("silo-models", "silo-samples"))


class Asked(Federation):
    """Silos whose policy lets their own models leave."""

    def open(self, index: int, **changes):
        return super().open(index, **({"policy": ALL} | changes))

    def ask_auxiliary(self, index: int = 0, label: str = "") -> bytes:
        label = label or self.plan.calibration.images
        body = AuxiliaryRequest(label=label).to_body()
        return bytes(self.sessions[index].handle(self.envelope(Kind.AUXILIARY, body)))


def plan_with(config: CalibrationConfig) -> RunPlan:
    plan = tiny_plan(calibration=config)
    sampler = replace(plan.evaluation.sampler, num_steps=2)
    return replace(plan, evaluation=replace(plan.evaluation, sampler=sampler))


@pytest.fixture
def asked(tmp_path: Path):
    made = Asked(tmp_path, plan_with(MODELS))
    yield made
    made.close()


def content_of(plan: RunPlan, reply: bytes) -> AuxiliaryReply:
    _, body = open_envelope(plan, reply, sender=0, kinds=(Kind.AUXILIARY_SENT,))
    return AuxiliaryReply.from_body(body)


def test_it_gives_the_model_that_plain_training_gives(asked: Asked) -> None:
    plan = asked.plan
    given = content_of(plan, asked.ask_auxiliary())
    model = make_model(plan.model, plan.seed_for("model"))
    train(
        model,
        tiny_images(0),
        make_schedule(plan.schedule),
        pre_training(plan),
        TrainingState(),
        silo=0,
        round_number=1,
        device=CPU,
        observe=lambda progress: None,
    )
    layout = make_layout(model, SELECTIONS["full"])
    expected = flatten(parameters_of(model), layout)
    assert bytes(given.content) == floats_to_bytes(expected)
    assert pre_training(plan).training.local_steps == 2
    (said,) = asked.records(0, AuxiliarySent)
    assert said.label == "silo-models"


def test_samples_are_8_bit_and_as_many_as_the_plan_says(tmp_path: Path) -> None:
    asked = Asked(tmp_path, plan_with(SAMPLES))
    given = content_of(asked.plan, asked.ask_auxiliary())
    asked.close()
    assert given.label == "silo-samples"
    pixels = np.frombuffer(bytes(given.content), np.uint8)
    assert pixels.size == samples_per_silo(asked.plan)[0] * 8 * 8
    assert len(set(pixels.tolist())) > 2


def test_the_same_bytes_again_also_after_a_crash(asked: Asked, monkeypatch) -> None:
    first = asked.ask_auxiliary()
    torch.manual_seed(9)
    asked.restart(0)
    monkeypatch.setattr(silo.auxiliary, "train", None)
    assert asked.ask_auxiliary() == first
    path = asked.store(0).folder / "auxiliary"
    assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_is_given_or_kept_once_round_1_has_begun(asked: Asked) -> None:
    asked.ask_auxiliary()
    path = asked.store(0).folder / "auxiliary"
    assert path.exists()
    asked.play("ready")
    assert not path.exists()
    refusal = asked.refusal(asked.ask_auxiliary())
    assert refusal.check == "auxiliary images are given before round 1, not after 1"
    asked.restart(0)
    asked.refusal(asked.ask_auxiliary())


def test_nothing_is_given_after_a_crash_in_the_middle_of_round_1(
    tmp_path: Path, monkeypatch
) -> None:
    """The checkpoint of round 1 stays: without it the silo could not go on."""
    privacy = PrivacyConfig(
        mechanism="dp-sgd",
        noise_multiplier=2.0,
        delta=1e-5,
        sample_rate=0.1,
        spare_steps=3,
    )
    training = TrainingConfig(local_steps=4, examples_per_step=2, learning_rate=1e-3)

    class Private(Asked):
        def open(self, index: int, **changes):
            ledgers = tmp_path / f"ledgers-{index}"
            local = LocalPrivacy(ledgers=ledgers, checkpoint_steps=1)
            return super().open(index, **({"privacy": local} | changes))

    plan = tiny_plan(calibration=MODELS, training=training, privacy=privacy)
    asked = Private(tmp_path / "run", plan)
    asked.ask_auxiliary()
    asked.play("envelopes").make_requests("ready")
    folder, save = asked.store(0).folder, silo.private_round.save_partial

    def save_and_die(path: Path, partial, *rest) -> None:
        save(path, partial, *rest)
        if partial.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(silo.private_round, "save_partial", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            asked.ask(0, "ready")
    asked.restart(0)
    refusal = asked.refusal(asked.ask_auxiliary())
    assert refusal.check == "auxiliary images are given before round 1"
    assert not (folder / "auxiliary").exists()
    open_envelope(plan, asked.ask(0, "ready"), sender=0, kinds=(Kind.LEDGER,))
    asked.close()


def test_damage_to_what_is_kept_is_refused_to_others_and_told_at_home(
    asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    asked.ask_auxiliary()
    (asked.store(0).folder / "auxiliary").write_bytes(b"half")
    refusal = asked.refusal(asked.ask_auxiliary())
    assert refusal.check == "this silo cannot train: its operator was told why"
    assert "is cut off" in caplog.text


@pytest.mark.parametrize("config", [MODELS, SAMPLES, CalibrationConfig()])
def test_only_what_the_plan_says(tmp_path: Path, config: CalibrationConfig) -> None:
    asked = Asked(tmp_path, plan_with(config))
    other = "silo-samples" if config.images == "silo-models" else "silo-models"
    refusal = asked.refusal(asked.ask_auxiliary(label=other))
    assert "not in the plan" in refusal.check
    assert asked.records(0, AuxiliarySent) == []
    assert not (asked.store(0).folder / "auxiliary").exists()
    asked.close()


def test_a_silo_whose_policy_forbids_it_does_not_begin(tmp_path: Path) -> None:
    asked = Asked(tmp_path, plan_with(MODELS))
    with pytest.raises(PolicyViolation, match="silo-models"):
        asked.open(0, policy=Policy())
    asked.close()


def test_what_is_refused_by_policy() -> None:
    plan = plan_with(MODELS)
    (reason,) = refusals(Policy(), plan)
    assert reason == (
        'calibration.images is "silo-models", this silo permits public, aggregate '
        "without dp-sgd and a max_epsilon"
    )
    assert refusals(ALL, plan) == []
    only = Policy(permitted_auxiliary_images=("silo-models",))
    assert "silo-samples" in refusals(only, plan_with(SAMPLES))[0]
    nothing = Policy(permitted_auxiliary_images=())
    aggregate = replace(MODELS, images="aggregate", local_steps=0, source_round=1)
    assert refusals(Policy(), plan_with(aggregate)) == []
    assert "none at all" in refusals(nothing, plan_with(aggregate))[0]
    assert refusals(nothing, plan_with(CalibrationConfig())) == []


def test_what_dp_sgd_has_trained_may_leave() -> None:
    privacy = PrivacyConfig(
        mechanism="dp-sgd", noise_multiplier=2.0, delta=1e-5, sample_rate=0.1
    )
    plan = replace(plan_with(MODELS), privacy=privacy)
    assert refusals(Policy(max_epsilon=20.0), plan) == []
    (reason,) = refusals(Policy(), plan)  # any epsilon would do
    assert reason.endswith("without dp-sgd and a max_epsilon")
    public = replace(
        MODELS, images="public", local_steps=0, num_images=0, name="x", sha256="ab" * 32
    )
    strict = Policy(permitted_auxiliary_images=("aggregate",))
    assert refusals(strict, replace(plan, calibration=public))
    text = " ".join(explain(plan, Policy()))
    assert "2 steps with the plan's DP-SGD, which epsilon counts" in text
    assert "Mechanism: DP-SGD, 5 steps" in text


def test_check_plan_tells_what_leaves_in_the_clear() -> None:
    text = " ".join(explain(plan_with(MODELS), ALL))
    layout = make_layout(make_model(plan_with(MODELS).model, 0), SELECTIONS["full"])
    assert "What else leaves, IN THE CLEAR" in text
    assert "WITHOUT differential privacy" in text
    assert f"up to {4 * layout.size:,} bytes" in text
    aggregate = replace(
        MODELS,
        when="slow-learning",
        images="aggregate",
        local_steps=0,
        source_round=1,
        window=1,
    )
    text = " ".join(explain(plan_with(aggregate), Policy()))
    assert "After one round, when learning has become slow" in text
    assert "reveal nothing new" in text
    assert "CLEAR" not in text
    assert "auxiliary" not in " ".join(explain(tiny_plan(), Policy()))


def test_traffic_is_counted_and_no_vector(asked: Asked) -> None:
    reply = asked.ask_auxiliary()
    (traffic,) = [
        record
        for record in asked.records(0, records.Traffic)
        if record.stage == "auxiliary"
    ]
    assert (traffic.round_number, traffic.vector_bytes) == (0, 0)
    assert traffic.sent_bytes == len(reply)
