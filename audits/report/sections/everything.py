"""The sections of a report, in their order."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from audits.report.blocks import Block, Paragraph, Section, facts
from audits.report.sections import accounting, attacks, canaries, run, scope

Content = Mapping[str, Any]

SECTIONS: tuple[tuple[str, Callable[[Content], Iterator[Block]]], ...] = (
    ("Scope and threat model", scope.scope),
    ("Data of each silo", scope.data),
    ("Mechanism and training", scope.mechanism),
    ("Accounting", accounting.accounting),
    ("Self-tests", scope.self_tests),
    ("Canaries", canaries.canaries),
    ("Membership inference", attacks.membership),
    ("Memorisation", attacks.memorisation),
    ("What the aggregator could see", attacks.rehearsal),
    ("Secure aggregation", run.secure_aggregation),
    ("What left each silo", run.disclosures),
    ("The model", run.model),
    ("Transcripts", run.transcripts),
    ("Pitfalls", scope.checklist),
    ("Known limits", scope.limits),
)


def all_sections(content: Content, json_name: str, json_sha256: str) -> list[Section]:
    """Return all sections of a report; each says so where it has nothing to show."""
    made = [
        Section(number, title, tuple(write(content)))
        for number, (title, write) in enumerate(SECTIONS, start=1)
    ]
    last = (
        Paragraph(
            f"{json_name} holds the same for programs, and every number in full; "
            "docs/report.schema.json describes it."
        ),
        facts([["SHA-256 of the JSON file", json_sha256]]),
    )
    return [*made, Section(len(made) + 1, "Machine-readable", last)]
