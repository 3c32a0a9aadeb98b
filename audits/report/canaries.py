"""Canaries: what they show of epsilon, and what each check can and cannot catch."""

import json
from collections.abc import Sequence
from importlib import resources
from math import isfinite
from typing import Any, Protocol

from audits.accounts import Accounts
from audits.errors import UnreadableExtra
from protocol.audit_records import CanariesCommitted, CanariesOpened

Table = dict[str, Any]

POWER_FILE = "power.json"
POWER_FIELDS = {"mutation", "check", "epsilon", "num_canaries", "caught", "runs"}


class Bound(Protocol):
    """One lower bound on epsilon, or an estimate of it."""

    @property
    def name(self) -> str:
        """The method."""

    @property
    def kind(self) -> str:
        """``bound`` or ``estimate``."""

    @property
    def epsilon(self) -> float:
        """At least, or about, this much."""

    @property
    def confidence(self) -> float:
        """Of a bound."""

    @property
    def delta(self) -> float:
        """The delta at which it holds."""

    @property
    def num_guesses(self) -> int:
        """Guesses made, 0 where none are."""

    @property
    def num_correct(self) -> int:
        """Of them correct."""

    @property
    def detail(self) -> str:
        """What else a reader has to know."""


class Analysis(Protocol):
    """What one silo's opened canaries show (``audits.membership``)."""

    @property
    def silo(self) -> str:
        """The silo."""

    @property
    def form(self) -> str:
        """``gradient`` or ``input``."""

    @property
    def num_canaries(self) -> int:
        """Planted or not."""

    @property
    def num_included(self) -> int:
        """Planted."""

    @property
    def included_scores(self) -> Sequence[float]:
        """Scores of the planted ones."""

    @property
    def excluded_scores(self) -> Sequence[float]:
        """Scores of the others."""

    @property
    def claimed_epsilon(self) -> float | None:
        """What the silo's events cost; None or infinity: nothing is claimed."""

    @property
    def delta(self) -> float:
        """The delta of the claim."""

    @property
    def expected_gap(self) -> float | None:
        """How far apart the means should be."""

    @property
    def expected_stddev(self) -> float | None:
        """How wide each group should be."""

    @property
    def bounds(self) -> Sequence[Bound]:
        """Bounds and estimates."""


def canaries_table(
    accounts: Accounts, analyses: Sequence[Analysis], power: Table | None
) -> Table:
    """Return what was committed, what the opened canaries show, and the power table."""
    return {
        "commitments": _commitments(accounts),
        "silos": [_analysis(each) for each in analyses],
        "power": power,
    }


def load_power() -> Table | None:
    """Return the power table that was measured for this version, if there is one.

    Raises:
        UnreadableExtra: the file is not what it should be.
    """
    file = resources.files("audits").joinpath(POWER_FILE)
    if not file.is_file():
        return None
    try:
        table: Table = json.loads(file.read_text())
        rows = [
            {name: row[name] for name in sorted(POWER_FIELDS)} for row in table["rows"]
        ]
        return {
            "measured": str(table["measured"]),
            "rows": rows,
            "notes": [str(note) for note in table["notes"]],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableExtra(f"{POWER_FILE}: {error}") from None


def _commitments(accounts: Accounts) -> list[Table]:
    """Return who committed to canaries before training, and who opened them."""
    rows = []
    for account in accounts.silos.values():
        opened = {placed.record.form for placed in account.all(CanariesOpened)}
        for placed in account.all(CanariesCommitted):
            record = placed.record
            rows.append(
                {
                    "silo": account.party,
                    "form": record.form,
                    "num_canaries": record.num_canaries,
                    "commitment": record.commitment,
                    "opened": record.form in opened,
                }
            )
    return rows


def _analysis(each: Analysis) -> Table:
    """Return what one silo's canaries show."""
    return {
        "silo": each.silo,
        "form": each.form,
        "num_canaries": each.num_canaries,
        "num_included": each.num_included,
        "included_scores": list(each.included_scores),
        "excluded_scores": list(each.excluded_scores),
        "claimed_epsilon": _finite(each.claimed_epsilon),
        "delta": each.delta,
        "expected_gap": _finite(each.expected_gap),
        "expected_stddev": _finite(each.expected_stddev),
        "bounds": [
            {
                "name": bound.name,
                "kind": bound.kind,
                "epsilon": _finite(bound.epsilon),
                "confidence": bound.confidence,
                "delta": bound.delta,
                "num_guesses": bound.num_guesses,
                "num_correct": bound.num_correct,
                "detail": bound.detail,
            }
            for bound in each.bounds
        ],
    }


def _finite(number: float | None) -> float | None:
    """Return a number; None for infinity, which JSON cannot hold."""
    return number if number is not None and isfinite(number) else None
