"""From nothing to a warmed-up private run: central images, warm-up, training."""

import hashlib
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from click.testing import CliRunner
from PIL import Image

import silo.central_images
import silo.private_round
from aggregator.cli import cli
from aggregator.errors import ConfigRejected
from aggregator.warm_up import warm_up_draft
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from diffusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffusion.config import UNetConfig
from diffusion.errors import CorruptFile
from diffusion.initial import first_model
from diffusion.means import IMAGES_NAME
from diffusion.model import make_model
from diffusion.parameters import parameters_of
from diffusion.warm_up import WarmUpConfig, central_images_of
from privacy.accounting import epsilon
from protocol import records
from protocol.encoding import to_table
from protocol.mechanism import round_event
from protocol.plan import PlanDraft, make_plan
from protocol.plan_files import load_draft
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import InitialConfig, TrainingConfig
from protocol.transcript import read_records
from protocol.update_settings import UpdateConfig
from silo.config import load_config
from silo.data import load_images
from silo.randomness import PrivateRandom
from simulation.run import finish
from tests.end_to_end.conftest import Harness, tiny_draft

CPU = torch.device("cpu")
DELTA = 1e-3
NUM_IMAGES = 3
TINY = tiny_draft()
SHORT = WarmUpConfig(num_steps=5, learning_rate=1e-2)


def central_draft(**changes) -> PlanDraft:
    """Return a draft whose noise is large for 30 images in a silo."""
    sections = {
        "name": "central",
        "num_rounds": 1,
        "model": UNetConfig(
            architecture="means",
            dim=NUM_IMAGES,
            channels=1,
            dim_mults=(),
            image_size=8,
        ),
        "training": TrainingConfig(local_steps=NUM_IMAGES, examples_per_step=15),
        "update": UpdateConfig(clipping_norm=200.0),
        "privacy": PrivacyConfig(
            mechanism="dp-sgd",
            noise_multiplier=2.0,
            delta=DELTA,
            sample_rate=0.5,
            clipping_norm=8.0,
            multiplicity=1,
        ),
    }
    return replace(TINY, **(sections | changes))


def private_draft(**changes) -> PlanDraft:
    sections = {
        "name": "warmed-up",
        "num_rounds": 1,
        "privacy": PrivacyConfig(
            mechanism="dp-sgd",
            noise_multiplier=1.0,
            delta=DELTA,
            sample_rate=0.25,
            multiplicity=2,
        ),
    }
    return replace(TINY, **(sections | changes))


def model_of(run: Harness) -> Path:
    return run.federation.aggregator.run(run.plan) / "model.safetensors"


def spent_of(run: Harness, silo: str) -> records.PrivacySpent:
    folder = run.federation.silo(silo).run(run.plan)
    entries = read_records(folder / "transcript")
    found = [e.record for e in entries if isinstance(e.record, records.PrivacySpent)]
    return found[-1]


def begin_with(run: Harness, initial: Path, draft: PlanDraft) -> Harness:
    """Return another run of the same silos that begins with a file."""
    federation = run.federation
    for target in (
        federation.aggregator.initial,
        *(federation.silo(party.name).initial for party in run.plan.silos),
    ):
        shutil.copy(initial, target)
    plan = make_plan(draft, run.plan.aggregator_key, run.plan.silos)
    return Harness(federation, plan)


def failed(run: Harness) -> set[str]:
    audit = run_audit(load_evidence(run.federation.root, None))
    return {finding.check for finding in audit.with_severity(Severity.FAIL)}


def test_means_then_a_warm_up_then_private_training(harness, tmp_path) -> None:
    central = harness(central_draft())
    central.run()
    outcome = finish(central.federation, central.plan, "cpu")
    assert not outcome.audit.with_severity(Severity.FAIL)
    with Image.open(outcome.samples) as picture:
        cell, gap = 64, 8  # one row of central images
        assert picture.size == (3 * (cell + gap) + gap, cell + 2 * gap)
    released = round_event(central.plan)
    assert (released.steps, released.clipping_norm) == (NUM_IMAGES, 8.0)
    for party in central.plan.silos:
        spent = spent_of(central, party.name)
        assert spent.events == (released,)
        assert (spent.multiplicity, spent.earlier) == (1, ())
        assert spent.epsilon == epsilon((released,), DELTA)

    initial = tmp_path / "initial.safetensors"
    made = warm_up_draft(model_of(central), private_draft(), initial, SHORT, device=CPU)
    assert made.name == f"central images of run {central.plan.digest.hex()[:16]}"
    assert made.num_images == NUM_IMAGES
    config = InitialConfig(name=made.name, sha256=made.sha256, origin="run")
    trained = begin_with(central, initial, private_draft(initial=config))
    assert trained.run().round_number == 1

    step = round_event(trained.plan)
    for party in trained.plan.silos:
        spent = spent_of(trained, party.name)
        assert (spent.events, spent.earlier) == ((step,), (released,))
        assert spent.account_epsilon == epsilon((released, step), DELTA)
        assert spent.account_epsilon > spent.epsilon


def test_the_sum_is_the_mean_over_all_silos(harness, monkeypatch) -> None:
    """Without noise, at rate 1: the mean of the three silos' mean images."""
    monkeypatch.setattr(PrivateRandom, "add_noise_", lambda *arguments: None)
    privacy = replace(central_draft().privacy, sample_rate=1.0)
    training = TrainingConfig(local_steps=NUM_IMAGES, examples_per_step=30)
    run = harness(central_draft(privacy=privacy, training=training))
    run.run()
    means = []
    for party in run.plan.silos:
        files = run.federation.silo(party.name)
        images = load_images(load_config(files).data, files.root)
        means.append(images.batch(np.arange(len(images))).mean(0))
    found = central_images_of(load_checkpoint(model_of(run)))
    for image in found:
        assert torch.allclose(image, torch.stack(means).mean(0), atol=1e-4)


