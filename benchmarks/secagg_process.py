"""How large the parts of ``benchmarks.secagg`` are, and how each runs by itself.

A part is a module with a ``main`` that calls :func:`answer`. It runs in a process of
its own, so that what one part has in memory, which core it is bound to and how many
threads its libraries have does not touch the next. Its rows come back as JSON.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from benchmarks.results_file import ROOT

Rows = list[tuple[str, float, str, str]]
"""Name, value, unit, and target or nothing."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MOST_RUNS = 21


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large everything is, and how long each pair of figures may take.

    ``cohorts`` are (silos, lost silos) of masking, unmasking and memory; ``seconds``
    are spent on each group of figures that are compared, but never fewer than
    ``fewest_runs`` of each.
    """

    num_values: int = 35_000_000
    cohorts: tuple[tuple[int, int], ...] = ((10, 2), (100, 10))
    seconds: float = 6.0
    fewest_runs: int = 3
    whole_values: int = 3_000_000
    whole_silos: int = 100
    whole_lost: int = 10
    byte_silos: tuple[int, ...] = (10, 100)
    flower_values: int = 35_000_000
    flower_silos: int = 10
    num_images: int = 10_000
    num_rounds: int = 3
    local_steps: int = 15

    def to_json(self) -> str:
        """Return the sizes as an argument for a process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Sizes":
        """Return the sizes of :meth:`to_json`."""
        fields = json.loads(text)
        fields["cohorts"] = tuple(tuple(cohort) for cohort in fields["cohorts"])
        fields["byte_silos"] = tuple(fields["byte_silos"])
        return cls(**fields)

    def target(self, comparison: str) -> str:
        """Return a target that is meant for the full size, or none for another."""
        full = Sizes()
        is_full = self.num_values >= full.num_values
        return comparison if is_full and self.whole_silos >= full.whole_silos else ""


SMOKE = Sizes(
    num_values=700_000,
    cohorts=((5, 1),),
    seconds=0.02,
    fewest_runs=1,
    whole_values=30_000,
    whole_silos=8,
    whole_lost=1,
    byte_silos=(4,),
    flower_values=100_000,
    flower_silos=4,
    num_images=100,
    num_rounds=2,
    local_steps=1,
)
"""Less than a tenth: a tenth of the whole takes half a minute."""


def run_part(module: str, sizes: Sizes, *, one_core: bool) -> Rows:
    """Run one part in a process of its own; return its rows.

    Raises:
        RuntimeError: the part has failed; with what it printed.
    """
    environment = dict(os.environ, FLWR_TELEMETRY_ENABLED="0")
    if one_core:
        environment |= dict.fromkeys(THREAD_VARIABLES, "1")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            f"benchmarks.{module}",
            sizes.to_json(),
            "one core" if one_core else "all cores",
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"benchmarks.{module}: {done.stderr}")
    return [tuple(row) for row in json.loads(done.stdout.splitlines()[-1])]


def answer(measure: Callable[[Sizes], Rows]) -> None:
    """Measure what the command line asks for; print the rows as JSON, last of all.

    "One core" binds the process to the last of its cores.
    """
    text, cores = sys.argv[1:]
    if cores == "one core":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(json.dumps(measure(Sizes.from_json(text))))


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def clock() -> float:
    """Return seconds: of this process's CPU on one core, of the wall on several.

    On one core and without waiting for anything both are the same, but a busy machine
    distorts the wall's.
    """
    return time.process_time() if num_cores() == 1 else time.perf_counter()


def interleaved(
    sizes: Sizes, steps: Sequence[Callable[[], float]]
) -> list[list[float]]:
    """Run steps in turn until the time is over; return the seconds of each, by step.

    A step returns its own seconds, so that what it prepares does not count. One turn
    before the first is thrown away.
    """
    for step in steps:
        step()
    seconds: list[list[float]] = [[] for _ in steps]
    began = time.perf_counter()
    while len(seconds[0]) < sizes.fewest_runs or (
        len(seconds[0]) < MOST_RUNS and time.perf_counter() - began < sizes.seconds
    ):
        for step, taken in zip(steps, seconds, strict=True):
            taken.append(step())
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the ratios of runs that were neighbours in time."""
    return median(a / b for a, b in zip(above, below, strict=True))
