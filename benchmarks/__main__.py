"""``python -m benchmarks [NAME …]``: run the benchmarks, all of them by default."""

import importlib
import sys

BENCHMARKS = ("federation", "fd_small", "digits_recipe", "secagg", "secagg_fuzz")


def main() -> None:
    """Run the named benchmarks, one after the other."""
    names = sys.argv[1:] or BENCHMARKS
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}")
    sys.argv[1:] = []
    for name in names:
        print(f"== {name}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
