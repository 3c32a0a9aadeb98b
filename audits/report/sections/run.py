"""Sections: secure aggregation, what left each silo, the model, the transcripts."""

from collections.abc import Iterator, Mapping
from typing import Any

from audits.report.blocks import (
    Block,
    Code,
    Figures,
    Fold,
    Heading,
    Paragraph,
    Picture,
    Rows,
    facts,
    rows,
)
from audits.report.units import format_bytes, format_share

Content = Mapping[str, Any]


def secure_aggregation(content: Content) -> Iterator[Block]:
    """Yield parties, thresholds, and how the rounds went."""
    run, rounds = content["run"], content["rounds"]
    if run["protection"] == "none":
        yield Paragraph(
            "There was no secure aggregation: updates were in the clear.", "strong"
        )
    else:
        yield facts(
            [
                ["Silos", len(run["silos"])],
                ["Threshold", f"{run['threshold']} silos"],
                ["Smallest cohort", f"{run['min_cohort']} silos"],
                ["Colluding silos that are withstood", _withstood(run)],
                ["The aggregator is taken to be", run["trust"]],
            ]
        )
    if not rounds:
        yield Paragraph("No transcript tells of a round.")
        return
    least = rounds[0]["least_survivors"]
    yield Paragraph(f"A sum is opened only if it holds at least {least} updates.")
    yield Figures(("survivors",))
    if all(row["witnesses"] is None for row in rounds):
        yield Paragraph(
            "No round names witnesses: silos that signed the aggregator's history."
        )
    yield _rounds(rounds)
    lost = [each for row in rounds for each in row["dropped"]]
    yield Paragraph(
        f"{len(lost):,} dropouts in all." if lost else "Nobody dropped out.", "quiet"
    )


def _withstood(run: Content) -> object:
    """Return how many silos may collude: with a shared key none that gives it away."""
    if run["protection"] == "bfv":
        return "none that gives the aggregator the shared key"
    return run["max_colluding"]


def _rounds(rounds: list[Any]) -> Rows:
    """Return how the rounds went, as a table."""
    return rows(
        (
            "Round",
            "Outcome",
            "Cohort",
            "Uploads",
            "Survivors",
            "Confirmations",
            "Witnesses",
            "Dropouts",
        ),
        (
            (
                row["round_number"],
                row["outcome"]
                + (f" ({row['attempts']} attempts)" if row["attempts"] > 1 else ""),
                row["cohort"],
                row["uploads"],
                None if row["survivors"] is None else len(row["survivors"]),
                row["confirmations"],
                row["witnesses"],
                ", ".join(f"{e['silo']} ({e['stage']})" for e in row["dropped"])
                or None,
            )
            for row in rounds
        ),
        (2, 3, 4, 5, 6),
    )


def disclosures(content: Content) -> Iterator[Block]:
    """Yield what left each silo."""
    yield Paragraph(
        "Every byte that left a silo for the others, what it was, who could read it, "
        "and what limits what it tells of the images. All went to the aggregator. "
        "Shares are sealed for one other silo each; the aggregator passes them on and "
        "cannot open them."
    )
    yield Figures(("bytes", "traffic"))
    table = content["disclosures"]
    yield rows(
        ("Silo", "Sent", "of it updates", "Received", "Counted by"),
        (
            (
                row["silo"],
                format_bytes(row["sent_bytes"]),
                format_share(row["vector_bytes"], row["sent_bytes"]),
                format_bytes(row["received_bytes"]),
                "itself" if row["counted_by"] == row["silo"] else "the aggregator",
            )
            for row in table
        ),
        (1, 2, 3),
    )
    for row in table:
        tables = (_ledger(row), _stages(row), _by_round(row))
        yield Fold(f"{row['silo']}: its ledger; by stage; by round", tables)


def _ledger(row: Content) -> Rows:
    """Return what left one silo, with form and guarantee."""
    return rows(
        ("What left", "To", "Form", "Covered by", "Bytes"),
        (
            (
                each["what"],
                each["recipient"],
                each["form"],
                each["guarantee"],
                format_bytes(each["sent_bytes"]),
            )
            for each in row["ledger"]
        ),
        (4,),
    )


