"""Several runs beside each other: one table, one figure, three files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

from audits.audit import Audit
from audits.report.blocks import (
    Block,
    Bullets,
    Figures,
    Paragraph,
    Section,
    number,
    rows,
)
from audits.report.classes import STEMS, ReportClass
from audits.report.content import make_content
from audits.report.figures.drawing import MAX_SERIES, STYLE, Drawing, short
from audits.report.figures.model import draw_lines
from audits.report.inputs import Inputs
from audits.report.markdown import blocks_as_markdown, plain
from audits.report.page import environment, save_texts
from audits.report.units import format_bytes
from protocol.encoding import encode
from protocol.noise_claim import upward
from protocol.version import SOFTWARE

Table = dict[str, Any]
FORMAT = 1
MAX_RUNS = 64


@dataclass(frozen=True)
class Compared:
    """One run of a comparison, under the name of its folder."""

    name: str
    audit: Audit
    inputs: Inputs


def compare_content(
    runs: Sequence[Compared],
    *,
    report_class: ReportClass = "public",
    include_unprotected: bool = False,
) -> Table:
    """Return what a comparison says; each run's report is made, and read."""
    made = [
        (
            each.name,
            make_content(
                each.audit,
                each.inputs,
                report_class=report_class,
                include_unprotected=include_unprotected,
            ),
        )
        for each in runs
    ]
    return {
        "format": FORMAT,
        "software": SOFTWARE,
        "class": report_class,
        "is_unprotected": any(content["unprotected"] for _, content in made),
        "class_sentences": list(
            dict.fromkeys(content["class_sentence"] for _, content in made)
        ),
        "runs": [_run(name, content) for name, content in made],
        "remarks": _remarks([content for _, content in made]),
    }


def run_name(folder: Path, taken: Sequence[str]) -> str:
    """Return the name of a run's folder, without its path; no two are the same."""
    name = folder.resolve().name
    same = sum(other == name or other.startswith(f"{name} (") for other in taken)
    return f"{name} ({same + 1})" if same else name


def _run(name: str, content: Mapping[str, Any]) -> Table:
    """Return one run in a few numbers; None where there is none."""
    privacy, evaluations = content["privacy"], content["evaluations"]
    last = evaluations[-1] if evaluations else None
    is_quotable = content["verdict"]["severity"] != "FAIL"
    closed = [row for row in content["rounds"] if row["outcome"] == "closed"]
    return {
        "run": name,
        "plan": content["run"]["name"],
        "plan_digest": content["run"]["plan_digest"],
        "verdict": content["verdict"]["severity"],
        "headline": content["verdict"]["headline"],
        "num_silos": len(content["run"]["silos"]),
        "num_rounds": content["run"]["num_rounds"],
        "closed_rounds": len(closed),
        "is_private": privacy is not None,
        "epsilon": _quoted(privacy["budget"]) if privacy and is_quotable else None,
        "delta": privacy["budget"]["delta"] if privacy else None,
        "sent_bytes": sum(row["sent_bytes"] for row in content["disclosures"]),
        "received_bytes": sum(row["received_bytes"] for row in content["disclosures"]),
        "frechet_distance": last["frechet_distance"] if last else None,
        "measured_with": _measured_with(last) if last else None,
        "distances": [
            [row["round_number"], row["frechet_distance"]] for row in evaluations
        ],
        "attack": _best_attack(content["membership"]),
        "attack_withheld": content["membership"] is None,
    }


def _quoted(budget: Mapping[str, float | None]) -> float | None:
    """Return the epsilon of a run as planned, or what was spent if that is more.

    As in its report: a run that ended early is not cheaper.
    """
    planned, spent = budget["planned"], budget["spent"]
    return None if planned is None or spent is None else max(planned, spent)


def _measured_with(evaluation: Mapping[str, Any]) -> str:
    """Return what a distance depends on, as one text."""
    return (
        f"{evaluation['extractor']}, {evaluation['num_samples']:,} samples, reference "
        f"{evaluation['reference'][:16]}"
    )


def _best_attack(membership: Sequence[Mapping[str, Any]] | None) -> Table | None:
    """Return the attack with the largest AUC on a model that was not overfitted."""
    attacks = [
        (attack["auc"], attack["attack"], row["silo"], attack)
        for row in membership or ()
        if row["target"] != "control"
        for attack in row["attacks"]
    ]
    if not attacks:
        return None
    auc, name, silo, attack = max(attacks, key=lambda each: each[:3])
    return {
        "attack": name,
        "silo": silo,
        "auc": auc,
        "auc_low": attack["auc_low"],
        "auc_high": attack["auc_high"],
    }


