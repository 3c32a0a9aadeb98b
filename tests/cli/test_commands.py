"""The commands as people use them: four terminals, Ctrl-C, kill -9, resume."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.conftest import (
    ROOT,
    environment,
    final_parameters,
    run,
    same_parameters,
    wait_for,
    write_draft,
)

Start = Callable[..., "subprocess.Popen[str]"]


def finished_simulation(folder: Path, name: str, **draft: object) -> Path:
    """Simulate a draft to its end; return the run's folder."""
    path = write_draft(folder / f"{name}.toml", **draft)  # type: ignore[arg-type]
    done = run("simulation", "simulate", path, "--out", folder / name, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / name


def running_with(word: str) -> list[str]:
    """Return the command lines of running processes that hold a word."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode())
    return [line for line in lines if word in line]


def aggregator_only(folder: Path) -> Path:
    """Return the aggregator's half of a run, where one model lies."""
    return folder / "aggregator"


def test_simulate_writes_everything_and_is_audited(tmp_path: Path) -> None:
    root = finished_simulation(tmp_path, "run", every=1)
    for name in ("plan.toml", "samples.png", "report.html", "report.json"):
        assert (root / name).stat().st_size > 100, name
    assert len(list(root.rglob("transcript.jsonl"))) == 4
    assert len(list(root.rglob("model.safetensors"))) == 4
    done = run("audits", "verify", root, folder=tmp_path)
    assert done.returncode == 0
    assert "FAIL" not in done.stdout
    secret = [*root.rglob("identity.key"), *root.rglob("secagg-*.state")]
    assert {oct(path.stat().st_mode & 0o777) for path in secret} == {"0o600"}
    assert [path.read_text() for path in root.rglob("log.txt")] == [""] * 3


def test_silos_as_processes_and_in_memory_give_the_same_parameters(
    tmp_path: Path,
) -> None:
    sockets = finished_simulation(tmp_path, "sockets", transport="sockets")
    memory = finished_simulation(tmp_path, "memory", transport="memory")
    assert same_parameters(
        final_parameters(aggregator_only(sockets)),
        final_parameters(aggregator_only(memory)),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of six rounds that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return finished_simulation(folder, "whole", rounds=6, steps=25)


@pytest.mark.parametrize("after", ["round 2", "round 4"])
def test_kill_in_mid_round_and_resume(
    tmp_path: Path, start: Start, whole: Path, after: str
) -> None:
    draft = whole.with_suffix(".toml")
    process = start("simulation", "simulate", draft, "--out", tmp_path / "killed")
    log = tmp_path / "log-0.txt"
    wait_for(lambda: after in re.sub(" +", " ", log.read_text()))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "killed").rglob("model.safetensors"))
    resumed = run(
        "simulation", "simulate", draft, "--resume", tmp_path / "killed",
        folder=tmp_path,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert same_parameters(
        final_parameters(aggregator_only(whole)),
        final_parameters(aggregator_only(tmp_path / "killed")),
    )
    done = run("audits", "verify", tmp_path / "killed", folder=tmp_path)
    assert done.returncode == 0, done.stdout


def test_interrupt_stops_cleanly_and_can_be_resumed(
    tmp_path: Path, start: Start, whole: Path
) -> None:
    draft = whole.with_suffix(".toml")
    process = start("simulation", "simulate", draft, "--out", tmp_path / "run")
    log = tmp_path / "log-0.txt"
    wait_for(lambda: "round   2" in log.read_text())
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert log.read_text().splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in log.read_text()
    assert running_with(str(tmp_path / "run")) == []
    resumed = run(
        "simulation", "simulate", draft, "--resume", tmp_path / "run", folder=tmp_path
    )
    assert resumed.returncode == 0, resumed.stderr
    assert same_parameters(
        final_parameters(aggregator_only(whole)),
        final_parameters(aggregator_only(tmp_path / "run")),
    )


def set_up_parties(folder: Path, **draft_changes: int) -> Path:
    """Make an aggregator and three silos by their commands; return the plan."""
    draft = write_draft(folder / "draft.toml", every=1, **draft_changes)
    keys = []
    assert run("simulation", "deal", draft, folder=folder).returncode == 0
    assert run("aggregator", "init", "centre", folder=folder).returncode == 0
    for number in (1, 2, 3):
        silo = folder / f"silo-{number}"
        assert run("silo", "init", silo.name, folder=folder).returncode == 0
        config = silo / "silo.toml"
        config.write_text(config.read_text().replace("[0, 255]", "[0, 16]"))
        share = folder / "shares" / f"silo-{number}.npz"
        share.rename(silo / "data.npz")
        keys.append(f"--silo={silo.name}={silo / 'identity.pub'}")
    done = run(
        "aggregator", "plan", "make", draft, "--dir=centre", *keys, folder=folder
    )
    assert done.returncode == 0, done.stderr
    return folder / "plan.toml"


def blocks_of_readme(draft: Path) -> list[str]:
    """Return the shell blocks of README's session, on another draft."""
    text = (ROOT / "README.md").read_text().partition("<!-- session")[2]
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [block.replace("examples/digits.toml", str(draft)) for block in blocks]


def test_the_session_of_the_readme(tmp_path: Path, start: Start) -> None:
    draft = write_draft(tmp_path / "draft.toml", every=1)
    first, second, *_ = blocks_of_readme(draft)
    bin_folder = Path(sys.executable).parent
    path = f"{bin_folder}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", first],
        cwd=tmp_path,
        env={**environment(), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *running, report = [shlex.split(line) for line in second.splitlines()]
    processes = [start(*words) for words in running]
    assert [process.wait(timeout=90) for process in processes] == [0, 0, 0, 0]
    assert run(*report, folder=tmp_path).returncode == 0
    assert (tmp_path / "report.html").stat().st_size > 10_000
    simulated = finished_simulation(tmp_path, "simulated", every=1)
    centre = final_parameters(tmp_path / "centre")
    assert same_parameters(centre, final_parameters(tmp_path / "silo-1"))
    assert same_parameters(centre, final_parameters(aggregator_only(simulated)))
    again = run(*running[0], folder=tmp_path)
    assert again.returncode == 1
    assert "--resume" in again.stderr


def test_a_silo_that_is_killed_comes_back(tmp_path: Path, start: Start) -> None:
    plan = set_up_parties(tmp_path)
    for number in (1, 2, 3):
        check = ["check-plan", plan, f"--dir=silo-{number}", "--approve"]
        assert run("silo", *check, folder=tmp_path).returncode == 0
    train = ["train", f"--plan={plan}", "--connect=s"]
    silos = [start("silo", *train, f"--dir=silo-{n}") for n in (1, 2, 3)]
    wait_for(lambda: list((tmp_path / "silo-2").rglob("transcript.jsonl")))
    silos[1].kill()
    silos[1].wait()
    aggregator = start(
        "aggregator", "run", plan, "--dir=centre", "--listen=s", "--no-evaluation"
    )
    back = start("silo", *train, "--dir=silo-2")
    assert aggregator.wait(timeout=90) == 0
    assert [p.wait(timeout=30) for p in (silos[0], silos[2], back)] == [0, 0, 0]
    verified = run("audits", "verify", ".", "--plan=plan.toml", folder=tmp_path)
    assert verified.returncode == 0, verified.stdout


def test_an_aggregator_that_is_killed_is_resumed(tmp_path: Path, start: Start) -> None:
    plan = set_up_parties(tmp_path, rounds=6, steps=25)
    for number in (1, 2, 3):
        check = ["check-plan", plan, f"--dir=silo-{number}", "--approve"]
        assert run("silo", *check, folder=tmp_path).returncode == 0
    train = ["train", f"--plan={plan}", "--connect=s"]
    silos = [start("silo", *train, f"--dir=silo-{n}") for n in (1, 2, 3)]
    centre = ["run", plan, "--dir=centre", "--listen=s", "--no-evaluation"]
    killed = start("aggregator", *centre)
    log = tmp_path / "log-3.txt"
    wait_for(lambda: "round   2" in log.read_text())
    killed.kill()
    killed.wait()
    resumed = start("aggregator", *centre, "--resume")
    assert resumed.wait(timeout=90) == 0
    assert [silo.wait(timeout=30) for silo in silos] == [0, 0, 0]
    verified = run("audits", "verify", ".", "--plan=plan.toml", folder=tmp_path)
    assert verified.returncode == 0, verified.stdout


def test_help_shows_an_example_plan(tmp_path: Path) -> None:
    shown = run("simulation", "simulate", "--help", folder=tmp_path)
    assert shown.returncode == 0
    assert "[simulation]" in shown.stdout
    assert 'architecture = "residual"' in shown.stdout


def test_the_packaged_plan_is_the_example() -> None:
    packaged = (ROOT / "simulation/plans/digits.toml").read_text()
    assert (ROOT / "examples/digits.toml").read_text() == packaged


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("simulation", ["demo"], "[all]"),
        ("silo", ["sample", "m"], "[silo]"),
        ("aggregator", ["sample", "m"], "[aggregator]"),
    ],
)
def test_a_missing_library_is_one_line(
    tmp_path: Path, module: str, arguments: list[str], extra: str
) -> None:
    without = (
        "import runpy, sys; sys.modules['torch'] = None; "
        f"sys.argv[1:] = {arguments}; runpy.run_module({module!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", without],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"the extra {extra}" in done.stderr
