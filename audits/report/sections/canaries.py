"""Section: canaries, what they show, and what their checks can catch."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from audits.findings import listing
from audits.report.blocks import (
    Block,
    Bullets,
    Figures,
    Heading,
    Paragraph,
    facts,
    number,
    percent,
    rows,
)
from audits.report.sections.attacks import WITHHELD

Content = Mapping[str, Any]


def canaries(content: Content) -> Iterator[Block]:
    """Yield what was committed, what the canaries show, and the power table."""
    table = content["canaries"]
    if not table["commitments"] and not table["silos"]:
        yield Paragraph("No canaries were used in this run.")
    if table["commitments"]:
        yield Paragraph(
            "By its transcript a silo bound itself to its canaries before it trained, "
            "and opened them after. Scores and transcript are its own word: the checks "
            "look for mistakes, and a silo that invents its scores deceives them."
        )
        yield rows(
            ("Silo", "Form", "Canaries", "Opened", "Commitment"),
            (
                (
                    row["silo"],
                    row["form"],
                    row["num_canaries"],
                    row["opened"],
                    row["commitment"],
                )
                for row in table["commitments"]
            ),
            (2,),
        )
    held_back = {row["what"] for row in content["withheld"]}
    if "scores of input canaries" in held_back:
        yield Paragraph(WITHHELD)
    shown: list[Any] = []
    for index, row in enumerate(table["silos"]):
        yield from _silo(index, row)
        if row["powers"] in shown:
            yield Paragraph("Faults found in simulated runs: as above.", "quiet")
        elif row["powers"]:
            yield _powers(row["powers"])
            shown.append(row["powers"])
    yield from _power(table["power"], used=bool(table["silos"]))


def _silo(index: int, row: Content) -> Iterator[Block]:
    """Yield the canaries of one silo."""
    yield Heading(f"Canaries of {row['silo']} ({row['form']})")
    claimed = row["claimed_epsilon"]
    yield facts(
        [
            [
                "Canaries",
                f"{row['num_canaries']:,}, of them {row['num_included']:,} planted",
            ],
            [
                "Claimed",
                "no epsilon"
                if claimed is None
                else f"epsilon {claimed:.4g} at delta {row['delta']:g}",
            ],
            ["Expected gap of the means", number(row["expected_gap"])],
            ["Expected standard deviation", number(row["expected_stddev"])],
            [
                "Expected standard deviation of the planted ones",
                number(row["expected_included_stddev"]),
            ],
        ]
    )
    yield Figures((f"canary-scores-{index}", f"canary-bounds-{index}"))
    yield rows(
        ("Method", "Epsilon", "Confidence", "Guesses", "Correct", "Remark"),
        (
            (
                each["name"],
                _bound(each),
                percent(each["confidence"]) if each["kind"] == "bound" else "–",
                each["num_guesses"] or None,
                each["num_correct"] if each["num_guesses"] else None,
                each["detail"] or None,
            )
            for each in row["bounds"]
        ),
        (2, 3, 4),
    )
    if row["refuted"]:
        yield Paragraph("The canaries contradict the claim:", "strong")
        yield Bullets(tuple(row["refuted"]))
    elif row["doubtful"]:
        yield Paragraph(
            f"Above the claim, which may be chance: {listing(row['doubtful'])}.",
            "strong",
        )
    elif claimed is not None:
        yield Paragraph(
            "No violation was found. That is no proof that there is none: which faults "
            "these tests would have found, and how often, is below. A lower bound that "
            "is small says nothing of how private the run is."
        )


def _powers(powers: list[Any]) -> Block:
    """Return which faults the tests of these canaries find, in simulated runs."""
    tests = [test for test, _ in powers[0]["by_test"]]
    return rows(
        ("Fault, in simulated runs", "Found by any test", *tests),
        (
            (
                each["fault"],
                percent(each["caught"]),
                *(percent(share) for _, share in each["by_test"]),
            )
            for each in powers
        ),
        range(1, len(tests) + 2),
    )


def _bound(each: Content) -> str:
    """Return a bound or an estimate in words."""
    word = "at least" if each["kind"] == "bound" else "about"
    if each["epsilon"] is None:
        return "no finite epsilon"
    return f"{word} {each['epsilon']:.3g}"


def _power(power: Content | None, *, used: bool) -> Iterator[Block]:
    """Yield what each check catches of mechanisms that were broken on purpose."""
    if power is None:
        if used:
            yield Paragraph(
                "This version has no measured table of what the checks catch.", "quiet"
            )
        return
    yield Heading("What these checks catch")
    yield Paragraph(
        "Mechanisms broken on purpose, and how often each check caught them, measured "
        f"on {power['measured']} with this software, not in this run:"
    )
    ordered = sorted(power["rows"], key=_setting)
    for (epsilon, planted), group in groupby(ordered, key=_setting):
        listed = list(group)
        tried = listing(dict.fromkeys(row["check"] for row in listed))
        yield Heading(f"Claimed epsilon {epsilon:g}, {planted:,} canaries")
        yield Paragraph(f"Tried: {tried}. What is not named did not catch it.", "quiet")
        yield rows(
            ("What was broken", "Caught by"),
            (
                (_in_words(mutation), _caught(listed, mutation))
                for mutation in dict.fromkeys(row["mutation"] for row in listed)
            ),
        )
    yield Bullets(tuple(power["notes"]))


def _in_words(mutation: str) -> str:
    """Return the name of a mutation as words."""
    if mutation == "none":
        return "nothing (whatever speaks up raises a false alarm)"
    return mutation.replace("-", " ")


def _caught(listed: list[Any], mutation: str) -> str:
    """Return which checks caught a mutation, and how often where it ran repeatedly."""
    caught = (
        row["check"]
        + (f" ({row['caught']} of {row['runs']})" if row["runs"] > 1 else "")
        for row in listed
        if row["mutation"] == mutation and row["caught"]
    )
    return "; ".join(caught) or "nothing"


def _setting(row: Content) -> tuple[float, int]:
    """Return the setting in which a row of the power table was measured."""
    return row["epsilon"], row["num_canaries"]
