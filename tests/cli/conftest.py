"""Real commands in real processes, on a tiny federation."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from diffusion.checkpoint import load_checkpoint

ROOT = Path(__file__).parent.parent.parent

DRAFT = """\
name = "tiny"
num_rounds = {rounds}
seed = 5

[model]
architecture = "residual"
dim = 4
channels = 1
dim_mults = [1, 2]
image_size = 8

[training]
local_steps = {steps}
examples_per_step = 4
learning_rate = 1e-2

[update]
rounding = "nearest"

[evaluation]
every_rounds = {every}
num_samples = 10
extractor = "fd-small-digits"
sampler = {{ kind = "ddim", num_steps = 2 }}

[simulation]
num_silos = 3
num_images = 90
transport = "{transport}"
"""


def write_draft(
    path: Path,
    *,
    rounds: int = 2,
    steps: int = 1,
    every: int = 0,
    transport: str = "sockets",
) -> Path:
    """Write a tiny draft and return its path."""
    path.write_text(
        DRAFT.format(rounds=rounds, steps=steps, every=every, transport=transport)
    )
    return path


def command(name: str, *arguments: object) -> list[str]:
    """Return the words that run one of our commands."""
    return [sys.executable, "-m", name, *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return an environment in which our packages are found and nothing is coloured."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(
    name: str, *arguments: object, folder: Path, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run one of our commands to its end."""
    return subprocess.run(
        command(name, *arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start commands that are killed at the end of the test, if they still run."""
    processes: list[subprocess.Popen[str]] = []

    def begin(name: str, *arguments: object) -> "subprocess.Popen[str]":
        number = len(processes)
        with (tmp_path / f"log-{number}.txt").open("w") as log:
            process = subprocess.Popen(
                command(name, *arguments),
                cwd=tmp_path,
                env=environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                preexec_fn=_take_interrupts,
            )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def _take_interrupts() -> None:
    """Let a child end at Ctrl-C, whoever started this test."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something holds; fail the test when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("it did not happen in time")
        time.sleep(0.02)


def final_parameters(run_folder: Path) -> dict[str, torch.Tensor]:
    """Return the finished model's parameters below a folder."""
    (path,) = run_folder.glob("**/runs/*/model.safetensors")
    return dict(load_checkpoint(path).parameters)


def same_parameters(
    left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]
) -> bool:
    """Return whether two models are equal, bit for bit."""
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )
