"""What ``cloister`` shows while a federation runs.

Losses and rates come from the silos' own processes on this machine; none of them is
in any message.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from aggregator.evaluation import Evaluation
from aggregator.exchanges import Stage
from aggregator.state import RoundState
from protocol.plan import RunPlan
from silo import training

MEGA = 1_000_000


class Display:
    """A bar for the run and one for each silo; plain lines where nobody watches."""

    def __init__(self, plan: RunPlan, extractor: str, console: Console) -> None:
        self._plan, self._extractor, self._console = plan, extractor, console
        self._lock = threading.Lock()
        self._sent = self._received = 0
        self._losses: dict[str, float] = {}
        self._began = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]{task.description:<12}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._run = self._bar.add_task("run", total=plan.num_rounds, state="starting")
        self._silos: dict[str, TaskID] = {
            silo.name: self._bar.add_task(silo.name, total=1.0, state="")
            for silo in plan.silos
        }

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bars as long as the block runs."""
        with self._bar:
            yield

    def training(self, name: str, progress: training.Progress) -> None:
        """Show how a silo's training goes."""
        with self._lock:
            self._losses[name] = progress.loss
        self._bar.update(
            self._silos[name],
            completed=progress.step / progress.num_steps,
            state=(
                f"round {progress.round_number:>3}  loss {progress.loss:.4f}  "
                f"{progress.images_per_second:>6.0f} images/s"
            ),
        )

    def stage(self, stage: Stage) -> None:
        """Show which exchange is under way."""
        self._bar.update(self._run, state=self._traffic(stage.name))

    def count(self, sent: int, received: int) -> None:
        """Count bytes that silos sent and received."""
        self._sent += sent
        self._received += received

    def closed(self, state: RoundState) -> None:
        """Show the end of a round."""
        self._bar.update(self._run, completed=state.round_number)
        if not self._console.is_terminal:
            with self._lock:
                losses = list(self._losses.values())
            loss = f"{sum(losses) / len(losses):.4f}" if losses else "–"
            elapsed = time.monotonic() - self._began
            self._console.print(
                f"round {state.round_number:>3} of {self._plan.num_rounds}  "
                f"loss {loss}  {self._traffic('')} {elapsed:.0f} s",
                highlight=False,
            )

    def lost(self, round_number: int, reason: str) -> None:
        """Show that a round has no sum."""
        self._console.print(f"round {round_number} has no sum: {reason}")

    def evaluated(self, round_number: int, result: Evaluation) -> None:
        """Show a Fréchet distance."""
        self._console.print(
            f"round {round_number:>3}: {self._extractor} "
            f"{result.frechet_distance:.3f} ({result.num_samples} samples)",
            highlight=False,
        )

    def _traffic(self, stage: str) -> str:
        """Return the stage, and the bytes so far."""
        return (
            f"{stage:<8} up {self._sent / MEGA:,.1f} MB  "
            f"down {self._received / MEGA:,.1f} MB"
        )


def table(title: str, rows: list[tuple[str, str]]) -> Table:
    """Return a short table of results."""
    result = Table(title=title, show_header=False, title_justify="left")
    result.add_column(style="bold")
    result.add_column()
    for name, value in rows:
        result.add_row(name, value)
    return result
