"""Secure aggregation against its targets: time, memory, error, bytes, and Flower's.

    python -m benchmarks.secagg          everything, about five minutes on two cores
    python -m benchmarks.secagg --smoke  the same in seconds, at sizes that mean nothing

Targets stand beside what was measured, and ratios are of one run. Every part has a
module of its own, which says how it measures, and a process of its own:

- ``secagg_speed``: quantising, masking and unmasking 35 million values in 16-bit
  fields, beside the bare keystream; on one core in seconds of CPU, then on all in
  seconds of the wall;
- ``secagg_memory``: what a silo and the aggregator have in memory at most;
- ``secagg_quality``: what rounding costs the mean of real updates;
- ``secagg_protocol``: a hundred silos from key exchange to sum, and bytes;
- ``secagg_flower``: Flower's SecAgg+ beside it, where flwr is installed.

Results: ``benchmarks/results/secagg.json``. Real images are looked for in the folder
that ``CLOISTER_DATA`` names; what needs them is left out without them.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os

from benchmarks.federation import FASHION, holds
from benchmarks.results_file import Row, row, save
from benchmarks.secagg_process import SMOKE, Sizes, run_part

PARTS: tuple[tuple[str, bool], ...] = (
    ("secagg_speed", True),
    ("secagg_speed", False),
    ("secagg_memory", True),
    ("secagg_quality", True),
    ("secagg_protocol", True),
    ("secagg_flower", True),
)
"""Modules, and whether each is bound to one core."""


def missing(part: str) -> str:
    """Return why a part cannot run here, or nothing."""
    if part == "secagg_quality" and not FASHION.is_file():
        return f"{FASHION.name} is not in {FASHION.parent}"
    if part == "secagg_flower" and importlib.util.find_spec("flwr") is None:
        return 'flwr is not installed; pip install "cloister[flower]"'
    return ""


def measure(sizes: Sizes) -> list[Row]:
    """Run every part that can run; return its rows, printed as each part ends."""
    rows: list[Row] = []
    for part, one_core in PARTS:
        if reason := missing(part):
            print(f"left out: {part}: {reason}")
            continue
        rows += [row(*found) for found in run_part(part, sizes, one_core=one_core)]
    return rows


def versions() -> str:
    """Name the libraries whose speed this measures, and how busy the machine was."""
    names = [name for name in ("cryptography", "numpy", "flwr") if _is_there(name)]
    found = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return ", ".join([*found, f"load {os.getloadavg()[0]:.1f} at the start"])


def _is_there(name: str) -> bool:
    """Return whether a library is installed."""
    return importlib.util.find_spec(name) is not None


def main() -> None:
    """Measure everything and keep the results, or try it in small."""
    parser = argparse.ArgumentParser(description="Secure aggregation and its targets.")
    parser.add_argument("--smoke", action="store_true", help="small, nothing is kept")
    if parser.parse_args().smoke:
        measure(SMOKE)
        return
    note = versions()
    rows = measure(Sizes())
    print(save("secagg", rows, note))
    misses = [r for r in rows if str(r["target"]) and not holds(r)]
    print(json.dumps(misses, indent=1) if misses else "every target is met")


if __name__ == "__main__":
    main()
