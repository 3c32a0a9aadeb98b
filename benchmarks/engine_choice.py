"""Which engine computes a unit's gradient fastest on a CPU, by the size of the work.

The least process time of three, one thread, of the gradients alone, for networks and
images of several sizes. The rule in ``silo/per_example.py`` (``SMALL_WORK``) is read
off it: parameters times pixels times draws decide between the loop and vmap.

Results: ``benchmarks/results/engine_choice.json``.
"""

import time

import torch

from benchmarks.results_file import Row, row, save
from diffusion.config import ScheduleConfig, UNetConfig
from diffusion.model import make_model
from diffusion.schedule import make_schedule
from silo.per_example import Draws, GradientEngine, LoopEngine, Objective, VmapEngine

ENGINES: dict[str, GradientEngine] = {
    "loop": LoopEngine(),
    "vmap, 16 units": VmapEngine(16),
    "vmap, 64 units": VmapEngine(64),
}
SIZES = ((8, 8, (1, 2)), (16, 8, (1, 2)), (32, 8, (1, 2)), (16, 28, (1, 2, 4)),
         (28, 28, (1, 2, 4)))  # fmt: skip
"""Width, image size and multipliers of the residual network."""
UNITS, REPETITIONS = 64, 3


def milliseconds(engine: GradientEngine, objective: Objective, draws: Draws) -> float:
    """Return the least process time for one unit."""
    best = float("inf")
    for _ in range(REPETITIONS):
        began = time.process_time()
        for start in range(0, len(draws), engine.chunk_size):
            part = draws.part(start, start + engine.chunk_size)
            for _made in engine.gradients(objective, part):
                pass
        best = min(best, time.process_time() - began)
    return 1000 * best / len(draws)


def measure(dim: int, size: int, dim_mults: tuple[int, ...], draws: int) -> list[Row]:
    """Return the rows of one network with so many draws."""
    config = UNetConfig(
        architecture="residual",
        dim=dim,
        channels=1,
        dim_mults=dim_mults,
        image_size=size,
    )
    model = make_model(config, 0)
    objective = Objective(model, make_schedule(ScheduleConfig()), "mse")
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.rand((UNITS, draws, 1, size, size), generator=generator) * 2 - 1
    made = Draws(
        x_0,
        torch.randint(1000, (UNITS, draws), generator=generator),
        torch.randn(x_0.shape, generator=generator),
        torch.full((UNITS, draws), 1 / draws),
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    what = f"{parameters:,} parameters, {size}×{size}, K = {draws}"
    rows = [row(f"{what}: work", parameters * size * size * draws / 1e9, "1e9")]
    for name, engine in ENGINES.items():
        value = milliseconds(engine, objective, made)
        rows.append(row(f"{what}: {name}", value, "ms a unit"))
    return rows


def main() -> None:
    """Measure all sizes, and keep the rows."""
    torch.set_num_threads(1)
    rows = [row for size in SIZES for draws in (4, 8) for row in measure(*size, draws)]
    save("engine_choice", rows)


if __name__ == "__main__":
    main()
