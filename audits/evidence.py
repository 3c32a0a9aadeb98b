"""Evidence of a run: its plan, and the transcripts found below a folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audits.errors import UnreadableTranscript
from protocol.errors import PlanRejected, TranscriptBroken
from protocol.plan import RunPlan
from protocol.plan_files import load_plan
from protocol.records import Opened
from protocol.transcript import HEADS_FILE, RECORDS_FILE, read_heads, read_records

AGGREGATOR = "aggregator"
"""How the aggregator is named in heads and in the first record."""

PLAN_FILE = "plan.toml"


@dataclass(frozen=True)
class Transcript:
    """A folder with a transcript, and the party that its files name.

    ``name`` is the folder relative to the run's, for messages; ``party`` is empty
    when neither heads nor first record can be read.
    """

    party: str
    folder: Path
    name: str


@dataclass(frozen=True)
class Evidence:
    """All that an audit works from. Nothing is checked yet but the plan's signature.

    ``strangers`` are transcripts of nobody in the plan.
    """

    run: Path
    plan: RunPlan
    aggregator: Transcript | None
    silos: dict[str, Transcript]
    strangers: tuple[Transcript, ...]

    @property
    def transcripts(self) -> tuple[Transcript, ...]:
        """The transcripts of the plan's parties, the aggregator's first."""
        first = (self.aggregator,) if self.aggregator else ()
        return (*first, *self.silos.values())

    @property
    def missing(self) -> tuple[str, ...]:
        """The parties of the plan whose transcripts were not found."""
        names = [silo.name for silo in self.plan.silos if silo.name not in self.silos]
        return (*(() if self.aggregator else (AGGREGATOR,)), *names)

    def key_of(self, party: str) -> bytes:
        """Return the identity key of a party of the plan."""
        if party == AGGREGATOR:
            return self.plan.aggregator_key
        keys = {silo.name: silo.identity_key for silo in self.plan.silos}
        return bytes.fromhex(keys[party])


def load_evidence(run: Path, plan_path: Path | None = None) -> Evidence:
    """Return the plan of a run and the transcripts in and below its folder.

    Args:
        run: a folder; transcripts may lie anywhere below it.
        plan_path: the plan, where it is not ``plan.toml`` in that folder.

    Raises:
        UnreadableTranscript: no folder, no plan, a plan that is malformed or not
            signed, no transcript, or two of one party.
    """
    if not run.is_dir():
        raise UnreadableTranscript(
            f"{run}: not a folder; name the folder that holds the run's transcripts"
        )
    plan = _load_plan(plan_path or run / PLAN_FILE)
    found = [_identify(folder, run) for folder in _folders(run)]
    if not found:
        raise UnreadableTranscript(
            f"{run}: no transcript found; put the parties' transcript folders "
            f"({RECORDS_FILE} and {HEADS_FILE}) anywhere below it"
        )
    names = [silo.name for silo in plan.silos]
    known = _by_party(found, {AGGREGATOR, *names})
    return Evidence(
        run=run,
        plan=plan,
        aggregator=known.get(AGGREGATOR),
        silos={name: known[name] for name in names if name in known},
        strangers=tuple(t for t in found if t.party not in known),
    )


def _load_plan(path: Path) -> RunPlan:
    """Return a plan whose parties can be told apart."""
    try:
        plan = load_plan(path)
    except PlanRejected as error:
        hint = "" if path.is_file() else "; name the run's plan with --plan"
        raise UnreadableTranscript(f"{error}{hint}") from None
    if AGGREGATOR in {silo.name for silo in plan.silos}:
        raise UnreadableTranscript(f'{path}: a silo is named "{AGGREGATOR}"')
    return plan


def _folders(run: Path) -> Iterator[Path]:
    """Yield the folders that hold either file of a transcript, in order of name.

    Raises:
        UnreadableTranscript: a file is a link, which may lead anywhere, or a pipe or
            device, which may never end.
    """
    files = [*run.rglob(RECORDS_FILE), *run.rglob(HEADS_FILE)]
    for file in files:
        if file.is_symlink() or not file.is_file():
            raise UnreadableTranscript(
                f"{file}: is a link or no regular file; put a copy in its place"
            )
    yield from sorted({file.parent for file in files})


def _identify(folder: Path, run: Path) -> Transcript:
    """Return a transcript with the party that its heads or first record name."""
    name = folder.relative_to(run).as_posix()
    try:
        for head in read_heads(folder):
            return Transcript(head.party, folder, name)
    except TranscriptBroken:
        pass  # The integrity check says what is wrong with the heads.
    try:
        for entry in read_records(folder):
            if isinstance(entry.record, Opened):
                return Transcript(entry.record.party, folder, name)
            break
    except TranscriptBroken:
        pass
    return Transcript("", folder, name)


def _by_party(found: list[Transcript], parties: set[str]) -> dict[str, Transcript]:
    """Return the transcripts of known parties; refuse two of one."""
    known: dict[str, Transcript] = {}
    for transcript in found:
        if transcript.party not in parties:
            continue
        other = known.setdefault(transcript.party, transcript)
        if other is not transcript:
            raise UnreadableTranscript(
                f"{transcript.party} has two transcripts, in {other.name} and "
                f"{transcript.name}; leave one of them below the run's folder"
            )
    return known
