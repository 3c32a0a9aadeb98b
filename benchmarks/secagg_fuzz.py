"""Send 120,000 mutated messages to both sides of secure aggregation.

Every one of them must end in a typed error with an unchanged memory, or be accepted;
where it was accepted, a tenth of the runs is played on to the exact sum or to a typed
error. The memory that each message takes is measured. Whatever else happens is counted,
and the traceback of the first time is printed. Results:
``benchmarks/results/secagg_fuzz.json``.
"""

import time
import traceback
from dataclasses import dataclass
from random import Random

from benchmarks.results_file import row, save
from tests.attacks.fuzzing import Fuzzer, WrongSum

NUM_MESSAGES = 120_000
SEED = 20_261_120


@dataclass
class Outcome:
    """What became of the messages beside what :class:`Fuzzer` counts itself."""

    num_sent: int = 0
    num_wrong_sums: int = 0
    num_unexpected: int = 0
    first_traceback: str = ""


def send_messages(fuzzer: Fuzzer, random: Random, num_messages: int) -> Outcome:
    """Send mutated messages; count what must not happen, and go on."""
    outcome = Outcome()
    for _ in range(num_messages):
        outcome.num_sent += 1
        try:
            fuzzer.send(random, play_on=0.1, measure=True)
        except Exception as error:
            if isinstance(error, WrongSum):
                outcome.num_wrong_sums += 1
            else:
                outcome.num_unexpected += 1
            outcome.first_traceback = outcome.first_traceback or traceback.format_exc()
    return outcome


def main() -> None:
    """Send, count, and write the counts."""
    fuzzer = Fuzzer()
    start = time.process_time()
    outcome = send_messages(fuzzer, Random(SEED), NUM_MESSAGES)
    seconds = time.process_time() - start
    played_on = sum(n for name, n in fuzzer.counts.items() if name.startswith("played"))
    rows = [
        row("mutated messages", outcome.num_sent, "messages", ">= 100000"),
        row(
            "other exceptions, or a changed memory",
            outcome.num_unexpected,
            "messages",
            "<= 0",
        ),
        row("wrong sums", outcome.num_wrong_sums, "runs", "<= 0"),
        row("runs played on to their end", played_on, "runs"),
        row(
            "most memory, over 2 x size + 64 kB (ACTIVE: + 256 kB)",
            fuzzer.most_memory,
            "ratio",
            "<= 1",
        ),
        row("time", seconds, "CPU s"),
    ]
    for name, count in sorted(fuzzer.counts.items()):
        rows.append(row(name, count, "messages"))
    if outcome.first_traceback:
        print(outcome.first_traceback)
    print(save("secagg_fuzz", rows, f"seed {SEED}"))


if __name__ == "__main__":
    main()
