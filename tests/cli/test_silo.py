"""The ``silo`` command as its operator meets it: files, exit codes, one line."""

import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import silo.service
from crypto.keys import IdentityKey
from diffusion.checkpoint import load_checkpoint
from diffusion.features import load_extractor
from diffusion.fid import load_statistics
from protocol.command import EXIT_FAILED
from protocol.encoding import from_table
from protocol.files import load_identity, parse_key, save_identity
from protocol.plan import SiloParty, make_plan
from protocol.plan_files import load_draft, load_plan, save_plan
from protocol.transport import LocalSockets
from silo.cli import cli, main
from silo.config import DEFAULT_CONFIG, SiloConfig, SiloFolder, load_config
from silo.policy import DEFAULT_POLICY, Policy, load_policy
from tests.silo.conftest import (
    DRAFT_TEXT,
    Ended,
    Federation,
    listing,
    one_thread,  # noqa: F401 (a fixture)
    run_command,
    tiny_images,
)


def silo_command(*arguments: object) -> Ended:
    return run_command(main, *arguments)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working folder: an ``init``-ed silo in ``silo/`` with images, and a draft."""
    monkeypatch.chdir(tmp_path)
    assert silo_command("init", "silo").code == 0
    np.savez("silo/data.npz", images=tiny_images().pixels)
    Path("draft.toml").write_text(DRAFT_TEXT)
    return tmp_path


@pytest.fixture
def plan(here) -> Path:
    """A plan with that silo and two others, signed by an aggregator."""
    key = parse_key(Path("silo/identity.pub").read_text(), "")
    aggregator = IdentityKey.generate()
    save_identity(here / "aggregator.key", aggregator)
    keys = [key, *(IdentityKey.generate().public for _ in range(2))]
    parties = [
        SiloParty(name=f"silo-{number}", identity_key=public.hex())
        for number, public in enumerate(keys, start=1)
    ]
    draft, _ = load_draft(here / "draft.toml")
    save_plan(
        here / "plan.toml", make_plan(draft, aggregator.public, parties), aggregator
    )
    return here / "plan.toml"


class TestInit:
    def test_makes_a_key_that_only_its_owner_reads(self, here):
        path = here / "silo" / "identity.key"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        key = load_identity(path)
        assert (here / "silo" / "identity.pub").read_text() == key.public.hex() + "\n"

    def test_shows_the_public_key_and_never_the_secret_one(self, tmp_path):
        ended = silo_command("init", tmp_path / "a")
        secret = (tmp_path / "a" / "identity.key").read_text().strip()
        assert (tmp_path / "a" / "identity.pub").read_text().strip() in ended.out
        assert secret not in ended.out + ended.err

    def test_makes_files_that_explain_themselves(self, here):
        folder = SiloFolder(here / "silo")
        assert folder.policy.read_text() == DEFAULT_POLICY
        assert folder.policy.read_text().count("\n# ") > 5
        assert load_policy(folder) == Policy()
        assert folder.config.read_text() == DEFAULT_CONFIG
        assert load_config(folder) == SiloConfig()
        assert from_table(SiloConfig, tomllib.loads(DEFAULT_CONFIG)) == SiloConfig()

    @pytest.mark.parametrize(
        "name", ["identity.key", "identity.pub", "silo.toml", "policy.toml"]
    )
    def test_overwrites_nothing(self, tmp_path, name):
        (tmp_path / name).write_text("mine")
        before = listing(tmp_path)
        ended = silo_command("init", tmp_path)
        assert ended.error == f"error: {tmp_path / name}: exists; nothing was changed"
        assert listing(tmp_path) == before

    def test_makes_another_key_each_time(self, tmp_path):
        keys = set()
        for name in ("a", "b"):
            silo_command("init", tmp_path / name)
            keys.add((tmp_path / name / "identity.key").read_text())
        assert len(keys) == 2


class TestCheckPlan:
    def test_explains_and_approves_nothing(self, plan):
        before = listing(plan.parent)
        ended = silo_command("check-plan", plan, "--dir", "silo")
        assert ended.code == 0
        assert "This silo's policy permits the plan." in ended.out
        assert "Not approved yet" in ended.out
        assert listing(plan.parent) == before

    def test_says_what_canaries_cost(self, plan):
        config = plan.parent / "silo" / "silo.toml"
        text = config.read_text()
        assert "gradient = 0" in text
        config.write_text(text.replace("gradient = 0", "gradient = 100"))
        ended = silo_command("check-plan", plan, "--dir", "silo")
        assert ended.code == 0
        assert "REFUSED: silo.toml, [canaries] gradient: only where DP-SGD" in ended.out

    def test_approves(self, plan):
        assert silo_command("check-plan", plan, "--approve", "--dir", "silo").code == 0
        folder = SiloFolder(plan.parent / "silo")
        assert folder.approval(load_plan(plan)).is_file()
        again = silo_command("check-plan", plan, "--dir", "silo")
        assert "Not approved yet" not in again.out

    def test_a_refused_plan_cannot_be_approved(self, plan):
        policy = plan.parent / "silo" / "policy.toml"
        policy.write_text("max_epsilon = 8.0\n")
        before = listing(plan.parent)
        ended = silo_command("check-plan", plan, "--approve", "--dir", "silo")
        assert "refuses the plan: the plan's epsilon is infinity" in ended.error
        assert "REFUSED by this silo's policy" in ended.out
        assert listing(plan.parent) == before

    def test_a_stranger_s_plan(self, plan):
        silo_command("init", "other")
        ended = silo_command("check-plan", plan, "--approve", "--dir", "other")
        assert "this identity key is not in the plan" in ended.error

    def test_a_plan_that_was_altered(self, plan):
        plan.write_text(plan.read_text().replace("num_rounds = 1", "num_rounds = 2"))
        ended = silo_command("check-plan", plan, "--approve", "--dir", "silo")
        assert "signature" in ended.error
        assert not (plan.parent / "silo" / "approved").exists()


class TestTrain:
    def arguments(self, plan, *more):
        fixed = ("--connect", "s", "--dir", "silo", "--patience", 0)
        return ("train", "--plan", plan, *fixed, *more)

    def test_refuses_an_unapproved_plan(self, plan):
        before = listing(plan.parent)
        ended = silo_command(*self.arguments(plan))
        assert "is not approved" in ended.error
        assert listing(plan.parent) == before

    def test_refuses_a_key_that_others_may_read(self, plan):
        silo_command("check-plan", plan, "--approve", "--dir", "silo")
        (plan.parent / "silo" / "identity.key").chmod(0o644)
        for ended in (
            silo_command(*self.arguments(plan)),
            silo_command("check-plan", plan, "--dir", "silo"),
        ):
            assert "(mode 0644)" in ended.error

    def test_refuses_what_the_policy_does_since_the_approval(self, plan):
        silo_command("check-plan", plan, "--approve", "--dir", "silo")
        (plan.parent / "silo" / "policy.toml").write_text("min_cohort = 9\n")
        ended = silo_command(*self.arguments(plan))
        assert "min_cohort is 3, this silo demands at least 9" in ended.error

    def test_gives_up_in_one_line(self, plan):
        silo_command("check-plan", plan, "--approve", "--dir", "silo")
        ended = silo_command(*self.arguments(plan))
        assert "no aggregator of this plan listens here" in ended.error

    def test_joins_a_run_until_it_ends(self, plan, monkeypatch):
        monkeypatch.setattr(silo.service, "RETRY_SECONDS", 0.01)
        silo_command("check-plan", plan, "--approve", "--dir", "silo")
        centre = Federation.__new__(Federation)
        centre.plan = load_plan(plan)
        centre.aggregator = load_identity(plan.parent / "aggregator.key")
        ended = play_the_end(centre, plan.parent, self.arguments(plan))
        assert ended.code == 0
        assert "silo-1: the run is over; transcript: " in ended.out
        again = silo_command(*self.arguments(plan))
        assert (again.code, again.out) == (0, "this run is over; nothing to do\n")

    @pytest.mark.parametrize(
        "arguments",
        [
            (),
            ("--plan", "p", "--local", "d"),
            ("--plan", "p"),
            ("--local", "d", "--threads", "0"),
            ("--local", "d", "--device", "tpu"),
        ],
    )
    def test_usage(self, arguments):
        ended = silo_command("train", *arguments)
        assert ended.code == 2
        assert "Usage: " in ended.err
        assert ended.error


def play_the_end(centre, folder, arguments) -> Ended:
    """Tell a silo that has just joined that the run is over."""
    import threading

    from diffusion.model import make_model
    from diffusion.parameters import flatten, parameters_of
    from protocol import records
    from protocol.transcript import TranscriptWriter
    from tests.silo.conftest import shared_layout

    centre.layout = shared_layout(centre.plan)
    centre.parameters = flatten(
        parameters_of(make_model(centre.plan.model, 0)), centre.layout
    )
    with (
        TranscriptWriter(
            folder / "centre",
            party="aggregator",
            plan_digest=centre.plan.digest,
            identity=centre.aggregator,
        ) as centre.transcript,
        LocalSockets(
            Path("s"), centre.plan, centre.aggregator, spool=Path()
        ) as transport,
    ):
        centre.transcript.append(
            records.Opened(
                plan=centre.plan.digest.hex(), party="aggregator", software="test"
            )
        )
        centre.requests = {}
        centre.make_requests("end")
        request = {0: centre.requests["end"][0]}

        def tell():
            list(
                transport.exchange(
                    request, deadline_seconds=20.0, max_reply_bytes=1 << 20
                )
            )

        thread = threading.Thread(target=tell)
        thread.start()
        ended = silo_command(*arguments)
        thread.join(20.0)
    return ended


class TestAlone:
    def test_trains_and_samples(self, here):
        ended = silo_command("train", "--local", "draft.toml", "--dir", "silo")
        assert (ended.code, ended.out) == (0, "saved: model.safetensors\n")
        checkpoint = load_checkpoint(here / "model.safetensors")
        assert checkpoint.notes["trained"] == "alone, round 1 of 1"
        arguments = ("--count", 3, "--columns", 2, "--enlarge", 2, "--out", "drawn.png")
        ended = silo_command("sample", "model.safetensors", *arguments)
        assert (ended.code, ended.out) == (0, "saved: drawn.png\n")
        with Image.open(here / "drawn.png") as image:
            assert image.mode == "L"
            assert image.width >= 2 * 2 * 8
            assert image.height >= 2 * 2 * 8
        ended = silo_command("sample", "model.safetensors", "--class", 1)
        assert ended.code == 1
        assert "this model knows no classes" in ended.err
        assert ended.err.count("\n") == 1

    def test_same_draft_same_model(self, here):
        models = []
        for name in ("a", "b"):
            arguments = ("--local", "draft.toml", "--dir", "silo", "--out", name)
            assert silo_command("train", *arguments).code == 0
            models.append(load_checkpoint(here / name).parameters)
        first, second = models
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_without_a_silo_s_folder(self, here):
        np.savez("other.npz", images=tiny_images().pixels)
        arguments = ("--local", "draft.toml", "--data", "other.npz", "--out", "m")
        assert silo_command("train", *arguments).code == 0

    def test_a_folder_of_images(self, here):
        (here / "images").mkdir()
        for number, pixels in enumerate(tiny_images().pixels):
            Image.fromarray(pixels[..., 0]).save(here / "images" / f"{number}.png")
        arguments = ("--local", "draft.toml", "--data", "images", "--out", "m")
        assert silo_command("train", *arguments).code == 0

    def test_out_in_a_missing_folder_is_said_before_training(self, here):
        arguments = ("--local", "draft.toml", "--dir", "silo", "--out", "none/model")
        ended = silo_command("train", *arguments)
        assert ended.error == "error: --out: the folder none does not exist"


class TestReference:
    def test_writes_statistics(self, here):
        images = tiny_images(num_images=80).pixels
        np.savez("public.npz", x_test=images, y_test=np.zeros(80, int))
        arguments = ("--extractor", "fd-small-digits", "--data", "public.npz")
        ended = silo_command("reference", *arguments, "--out", "ref.npz")
        assert (ended.code, ended.out) == (
            0,
            "saved: ref.npz, statistics of 80 images\n",
        )
        statistics = load_statistics(
            here / "ref.npz", load_extractor("fd-small-digits")
        )
        assert statistics.count == 80

    def test_images_of_another_size(self, here):
        ended = silo_command(
            "reference", "--extractor", "fd-small-fashion", "--split", "train",
            "--dir", "silo", "--out", "ref.npz",
        )  # fmt: skip
        assert "8" in ended.error
        assert not (here / "ref.npz").exists()


@pytest.mark.parametrize("command", ["train", "sample"])
def test_cuda_on_a_machine_without(here, monkeypatch, command):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert silo_command("train", "--local", "draft.toml", "--dir", "silo").code == 0
    arguments = {
        "train": ("--local", "draft.toml", "--dir", "silo", "--out", "m"),
        "sample": ("model.safetensors", "--out", "m"),
    }
    ended = silo_command(command, *arguments[command], "--device", "cuda")
    assert ended.error == "error: device cuda: no usable GPU here; use cpu or auto"
    assert not (here / "m").exists()


@pytest.mark.parametrize("command", [None, *sorted(cli.commands)])
def test_help(command):
    ended = silo_command(*([command] if command else []), "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Usage: ")
    if command:
        assert cli.commands[command].help.splitlines()[0][:30] in ended.out


class TestProcess:
    """Exit codes and streams of the real process."""

    def run(self, *arguments, **options):
        root = Path(__file__).parents[2]
        return subprocess.run(
            [sys.executable, "-m", "silo", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(root)},
            **options,
        )

    def test_one_line_and_a_code(self, tmp_path):
        (tmp_path / "silo.toml").write_text("mine")
        ended = self.run("init", tmp_path)
        assert ended.returncode == EXIT_FAILED
        assert ended.stderr.count("\n") == 1
        assert ended.stdout == ""

    def test_usage_has_a_code_of_its_own(self):
        ended = self.run("train")
        assert ended.returncode == 2
        assert "give either --plan or --local" in ended.stderr
