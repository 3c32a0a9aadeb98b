"""A report as Markdown: the same content, without figures."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from audits.report.blocks import (
    Block,
    Bullets,
    Code,
    Facts,
    Figures,
    Fold,
    Heading,
    Paragraph,
    Picture,
    Rows,
)
from audits.report.classes import json_file
from audits.report.sections.everything import all_sections

_SPECIAL = re.compile(r"([\\*_\[\]<>|#])")
_NEW_LINES = re.compile(r"\s*\n\s*")


def render_markdown(content: Mapping[str, Any]) -> str:
    """Return the report as Markdown; text from transcripts is escaped."""
    sections = all_sections(content, *json_file(content))
    parts = [*_top(content), *_findings(content["findings"])]
    for section in sections:
        parts.append(f"## {section.number}. {section.title}")
        parts += blocks_as_markdown(section.blocks)
    return "\n\n".join(parts) + "\n"


def blocks_as_markdown(blocks: Iterable[Block]) -> Iterator[str]:
    """Yield blocks as Markdown; figures have none, their numbers are in the tables."""
    for block in blocks:
        match block:
            case Paragraph(text, style):
                yield f"**{plain(text)}**" if style == "strong" else plain(text)
            case Heading(text):
                yield f"### {plain(text)}"
            case Rows(names, cells):
                if cells:
                    yield table(names, cells)
            case Facts(pairs):
                yield table(("what", "value"), pairs)
            case Bullets(items):
                yield "\n".join(f"- {plain(item)}" for item in items)
            case Code(text):
                yield f"```\n{text}\n```"
            case Picture(sha256=sha256, alt=alt):
                yield f"{plain(alt)}: picture with SHA-256 `{sha256}`"
            case Fold(title, inner):
                yield f"#### {plain(title)}"
                yield from blocks_as_markdown(inner)
            case Figures():
                pass


def _top(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield title, class and verdict."""
    verdict = content["verdict"]
    yield f"# Audit of {plain(content['run']['name'])}"
    yield f"**{verdict['severity']}: {plain(verdict['headline'])}**"
    yield from map(plain, verdict["sentences"])
    if verdict["claim"]:
        yield table(("claim", "value"), verdict["claim"])
    yield f"Class: **{content['class']}**. {plain(content['class_sentence'])}"
    if content["unprotected"]:
        yield "In this report without protection:"
        yield _reasons(content["unprotected"])
    yield "Not covered by this audit:"
    yield "\n".join(f"- {plain(each)}" for each in verdict["not_covered"])
    if content["withheld"]:
        yield "Left out of this public report:"
        yield _reasons(content["withheld"])


def _reasons(listed: Sequence[Mapping[str, str]]) -> str:
    """Return a list of what was left out or in, with the reason."""
    return "\n".join(f"- {plain(row['what'])}: {plain(row['why'])}" for row in listed)


def _findings(findings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the table of findings, the worst first."""
    order = ["FAIL", "WARN", "PASS"]
    listed = sorted(findings, key=lambda finding: order.index(finding["severity"]))
    yield "## Findings"
    yield table(
        ("result", "check", "finding", "evidence"),
        (
            (f["severity"], f["title"], f["statement"], "; ".join(f["evidence"]))
            for f in listed
        ),
    )


def table(names: Sequence[str], cells: Iterable[Sequence[object]]) -> str:
    """Return a table."""
    lines = [names, ["---"] * len(names)]
    lines += [[plain(str(cell)) for cell in row] for row in cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def plain(text: str) -> str:
    """Return a text with the signs escaped that mean something to Markdown."""
    return _NEW_LINES.sub(" ", _SPECIAL.sub(r"\\\1", text))
