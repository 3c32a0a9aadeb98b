"""The entry of the ``cloister`` command, and ``python -m simulation``."""

import sys

from protocol.command import missing_extra


def main() -> None:
    """Run the command; one line where its libraries are not installed."""
    try:
        from simulation.cli import main as run
    except ModuleNotFoundError as error:
        sys.exit(missing_extra("all", error.name))
    run()


if __name__ == "__main__":
    main()
