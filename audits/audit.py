"""The whole audit of a run: every check, in one order."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from audits.accounts import Accounts
from audits.budget import check_budget, withhold
from audits.calibration import check_calibration
from audits.conformance import check_conformance
from audits.disclosure import Disclosure, check_disclosure, disclosures
from audits.evidence import Evidence
from audits.findings import Finding, Severity, worst
from audits.integrity import check_integrity
from audits.membership import check_canaries
from audits.witnesses import check_witnesses


@dataclass(frozen=True)
class Audit:
    """Findings on a run, and what its transcripts say."""

    evidence: Evidence
    accounts: Accounts
    findings: tuple[Finding, ...]
    disclosures: tuple[Disclosure, ...]

    @property
    def verdict(self) -> Severity:
        """The worst severity among the findings."""
        return worst(self.findings)

    def with_severity(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of one severity."""
        return tuple(f for f in self.findings if f.severity == severity)


def run_audit(evidence: Evidence) -> Audit:
    """Return the audit of a run's evidence: integrity, conformance,
    disclosure, budget, canaries.

    Guarantees: deterministic; reads each transcript's records once and its bytes once
    more, the aggregator's twice; nothing is written. A failed check is a finding,
    never an exception.
    """
    findings, accounts = check_integrity(evidence)
    with _kept_to_the_end():
        findings += check_witnesses(evidence, accounts)
        findings += check_conformance(accounts)
        findings += check_calibration(accounts)
        findings += check_disclosure(accounts)
        findings += check_budget(accounts)
        findings += check_canaries(accounts)
    findings = withhold(findings)
    return Audit(evidence, accounts, tuple(findings), disclosures(accounts))


@contextmanager
def _kept_to_the_end() -> Iterator[None]:
    """Spare the garbage collector what the transcripts say: it stays to the end.

    To look for what prices leave behind (``audits.claims``) then takes no time.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
