"""The whole probe on a tiny finished run, its control, and what it refuses."""

import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import silo.control
import silo.probe_attacks
from diffusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffusion.config import SamplerConfig, ScheduleConfig
from diffusion.model import make_model
from diffusion.parameters import parameters_digest, parameters_of
from privacy.attack_statistics import auc
from privacy.events import SampledGaussian
from protocol.aggregation_settings import EvaluationConfig
from protocol.files import save_identity
from protocol.privacy_settings import PrivacyConfig
from protocol.probe_report import NOT_PRIVATE, load_probe_of
from protocol.records import Finished, PrivacySpent
from protocol.settings import TrainingConfig
from protocol.transcript import TranscriptWriter
from protocol.update_settings import ProtectionConfig, UpdateConfig
from silo.attacks import ATTACKS
from silo.config import DataConfig, SiloConfig, SiloFolder
from silo.control import ControlConfig, load_or_train_control, train_control
from silo.data import ImageSet
from silo.errors import ConfigRejected, DataError, StateBroken
from silo.model_commands import held_out_data
from silo.probe import (
    MIN_IMAGES,
    ProbeOptions,
    check_disjoint,
    finished_run,
    guarantee_of,
    run_probe,
)
from silo.probe_attacks import Sides, attack_scores, tune
from silo.probe_words import in_words
from tests.silo.conftest import (
    CPU,
    make_identities,
    shared_layout,
    tiny_images,
    tiny_plan,
)

DP = {
    "privacy": PrivacyConfig(
        mechanism="dp-sgd", noise_multiplier=5.0, delta=1e-3, sample_rate=0.1
    ),
    "training": TrainingConfig(local_steps=1, examples_per_step=2),
}
SPENT = PrivacySpent(
    round_number=3,
    ledger_size=4,
    ledger_head="00" * 32,
    multiplicity=1,
    events=(
        SampledGaussian(
            sample_rate=0.1, noise_multiplier=5.0, clipping_norm=1.0, steps=3
        ),
    ),
    earlier=(),
    epsilon=0.5,
    epsilon_prv=None,
    prv_error=0.0,
    account_epsilon=2.0,
)
FAST = ProbeOptions(max_members=16, num_samples=20, control_steps=2)


def plan_of(**changes):
    sampler = EvaluationConfig(sampler=SamplerConfig(kind="ddim", num_steps=2))
    schedule = ScheduleConfig(kind="cosine", num_timesteps=10)
    return tiny_plan(**({"evaluation": sampler, "schedule": schedule} | changes))


class Finished3:
    """The folder of silo-1 after a run: model, transcript, images, held-out images."""

    def __init__(self, root: Path, spent: bool = True, **changes):
        self.plan = plan_of(**changes)
        self.key = make_identities(len(self.plan.silos))[0]
        self.files = SiloFolder(root / "silo")
        self.folder = self.files.run(self.plan)
        self.folder.mkdir(parents=True)
        save_identity(self.files.identity, self.key)
        np.savez(self.files.root / "data.npz", images=tiny_images(1, 20).pixels)
        np.savez(root / "held.npz", images=tiny_images(2, 24).pixels)
        self.held_out = DataConfig(path=str(root / "held.npz"))
        parameters = parameters_of(make_model(self.plan.model, 7))
        self.model = Checkpoint(
            model=self.plan.model,
            schedule=self.plan.schedule,
            sampler=self.plan.evaluation.sampler,
            parameters=parameters,
        )
        save_checkpoint(self.folder / "model.safetensors", self.model)
        layout = shared_layout(self.plan)
        self.digest = parameters_digest(parameters, layout).hex()
        with TranscriptWriter(
            self.folder / "transcript",
            party="silo-1",
            plan_digest=self.plan.digest,
            identity=self.key,
        ) as transcript:
            if spent:
                transcript.append(replace(SPENT, epsilon=9.0))
                transcript.append(SPENT)
            transcript.append(
                Finished(round_number=3, parameters="00" * 32, average=self.digest)
            )

    def probe(self, out: Path, options=FAST, **changes):
        arguments = {"held_out": self.held_out, "config": SiloConfig()} | changes
        return run_probe(
            self.plan,
            self.files,
            options=options,
            out=out,
            say=lambda text: None,
            observe=lambda progress: None,
            **arguments,
        )


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A silo's run with DP-SGD, its probe's file, and the words that were said."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("probed")
    run = Finished3(root, **DP)
    return run, root / "probe.json", run.probe(root / "probe.json")


def test_a_whole_probe(probed):
    run, out, words = probed
    report = load_probe_of(out, run.plan)
    assert (report.silo, report.round_number, report.seed) == ("silo-1", 3, 0)
    assert (report.model, report.own_model) == (run.digest, "")
    tried = [(one.target, one.attack) for one in report.attacks]
    assert tried == [(t, a) for t in ("global", "control") for a in ATTACKS]
    for one in report.attacks:
        is_control = one.target == "control"
        assert one.num_members == one.num_held_out == (10 if is_control else 16)
        ceiling = (one.ceiling_epsilon, one.ceiling_delta)
        assert ceiling == ((0.0, 0.0) if is_control else (0.5, 1e-3))
    assert [one.target for one in report.memorisation] == ["global", "control"]
    assert report.memorisation[0].num_samples == 20
    assert any(NOT_PRIVATE in line for line in words)
    assert any("NO POWER" in line for line in words) != report.has_power
    assert any("epsilon 0.5 at delta 0.001 allows" in line for line in words)


