"""Sections: scope and threat model, data of each silo, mechanism, limits, pitfalls."""

from collections.abc import Iterator, Mapping
from typing import Any

from audits.report.blocks import (
    Block,
    Bullets,
    Facts,
    Heading,
    Paragraph,
    facts,
    rows,
)

Content = Mapping[str, Any]
STATES = ("present", "unknown", "avoided", "not applicable")


def scope(content: Content) -> Iterator[Block]:
    """Yield who could see what, and which guarantee holds against whom."""
    yield Paragraph(
        "Who could see what in this run, and what stands against it. A guarantee holds "
        "as far as the findings above do."
    )
    yield rows(("Adversary", "Sees", "Guarantee"), content["scope"])
    yield Paragraph(
        "Silos and aggregator are the parties that the plan names by their keys; "
        "nothing else is in the scope of this audit."
    )


def data(content: Content) -> Iterator[Block]:
    """Yield what is known of each silo's data."""
    private = content["privacy"] is not None
    names = ["Silo", "Counts for"]
    if private:
        names += ["Privacy unit", "Commitment to its units", "New account"]
    yield rows(
        names,
        (
            [row["silo"], row["weight"]]
            + ([row["unit"], row["commitment"], row["fresh_ledger"]] if private else [])
            for row in content["data"]
        ),
    )
    yield Paragraph(
        "Numbers of images are not in the transcripts. No record states that the silos "
        "hold different people: nobody has signed such a statement."
    )
    if not private:
        yield Paragraph(
            "No silo committed itself to a set of images: only runs with differential "
            "privacy do.",
            "quiet",
        )
    sizes = {
        row["silo"]: row["attacks"][0]
        for row in content["membership"] or ()
        if row["target"] != "control"
    }
    if sizes:
        yield Heading("Images that were attacked")
        yield rows(
            ("Silo", "Training images", "Held-out images"),
            ((s, a["num_members"], a["num_held_out"]) for s, a in sizes.items()),
            (1, 2),
        )


def mechanism(content: Content) -> Iterator[Block]:
    """Yield how the model was trained and what was done for privacy."""
    privacy = content["privacy"]
    if privacy is None:
        yield Paragraph("No mechanism of differential privacy was used.", "strong")
    else:
        yield facts(privacy["mechanism"])
        sources = {row["randomness"] for row in content["data"]} - {None}
        if sources:
            told = ", ".join(sorted(sources))
            yield Facts((("Randomness, as the silos say", told),))
    yield Heading("The plan in brief")
    yield facts(content["plan"])
    yield Heading("Software")
    yield rows(
        ("Party", "Version, by its own word"),
        ((row["party"], row["software"]) for row in content["transcripts"]),
    )
    yield Paragraph(
        "No record names the source code's commit or the digest of the packages.",
        "quiet",
    )
    if content["calibration"]:
        yield from _calibration(content["calibration"])


def _calibration(calibration: Content) -> Iterator[Block]:
    """Yield what followed the mean."""
    yield Heading("After the mean")
    yield Paragraph(
        f"The aggregator trained on auxiliary images, label “{calibration['label']}”: "
        f"{calibration['meaning']}."
    )
    yield facts(calibration["facts"])
    if calibration["sent"]:
        yield rows(
            ("Silo", "Gave", "Bytes"),
            ((row["silo"], row["label"], row["bytes"]) for row in calibration["sent"]),
            (2,),
        )
    yield rows(
        ("Round", "Steps", "Auxiliary loss before", "After"),
        (
            (
                row["round_number"],
                row["steps"],
                *(
                    None if row[name] is None else f"{row[name]:.4f}"
                    for name in ("loss_before", "loss_after")
                ),
            )
            for row in calibration["rounds"]
        ),
        (1, 2, 3),
    )


def self_tests(content: Content) -> Iterator[Block]:
    """Yield what stands for the mechanism's own tests."""
    yield Paragraph(
        "No result of a self-test is in the transcripts. `silo self-test` shows a "
        "silo's operator, on that machine, whether noise, clip, sampling and counting "
        "are what the plan says; its figures depend on real data and stay there."
    )
    names = ("mechanism", "epsilon", "randomness", "ledgers")
    found = [each for each in content["findings"] if each["check"] in names]
    if found:
        yield Paragraph("What this audit recomputed from the records instead:")
        yield rows(
            ("Result", "Check", "Finding"),
            ((each["severity"], each["title"], each["statement"]) for each in found),
        )


def checklist(content: Content) -> Iterator[Block]:
    """Yield the pitfalls, those that are present first."""
    table = content["checklist"]
    counts = {state: sum(row["state"] == state for row in table) for state in STATES}
    yield Paragraph(
        f"{counts['present']} present, {counts['unknown']} that plan and transcripts "
        f"cannot tell, {counts['avoided']} avoided."
    )
    order = sorted(table, key=lambda row: STATES.index(row["state"]))
    yield rows(
        ("State", "Severity", "Pitfall", "Why"),
        ((row["state"], row["severity"], row["pitfall"], row["why"]) for row in order),
    )


def limits(content: Content) -> Iterator[Block]:
    """Yield what cannot be verified."""
    yield Paragraph("What nobody can verify from plan and transcripts:")
    yield Bullets(tuple(content["limits"]))
