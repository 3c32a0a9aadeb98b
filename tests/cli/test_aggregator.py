"""The ``aggregator`` command's own steps: keys, plans, checkpoints."""

from pathlib import Path

import pytest

from crypto.keys import IdentityKey
from protocol.plan_files import load_plan
from tests.cli.conftest import run, write_draft


@pytest.fixture
def centre(tmp_path: Path) -> Path:
    assert run("aggregator", "init", "centre", folder=tmp_path).returncode == 0
    return tmp_path / "centre"


def keys(count: int) -> list[str]:
    """Return silo options with fresh keys, given as digits."""
    fresh = [IdentityKey.generate().public.hex() for _ in range(count)]
    return [f"--silo=s{number}={key}" for number, key in enumerate(fresh)]


def make(folder: Path, *silos: str) -> str:
    """Make a plan; return what went to standard error, empty when it worked."""
    draft = write_draft(folder / "draft.toml", every=1)
    arguments = ["plan", "make", draft, "--dir=centre", *silos]
    done = run("aggregator", *arguments, folder=folder)
    assert bool(done.returncode) == bool(done.stderr)
    return done.stderr


def test_init_makes_a_key_that_nobody_else_reads(tmp_path: Path, centre: Path) -> None:
    key = centre / "identity.key"
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    again = run("aggregator", "init", "centre", folder=tmp_path)
    assert again.returncode == 1
    assert "exists" in again.stderr
    assert key.read_bytes() == before


def test_a_plan_is_made_shown_edited_and_signed_again(
    tmp_path: Path, centre: Path
) -> None:
    assert make(tmp_path, *keys(3)) == ""
    path = tmp_path / "plan.toml"
    plan = load_plan(path)
    assert plan.protection.threshold == 3
    shown = run("aggregator", "plan", "show", path, folder=tmp_path)
    assert f"digest = {plan.digest.hex()}" in shown.stdout
    assert "silos[2].name = s2" in shown.stdout
    assert "exactly:\n  each silo: " in shown.stdout
    assert "  all 3 silos: " in shown.stdout
    assert "round 2" not in shown.stdout
    shown = run("aggregator", "plan", "show", path, "--rounds", folder=tmp_path)
    assert "  each silo, round 2: " in shown.stdout
    assert "  one broadcast by part: encoder " in shown.stdout
    path.write_text(path.read_text().replace("num_rounds = 2", "num_rounds = 7"))
    refused = run("aggregator", "plan", "show", path, folder=tmp_path)
    assert refused.returncode == 1
    assert "signature" in refused.stderr
    signed = run("aggregator", "plan", "sign", path, "--dir=centre", folder=tmp_path)
    assert signed.returncode == 0
    assert load_plan(path).num_rounds == 7
    assert load_plan(path).digest != plan.digest


@pytest.mark.parametrize(
    ("silos", "words"),
    [
        (["--silo=a=nonsense"], "--silo a: not a key"),
        (["--silo=a"], "expected NAME=KEY"),
        (["--silo=A=" + "00" * 32], "name: must be"),
        (["--silo=a=" + "00" * 32 + ",-1"], "weight: must be"),
        (["--silo=a=" + "00" * 32] * 3, "two have the same"),
        (keys(2), "2 silos are fewer than the smallest cohort of 3"),
        ([], "Missing option '--silo'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(
    tmp_path: Path, centre: Path, silos: list[str], words: str
) -> None:
    error = make(tmp_path, *silos)
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "plan.toml").exists()


def test_a_plan_is_never_overwritten(tmp_path: Path, centre: Path) -> None:
    make(tmp_path, *keys(3))
    before = (tmp_path / "plan.toml").read_bytes()
    assert "exists" in make(tmp_path, *keys(3))
    assert (tmp_path / "plan.toml").read_bytes() == before


def test_only_its_own_aggregator_signs_a_plan(tmp_path: Path, centre: Path) -> None:
    make(tmp_path, *keys(3))
    assert run("aggregator", "init", "other", folder=tmp_path).returncode == 0
    sign = ["plan", "sign", "plan.toml", "--dir=other"]
    done = run("aggregator", *sign, folder=tmp_path)
    assert done.returncode == 1
    assert "another aggregator" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen=s"], "--reference"),
        (["--listen=s", "--resume", "--no-evaluation"], "does not exist"),
        (["--listen=" + "x" * 150, "--no-evaluation"], "path"),
        (["--listen=s", "--reference=none.npz"], "none.npz"),
    ],
)
def test_a_run_that_cannot_begin_leaves_nothing(
    tmp_path: Path, centre: Path, arguments: list[str], words: str
) -> None:
    make(tmp_path, *keys(3))
    command = ["run", "plan.toml", "--dir=centre", "--wait=0.1", *arguments]
    done = run("aggregator", *command, folder=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(centre.rglob("transcript.jsonl"))


@pytest.mark.parametrize("command", [["evaluate", "m", "--extractor=fd-small-digits",
    "--reference=r"], ["sample", "m"]])  # fmt: skip
def test_a_checkpoint_that_is_cut_off_is_one_line(
    tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "m").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    done = run("aggregator", *command, folder=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "samples.png").exists()
