"""What left this silo in all its runs: its own ledger, from its own transcripts.

Free of torch. The plan of each run is kept beside its transcript, so that the table of
``protocol.disclosures`` can say what the bytes were; the transcript names its digest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from protocol.disclosures import Line, ledger_line, ledger_lines
from protocol.encoding import decode, encode, from_table, to_table
from protocol.errors import EncodingError, TranscriptBroken
from protocol.files import save_bytes
from protocol.plan import RunPlan
from protocol.records import Opened
from protocol.tally import Tally
from protocol.transcript import RECORDS_FILE, read_records
from silo.config import SiloFolder
from silo.errors import StateBroken

KEPT_PLAN_FILE = "plan.json"
TRANSCRIPT_FOLDER = "transcript"


@dataclass(frozen=True, kw_only=True)
class RunDisclosed:
    """What left a silo in one run.

    ``lines`` are empty where the plan was not kept (a run of an earlier version);
    ``sent_bytes`` is known then all the same. ``epsilon`` is what the silo recorded as
    spent, None without a mechanism.
    """

    run: str
    plan: RunPlan | None
    lines: tuple[Line, ...]
    sent_bytes: int
    epsilon: float | None

    @property
    def rows(self) -> list[dict[str, object]]:
        """The lines as tables of texts and numbers."""
        plan = self.plan
        return [ledger_line(line, plan, self.epsilon) for line in self.lines if plan]

    def to_table(self) -> dict[str, object]:
        """Return the ledger of the run as a table of texts and numbers."""
        return {
            "run": self.run,
            "plan_digest": self.plan.digest.hex() if self.plan else None,
            "sent_bytes": self.sent_bytes,
            "ledger": self.rows,
        }


def keep_plan(folder: Path, plan: RunPlan) -> None:
    """Save the plan of a run in its folder, before anything leaves."""
    path = folder / KEPT_PLAN_FILE
    if not path.exists():
        save_bytes(path, encode(to_table(plan)))


def runs_disclosed(files: SiloFolder) -> Iterator[RunDisclosed]:
    """Yield what left a silo in each of its runs, by the names of their folders.

    Raises:
        StateBroken: a transcript or a plan is damaged, or not of one run.
    """
    for folder in sorted(files.runs.glob("*")):
        if (folder / TRANSCRIPT_FOLDER / RECORDS_FILE).is_file():
            yield _run_disclosed(folder)


def _run_disclosed(folder: Path) -> RunDisclosed:
    """Return what left in the run of a folder."""
    tally, digest, silo = Tally(""), "", ""
    try:
        for entry in read_records(folder / TRANSCRIPT_FOLDER):
            if isinstance(entry.record, Opened):
                digest, silo = entry.record.plan, entry.record.party
                tally = Tally(silo)
            tally.add(entry.record)
    except TranscriptBroken as error:
        raise StateBroken(f"{folder / TRANSCRIPT_FOLDER}: {error}") from None
    plan, stages = _kept_plan(folder, digest), tally.stages.get(silo, {})
    return RunDisclosed(
        run=folder.name,
        plan=plan,
        lines=ledger_lines(plan, stages) if plan else (),
        sent_bytes=sum(each.sent for each in stages.values()),
        epsilon=tally.epsilon,
    )


def _kept_plan(folder: Path, digest: str) -> RunPlan | None:
    """Return the plan that a run's folder keeps, if it does."""
    path = folder / KEPT_PLAN_FILE
    if not path.exists():
        return None
    try:
        plan = from_table(RunPlan, decode(path.read_bytes()))
    except (OSError, EncodingError) as error:
        raise StateBroken(f"{path}: {error}") from None
    if plan.digest.hex() != digest:
        raise StateBroken(f"{path}: is another plan than the run's transcript names")
    return plan


def explain_disclosed(files: SiloFolder) -> Iterator[str]:
    """Yield the ledger of all runs, for an operator to read."""
    runs = list(runs_disclosed(files))
    if not runs:
        yield "Nothing has left this silo: it has taken part in no run."
    for run in runs:
        yield f"{run.run}: {run.sent_bytes:,} bytes left."
        if run.plan is None:
            yield "  What they were is not known: this run kept no plan."
        for line in run.rows:
            yield (
                f"  {line['sent_bytes']:>14,} bytes  {line['what']} ({line['stage']})"
            )
            yield f"{'':24}to: {line['recipient']}; {line['form']}"
            yield f"{'':24}covered by: {line['guarantee']}"
