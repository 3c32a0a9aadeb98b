"""Section: the price of differential privacy."""

from collections.abc import Iterator, Mapping
from typing import Any

from audits.report.blocks import (
    Block,
    Bullets,
    Figures,
    Paragraph,
    facts,
    number,
    percent,
    rows,
)
from protocol.noise_claim import upward

Content = Mapping[str, Any]


def accounting(content: Content) -> Iterator[Block]:
    """Yield epsilon by silo, over rounds, its profile, and what attacks are left."""
    privacy = content["privacy"]
    if privacy is None:
        yield Paragraph(
            "Nothing is accounted for: the run has no differential privacy, and no "
            "epsilon may be quoted of it."
        )
        return
    yield Paragraph(privacy["claim"], "strong")
    yield rows(
        (
            "Silo",
            "Steps",
            "Draws a step",
            *privacy["headings"],
            "All runs, as planned",
        ),
        (
            (
                row["silo"],
                row["steps"],
                row["multiplicity"],
                upward(row["epsilon"]),
                upward(row["second"]),
                upward(row["account_epsilon"]),
            )
            for row in privacy["silos"]
        ),
        (1, 2, 3, 4, 5),
    )
    yield from _budget(privacy["budget"])
    yield Figures(("epsilon", "profile", "trade-off"))
    if privacy["ceilings"]:
        yield Paragraph(
            "No attack on what was released, whatever it knows besides, can tell "
            "better than this whether any one privacy unit was in a silo's data:"
        )
        yield rows(
            ("False alarms", "Found, at most"),
            ((percent(rate), percent(most)) for rate, most in privacy["ceilings"]),
            (0, 1),
        )
    if privacy["gaussian_mu"] is not None:
        yield facts(
            [
                [
                    "As Gaussian DP",
                    f"mu {number(privacy['gaussian_mu'], '.3g')} covers the whole "
                    "privacy profile down to delta 1e-6",
                ]
            ]
        )
    yield Paragraph("Epsilon says nothing about:")
    yield Bullets(tuple(privacy["not_covered"]))


def _budget(budget: Content) -> Iterator[Block]:
    """Yield what was permitted, planned and spent."""
    planned, spent = budget["planned"], budget["spent"]
    left = None
    if planned is not None and spent is not None:
        left = max(0.0, planned - spent)
    yield facts(
        [
            ["Target of the plan", number(budget["target"])],
            ["Whole run as planned", f"epsilon {upward(planned)}"],
            ["Spent by the silo that spent most", f"epsilon {upward(spent)}"],
            ["Left of the plan", f"epsilon {number(left)}"],
            [
                "Left of a silo's own budget",
                "in its ledger (`silo ledger`), not in the transcripts",
            ],
            [
                "Trials before this run",
                "those in the silos' ledgers are in the column “all runs, as "
                "planned”; others are unknown",
            ],
        ]
    )
