"""A report as Markdown: the same content, without figures."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from audits.report.units import format_bytes, format_share

_SPECIAL = re.compile(r"([\\*_\[\]<>|#])")


def render_markdown(content: Mapping[str, Any]) -> str:
    """Return the report as Markdown; text from transcripts is escaped."""
    parts = [
        *_top(content),
        *_findings(content["findings"]),
        *_plan(content["plan"]),
        *_privacy(content["privacy"]),
        *_calibration(content["calibration"]),
        *_rounds(content["rounds"]),
        *_disclosures(content["disclosures"]),
        *_evaluations(content["evaluations"]),
        *_measurement(content["measurement"]),
        *_again(content),
    ]
    return "\n\n".join(parts) + "\n"


def _top(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield title and verdict."""
    verdict = content["verdict"]
    yield f"# Audit of {_plain(content['run']['name'])}"
    yield f"**{verdict['severity']}: {_plain(verdict['headline'])}**"
    yield from map(_plain, verdict["sentences"])
    yield "Not covered by this audit:"
    yield "\n".join(f"- {_plain(each)}" for each in verdict["not_covered"])


def _findings(findings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the table of findings, the worst first."""
    order = ["FAIL", "WARN", "PASS"]
    rows = sorted(findings, key=lambda finding: order.index(finding["severity"]))
    yield "## Findings"
    yield _table(
        ("result", "check", "finding", "evidence"),
        (
            (f["severity"], f["title"], f["statement"], "; ".join(f["evidence"]))
            for f in rows
        ),
    )


def _plan(plan: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the plan in brief."""
    yield "## The plan in brief"
    yield _table(("what", "value"), plan)


def _privacy(privacy: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the claim of differential privacy, its price and its limits."""
    if privacy is None:
        return
    yield "## Differential privacy"
    yield _plain(privacy["claim"])
    yield _table(
        (
            "silo",
            "steps",
            "draws a step",
            *privacy["headings"],
            "with earlier runs",
        ),
        (
            (
                row["silo"],
                f"{row['steps']:,}",
                row["multiplicity"],
                *(
                    "–" if row[name] is None else f"{row[name]:.4g}"
                    for name in ("epsilon", "second", "account_epsilon")
                ),
            )
            for row in privacy["silos"]
        ),
    )
    yield _table(("what", "value"), privacy["mechanism"])
    if privacy["ceilings"]:
        yield "The most that any membership attack can find:"
        yield _table(
            ("false alarms", "found, at most"),
            ((f"{rate:.1%}", f"{most:.3%}") for rate, most in privacy["ceilings"]),
        )
    yield "Epsilon says nothing about:"
    yield "\n".join(f"- {_plain(each)}" for each in privacy["not_covered"])


def _calibration(calibration: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what followed the mean, where anything did."""
    if calibration is None:
        return
    yield "## After the mean"
    yield _plain(
        f'The aggregator trained on auxiliary images, label "{calibration["label"]}": '
        f"{calibration['meaning']}."
    )
    yield _table(("what", "value"), calibration["facts"])
    if calibration["sent"]:
        rows = ((r["silo"], r["label"], f"{r['bytes']:,}") for r in calibration["sent"])
        yield _table(("silo", "gave", "bytes"), rows)
    names = ("round", "steps", "auxiliary loss before", "after")
    yield _table(
        names,
        (
            (
                row["round_number"],
                f"{row['steps']:,}",
                f"{row['loss_before']:.4f}",
                f"{row['loss_after']:.4f}",
            )
            for row in calibration["rounds"]
        ),
    )


def _rounds(rounds: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield how the rounds went."""
    yield "## Rounds"
    rows = (
        (
            row["round_number"],
            row["outcome"],
            _known(row["survivors"] and len(row["survivors"])),
            row["least_survivors"],
            _known(row["confirmations"]),
            ", ".join(f"{each['silo']} ({each['stage']})" for each in row["dropped"]),
        )
        for row in rounds
    )
    names = ("round", "outcome", "survivors", "at least", "confirmations", "dropouts")
    yield _table(names, rows)


def _disclosures(disclosures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what left each silo."""
    yield "## What left each silo"
    rows = [
        (
            row["silo"],
            each["content"],
            f"{each['sent_bytes']:,}",
            f"{each['received_bytes']:,}",
            format_share(each["sent_bytes"], row["sent_bytes"]),
        )
        for row in disclosures
        for each in row["stages"]
    ]
    names = ("silo", "what", "bytes sent", "bytes received", "share of its bytes sent")
    yield _table(names, rows)
    yield "; ".join(
        f"{_plain(row['silo'])}: {format_bytes(row['sent_bytes'])} sent, counted by "
        f"{_plain(row['counted_by'])}"
        for row in disclosures
    )


def _evaluations(evaluations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the Fréchet distances, where there are any."""
    if not evaluations:
        return
    yield "## Fréchet distance"
    names = ("round", "Fréchet distance", "extractor", "samples", "reference images")
    rows = (
        (
            row["round_number"],
            f"{row['frechet_distance']:.2f}",
            row["extractor"],
            f"{row['num_samples']:,}",
            f"{row['reference_count']:,}",
        )
        for row in evaluations
    )
    yield _table(names, rows)


def _measurement(measurement: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what the silos measured on their own models, where they did."""
    if measurement is not None:
        yield "## Fréchet distance in the silos"
        yield f"{_plain(measurement['sentence'])}."


def _again(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield how to verify again."""
    yield "## Verify it yourself"
    yield (
        "Run `audits verify RUN` on a folder with `plan.toml` and the transcripts. The "
        f"digest of the plan must be `{content['run']['plan_digest']}`."
    )


def _table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table."""
    lines = [names, ["---"] * len(names)]
    lines += [[_plain(str(cell)) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _known(value: object) -> object:
    """Return a value, or a dash for none."""
    return "–" if value is None else value


def _plain(text: str) -> str:
    """Return a text with the signs escaped that mean something to Markdown."""
    return _SPECIAL.sub(r"\\\1", text)
