"""Have 3,000 hostile sums decrypted by child processes of homomorphic encryption.

Every one must end in a typed error, be refused by its tags or its noise, or be the
exact sum; a wrong value that is accepted, a child that dies and any other exception are
counted, and the first traceback is printed. Results:
``benchmarks/results/he_fuzz.json``.
"""

import time
import traceback
from dataclasses import dataclass
from random import Random

from benchmarks.results_file import row, save
from crypto.bfv.workers import Workers
from crypto.errors import WorkerFailed
from tests.crypto.bfv.hostile import WRONG, Sum, make_sum

NUM_CASES = 3_000
SEED = 20_261_121


@dataclass
class Outcome:
    """What became of the cases beside what :class:`Sum` counts itself."""

    num_played: int = 0
    num_wrong: int = 0
    num_crashed: int = 0
    num_unexpected: int = 0
    first_traceback: str = ""


def play_cases(made: Sum, random: Random, num_cases: int) -> Outcome:
    """Play cases; count what must not happen, and go on."""
    outcome = Outcome()
    for _ in range(num_cases):
        outcome.num_played += 1
        try:
            outcome.num_wrong += made.play(random) == WRONG
        except Exception as error:
            if isinstance(error, WorkerFailed):
                outcome.num_crashed += 1
            else:
                outcome.num_unexpected += 1
            outcome.first_traceback = outcome.first_traceback or traceback.format_exc()
    return outcome


def main() -> None:
    """Play, count, and write the counts."""
    start = time.monotonic()
    with Workers() as workers:
        made = make_sum(workers)
        outcome = play_cases(made, Random(SEED), NUM_CASES)
    seconds = time.monotonic() - start
    rows = [
        row("hostile sums", outcome.num_played, "cases", ">= 3000"),
        row("wrong values accepted", outcome.num_wrong, "cases", "<= 0"),
        row("children that died", outcome.num_crashed, "cases", "<= 0"),
        row("other exceptions", outcome.num_unexpected, "cases", "<= 0"),
        row("time", seconds, "s"),
    ]
    for name, count in sorted(made.counts.items()):
        rows.append(row(name, count, "cases"))
    if outcome.first_traceback:
        print(outcome.first_traceback)
    print(save("he_fuzz", rows, f"seed {SEED}"))


if __name__ == "__main__":
    main()
