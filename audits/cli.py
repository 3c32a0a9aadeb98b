"""The ``audits`` command: verify a run, and report on it."""

import sys
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from audits.audit import Audit, run_audit
from audits.errors import AuditError
from audits.evidence import load_evidence
from audits.findings import CHECKS, Finding, Severity, count
from audits.heads import newest_heads, save_checkpoint
from audits.report.verdict import headline

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
@_run
@_plan
@click.option(
    "--samples",
    type=click.Path(path_type=Path),
    metavar="PNG",
    help="A grid of samples to show; by default samples.png in RUN, if there is one.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to write; by default into RUN.",
)
def report(
    run: Path, plan: Path | None, samples: Path | None, out: Path | None
) -> None:
    """Write report.html, report.json and report.md on a run.

    A report is written whether or not checks failed; the exit status is that of
    verify.
    """
    # matplotlib takes a second to load, which only this command needs.
    from audits.report.page import write_report
    from audits.report.samples import load_samples

    audit = _audit(run, plan)
    if samples is None and (run / SAMPLES_FILE).is_file():
        samples = run / SAMPLES_FILE
    folder = out or run
    try:
        picture = load_samples(samples) if samples else None
        paths = write_report(audit, picture, folder)
    except AuditError as error:
        _refuse(f"{error}; choose another file with --samples")
    except OSError as error:
        _refuse(f"{folder}: {error.strerror}; choose another folder with --out")
    for path in paths:
        click.echo(str(path))
    _conclude(audit)


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
