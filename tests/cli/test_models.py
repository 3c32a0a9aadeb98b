"""Commands on finished models, as an operator meets them: sample, complete, export."""

from pathlib import Path

import numpy as np
import pytest

from diffusion.checkpoint import load_checkpoint
from tests.cli.conftest import run, write_draft


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run whose silos have a model each, and measured it."""
    folder = tmp_path_factory.mktemp("models")
    draft = write_draft(folder / "draft.toml", rounds=1, transport="memory")
    text = draft.read_text().replace("every_rounds = 0", "in_silos = true")
    draft.write_text(
        text.replace('rounding = "nearest"', 'rounding = "nearest"\nselection = "udec"')
    )
    done = run("simulation", "simulate", draft, "--out=run", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "per-silo FD-small (digits): " in done.stdout + done.stderr
    return folder / "run"


def test_a_silo_samples_its_own_model_by_the_name_of_the_run(finished: Path) -> None:
    silo = finished / "silos" / "silo-1"
    draw = ["sample", "--count=2", "--device=cpu", "--dir", silo]
    done = run("silo", *draw, "--run=tiny", "--out=run.png", folder=finished)
    assert done.returncode == 0, done.stderr
    (model,) = silo.glob("runs/*/model.safetensors")
    run("silo", *draw, model, "--out=file.png", folder=finished)
    pictures = [(finished / name).read_bytes() for name in ("run.png", "file.png")]
    assert pictures[0] == pictures[1]
    told = run("silo", "evaluation", "--dir", silo, folder=finished)
    assert told.stdout.startswith("silo-1: FD-small (digits) ")


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
    silo = finished / "silos" / "silo-1"
    done = run("silo", "sample", "--dir", silo, *arguments, folder=finished)
    assert done.returncode
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_is_completed_and_exported(finished: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((8, 8, 8), np.uint8))
    plan, centre = finished / "plan.toml", f"--dir={finished / 'aggregator'}"
    more = ["--data=images.npz", "--name=black", "--steps=2", "--device=cpu"]
    done = run("aggregator", "complete", plan, centre, *more, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = finished.glob("aggregator/runs/*/completed.safetensors")
    again = run("aggregator", "complete", plan, centre, *more, folder=tmp_path)
    assert "exists" in again.stderr
    arguments = ["export", plan, centre, "--out=model", f"--completed={made}"]
    done = run("aggregator", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "model" / "README.md").read_text()
    assert "incomplete" in card
    assert "black (8 images, 2 steps)" in card
    assert load_checkpoint(tmp_path / "model" / "model.safetensors").parameters
    done = run("aggregator", *arguments, folder=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
