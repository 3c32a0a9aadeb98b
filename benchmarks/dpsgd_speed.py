"""What a private step costs in time and memory, engine by engine.

A private step is all of it: per-unit gradients, norms, clip, sum, secret noise, Adam.
It is compared with the plain step that trains the same model on the same draws (K of
timestep and noise for each image), all of them as one batch, on one thread. The steps
take turns in one process; a row gives the median of the ratios of neighbours. On a CPU
the clock is that of the process: with one thread, what a quiet machine would take, but
for the caches that others use. Memory is the growth of a fresh process during its first
step (on a GPU: the peak that torch allocated beyond what it had before). "Stock Opacus"
is Opacus's own module and optimizer over the whole batch, K forwards and one backward.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer

from benchmarks.results_file import Row, row, save
from benchmarks.secagg_memory import Peak
from diffusion.config import ScheduleConfig, UNetConfig
from diffusion.loss import denoising_loss
from diffusion.model import make_model
from diffusion.schedule import make_schedule
from silo.dpsgd import PrivateOptimizer
from silo.per_example import (
    Draws,
    GradientEngine,
    HooksEngine,
    LoopEngine,
    Objective,
    VmapEngine,
    default_engine,
)
from silo.randomness import PrivateRandom

MODELS = {
    "FedDiffuse": UNetConfig(
        architecture="feddiffuse",
        dim=28,
        channels=1,
        dim_mults=(1, 2, 4),
        image_size=28,
    ),
    "residual": UNetConfig(
        architecture="residual",
        dim=32,
        channels=1,
        dim_mults=(1, 2, 4),
        image_size=28,
    ),
}
NUM_UNITS = {1: 64, 8: 16, 16: 8}
"""Units of a step, by the multiplicity K."""

REPETITIONS = 5
PLAIN = "non-private"
STOCK = "stock Opacus"

Step = Callable[[], None]


class Setting:
    """A model, the draws of one step, and the steps that can be taken with them."""

    def __init__(self, model: str, multiplicity: int, device: torch.device) -> None:
        self._device = device
        self._model = make_model(MODELS[model], 0).to(device)
        self._schedule = make_schedule(ScheduleConfig()).to(device)
        shape = (NUM_UNITS[multiplicity] * (1 if device.type == "cpu" else 16),)
        generator = torch.Generator().manual_seed(0)
        x_0 = torch.rand((*shape, multiplicity, 1, 28, 28), generator=generator) * 2 - 1
        self._draws = Draws(
            x_0.to(device),
            torch.randint(1000, x_0.shape[:2], generator=generator).to(device),
            torch.randn(x_0.shape, generator=generator).to(device),
            torch.full(x_0.shape[:2], 1 / multiplicity).to(device),
        )
        self.num_images = x_0.shape[0] * x_0.shape[1]
        engines: dict[str, GradientEngine] = {
            "loop": LoopEngine(),
            "vmap": VmapEngine(),
            "hooks": HooksEngine(),
        }
        default = default_engine(self._model, 28 * 28, multiplicity)
        if isinstance(default, VmapEngine):
            engines["vmap"] = default
        (self.default,) = (n for n, engine in engines.items() if engine == default)
        self.makers: dict[str, Callable[[], Step]] = {
            PLAIN: self._plain,
            **{n: lambda e=engine: self._private(e) for n, engine in engines.items()},
            STOCK: self._stock,
        }

    def _adam(self) -> torch.optim.Adam:
        return torch.optim.Adam(self._model.parameters(), lr=1e-4, fused=True)

    def _plain(self) -> Step:
        """Return the step without privacy."""
        optimizer, draws = self._adam(), self._draws
        flat = [part.flatten(0, 1) for part in (draws.x_0, draws.t, draws.noise)]

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            losses = denoising_loss(self._model, *flat, self._schedule, "mse")
            losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def _private(self, engine: GradientEngine) -> Step:
        """Return our private step with an engine."""
        objective = Objective(self._model, self._schedule, "mse")
        random, adam = PrivateRandom(), self._adam()

        def step() -> None:
            optimizer = PrivateOptimizer(
                adam,
                noise_multiplier=1.0,
                clipping_norm=1.0,
                expected_batch_size=len(self._draws),
                random=random,
            )
            for made in engine.gradients(objective, self._draws):
                optimizer.accumulate(made)
            optimizer.step()
            optimizer.release()

        return step

    def _stock(self) -> Step:
        """Return the step that Opacus takes by itself."""
        draws, adam = self._draws, self._adam()

        def step() -> None:
            model = GradSampleModule(self._model, loss_reduction="sum")
            optimizer = DPOptimizer(
                adam,
                noise_multiplier=1.0,
                max_grad_norm=1.0,
                expected_batch_size=len(draws),
            )
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Full backward hook")
                total = sum(
                    denoising_loss(
                        model,
                        draws.x_0[:, k],
                        draws.t[:, k],
                        draws.noise[:, k],
                        self._schedule,
                        "mse",
                    )
                    for k in range(draws.t.shape[1])
                )
                (total.sum() / draws.t.shape[1]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            model.to_standard_module()

        return step

    def seconds(self, step: Step) -> float:
        """Return how long a step takes: on a CPU, the time of this process alone."""
        clock = time.process_time if self._device.type == "cpu" else time.perf_counter
        began = clock()
        step()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - began


def measure(
    model: str, multiplicity: int, device: torch.device, repetitions: int
) -> list[Row]:
    """Time all steps in turn, and their memory in processes of their own."""
    setting = Setting(model, multiplicity, device)
    steps = {name: make() for name, make in setting.makers.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 1):
        for name, step in steps.items():
            taken = setting.seconds(step)
            if repetition:  # the first one warms up
                times[name].append(taken)
    plain = times[PLAIN]
    memory = {name: _memory(model, multiplicity, device, name) for name in steps}
    what = f"{model}, K = {multiplicity}"
    rows = [
        row(
            f"images/s, {what}, {PLAIN}", setting.num_images / median(plain), "images/s"
        ),
        row(f"memory, {what}, {PLAIN}", memory[PLAIN] / 1e6, "MB"),
    ]
    for name in list(steps)[1:]:
        is_default = name == setting.default
        label = f"{what}, {name}{' (default)' if is_default else ''}"
        ratios = [mine / other for mine, other in zip(times[name], plain, strict=True)]
        time_target, memory_target = _targets(multiplicity, device, is_default)
        rows += [
            row(f"time ratio, {label}", median(ratios), "x", time_target),
            row(
                f"memory ratio, {label}",
                memory[name] / memory[PLAIN],
                "x",
                memory_target,
            ),
        ]
        if is_default:
            speed = setting.num_images / median(times[name])
            rows.append(row(f"images/s, {label}", speed, "images/s"))
    return rows


def _targets(
    multiplicity: int, device: torch.device, is_default: bool
) -> tuple[str, str]:
    """Return the targets of time and memory."""
    if not is_default or multiplicity == 16:
        return "", ""
    if device.type != "cpu":
        return ("<= 2" if multiplicity == 8 else ""), ""
    return ("<= 1.35", "<= 0.5") if multiplicity == 8 else ("<= 2", "")


def noise_rows() -> list[Row]:
    """Time the noise of one step of 3 M parameters, beside a single plain normal."""
    random, values = PrivateRandom(), np.zeros(3_000_000)
    plain = np.random.default_rng(0)
    ours, single = [], []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        random.add_noise_(values, 1.0)
        middle = time.perf_counter()
        values += plain.standard_normal(values.size)
        ours.append(middle - began)
        single.append(time.perf_counter() - middle)
    return [
        row("secret noise, 3 M values, sum of four", 1e3 * median(ours), "ms"),
        row("numpy's own, 3 M values, one each", 1e3 * median(single), "ms"),
    ]


def _memory(model: str, multiplicity: int, device: torch.device, name: str) -> float:
    """Return the bytes that the first step of a fresh process takes."""
    command = [sys.executable, "-m", "benchmarks.dpsgd_speed", "--device", str(device)]
    wanted = json.dumps([model, multiplicity, name])
    done = subprocess.run(
        [*command, "--memory-of", wanted], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def _print_memory(
    model: str, multiplicity: int, name: str, device: torch.device
) -> None:
    """Take one step, and print the bytes that it took."""
    step = Setting(model, multiplicity, device).makers[name]()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        print(torch.cuda.max_memory_allocated() - before)
        return
    peak = Peak()
    step()
    print(peak.num_bytes())


def main() -> None:
    """Measure, print, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--multiplicities", nargs="+", type=int, default=[*NUM_UNITS])
    parser.add_argument("--memory-of", type=json.loads, help=argparse.SUPPRESS)
    chosen: Any = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(chosen.device)
    if chosen.memory_of:
        _print_memory(*chosen.memory_of, device)
        return
    rows = noise_rows()
    for model in chosen.models:
        for multiplicity in chosen.multiplicities:
            rows += measure(model, multiplicity, device, chosen.repetitions)
    name = "dpsgd_speed" if device.type == "cpu" else "dpsgd_speed_gpu"
    note = "1 thread" if device.type == "cpu" else torch.cuda.get_device_name(device)
    is_whole = set(chosen.models) == set(MODELS) and set(NUM_UNITS) == set(
        chosen.multiplicities
    )
    if is_whole:
        print(f"saved {save(name, rows, note).name}")


if __name__ == "__main__":
    main()