def test_what_stays_inside(probed):
    run, out, _ = probed
    text = out.read_text()
    assert str(out.parent) not in text
    assert "npz" not in text
    kept = {path.name: path for path in (run.folder / "probe").iterdir()}
    assert set(kept) == {"control.safetensors", "pairs-global.png", "pairs-control.png"}
    for path in kept.values():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_repeats_with_the_control_that_was_kept(probed, tmp_path, monkeypatch):
    run, out, _ = probed
    monkeypatch.setattr(silo.control, "train", None)
    run.probe(tmp_path / "probe.json")
    assert (tmp_path / "probe.json").read_bytes() == out.read_bytes()


def test_a_silo_with_parts_of_its_own_attacks_its_own_model(tmp_path):
    run = Finished3(tmp_path, spent=False, update=UpdateConfig(selection="udec"))
    found = finished_run(run.plan, run.folder)
    assert found.target == "own"
    assert found.shared_digest == run.digest != found.own_digest
    assert found.guarantee == (0.0, 0.0)


def refused(tmp_path, error, words, spoil, **changes):
    run = Finished3(tmp_path)
    spoil(run)
    with pytest.raises(error, match=words):
        run.probe(tmp_path / "probe.json", **changes)
    assert not (tmp_path / "probe.json").exists()


def replace_model(run):
    parameters = parameters_of(make_model(run.plan.model, 8))
    path = run.folder / "model.safetensors"
    save_checkpoint(path, replace(run.model, parameters=parameters))


def images_of(count: int, seed: int = 2):
    return lambda run: np.savez(
        run.held_out.path, images=tiny_images(seed, count).pixels
    )


ROWS = {
    "the run is not over": (
        ConfigRejected,
        "not over",
        lambda run: (run.folder / "model.safetensors").unlink(),
    ),
    "another model in its place": (StateBroken, "ended with", replace_model),
    "no end in the transcript": (
        ConfigRejected,
        "no end",
        lambda run: (run.folder / "transcript" / "transcript.jsonl").write_bytes(b""),
    ),
    "held-out images that were trained on": (
        DataError,
        "20 of the held-out images are training",
        images_of(20, seed=1),
    ),
    "too few held-out images": (DataError, f"needs {MIN_IMAGES}", images_of(15)),
    "held-out images of another size": (
        DataError,
        "takes 8×8",
        lambda run: np.savez(run.held_out.path, images=np.zeros((20, 4, 4), np.uint8)),
    ),
}


@pytest.mark.parametrize(("error", "words", "spoil"), ROWS.values(), ids=ROWS)
def test_what_cannot_be_probed_is_refused(tmp_path, error, words, spoil):
    refused(tmp_path, error, words, spoil)


def test_the_folder_of_the_report_must_exist(tmp_path):
    with pytest.raises(ConfigRejected, match="--out"):
        Finished3(tmp_path).probe(tmp_path / "nowhere" / "probe.json")


class TestDisjoint:
    def test_some_are_too_many(self):
        images = tiny_images(1, 20)
        pixels = np.concatenate([tiny_images(2, 5).pixels, images.pixels[[3, 8, 3]]])
        with pytest.raises(DataError, match="2 of the held-out images"):
            check_disjoint(images, ImageSet(pixels, images.value_range))
        check_disjoint(images, tiny_images(2, 20))

    def test_a_float_copy_is_a_copy(self):
        images = tiny_images(1, 20)
        same = ImageSet(images.pixels.astype(np.float64), images.value_range)
        with pytest.raises(DataError, match="20 of"):
            check_disjoint(images, same)

    def test_a_patient_on_both_sides(self):
        first, second = (
            replace(
                tiny_images(seed, 2), patients=np.array([0, 1]), patient_names=names
            )
            for seed, names in ((1, ("a", "b")), (2, ("b", "c")))
        )
        with pytest.raises(DataError, match="1 patients"):
            check_disjoint(first, second)


class TestGuarantee:
    def test_dp_sgd_as_the_ledger_says(self):
        assert guarantee_of(plan_of(**DP), SPENT) == (0.5, 1e-3)

    def test_none_without_it(self):
        assert guarantee_of(plan_of(), SPENT) == (0.0, 0.0)
        assert guarantee_of(plan_of(**DP), None) == (0.0, 0.0)

    def test_an_image_of_a_protected_patient(self):
        privacy = replace(DP["privacy"], unit="patient")
        epsilon, delta = guarantee_of(plan_of(**DP | {"privacy": privacy}), SPENT)
        assert (epsilon, delta) == pytest.approx((1.0, 1e-3 * (1 + np.exp(0.5))))

    def test_a_run_that_continues_another(self):
        from protocol.settings import InitialConfig

        initial = InitialConfig(name="before", sha256="00" * 32, origin="run")
        assert guarantee_of(plan_of(**DP, initial=initial), SPENT) == (2.0, 1e-3)


