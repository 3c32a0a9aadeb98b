"""Write a report: HTML for people, JSON for programs, Markdown for both."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from audits.audit import Audit
from audits.findings import CHECKS
from audits.report.content import make_content
from audits.report.figures import draw_all
from audits.report.markdown import render_markdown
from audits.report.samples import Samples
from audits.report.units import format_bytes, format_share
from protocol.encoding import encode
from protocol.files import save_bytes

MAX_ROUNDS_SHOWN = 60
"""Rounds in the page's table: the first and last ones; report.json holds all."""


def write_report(audit: Audit, samples: Samples | None, out: Path) -> tuple[Path, ...]:
    """Write ``report.html``, ``report.json`` and ``report.md`` into a folder.

    Guarantees: each file is written whole or not at all; the same evidence gives the
    same bytes; the page loads nothing from anywhere and runs no script.

    Raises:
        OSError: the folder cannot be made or written.
    """
    content = make_content(audit, samples)
    texts = {
        "report.html": render_html(content, samples).encode(),
        "report.json": encode(content),
        "report.md": render_markdown(content).encode(),
    }
    out.mkdir(parents=True, exist_ok=True)
    paths = tuple(out / name for name in texts)
    for path, text in zip(paths, texts.values(), strict=True):
        save_bytes(path, text)
    return paths


def render_html(content: Mapping[str, Any], samples: Samples | None) -> str:
    """Return the report as one page that needs no other file.

    Text from transcripts is escaped wherever it stands; only our own figures are not.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": format_bytes}
    source = resources.files("audits.report").joinpath("template.html").read_text()
    return environment.from_string(source).render(
        **content,
        drawings=draw_all(content),
        picture=samples.uri if samples else "",
        share=format_share,
        shorten=shorten,
        checks=passed_checks(content["findings"]),
        concerns=[f for f in content["findings"] if f["severity"] != "PASS"],
    )


def shorten(rounds: list[Any]) -> list[Any]:
    """Return the first and last rounds, with None where some are left out."""
    if len(rounds) <= MAX_ROUNDS_SHOWN:
        return rounds
    half = MAX_ROUNDS_SHOWN // 2
    return [*rounds[:half], None, *rounds[-half:]]


def passed_checks(findings: list[Any]) -> list[tuple[str, list[Any]]]:
    """Return what passed, by the titles of the checks, in the order of their table."""
    groups: dict[str, list[Any]] = {title: [] for title in CHECKS.values()}
    for finding in findings:
        if finding["severity"] == "PASS":
            groups[finding["title"]].append(finding)
    return [(title, group) for title, group in groups.items() if group]
