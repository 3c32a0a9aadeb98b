"""What ``cloister`` shows while a federation runs.

Losses and rates come from the silos' own processes on this machine; none of them is
in any message.
"""

import threading

from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from aggregator.terminal import Terminal
from protocol.plan import RunPlan
from silo import training


class Display(Terminal):
    """The aggregator's bar, and one for each silo's training."""

    def __init__(self, plan: RunPlan, console: Console) -> None:
        super().__init__(plan, console)
        self._lock = threading.Lock()
        self._losses: dict[str, float] = {}
        self._silos: dict[str, TaskID] = {
            silo.name: self._bar.add_task(silo.name, total=1.0, state="")
            for silo in plan.silos
        }

    def training(self, name: str, progress: training.Progress) -> None:
        """Show how a silo's training goes."""
        with self._lock:
            self._losses[name] = progress.loss
        self._bar.update(
            self._silos[name],
            completed=progress.step / progress.num_steps,
            state=(
                f"round {progress.round_number or '–':>3}  loss {progress.loss:.4f}  "
                f"{progress.images_per_second:>6.0f} images/s"
            ),
        )

    def _details(self) -> str:
        """Return the mean of the silos' latest losses."""
        with self._lock:
            losses = list(self._losses.values())
        return f"  loss {sum(losses) / len(losses):.4f}" if losses else ""


def table(title: str, rows: list[tuple[str, str]]) -> Table:
    """Return a short table of results."""
    result = Table(title=title, show_header=False, title_justify="left")
    result.add_column(style="bold")
    result.add_column()
    for name, value in rows:
        result.add_row(name, value)
    return result