@pytest.fixture(scope="module")
def sides():
    return Sides(tiny_images(1, 16), tiny_images(2, 16), False, CPU)


@pytest.fixture(scope="module")
def control(sides):
    torch.set_num_threads(1)
    plan = plan_of(schedule=ScheduleConfig(kind="cosine", num_timesteps=50))
    config = ControlConfig(num_steps=120, seed=3, learning_rate=1e-2)
    return train_control(
        plan, sides.images, config, device=CPU, observe=lambda progress: None
    )


class TestControl:
    """Overfitted on 16 random images: the attacks find them, and not untrained ones."""

    def test_its_members_are_found(self, control, sides):
        half, other = np.arange(8), np.arange(8, 16)
        for name in ("loss", "PIA"):
            setting = tune(name, control, sides, half, half, 0)
            scores = attack_scores(setting, control, sides, other, other, 0)
            assert auc(*scores) > 0.9

    def test_those_of_an_untrained_model_are_not(self, control, sides):
        network = make_model(control.model, 5)
        with torch.no_grad():  # The last layer begins at zero, and predicts nothing.
            for parameter in network.parameters():
                parameter.add_(0.01)
        untrained = replace(control, parameters=parameters_of(network))
        setting = tune("loss", control, sides, np.arange(8), np.arange(8), 0)
        scores = attack_scores(
            setting, untrained, sides, np.arange(16), np.arange(16), 0
        )
        assert 0.2 < auc(*scores) < 0.8

    def test_the_target_is_not_asked_when_tuning(self, control, sides, monkeypatch):
        asked = []
        real = silo.probe_attacks.network_of
        monkeypatch.setattr(
            silo.probe_attacks,
            "network_of",
            lambda model, device: asked.append(model) or real(model, device),
        )
        tune("PIA", control, sides, np.arange(8), np.arange(8), 0)
        assert {id(model) for model in asked} == {id(control)}


def test_a_kept_control_is_used_for_just_what_it_was_made_from(tmp_path):
    path, plan, images = tmp_path / "c" / "control", plan_of(), tiny_images(1, 4)
    trained = []

    def made(images, seed=0, steps=1):
        return load_or_train_control(
            path,
            plan,
            images,
            ControlConfig(num_steps=steps, seed=seed),
            device=CPU,
            observe=lambda progress: trained.append(progress.step),
        )

    first = made(images)
    again = made(images)
    assert trained == [1]
    for name, value in first.parameters.items():
        assert torch.equal(value, again.parameters[name])
    made(tiny_images(2, 4))
    made(images)
    made(images, seed=1)
    made(images, seed=1, steps=2)
    assert trained == [1, 1, 1, 1, 2]
    path.write_bytes(path.read_bytes()[:100])
    made(images, seed=1, steps=2)
    assert trained == [1, 1, 1, 1, 2, 2]
    assert load_checkpoint(path)


def test_a_powerless_control_is_said_first(probed):
    run, out, _ = probed
    report = load_probe_of(out, run.plan)
    attacks = tuple(
        replace(one, auc=0.6, auc_low=0.55, auc_high=0.65) for one in report.attacks
    )
    weak = list(in_words(replace(report, attacks=attacks)))
    assert "MEANS NOTHING" in weak[1]
    assert not any("CAN be told" in line for line in weak)
    strong = (*attacks[:-1], replace(attacks[-1], auc=0.9, auc_high=0.95))
    told = list(in_words(replace(report, attacks=strong)))
    assert any("CAN be told" in line for line in told)
    assert "too few held-out images" in json.dumps(told)


class TestWhereHeldOutImagesAre:
    def test_a_file(self):
        data = DataConfig(value_range=(0.0, 1.0), patients="who")
        found = held_out_data(data, Path("/x.npz"), None)
        assert (found.path, found.split) == ("/x.npz", "train")
        assert (found.value_range, found.patients) == ((0.0, 1.0), "who")
        assert held_out_data(data, Path("/x.npz"), "test").split == "test"

    def test_a_split(self):
        data = DataConfig(source="torchvision", dataset="MNIST")
        assert held_out_data(data, None, "test") == replace(data, split="test")

    @pytest.mark.parametrize(
        ("data", "split", "words"),
        [
            (DataConfig(), None, "give --held-out"),
            (DataConfig(source="folder"), "test", "no splits"),
        ],
    )
    def test_nowhere(self, data, split, words):
        with pytest.raises(ConfigRejected, match=words):
            held_out_data(data, None, split)


def test_protection_is_not_needed_for_a_probe(tmp_path):
    run = Finished3(tmp_path, protection=ProtectionConfig(method="none"))
    assert finished_run(run.plan, run.folder).target == "global"
