"""Results of a benchmark: rows, printed as they are made, kept with date and machine.

``benchmarks/results/<name>.json`` holds ``date``, ``machine`` and ``rows`` of ``name``,
``value``, ``unit`` and ``target``; a target is a comparison such as ``<= 1.6``, or
empty where a number is reported only.
"""

import datetime
import json
import os
import platform
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = Path(os.environ.get("CLOISTER_DATA", ROOT.parent / "shared" / "data"))
"""Where real images lie on this machine, if any; benchmarks go without them if not."""

Row = dict[str, str | float]


def row(name: str, value: float, unit: str, target: str = "") -> Row:
    """Return one measured number, printed as it is made."""
    print(f"{name:66s} {value:14,.6g} {unit:12s} {target}", flush=True)
    return {"name": name, "value": round(value, 6), "unit": unit, "target": target}


def save(name: str, rows: list[Row], note: str = "") -> Path:
    """Write the rows of one benchmark; return the file."""
    path = RESULTS / f"{name}.json"
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine() + (f"; {note}" if note else ""),
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def machine() -> str:
    """Describe processor, cores and the versions that matter for speed."""
    import torch

    processor = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    cores = os.cpu_count()
    return (
        f"{processor}, {cores} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
