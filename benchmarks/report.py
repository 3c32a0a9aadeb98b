"""Time and memory of a report, of runs of 10, 100 and 1,000 rounds.

Three silos, made up as the audit's tests make them; with a probe and a rehearsal. Time
is that of the process, without loading matplotlib; memory is the largest of a process
of its own.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results_file import ROOT, row, save

ROUNDS = (10, 100, 1_000)


def main() -> None:
    """Measure each run in a process of its own."""
    rows = []
    for rounds in ROUNDS:
        command = [sys.executable, "-m", "benchmarks.report", str(rounds)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        )
        records, audit, report, size, memory = map(float, done.stdout.split())
        rows += [
            row(f"records, {rounds:,} rounds", records, "records"),
            row(f"audit, {rounds:,} rounds", audit, "s"),
            row(f"report of it, {rounds:,} rounds", report, "s"),
            row(f"report.html, {rounds:,} rounds", size / 1e6, "MB"),
            row(f"memory, {rounds:,} rounds", memory / 1e6, "MB"),
        ]
    save("report", rows)


def measure(rounds: int) -> None:
    """Print records, seconds of audit and report, bytes of the page, and of memory."""
    from audits.audit import run_audit
    from audits.evidence import load_evidence
    from audits.report.inputs import load_inputs
    from audits.report.page import write_report
    from tests.audits.evidence_builder import digest, make_parties, script, write_run
    from tests.audits.report_inputs import probe, write_probe, write_rehearsal

    with tempfile.TemporaryDirectory() as folder:
        run, parties = Path(folder), make_parties(rounds=rounds)
        _without_waiting(lambda: write_run(run, parties, script(rounds=rounds)))
        plan = parties.plan.digest.hex()
        found = probe(plan, "basel", digest("average", rounds))
        write_probe(run / "probe.json", found, parties.keys["basel"])
        write_rehearsal(run / "rehearsal.json", plan)
        start = time.process_time()
        evidence = load_evidence(run)
        audit = run_audit(evidence)
        middle = time.process_time()
        inputs = load_inputs(evidence)
        page = write_report(audit, inputs, run, report_class="silo-internal")[0]
        end = time.process_time()
        records = sum(account.num_records for account in audit.accounts.everyone)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        size = page.stat().st_size
        print(records, middle - start, end - middle, size, memory)


def _without_waiting(make: object) -> None:
    """Write files that need not survive a crash of the machine."""
    import os
    from unittest.mock import patch

    with patch.object(os, "fsync", lambda descriptor: None):
        make()  # type: ignore[operator]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]))
    else:
        main()
