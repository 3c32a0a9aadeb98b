"""What an aggregator's operator sees while a run goes on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from aggregator.exchanges import Stage
from aggregator.measurement import in_words
from aggregator.reference import Pooled
from aggregator.reference import in_words as reference_in_words
from aggregator.rounds import Watcher
from aggregator.said import Measured
from aggregator.state import RoundState
from diffusion.evaluation import Evaluation
from protocol.model_records import Calibrated
from protocol.plan import RunPlan

MEGA = 1_000_000


class Terminal:
    """A bar over the rounds; plain lines where nobody watches."""

    def __init__(self, plan: RunPlan, console: Console) -> None:
        self._plan, self._console = plan, console
        self._sent = self._received = 0
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

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bar as long as the block runs."""
        with self._bar:
            yield

    def watcher(self) -> Watcher:
        """Return the functions that a run calls."""
        return Watcher(
            on_closed=self.closed,
            on_lost=self.lost,
            on_evaluation=self.evaluated,
            on_measured=self.measured,
            on_pooled=self.pooled,
            on_calibrated=self.calibrated,
        )

    def say(self, text: str) -> None:
        """Show one line."""
        self._console.print(text, highlight=False)

    def stage(self, stage: Stage) -> None:
        """Show which exchange is under way."""
        self._bar.update(self._run, state=f"{stage.name:<9} {self._traffic()}")

    def count(self, sent: int, received: int) -> None:
        """Count bytes that silos sent and received."""
        self._sent += sent
        self._received += received

    def closed(self, state: RoundState) -> None:
        """Show the end of a round."""
        self._bar.update(self._run, completed=state.round_number)
        if not self._console.is_terminal:
            elapsed = time.monotonic() - self._began
            self.say(
                f"round {state.round_number:>3} of {self._plan.num_rounds}"
                f"{self._details()}  {self._traffic()}  {elapsed:.0f} s"
            )

    def lost(self, round_number: int, reason: str) -> None:
        """Show that a round has no sum."""
        self.say(f"round {round_number} has no sum: {reason}")

    def evaluated(self, round_number: int, result: Evaluation) -> None:
        """Show a Fréchet distance, by its extractor's name."""
        self.say(
            f"round {round_number:>3}: {result.extractor} "
            f"{result.frechet_distance:.3f} ({result.num_samples} samples)"
        )

    def measured(self, result: Measured) -> None:
        """Show what the silos measured, together."""
        self.say(in_words(result))

    def pooled(self, record: Pooled, has_published: bool) -> None:
        """Show what came of the silos' own reference."""
        self.say(reference_in_words(record, has_published=has_published))

    def calibrated(self, record: Calibrated) -> None:
        """Show what training on auxiliary images did after a round."""
        found = "learning is slow; the one correction: " if record.triggered else ""
        self.say(
            f"round {record.round_number:>3}: {found}{record.steps:,} steps on "
            f"auxiliary images, their loss {record.loss_before:.4f} → "
            f"{record.loss_after:.4f}"
        )

    def _details(self) -> str:
        """Return what else a line about a round says."""
        return ""

    def _traffic(self) -> str:
        """Return the bytes so far, as the silos see them."""
        return f"up {self._sent / MEGA:,.1f} MB  down {self._received / MEGA:,.1f} MB"
