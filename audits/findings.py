"""Findings: what a check found, with its evidence."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

MAX_FAILURES = 20
"""Findings of one check that are listed one by one; the rest is counted."""

MAX_TEXT = 600
"""Characters of one statement; transcripts are hostile and may hold long texts."""


class Severity(StrEnum):
    """How a check ended."""

    PASS = "PASS"  # noqa: S105
    WARN = "WARN"
    FAIL = "FAIL"


CHECKS: dict[str, str] = {
    "plan-signature": "The plan is signed by the aggregator that it names",
    "present": "Every party's transcript is there",
    "opened": "Each transcript begins with this plan and its party",
    "records": "Records are whole, in order, and as the signed heads say",
    "signatures": "Every head is signed by its party for this plan",
    "ending": "Each transcript reaches the end of the run",
    "plausible": "Names and numbers in records are possible under the plan",
    "times": "The times in transcripts are times, and go forward",
    "heads-seen": "The aggregator showed the silos its one and only transcript",
    "witnesses": "Enough silos signed one and the same transcript of the aggregator",
    "silo-heads": "The silos kept the transcripts they told the aggregator of",
    "same-plan": "All parties followed the same plan",
    "same-model": "In each round all silos received the same model",
    "held": "Silos were brought to the models that the rounds ended with",
    "uploads": "Silos and aggregator agree on every update that was sent",
    "slots": "No slot was used twice",
    "protection": "Updates were protected as the plan says",
    "survivors": "Every sum held enough updates, and all agree on whose",
    "dealing": "Parts were dealt by the rule, to groups that are large enough",
    "confirmed": "Enough silos confirmed the survivors before anything was opened",
    "revealed": "Nobody revealed both kinds of share of one silo",
    "key-shared": "The members of a setup share one key, made by whom the plan says",
    "decrypted": "Enough silos decrypted each sum, the same one, and no other",
    "same-sum": "The aggregator told all silos of one and the same sum",
    "members": "No silo had to be left out",
    "rounds": "Rounds ended in order, each one once",
    "parameters": "All parties ended with the same model",
    "measurement": "What the silos measured is told as the plan says",
    "reference": "The silos' own reference was summed once, and is what was used",
    "auxiliary": "Auxiliary images came from where the plan says, as both ends agree",
    "calibration": "The aggregator trained after the mean when the plan says, no more",
    "refusals": "No silo refused a request",
    "disclosures": "All that left the silos is described and accounted for",
    "traffic": "Silos and aggregator counted the same bytes",
    "privacy": "Differential privacy",
    "mechanism": "Every silo ran the mechanism of the plan, and counted its steps",
    "epsilon": "The privacy cost is what the silos claim, and what the plan permits",
    "ledgers": "Privacy ledgers only grew, and nothing was left out of account",
    "randomness": "Sampling and noise came from the operating system's generator",
    "probes": "Silos signed their probes of this run, and no attack beat the ceiling",
    "canaries": "Planted canaries contradict no claim",
}
"""Every check by its name, with what it means when it passes."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check.

    ``party`` is whose transcript or conduct it concerns, ``round_number`` the round
    where one can be named; ``evidence`` names records, heads and numbers.
    """

    check: str
    severity: Severity
    statement: str
    party: str | None = None
    round_number: int | None = None
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the name of the check, and make texts from transcripts harmless."""
        if self.check not in CHECKS:
            raise ValueError(f"check: {self.check!r} is not in the table of checks")
        object.__setattr__(self, "statement", printable(self.statement))
        object.__setattr__(self, "evidence", tuple(map(printable, self.evidence)))


def printable(text: str) -> str:
    """Return a text without control characters, and not longer than it may be."""
    clean = "".join(char if char.isprintable() else "�" for char in text[:MAX_TEXT])
    return clean + ("…" if len(text) > MAX_TEXT else "")


def fail(
    check: str,
    statement: str,
    *evidence: str,
    party: str | None = None,
    round_number: int | None = None,
) -> Finding:
    """Return a finding of a check that failed."""
    return Finding(
        check=check,
        severity=Severity.FAIL,
        statement=statement,
        party=party,
        round_number=round_number,
        evidence=evidence,
    )


def warn(
    check: str,
    statement: str,
    *evidence: str,
    party: str | None = None,
    round_number: int | None = None,
) -> Finding:
    """Return a finding that a reader has to know of, though nothing failed."""
    return Finding(
        check=check,
        severity=Severity.WARN,
        statement=statement,
        party=party,
        round_number=round_number,
        evidence=evidence,
    )


def passed(
    check: str, statement: str, *evidence: str, party: str | None = None
) -> Finding:
    """Return a finding of a check that passed."""
    return Finding(
        check=check,
        severity=Severity.PASS,
        statement=statement,
        party=party,
        evidence=evidence,
    )


def settle(
    check: str, found: Iterable[Finding], statement: str, *evidence: str
) -> list[Finding]:
    """Return what a check found, or that it passed; a long list is cut short.

    Guarantees: the last finding of a list that was cut says how many were left out,
    with the worst severity among them.
    """
    listed = list(found)
    if not listed:
        return [passed(check, statement, *evidence)]
    listed.sort(key=lambda finding: finding.severity != Severity.FAIL)
    rest = listed[MAX_FAILURES:]
    if not rest:
        return listed
    more = Finding(
        check=check,
        severity=worst(rest),
        statement=f"{len(rest):,} more findings of this kind are not listed.",
    )
    return [*listed[:MAX_FAILURES], more]


def worst(findings: Sequence[Finding]) -> Severity:
    """Return the worst severity; PASS for no findings at all."""
    present = {finding.severity for finding in findings}
    for severity in (Severity.FAIL, Severity.WARN):
        if severity in present:
            return severity
    return Severity.PASS


def listing(names: Iterable[str]) -> str:
    """Return names as people write them: a, b and c."""
    listed = list(names)
    if len(listed) > 12:
        listed = [*listed[:10], f"{len(listed) - 10} others"]
    if len(listed) < 2:
        return listed[0] if listed else "nobody"
    return f"{', '.join(listed[:-1])} and {listed[-1]}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it has to be."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
