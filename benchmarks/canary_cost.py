"""What gradient canaries add to a private step: CPU time on one thread.

Steps with and without 1,000 canaries take turns; a row gives the median of the ratios
of neighbours. The step is that of ``benchmarks/dpsgd_speed.py``: 16 images, 8 draws of
each, the residual network of 1.5 million parameters. ``release`` is its end alone:
noise, division, Adam. Sample rate 0.05: some 25 canaries are drawn in a step.

Results: ``benchmarks/results/canary_cost.json``.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

from benchmarks.dpsgd_speed import MODELS, Setting
from benchmarks.results_file import Row, row, save
from diffusion.config import ScheduleConfig
from diffusion.model import make_model
from diffusion.schedule import make_schedule
from protocol.canaries import CANARY_SEED_BYTES
from silo.canaries import GradientCanaries
from silo.dpsgd import PrivateOptimizer
from silo.per_example import LoopEngine, Objective
from silo.randomness import PrivateRandom

MULTIPLICITY, NUM_CANARIES = 8, 1000
FULL_STEPS, RELEASES = 5, 40
CPU = torch.device("cpu")


def stepper(num_canaries: int, *, is_full: bool) -> Callable[[], None]:
    """Return a private step, or its end alone, with so many canaries."""
    setting = Setting("residual", MULTIPLICITY, CPU)
    model = make_model(MODELS["residual"], 0)
    planted = GradientCanaries(
        bytes(CANARY_SEED_BYTES),
        num_canaries or 1,
        sample_rate=0.05,
        clipping_norm=1.0,
        random=PrivateRandom(),
    )
    optimizer = PrivateOptimizer(
        torch.optim.Adam(model.parameters(), lr=1e-4, fused=True),
        noise_multiplier=1.0,
        clipping_norm=1.0,
        expected_batch_size=16,
        random=PrivateRandom(),
        canaries=planted if num_canaries else None,
    )
    objective = Objective(model, make_schedule(ScheduleConfig()), "mse")

    def step() -> None:
        if is_full:
            for made in LoopEngine().gradients(objective, setting._draws):
                optimizer.accumulate(made)
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Return the CPU time of a step."""
    began = time.process_time()
    step()
    return time.process_time() - began


def compare(name: str, repetitions: int, *, is_full: bool) -> list[Row]:
    """Return the ratio, and what canaries add in milliseconds."""
    without, with_ = (stepper(n, is_full=is_full) for n in (0, NUM_CANARIES))
    seconds(without), seconds(with_)
    pairs = [(seconds(without), seconds(with_)) for _ in range(repetitions)]
    ratio = median(after / before for before, after in pairs)
    added = median(after - before for before, after in pairs)
    target = "<= 1.05" if is_full else ""
    return [
        row(f"{name}, {NUM_CANARIES:,} canaries, time", ratio, "times", target),
        row(f"{name}, without, time", median(b for b, _ in pairs) * 1e3, "ms"),
        row(f"{name}, what canaries add", added * 1e3, "ms"),
    ]


def main() -> None:
    """Measure both."""
    torch.set_num_threads(1)
    rows = compare("release", RELEASES, is_full=False)
    rows += compare("private step", FULL_STEPS, is_full=True)
    save("canary_cost", rows, "one thread, other processes beside it")


if __name__ == "__main__":
    main()
