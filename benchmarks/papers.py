"""Every method of the papers beside the others: a grid of plans, one table, one figure.

FedDiffuse's selections × partitions × numbers of silos; FedDM's proximal term and
quantised transport; FedDDPM and FedDDPM+; training in one place for comparison. Every
cell is a plan that ``cloister simulate`` takes (``--draft CELL`` prints it).

Samples are measured by a Fréchet distance: on the package's features (FD-small), on
MobileNetV2 where its weights lie beside the data, on Inception where its weights are
given. Where the result is a model per silo the run's number is the mean over silos.

A run saves what it has finished and resumes; ``--seconds`` ends a slice in time for
machines that are lent by the quarter of an hour. Runs lie in ``build/papers``, results
in ``benchmarks/results/papers.json``; ``benchmarks/papers_table.py`` makes table and
figure of them.

    python -m benchmarks.papers                       what is missing of the small grid
    python -m benchmarks.papers --scale paper --device cuda --seconds 500
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from benchmarks.papers_grid import Cell, Scale, cells, draft_of, is_open
from benchmarks.results_file import RESULTS, ROOT, machine

RUNS = ROOT / "build" / "papers"
RESULT_FILE = RESULTS / "papers.json"
SEEDS = (1, 2, 3, 4, 5)
GRACE_SECONDS = 20.0
"""A run that is asked to stop has so long to finish what it is writing."""


def run_folder(cell: Cell, seed: int, scale: Scale) -> Path:
    """Return where a run lies while it goes on."""
    name = "".join(c if c.isalnum() else "-" for c in cell.name)
    return RUNS / scale / f"{name}-{seed}"


def key_of(cell: Cell, seed: int, scale: Scale) -> str:
    """Return what names a result."""
    return f"{scale}/{cell.name}/{seed}"


def load_results() -> dict[str, Any]:
    """Return all results so far by their keys."""
    if not RESULT_FILE.exists():
        return {}
    runs: dict[str, Any] = json.loads(RESULT_FILE.read_text())["runs"]
    return runs


def keep(key: str, result: dict[str, Any]) -> None:
    """Add one result to the file, whole or not at all."""
    runs = load_results() | {key: result}
    content = {"runs": dict(sorted(runs.items()))}
    temporary = RESULT_FILE.with_suffix(".tmp")
    RESULT_FILE.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(RESULT_FILE)


class Slice:
    """So many workers for so many seconds; what is unfinished then is saved."""

    def __init__(self, workers: int, seconds: float, device: str) -> None:
        self._workers, self._device = workers, device
        self._ends = time.monotonic() + seconds
        self._running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}

    @property
    def is_over(self) -> bool:
        """Whether no more run should begin."""
        return time.monotonic() > self._ends - GRACE_SECONDS

    def work(self, runs: Sequence[tuple[Cell, int]], scale: Scale) -> None:
        """Carry out what is not in the results, until the time is over."""
        done = load_results()
        waiting = [run for run in runs if key_of(*run, scale) not in done]
        print(f"{len(waiting)} of {len(runs)} runs are left", flush=True)
        while (waiting and not self.is_over) or self._running:
            while waiting and len(self._running) < self._workers and not self.is_over:
                self._start(*waiting.pop(0), scale)
            if self.is_over:
                self._stop()
            self._collect()
            time.sleep(0.5)

    def _start(self, cell: Cell, seed: int, scale: Scale) -> None:
        """Start the process of one run."""
        folder = run_folder(cell, seed, scale)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.papers_worker"]
        command += [cell.name, str(seed), scale, self._device, str(folder)]
        with (folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        self._running[key_of(cell, seed, scale)] = (process, folder)

    def _stop(self) -> None:
        """Ask every run to save and end, as Ctrl-C does."""
        for process, _ in self._running.values():
            process.send_signal(2)
        for process, _ in self._running.values():
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()

    def _collect(self) -> None:
        """Take the results of the runs that have ended."""
        for key, (process, folder) in list(self._running.items()):
            if process.poll() is None:
                continue
            del self._running[key]
            result = folder / "result.json"
            if result.exists():
                keep(key, json.loads(result.read_text()) | {"machine": machine()})
                shutil.rmtree(folder)
                print(f"done: {key}", flush=True)
            elif not self.is_over:
                print(f"failed: {key}; see {folder / 'log.txt'}", flush=True)


def chosen_cells(names: Sequence[str]) -> list[Cell]:
    """Return the cells whose name holds any of some texts; all without any."""
    every = cells()
    if not names:
        return every
    return [cell for cell in every if any(name in cell.name for name in names)]


def main() -> None:
    """Carry out what is missing of a grid, or say what there is."""
    parser = argparse.ArgumentParser(description="The methods of the papers, compared.")
    parser.add_argument("--scale", choices=get_args(Scale), default="small")
    parser.add_argument("--cells", nargs="*", default=[], help="parts of cells' names")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=1e9, help="length of a slice")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--list", action="store_true", help="show the cells")
    parser.add_argument("--draft", metavar="CELL", help="print a cell's plan")
    arguments = parser.parse_args()
    chosen = chosen_cells(arguments.cells)
    if arguments.list:
        for cell in chosen:
            print(cell.name + (" (in the clear)" if is_open(cell) else ""))
    elif arguments.draft:
        import tomli_w

        (cell,) = [cell for cell in cells() if cell.name == arguments.draft]
        print(tomli_w.dumps(draft_of(cell, arguments.seeds[0], arguments.scale)))
    else:
        runs = [(cell, seed) for seed in arguments.seeds for cell in chosen]
        workers = Slice(arguments.workers, arguments.seconds, arguments.device)
        workers.work(runs, arguments.scale)


if __name__ == "__main__":
    main()
