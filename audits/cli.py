"""The ``audits`` command: verify a run, and report on it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, TypedDict

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from audits.audit import Audit, run_audit
from audits.errors import AuditError
from audits.evidence import load_evidence
from audits.extract import check_extract, load_extract, make_extract
from audits.findings import CHECKS, Finding, Severity, count
from audits.heads import newest_heads, save_checkpoint
from audits.report.verdict import headline
from protocol.errors import PlanRejected
from protocol.files import save_bytes
from protocol.plan_files import load_plan

if TYPE_CHECKING:
    from audits.report.samples import Samples

EXIT_FAILED = 1
EXIT_UNREADABLE = 2
COLOURS = {Severity.PASS: "green", Severity.WARN: "yellow", Severity.FAIL: "red"}
SAMPLES_FILE = "samples.png"

_run = click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
_plan = click.option(
    "--plan",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The run's plan; by default plan.toml in RUN.",
)


@click.group()
@click.version_option(package_name="cloister")
def main() -> None:
    """Audit a run from its plan and transcripts alone.

    RUN is a folder with the run's plan.toml and, anywhere below it, the transcript
    folders of its parties.
    """


@main.command()
@_run
@_plan
def verify(run: Path, plan: Path | None) -> None:
    """Check signatures, transcripts, and that all parties tell the same story.

    Exit status: 0 when nothing failed, 1 when a check failed, 2 when the input
    cannot be read.
    """
    audit = _audit(run, plan)
    console = Console()
    console.print(_table(audit))
    _conclude(audit)


@main.command()
@click.argument(
    "runs", type=click.Path(path_type=Path), metavar="RUN...", nargs=-1, required=True
)
@_plan
@click.option(
    "--samples",
    type=click.Path(path_type=Path),
    metavar="PNG",
    help="A grid of samples to show; by default samples.png in RUN, if there is one.",
)
@click.option(
    "--probe",
    "probes",
    type=click.Path(path_type=Path),
    metavar="FILE",
    multiple=True,
    help="A silo's probe report; those named probe*.json below RUN are found. "
    "May be given several times.",
)
@click.option(
    "--rehearsal",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What `cloister rehearse` found; by default rehearsal.json in RUN.",
)
@click.option(
    "--class",
    "report_class",
    type=click.Choice(["public", "silo-internal"]),
    default="public",
    show_default=True,
    help="Who may read it. What differential privacy does not cover is left out of "
    "the public one.",
)
@click.option(
    "--include-unprotected",
    is_flag=True,
    help="Put into the public report what it would leave out; it says so.",
)
@click.option(
    "--compare",
    is_flag=True,
    help="Set several runs beside each other: comparison.html, .json and .md, written "
    "into the current folder or --out.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to write; by default into RUN.",
)
def report(
    runs: tuple[Path, ...],
    plan: Path | None,
    samples: Path | None,
    probes: tuple[Path, ...],
    rehearsal: Path | None,
    report_class: Literal["public", "silo-internal"],
    include_unprotected: bool,
    compare: bool,
    out: Path | None,
) -> None:
    """Write report.html, report.json and report.md on a run, or compare several.

    A report is written whether or not checks failed; the exit status is that of
    verify, and 1 as well where a probe cannot be relied on.
    """
    readers: Readers = {
        "report_class": report_class,
        "include_unprotected": include_unprotected,
    }
    if compare:
        if plan or samples or probes or rehearsal:
            _refuse("--plan, --samples, --probe, --rehearsal: not with --compare")
        _compare(runs, out or Path(), readers)
        return
    if len(runs) > 1:
        _refuse("several runs: use --compare to set them beside each other")
    # matplotlib takes a second to load, which only this command needs.
    from audits.report.content import make_content
    from audits.report.inputs import load_inputs
    from audits.report.page import write_content

    (run,) = runs
    audit = _audit(run, plan)
    folder = out or run
    with _refusals(folder):
        inputs = load_inputs(
            audit.evidence,
            samples=_samples(run, samples),
            probes=probes,
            rehearsal=rehearsal,
        )
        content = make_content(audit, inputs, **readers)
        paths = write_content(content, inputs, folder)
    for path in paths:
        click.echo(str(path))
    if content["unprotected"]:
        click.echo(content["class_sentence"], err=True)
    verdict = content["verdict"]
    click.echo(f"{verdict['severity']}: {verdict['headline']}")
    sys.exit(EXIT_FAILED if verdict["severity"] == Severity.FAIL else 0)


class Readers(TypedDict):
    """For whom a report is."""

    report_class: Literal["public", "silo-internal"]
    include_unprotected: bool


def _compare(runs: tuple[Path, ...], out: Path, readers: Readers) -> None:
    """Write a comparison; end with 1 where any run failed."""
    from audits.report.compare import (
        MAX_RUNS,
        Compared,
        compare_content,
        run_name,
        write_comparison,
    )
    from audits.report.inputs import load_inputs

    if not 2 <= len(runs) <= MAX_RUNS:
        _refuse(f"--compare: give 2 to {MAX_RUNS} runs, not {len(runs)}")
    with _refusals(out):
        compared: list[Compared] = []
        for run in runs:
            audit = _audit(run, None)
            name = run_name(run, [each.name for each in compared])
            compared.append(Compared(name, audit, load_inputs(audit.evidence)))
        content = compare_content(compared, **readers)
        paths = write_comparison(content, out)
    for path in paths:
        click.echo(str(path))
    for sentence in content["class_sentences"] if content["is_unprotected"] else ():
        click.echo(sentence, err=True)
    for row in content["runs"]:
        click.echo(f"{row['run']}: {row['verdict']}: {row['headline']}")
    failed = any(row["verdict"] == Severity.FAIL for row in content["runs"])
    sys.exit(EXIT_FAILED if failed else 0)


def _samples(run: Path, named: Path | None) -> "Samples | None":
    """Return the grid of samples that is named, or that lies in the run's folder."""
    from audits.report.samples import load_samples

    path = named or run / SAMPLES_FILE
    if named is None and not path.is_file():
        return None
    try:
        return load_samples(path)
    except AuditError as error:
        _refuse(f"{error}; choose another file with --samples")


@contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    """End with one line where something cannot be read or written."""
    try:
        yield
    except AuditError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{folder}: {error.strerror}; choose another folder with --out")


@main.command()
@_run
@click.argument("party")
@click.argument("index", type=click.IntRange(0))
@_plan
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    default=Path("extract.json"),
    show_default=True,
    help="Where to write.",
)
def extract(run: Path, party: str, index: int, plan: Path | None, out: Path) -> None:
    """Write record INDEX of PARTY (a silo, or "aggregator") with its proof.

    So one record can be shown to somebody without the rest of the transcript.
    """
    try:
        made = make_extract(load_evidence(run, plan), party, index)
        save_bytes(out, made.to_bytes())
    except AuditError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename or out}: {error.strerror}")
    click.echo(str(out))


@main.command("check-extract")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    metavar="FILE",
    required=True,
    help="The run's plan, whose keys verify the extract.",
)
def check_extract_command(file: Path, plan: Path) -> None:
    """Verify one record with its proof, from the keys of a plan alone.

    Exit status: 0 when it holds, 1 when it does not, 2 when the plan cannot be read.
    """
    try:
        known = load_plan(plan)
    except PlanRejected as error:
        _refuse(str(error))
    try:
        found = load_extract(file)
        check_extract(found, known)
    except AuditError as error:
        click.echo(f"FAIL: {error}", err=True)
        sys.exit(EXIT_FAILED)
    click.echo(found.record)
    click.echo(
        f"PASS: record {found.index:,} of {found.head.party}, under its signed head "
        f"over {found.head.size:,} records, in the run of plan {found.plan}."
    )


@main.command()
@_run
@_plan
@click.option(
    "--party", metavar="NAME", help="One party's only: a silo, or aggregator."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to write <party>.checkpoint and <party>.vkey; by default they are "
    "printed.",
)
def heads(run: Path, plan: Path | None, party: str | None, out: Path | None) -> None:
    """Give out the newest head of each party as a checkpoint (C2SP signed note).

    With it comes the verifier key, so that an outside witness can add its signature,
    or a timestamp be taken.
    """
    try:
        found = list(newest_heads(load_evidence(run, plan), party))
        for checkpoint in found:
            if out is None:
                click.echo(f"{checkpoint.verifier}\n\n{checkpoint.note}")
            else:
                for path in save_checkpoint(out, checkpoint):
                    click.echo(str(path))
    except AuditError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename or out or run}: {error.strerror}")


def _audit(run: Path, plan: Path | None) -> Audit:
    """Return the audit of a run, or end with one line and status 2."""
    try:
        return run_audit(load_evidence(run, plan))
    except AuditError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename or run}: {error.strerror}")


def _refuse(message: str) -> NoReturn:
    """End with one line about unreadable input."""
    click.echo(f"error: {message}", err=True)
    sys.exit(EXIT_UNREADABLE)


def _table(audit: Audit) -> Table:
    """Return the findings as a table: what passed in one row for each check."""
    table = Table("result", "check", "finding", title=audit.evidence.plan.name)
    for severity in (Severity.PASS, Severity.WARN, Severity.FAIL):
        found = audit.with_severity(severity)
        for finding in _grouped(found) if severity == Severity.PASS else found:
            evidence = "".join(f"\n  {line}" for line in finding.evidence)
            table.add_row(
                Text(severity, style=COLOURS[severity]),
                finding.check,
                Text(finding.statement + (evidence if severity != "PASS" else "")),
            )
    return table


def _grouped(found: tuple[Finding, ...]) -> list[Finding]:
    """Return one finding for each check; several of one become its title."""
    groups: dict[str, list[Finding]] = {}
    for finding in found:
        groups.setdefault(finding.check, []).append(finding)
    return [
        group[0]
        if len(group) == 1
        else Finding(
            check=check,
            severity=Severity.PASS,
            statement=f"{CHECKS[check]} ({count(len(group), 'transcript')}).",
        )
        for check, group in groups.items()
    ]


def _conclude(audit: Audit) -> None:
    """Print the verdict in one line, and end with the status that says it."""
    click.echo(f"{audit.verdict}: {headline(audit)}")
    sys.exit(EXIT_FAILED if audit.verdict == Severity.FAIL else 0)
