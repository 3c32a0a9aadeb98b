"""Send 120,000 mutated messages to both sides of secure aggregation.

Every one of them must end in a typed error with an unchanged memory, or be accepted;
where it was accepted, a tenth of the runs is played on to the exact sum or to a typed
error. The memory that each message takes is measured. Anything else ends the benchmark
with a traceback. Results: ``benchmarks/results/secagg_fuzz.json``.
"""

import time
from random import Random

from benchmarks.results_file import row, save
from tests.attacks.fuzzing import Fuzzer

NUM_MESSAGES = 120_000
SEED = 20_261_120


def main() -> None:
    """Send, count, and write the counts."""
    fuzzer, random = Fuzzer(), Random(SEED)
    start = time.process_time()
    for _ in range(NUM_MESSAGES):
        fuzzer.send(random, play_on=0.1, measure=True)
    seconds = time.process_time() - start
    played_on = sum(n for name, n in fuzzer.counts.items() if name.startswith("played"))
    sent = fuzzer.counts.total() - played_on
    rows = [
        row("mutated messages", sent, "messages", ">= 100000"),
        row("other exceptions, or a wrong sum", 0, "messages", "<= 0"),
        row("runs played on to their end", played_on, "runs"),
        row(
            "most memory, over 2 x size + 64 kB (ACTIVE: + 256 kB)",
            fuzzer.most_memory,
            "ratio",
            "<= 1",
        ),
        row("time", seconds, "CPU s"),
    ]
    for outcome, count in sorted(fuzzer.counts.items()):
        rows.append(row(outcome, count, "messages"))
    print(save("secagg_fuzz", rows, f"seed {SEED}"))


if __name__ == "__main__":
    main()
