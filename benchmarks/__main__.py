"""``python -m benchmarks [NAME …]``: run the benchmarks, all of them by default.

Each runs in a process of its own, so that none counts the memory of another's.
"""

import subprocess
import sys

BENCHMARKS = (
    "federation",
    "fd_small",
    "digits_recipe",
    "secagg",
    "secagg_fuzz",
    "he",
    "he_fuzz",
    "accounting",
    "lower_bounds",
    "dpsgd_speed",
    "engine_choice",
    "discrete_noise",
    "multiplicity",
    "private_federation",
    "central_images",
    "canary_cost",
    "audit_power",
    "reference",
    "membership",
    "report",
    "papers_bytes",
    "papers",
    "audits",
    "inversion",
)


def main() -> None:
    """Run the named benchmarks, one after the other."""
    names = sys.argv[1:] or BENCHMARKS
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}")
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False)
        failed += [name] if done.returncode else []
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
