"""What an audit takes: time and memory of the real command, in a fresh process.

``python -m benchmarks.audits [NAME …]``: ``verify`` measures `audits verify` on made-up
runs of ten silos, of 1,000, 10,000 and 100,000 records; ``witnesses`` on one of 100
silos and 100 rounds, with 10,000 signatures under its heads. Rows of names that are not
measured again stay in the file. Ends with status 1 where a limit is not kept, or torch
was loaded.
"""

import json
import operator
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.audit_evidence import rounds_for, write_evidence
from benchmarks.results_file import RESULTS, Row, row, save

SIZES = (1_000, 10_000, 100_000)
NUM_SILOS = 10
LIMITS = {100_000: ("<= 30", "<= 200")}
"""By number of records: seconds, and MB at the peak."""
COMMAND = """
import sys
sys.argv = ["audits", *sys.argv[1:]]
from audits.cli import main
try:
    main()
finally:
    print("torch was loaded" * ("torch" in sys.modules), file=sys.stderr)
"""


def main() -> None:
    """Measure what is named, everything by default, and write the results."""
    names = sys.argv[1:] or list(MEASURED)
    if unknown := set(names) - set(MEASURED):
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(MEASURED)}")
    rows = [r for r in _rows_before() if r["name"].split(":")[0] not in names]
    for name in names:
        rows += MEASURED[name]()
    save("audits", rows)
    if missed := [str(r["name"]) for r in rows if not is_kept(r)]:
        sys.exit(f"not within its limit: {', '.join(missed)}")


def verify() -> list[Row]:
    """Measure `audits verify`."""
    rows = []
    for size in SIZES:
        rounds = rounds_for(size, NUM_SILOS)
        what = f"verify: {size:,} records"
        rows += _verified(what, NUM_SILOS, rounds, f">= {size}", *LIMITS.get(size, ()))
    return rows


def witnesses() -> list[Row]:
    """Measure `audits verify` where many silos signed the aggregator's heads."""
    return _verified("witnesses: 100 silos, 100 rounds", 100, 100)


def _verified(
    what: str,
    num_silos: int,
    num_rounds: int,
    least: str = "",
    seconds_limit: str = "",
    memory_limit: str = "",
) -> list[Row]:
    """Measure `audits verify` on one made-up run."""
    with tempfile.TemporaryDirectory(prefix="audits-") as folder:
        run = Path(folder) / "run"
        made = write_evidence(run, num_silos, num_rounds)
        seconds, processor, megabytes = measured(["verify", str(run)])
    return [
        row(f"{what}: all transcripts", made, "records", least),
        row(f"{what}: time", seconds, "s", seconds_limit),
        row(f"{what}: of it on the processor", processor, "s"),
        row(f"{what}: peak memory", megabytes, "MB", memory_limit),
    ]


MEASURED: dict[str, Callable[[], list[Row]]] = {
    "verify": verify,
    "witnesses": witnesses,
}
"""What there is to measure, by the first word of its rows."""


def measured(arguments: list[str]) -> tuple[float, float, float]:
    """Return what one `audits` command takes.

    Returns:
        Wall-clock seconds, seconds on the processor, and resident MB at the peak.

    Raises:
        RuntimeError: it failed, or loaded torch.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or "torch was loaded" in said:
        raise RuntimeError(f"audits {' '.join(arguments)}:\n{said}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def is_kept(measured_row: Row) -> bool:
    """Return whether a row is within its target; one without is."""
    compare, _, limit = str(measured_row["target"]).partition(" ")
    known = {"<=": operator.le, ">=": operator.ge}
    return not compare or known[compare](float(measured_row["value"]), float(limit))


def _rows_before() -> list[Row]:
    """Return the rows that were measured before."""
    path = RESULTS / "audits.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


if __name__ == "__main__":
    main()
