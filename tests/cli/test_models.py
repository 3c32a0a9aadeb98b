"""Commands on finished models, as an operator meets them: sample, complete, export."""

from pathlib import Path

import numpy as np
import pytest
import torch

import aggregator.cli
import silo.cli
import simulation.cli
from diffusion.checkpoint import load_checkpoint
from protocol.plan_files import load_plan
from protocol.probe_report import NOT_PRIVATE, load_probe_of
from simulation.settings import SimulationConfig
from simulation.sources import load_pool
from tests.cli.conftest import write_draft
from tests.silo.conftest import Ended, run_command


def silo_command(*arguments: object) -> Ended:
    return run_command(silo.cli.main, *arguments)


def aggregator_command(*arguments: object) -> Ended:
    return run_command(aggregator.cli.main, *arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run whose silos have a model each, and measured it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    draft = write_draft(folder / "draft.toml", rounds=1, transport="memory")
    text = draft.read_text().replace("every_rounds = 0", "in_silos = true")
    draft.write_text(
        text.replace('rounding = "nearest"', 'rounding = "nearest"\nselection = "udec"')
    )
    arguments = ["simulate", draft, "--out", folder / "run"]
    done = run_command(simulation.cli.main, *arguments)
    assert done.code == 0, done.err
    assert "per-silo FD-small (digits): " in done.out + done.err
    return folder / "run"


def test_a_silo_samples_its_own_model_by_the_name_of_the_run(
    finished: Path, tmp_path: Path
) -> None:
    folder = finished / "silos" / "silo-1"
    draw = ["sample", "--count=2", "--device=cpu", "--dir", folder, "--out"]
    assert silo_command(*draw, tmp_path / "run.png", "--run=tiny").code == 0
    (model,) = folder.glob("runs/*/model.safetensors")
    assert silo_command(*draw, tmp_path / "file.png", model).code == 0
    run, file = ((tmp_path / name).read_bytes() for name in ("run.png", "file.png"))
    assert run == file
    told = silo_command("evaluation", "--dir", folder)
    assert told.out.startswith("silo-1: FD-small (digits) ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run=other"], "there is no such run"),
        (["--run="], "there is no such run"),
        ([], "give either a CHECKPOINT or --run"),
    ],
)
def test_a_run_that_is_not_there_is_one_line(
    finished: Path, arguments: list[str], words: str
) -> None:
    folder = finished / "silos" / "silo-1"
    done = silo_command("sample", "--dir", folder, *arguments)
    assert done.code
    assert words in done.err


def test_nothing_was_measured_yet(tmp_path: Path) -> None:
    told = silo_command("evaluation", "--dir", tmp_path)
    assert told.out == "no run has measured this silo's model yet\n"


def test_a_silo_probes_its_own_model(finished: Path, tmp_path: Path) -> None:
    others, out = tmp_path / "others.npz", tmp_path / "probe.json"
    pool = load_pool(SimulationConfig(), 0)
    np.savez(others, images=pool.held_out.pixels[:20])
    silo = ["--plan", finished / "plan.toml", "--dir", finished / "silos" / "silo-1"]
    little = ["--members=16", "--samples=16", "--control-steps=2", "--device=cpu"]
    probe = ["probe", *silo, *little, "--out", out]
    done = silo_command(*probe, "--held-out", others)
    assert done.code == 0, done.err
    assert NOT_PRIVATE in done.out
    report = load_probe_of(out, load_plan(finished / "plan.toml"))
    assert {one.target for one in report.attacks} == {"own", "control"}
    assert report.own_model
    trained_on = finished / "silos" / "silo-1" / "data.npz"
    again = silo_command(*probe, "--held-out", trained_on)
    assert "30 of the held-out images are training images" in again.error
    assert "give --held-out" in silo_command(*probe).error


def test_a_model_is_completed_and_exported(finished: Path, tmp_path: Path) -> None:
    images = tmp_path / "images.npz"
    np.savez(images, images=np.zeros((8, 8, 8), np.uint8))
    place = [finished / "plan.toml", "--dir", finished / "aggregator"]
    more = ["--data", images, "--name=black", "--steps=2", "--device=cpu"]
    assert aggregator_command("complete", *place, *more).code == 0
    (made,) = finished.glob("aggregator/runs/*/completed.safetensors")
    again = aggregator_command("complete", *place, *more)
    assert "exists" in again.error
    out = tmp_path / "model"
    arguments = ["export", *place, "--out", out, "--completed", made]
    assert aggregator_command(*arguments).code == 0
    card = (out / "README.md").read_text()
    assert "incomplete" in card
    assert "black (8 images, 2 steps)" in card
    assert load_checkpoint(out / "model.safetensors").parameters
    done = aggregator_command(*arguments)
    assert done.code == 1
    assert "exists; nothing was changed" in done.error
