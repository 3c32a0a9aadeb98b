"""What a report may show beside plan and transcripts: probes, a rehearsal, samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from audits.errors import UnreadableExtra
from audits.evidence import Evidence
from audits.findings import Finding, count, fail, passed, warn
from audits.report.samples import Samples, picture_of
from protocol.probe_report import (
    ProbeRejected,
    ProbeReport,
    load_probe,
    load_probe_of,
)
from protocol.rehearsal import Rehearsal, RehearsalRejected, load_rehearsal

PROBE_FILES = "probe*.json"
REHEARSAL_FILE = "rehearsal.json"


@dataclass(frozen=True)
class Inputs:
    """What a report shows beside the audit; ``findings`` are about these files.

    ``pictures`` are those of the rehearsal, by the SHA-256 of their PNG.
    """

    samples: Samples | None = None
    probes: tuple[ProbeReport, ...] = ()
    rehearsal: Rehearsal | None = None
    pictures: dict[str, Samples] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def load_inputs(
    evidence: Evidence,
    *,
    samples: Samples | None = None,
    probes: Sequence[Path] = (),
    rehearsal: Path | None = None,
) -> Inputs:
    """Return the inputs that are named, and those that lie in the run's folder.

    Args:
        probes: files that must be probes of this run.
        rehearsal: by default ``rehearsal.json`` in the run's folder, if it is there.

    Guarantees: a probe below the run's folder that cannot be used is a finding; every
    probe that is returned is signed by its silo, about this run.

    Raises:
        UnreadableExtra: a file that is named, or the rehearsal, cannot be used.
    """
    named = {path.resolve() for path in probes}
    taken: list[ProbeReport] = []
    findings: list[Finding] = []
    for path in probes:
        try:
            taken.append(_probe(evidence, path))
        except (ProbeRejected, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UnreadableExtra(
                f"{path}: {reason}; choose another file with --probe"
            ) from None
    for path in sorted(evidence.run.rglob(PROBE_FILES)):
        if path.resolve() in named or not path.is_file():
            continue
        try:
            taken.append(_probe(evidence, path))
        except _AnotherRun as error:
            findings.append(warn("probes", f"Left out: {error}."))
        except (ProbeRejected, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            findings.append(fail("probes", f"A probe cannot be relied on: {reason}."))
    unique = sorted(set(taken), key=lambda probe: (probe.silo, probe.round_number))
    if unique:
        silos = dict.fromkeys(probe.silo for probe in unique)
        said = (
            f"{count(len(unique), 'probe')} of this run, signed by {', '.join(silos)}."
        )
        findings.insert(0, passed("probes", said))
    found = rehearsal or evidence.run / REHEARSAL_FILE
    view = _rehearsal(found) if rehearsal or found.is_file() else None
    return Inputs(
        samples=samples,
        probes=tuple(unique),
        rehearsal=view,
        pictures=dict(_pictures(view, found)) if view else {},
        findings=tuple(findings),
    )


class _AnotherRun(ProbeRejected):
    """The probe is whole, but of another run."""


def _probe(evidence: Evidence, path: Path) -> ProbeReport:
    """Return a probe of this run whose silo has signed it."""
    claimed = load_probe(path)
    if claimed.plan != evidence.plan.digest.hex():
        raise _AnotherRun(f"{path.name} is about another run ({claimed.plan[:16]}…)")
    return load_probe_of(path, evidence.plan)


def _rehearsal(path: Path) -> Rehearsal:
    """Return a rehearsal."""
    try:
        return load_rehearsal(path)
    except OSError as error:
        raise UnreadableExtra(f"{path}: {error.strerror}") from None
    except RehearsalRejected as error:
        raise UnreadableExtra(
            f"{path.parent / str(error)}; move it away, or name another with "
            "--rehearsal"
        ) from None


def _pictures(rehearsal: Rehearsal, path: Path) -> Iterator[tuple[str, Samples]]:
    """Yield the pictures of a rehearsal, by digest."""
    for view in rehearsal.views:
        if view.picture:
            picture = picture_of(view.picture, f"{path}: {view.name}")
            yield picture.digest, picture