def _stages(row: Content) -> Rows:
    """Return what one silo sent, by stage."""
    return rows(
        ("What was sent", "Stage", "Sent", "Share", "Received"),
        (
            (
                each["content"],
                each["stage"],
                format_bytes(each["sent_bytes"]),
                format_share(each["sent_bytes"], row["sent_bytes"]),
                format_bytes(each["received_bytes"]),
            )
            for each in row["stages"]
        ),
        (2, 3, 4),
    )


def _by_round(row: Content) -> Rows:
    """Return what one silo sent, by round."""
    return rows(
        ("Round", "Sent", "of it updates", "Received", "of it the model"),
        (
            (
                each["round_number"] or "outside rounds",
                format_bytes(each["sent_bytes"]),
                format_bytes(each["vector_bytes"]),
                format_bytes(each["received_bytes"]),
                format_bytes(each["broadcast_bytes"]),
            )
            for each in row["rounds"]
        ),
        (1, 2, 3, 4),
    )


def model(content: Content) -> Iterator[Block]:
    """Yield how good the model is, as far as anybody measured it."""
    evaluations, measurement = content["evaluations"], content["measurement"]
    if evaluations:
        last = evaluations[-1]
        yield Paragraph(
            f"After round {last['round_number']} the Fréchet distance is "
            f"{last['frechet_distance']:.2f}, measured with {last['extractor']} on "
            f"{last['num_samples']:,} samples against {last['reference_count']:,} "
            "reference images. Distances of other extractors, or with other numbers of "
            "samples, cannot be compared with it."
        )
        yield Figures(("distance", "classes"))
        yield rows(
            ("Round", "Fréchet distance", "Extractor", "Samples", "Reference images"),
            (
                (
                    row["round_number"],
                    f"{row['frechet_distance']:.2f}",
                    row["extractor"],
                    row["num_samples"],
                    row["reference_count"],
                )
                for row in evaluations
            ),
            (1, 3, 4),
        )
    elif not measurement:
        yield Paragraph("No Fréchet distance was recorded.")
    if measurement:
        yield Paragraph(f"{measurement['sentence']}.")
    if content["samples"]:
        yield Picture(
            **content["samples"],
            alt="Grid of images drawn from the trained model",
            caption="Samples of the trained model, as given to the auditor; no "
            "transcript vouches for this picture. SHA-256 "
            f"{content['samples']['sha256']}",
        )
    else:
        yield Paragraph("No picture of samples was given.", "quiet")


def transcripts(content: Content) -> Iterator[Block]:
    """Yield how far the transcripts go, their roots, and how to verify them."""
    run = content["run"]
    if content["missing"]:
        yield Paragraph(f"Missing: {', '.join(content['missing'])}.", "strong")
    yield rows(
        ("Party", "Records", "Heads that hold", "Last round", "End"),
        (
            (
                row["party"],
                row["num_records"],
                len(row["heads"]),
                row["last_round"],
                "reached" if row["finished"] else "not reached",
            )
            for row in content["transcripts"]
        ),
        (1, 2, 3),
    )
    yield Figures(("growth",))
    yield Heading("Last signed heads")
    yield rows(
        ("Party", "Size", "Merkle root"),
        (
            (row["party"], row["head"]["size"], row["head"]["root"])
            for row in content["transcripts"]
            if row["head"]
        ),
        (1,),
    )
    yield Heading("Verify it yourself")
    yield Paragraph(
        "Put the plan (`plan.toml`) and the transcript folders into one folder, here "
        "called RUN, and let the software check everything again:"
    )
    yield Code("audits verify RUN")
    yield Paragraph(
        "The digest of the plan must be the one that your own operator approved, and "
        "the keys those of the institutions:"
    )
    yield facts(
        [
            ["plan", run["plan_digest"]],
            ["aggregator", run["aggregator_key"]],
            *((silo["name"], silo["identity_key"]) for silo in run["silos"]),
        ]
    )
