"""What a silo's operator sees while it trains: loss and speed, on this machine only."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from silo import training


class Display(Protocol):
    """Shows training and events."""

    def training(self, progress: training.Progress) -> None:
        """Show how training goes."""
        ...

    def say(self, text: str) -> None:
        """Show one line."""
        ...


@contextmanager
def make_display(name: str, num_rounds: int, *, lines: bool) -> Iterator[Display]:
    """Lend a display: a bar for people, or JSON lines for the process above."""
    if lines:
        yield _Lines()
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(bar, name, num_rounds)


class _Lines:
    """One JSON object a line on standard output."""

    def training(self, progress: training.Progress) -> None:
        """Print how training goes."""
        self._print({"training": dataclasses.asdict(progress)})

    def say(self, text: str) -> None:
        """Print one event."""
        self._print({"event": text})

    def _print(self, table: dict[str, object]) -> None:
        """Print one line at once."""
        sys.stdout.write(json.dumps(table) + "\n")
        sys.stdout.flush()


class _Bar:
    """A progress bar over all rounds."""

    def __init__(self, bar: Progress, name: str, num_rounds: int) -> None:
        self._bar, self._num_rounds = bar, num_rounds
        self._task = bar.add_task(name, total=num_rounds, state="waiting")

    def training(self, progress: training.Progress) -> None:
        """Move the bar."""
        done = progress.round_number - 1 + progress.step / progress.num_steps
        where = f"round {progress.round_number}/{self._num_rounds}"
        self._bar.update(
            self._task,
            completed=max(0.0, done),
            state=(
                f"{where if progress.round_number else 'before round 1'}  "
                f"loss {progress.loss:.4f}  {progress.images_per_second:.0f} images/s"
            ),
        )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, highlight=False)