class Killed(BaseException):
    """The silo's process ends here."""


def test_a_killed_silo_counts_the_image_that_it_may_have_drawn(
    harness, monkeypatch
) -> None:
    spare = replace(central_draft().privacy, spare_steps=NUM_IMAGES)
    run = harness(central_draft(privacy=spare))
    real, deaths = silo.private_round.release_central_images, []

    def release(*arguments, **options):
        if deaths:
            return real(*arguments, **options)
        deaths.append(1)
        real(*arguments, **options | {"keep": lambda kept: None})
        raise Killed

    monkeypatch.setattr(silo.private_round, "release_central_images", release)
    with pytest.raises(Killed):
        run.run()
    run.run()
    spent = spent_of(run, "silo-1")
    assert sum(event.steps for event in spent.events) == 2 * NUM_IMAGES
    assert not failed(run) & {"mechanism", "ledgers", "epsilon"}


class TestWarmUp:
    @pytest.fixture
    def central(self, tmp_path) -> Path:
        """Return the finished model of a run that was never carried out."""
        path, draft = tmp_path / "model.safetensors", central_draft()
        checkpoint = Checkpoint(
            model=draft.model,
            schedule=draft.schedule,
            sampler=draft.evaluation.sampler,
            parameters={IMAGES_NAME: torch.rand(NUM_IMAGES, 1, 8, 8)},
            notes={"plan": "ab" * 32},
        )
        save_checkpoint(path, checkpoint)
        return path

    def test_it_can_be_repeated_and_its_table_is_that_of_a_draft(
        self, central, tmp_path
    ) -> None:
        made = [
            warm_up_draft(
                central,
                private_draft(),
                tmp_path / f"{number}.safetensors",
                SHORT,
                device=CPU,
                picture=tmp_path / "central.png",
            )
            for number in range(2)
        ]
        assert made[0] == made[1]
        assert (tmp_path / "central.png").exists()
        draft = tmp_path / "draft.toml"
        draft.write_text(
            'name = "next"\nnum_rounds = 1\nseed = 5\n'
            "[model]\narchitecture = 'residual'\ndim = 4\nchannels = 1\n"
            "dim_mults = [1, 2]\nimage_size = 8\n"
            f"[training]\nlocal_steps = 1\n{made[0].table}\n"
        )
        loaded, _ = load_draft(draft)
        assert loaded.initial == InitialConfig(
            name=made[0].name, sha256=made[0].sha256, origin="run"
        )

    @pytest.mark.parametrize(
        ("draft", "error", "message"),
        [
            (central_draft(), ConfigRejected, "for central images itself"),
            (
                private_draft(initial=InitialConfig(name="a", sha256="00" * 32)),
                ConfigRejected,
                "begins with",
            ),
            (
                private_draft(model=replace(TINY.model, image_size=16)),
                ConfigRejected,
                "are 1 × 8 × 8, the draft's model takes 1 × 16 × 16",
            ),
        ],
    )
    def test_a_draft_that_does_not_fit_is_refused(
        self, central, tmp_path, draft, error, message
    ) -> None:
        out = tmp_path / "out.safetensors"
        with pytest.raises(error, match=message):
            warm_up_draft(central, draft, out, SHORT, device=CPU)
        assert not out.exists()

    def test_nothing_is_overwritten(self, central, tmp_path) -> None:
        out = tmp_path / "out.safetensors"
        out.write_bytes(b"mine")
        with pytest.raises(ConfigRejected, match="exists; nothing was changed"):
            warm_up_draft(central, private_draft(), out, SHORT, device=CPU)
        assert out.read_bytes() == b"mine"

    def test_a_network_is_no_source_of_central_images(self, tmp_path) -> None:
        network = tmp_path / "network.safetensors"
        checkpoint = Checkpoint(
            model=TINY.model,
            schedule=TINY.schedule,
            sampler=TINY.evaluation.sampler,
            parameters=parameters_of(make_model(TINY.model, 1)),
        )
        save_checkpoint(network, checkpoint)
        with pytest.raises(CorruptFile, match="no central images"):
            warm_up_draft(network, private_draft(), tmp_path / "o", SHORT, device=CPU)

    def test_the_command(self, central, tmp_path) -> None:
        draft = private_draft()
        table = {name: value for name, value in to_table(draft).items() if value}
        (tmp_path / "draft.toml").write_text(tomli_w.dumps(table))
        words = ["warm-up", str(central), str(tmp_path / "draft.toml"), "--steps=3"]
        words += [f"--out={tmp_path / 'i'}", f"--picture={tmp_path / 'p.png'}"]
        done = CliRunner().invoke(cli, [*words, "--shift=1", "--device=cpu"])
        assert done.exit_code == 0, done.output
        sha256 = hashlib.sha256((tmp_path / "i").read_bytes()).hexdigest()
        table = tomllib.loads(done.output[done.output.index("[initial]") :])
        assert table["initial"] == {
            "name": f"central images of run {'ab' * 8}",
            "sha256": sha256,
            "origin": "run",
        }
        assert "trained for 3 steps on 3 central images" in done.output
        model = first_model(draft.model, 1, sha256, tmp_path / "i")
        assert not equal(model, make_model(draft.model, draft.seed_for("model")))
        again = CliRunner().invoke(cli, words)
        assert isinstance(again.exception, ConfigRejected)


def equal(left, right) -> bool:
    """Return whether two networks have the same parameters."""
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