def _remarks(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what keeps these runs from being compared number by number."""
    remarks = []
    lasts = [c["evaluations"][-1] for c in contents if c["evaluations"]]
    if len({_measured_with(last) for last in lasts}) > 1:
        remarks.append(
            "The Fréchet distances were measured in different ways (extractor, number "
            "of samples or reference) and cannot be compared with each other."
        )
    deltas = {c["privacy"]["budget"]["delta"] for c in contents if c["privacy"]}
    if len(deltas) > 1:
        remarks.append(
            "The epsilons are at different deltas; a smaller one at a larger delta is "
            "not the stronger guarantee by itself."
        )
    if any(c["privacy"] is None for c in contents):
        remarks.append("Runs without an epsilon have no differential privacy at all.")
    if any(c["verdict"]["severity"] == "FAIL" for c in contents):
        remarks.append(
            "No epsilon is quoted of a run of which a check failed; its other numbers "
            "may be wrong, too."
        )
    if any(c["membership"] for c in contents):
        remarks.append(
            "An attack's AUC is the largest that a silo's probe found: a lower limit "
            "of what an attacker can do."
        )
    remarks.append(
        "If the runs used the same data, their epsilons add up in the silos' ledgers; "
        "each number here is that of one run."
    )
    return remarks


def compare_blocks(content: Mapping[str, Any]) -> tuple[Block, ...]:
    """Return a comparison as blocks."""
    table = rows(
        (
            "Run",
            "Verdict",
            "Epsilon",
            "Delta",
            "Fréchet distance",
            "Attack AUC",
            "Rounds",
            "Silos",
            "Sent",
            "Received",
        ),
        (
            (
                row["run"],
                row["verdict"],
                _epsilon(row),
                number(row["delta"], "g"),
                number(row["frechet_distance"], ".2f"),
                _attack(row),
                f"{row['closed_rounds']:,} of {row['num_rounds']:,}",
                row["num_silos"],
                format_bytes(row["sent_bytes"]),
                format_bytes(row["received_bytes"]),
            )
            for row in content["runs"]
        ),
        range(2, 10),
    )
    plans = rows(
        ("Run", "Plan", "Digest of the plan", "Distance measured with"),
        (
            (row["run"], row["plan"], row["plan_digest"], row["measured_with"])
            for row in content["runs"]
        ),
    )
    return (
        table,
        Bullets(tuple(content["remarks"])),
        Figures(("distances",)),
        plans,
        Paragraph(
            "Each run's own report has its findings: `audits report RUN`.", "quiet"
        ),
    )


def _epsilon(row: Mapping[str, Any]) -> str:
    """Return the epsilon of a run, in words where there is none."""
    if not row["is_private"]:
        return "none: not private"
    return "not quoted" if row["epsilon"] is None else upward(row["epsilon"])


def _attack(row: Mapping[str, Any]) -> str:
    """Return the AUC of a run's best attack, in words where there is none."""
    if row["attack_withheld"]:
        return "internal"
    attack = row["attack"]
    if attack is None:
        return "–"
    interval = f"{attack['auc_low']:.3f} – {attack['auc_high']:.3f}"
    return f"{attack['auc']:.3f} ({interval}), {attack['attack']}"


def draw_comparison(content: Mapping[str, Any]) -> dict[str, Drawing]:
    """Return the figure of a comparison: distances over rounds."""
    lines = {
        f"{index}. {short(row['run'])}": [(n, d) for n, d in row["distances"]]
        for index, row in enumerate(content["runs"][:MAX_SERIES], start=1)
        if row["distances"]
    }
    with mpl.rc_context(STYLE):
        drawing = draw_lines(lines, "distances", "Fréchet distance over rounds")
    return {"distances": drawing} if drawing else {}


def write_comparison(content: Mapping[str, Any], out: Path) -> tuple[Path, ...]:
    """Write ``comparison.html``, ``comparison.json`` and ``comparison.md``.

    Guarantees: as :func:`audits.report.page.write_report`.

    Raises:
        OSError: the folder cannot be made or written.
    """
    report_class: ReportClass = content["class"]
    stem = f"comparison{STEMS[report_class]}"
    section = Section(1, "The runs", compare_blocks(content))
    page = (
        environment()
        .get_template("comparison.html")
        .render(
            **{key: value for key, value in content.items() if key != "class"},
            report_class=report_class,
            section=section,
            drawings=draw_comparison(content),
            json_name=f"{stem}.json",
        )
    )
    parts = [
        f"# Comparison of {len(content['runs'])} runs",
        f"Class: **{report_class}**. {plain(' '.join(content['class_sentences']))}",
        *blocks_as_markdown(section.blocks),
    ]
    texts = {
        f"{stem}.html": page.encode(),
        f"{stem}.json": encode(content),
        f"{stem}.md": ("\n\n".join(parts) + "\n").encode(),
    }
    return save_texts(out, texts)
