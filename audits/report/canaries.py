"""Canaries: what they show of epsilon, and what each check can and cannot catch."""

import json
from collections.abc import Sequence
from importlib import resources
from math import isfinite
from typing import Any

from audits.accounts import Accounts
from audits.errors import UnreadableExtra
from audits.membership import CanaryAnalysis
from protocol.audit_records import CanariesCommitted, CanariesOpened

Table = dict[str, Any]

POWER_FILE = "power.json"
POWER_FIELDS = {"mutation", "check", "epsilon", "num_canaries", "caught", "runs"}


def canaries_table(
    accounts: Accounts, analyses: Sequence[CanaryAnalysis], power: Table | None
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


def _analysis(each: CanaryAnalysis) -> Table:
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
        "expected_included_stddev": _finite(each.expected_included_stddev),
        "refuted": list(each.refuted),
        "doubtful": list(each.doubtful),
        "powers": [
            {
                "fault": power.fault,
                "caught": power.caught,
                "by_test": [[test, share] for test, share in power.by_test],
            }
            for power in each.powers
        ],
        "bounds": [
            {
                "name": bound.name,
                "kind": bound.kind,
                "curve": bound.curve,
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
