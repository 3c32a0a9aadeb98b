"""The newest head of each party, as a checkpoint that outside witnesses can sign."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audits.errors import AuditError
from audits.evidence import Evidence
from protocol.errors import TranscriptBroken
from protocol.files import save_bytes
from protocol.heads import Head, verifier_of
from protocol.transcript import read_heads


@dataclass(frozen=True)
class Checkpoint:
    """A signed note, and the line by which tools for notes verify it."""

    party: str
    size: int
    note: str
    verifier: str


def newest_heads(evidence: Evidence, party: str | None) -> Iterator[Checkpoint]:
    """Yield the last head of each transcript, or of one party's; each one is verified.

    Raises:
        AuditError: no transcript of that party, or a head that cannot be read or that
            its party did not sign.
    """
    found = [t for t in evidence.transcripts if party in (None, t.party)]
    if not found:
        raise AuditError(f"{evidence.run}: no transcript of {party!r:.80} there")
    plan = evidence.plan
    for transcript in found:
        key = evidence.key_of(transcript.party)
        last: Head | None = None
        try:
            for last in read_heads(transcript.folder):  # noqa: B007
                pass
            if last is None:
                raise AuditError(f"{transcript.name}: no head was ever signed")
            last.check(plan.digest, key)
        except TranscriptBroken as error:
            raise AuditError(f"{transcript.name}: {error}") from None
        yield Checkpoint(
            party=transcript.party,
            size=last.size,
            note=last.to_note(plan.digest, key),
            verifier=verifier_of(plan.digest, transcript.party, key),
        )


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> tuple[Path, Path]:
    """Write ``<party>.checkpoint`` and ``<party>.vkey``; return their paths."""
    paths = (
        folder / f"{checkpoint.party}.checkpoint",
        folder / f"{checkpoint.party}.vkey",
    )
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in zip(
        paths, (checkpoint.note, f"{checkpoint.verifier}\n"), strict=True
    ):
        save_bytes(path, text.encode())
    return paths
