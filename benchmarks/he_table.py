"""``python -m benchmarks.he_table``: the tables of docs/homomorphic-encryption.md."""

import json
from collections.abc import Iterator, Mapping

from benchmarks.he_parameters import CANDIDATES
from benchmarks.results_file import RESULTS

PLAYS = (
    "masks, 10 bits",
    "masks, 16 bits",
    "BFV, 10 bits",
    "BFV, 16 bits",
    "NVFlare's CKKS",
)
SIZES = ("3 M, n = 5", "3 M, n = 10", "35 M, n = 5", "35 M, n = 10")
SHOWN = {(60, 49): (43, 44), (54, 55): (38,), (60, 60): (43,), (60,): (44, 45, 46, 47)}
"""Bits of t, by bits of the primes."""
WIDTHS = ((8, 5), (11, 5), (11, 10), (16, 10))
"""Bits of values and numbers of silos."""

Values = Mapping[str, float]


def rounds(values: Values) -> Iterator[str]:
    """Yield the rows of what a round costs."""
    columns = ("encrypt", "add", "decrypt", "whole round")
    for size in SIZES:
        for play in PLAYS:
            place = f"{size}: {play}: "
            cells = [seconds(values[place + column]) for column in columns]
            for name in ("upload", "all silos, both ways"):
                cells.append(f"{values[place + name]:,.0f} MB")
            yield f"| {size}: {play} | {' | '.join(cells)} |"


def sets(values: Values) -> Iterator[str]:
    """Yield the rows of the sets of parameters."""
    for candidate in CANDIDATES:
        if candidate.plain_bits not in SHOWN[candidate.prime_bits]:
            continue
        found = {name: v for name, v in values.items() if candidate.name in name}
        budgets = [
            f"{value:.0f}"
            for size in ("1,", "10,", "100,")
            for name, value in found.items()
            if f"after a sum of {size}" in name
        ]
        each = [
            f"{value:.2f}"
            for bits, silos in WIDTHS
            for name, value in found.items()
            if name.endswith(f"values of {bits} bits, n = {silos}")
        ]
        primes = ", ".join(map(str, candidate.prime_bits))
        name = f"{candidate.poly_degree} [{primes}], t of {candidate.plain_bits} bits"
        key = "the secret key" if candidate.has_seed else "the public key"
        yield f"| {name} | {key} | {' | '.join([*budgets, *each])} |"


def seconds(value: float) -> str:
    """Return seconds with as many digits as mean something."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def main() -> None:
    """Print both tables."""
    rows = json.loads((RESULTS / "he.json").read_text())["rows"]
    values = {row["name"]: row["value"] for row in rows}
    print("\n".join(rounds(values)), "\n", "\n".join(sets(values)), sep="\n")


if __name__ == "__main__":
    main()
