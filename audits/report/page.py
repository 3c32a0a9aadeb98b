"""Write a report: HTML for people, JSON for programs, Markdown for both."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from audits.audit import Audit
from audits.findings import CHECKS
from audits.report.classes import STEMS, ReportClass, json_file
from audits.report.content import NO_INPUTS, make_content
from audits.report.figures.everything import draw_all
from audits.report.inputs import Inputs
from audits.report.markdown import render_markdown
from audits.report.sections.everything import all_sections
from protocol.encoding import encode
from protocol.files import save_bytes

MAX_ROUNDS_SHOWN = 60
"""Rows of a table on the page: the first and last ones; the JSON holds all."""

DIGEST = re.compile(r"[0-9a-f]{32,}")
COMMAND = re.compile(r"`([^`]{1,80})`")


def write_report(
    audit: Audit,
    inputs: Inputs,
    out: Path,
    *,
    report_class: ReportClass = "public",
    include_unprotected: bool = False,
) -> tuple[Path, ...]:
    """Write ``report.html``, ``report.json`` and ``report.md`` into a folder.

    The silo-internal class writes ``report-internal.html`` and so on beside them.

    Guarantees: each file is written whole or not at all; the same evidence gives the
    same bytes; the page loads nothing from anywhere and runs no script.

    Raises:
        OSError: the folder cannot be made or written.
        UnreadableExtra: the power table of this installation is damaged.
    """
    content = make_content(
        audit,
        inputs,
        report_class=report_class,
        include_unprotected=include_unprotected,
    )
    return write_content(content, inputs, out)


def write_content(
    content: Mapping[str, Any], inputs: Inputs, out: Path
) -> tuple[Path, ...]:
    """Write the three files of a report's content into a folder."""
    report_class: ReportClass = content["class"]
    stem = f"report{STEMS[report_class]}"
    texts = {
        f"{stem}.html": render_html(content, inputs).encode(),
        f"{stem}.json": encode(content),
        f"{stem}.md": render_markdown(content).encode(),
    }
    return save_texts(out, texts)


def save_texts(out: Path, texts: Mapping[str, bytes]) -> tuple[Path, ...]:
    """Write files into a folder, which is made if it is not there."""
    out.mkdir(parents=True, exist_ok=True)
    paths = tuple(out / name for name in texts)
    for path, text in zip(paths, texts.values(), strict=True):
        save_bytes(path, text)
    return paths


def render_html(content: Mapping[str, Any], inputs: Inputs = NO_INPUTS) -> str:
    """Return the report as one page that needs no other file.

    Text from transcripts is escaped wherever it stands; only our own figures are not.
    """
    shown = {**inputs.pictures}
    if inputs.samples:
        shown[inputs.samples.digest] = inputs.samples
    name, sha256 = json_file(content)
    return (
        environment()
        .get_template("page.html")
        .render(
            **{key: value for key, value in content.items() if key != "class"},
            report_class=content["class"],
            sections=all_sections(content, name, sha256),
            drawings=draw_all(content),
            pictures={digest: picture.uri for digest, picture in shown.items()},
            json_name=name,
            checks=passed_checks(content["findings"]),
            concerns=[f for f in content["findings"] if f["severity"] != "PASS"],
        )
    )


def environment() -> Environment:
    """Return the templates, with escaping and what they may call."""
    templates = Environment(
        loader=PackageLoader("audits.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["words"] = words
    templates.tests["hexadecimal"] = lambda text: bool(DIGEST.fullmatch(text))
    loader = templates.loader
    style = loader.get_source(templates, "style.css")[0] if loader else ""
    templates.globals |= {"shorten": shorten, "style": style}
    return templates


def words(text: str) -> str:
    """Return a text, escaped, with what stands between backticks as code."""
    return COMMAND.sub(r"<code>\1</code>", escape(text))


def shorten(rounds: Sequence[Any]) -> list[Any]:
    """Return the first and last rows, with None where some are left out."""
    if len(rounds) <= MAX_ROUNDS_SHOWN:
        return list(rounds)
    half = MAX_ROUNDS_SHOWN // 2
    return [*rounds[:half], None, *rounds[-half:]]


def passed_checks(findings: list[Any]) -> list[tuple[str, list[Any]]]:
    """Return what passed, by the titles of the checks, in the order of their table."""
    groups: dict[str, list[Any]] = {title: [] for title in CHECKS.values()}
    for finding in findings:
        if finding["severity"] == "PASS":
            groups[finding["title"]].append(finding)
    return [(title, group) for title, group in groups.items() if group]
