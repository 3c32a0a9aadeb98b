"""What a report says, as one table of text and numbers: JSON as it stands.

HTML and Markdown show this table and add nothing; docs/report.schema.json describes it.
"""

from dataclasses import replace
from typing import Any

from audits.accounts import Account
from audits.audit import Audit
from audits.budget import withhold
from audits.findings import CHECKS, Severity
from audits.measurement import sentence as measurement_sentence
from audits.membership import analyse_canaries
from audits.report.calibration import calibration_table
from audits.report.canaries import canaries_table, load_power
from audits.report.checklist import checklist
from audits.report.classes import ReportClass, apply_class
from audits.report.inputs import Inputs
from audits.report.plan_words import plan_in_brief
from audits.report.privacy import claim_facts, may_quote, privacy_table
from audits.report.probes import (
    check_probes,
    membership_table,
    memorisation_table,
    profiles,
)
from audits.report.rehearsal import rehearsal_table
from audits.report.rounds import (
    disclosure_table,
    rounds_table,
    traffic_table,
    transcript_table,
)
from audits.report.scope import data_rows, limits, scope_rows
from audits.report.verdict import headline, not_covered, sentences
from protocol.encoding import to_table
from protocol.model_records import Evaluated, MeasuredInSilos
from protocol.plan import RunPlan
from protocol.version import SOFTWARE

Table = dict[str, Any]
FORMAT = 2

NO_INPUTS = Inputs()


def make_content(
    audit: Audit,
    inputs: Inputs = NO_INPUTS,
    *,
    report_class: ReportClass = "public",
    include_unprotected: bool = False,
) -> Table:
    """Return the content of a report for readers of a class.

    Guarantees: deterministic; from plan, transcripts and the given inputs nothing but
    names, digests, counts, published numbers, and what ``audits.report.classes`` lets
    readers of the class see.
    """
    plan = audit.evidence.plan
    privacy = privacy_table(audit)
    bounds = profiles(audit.accounts, inputs.probes) if may_quote(audit) else {}
    extra = (*inputs.findings, *check_probes(audit, inputs.probes, bounds))
    found = tuple(withhold((*audit.findings, *extra)))
    audit = replace(audit, findings=found)
    privacy = privacy_table(audit) if extra and privacy else privacy
    content: Table = {
        "format": FORMAT,
        "software": SOFTWARE,
        "run": _run(plan),
        "verdict": verdict_table(audit, privacy),
        "findings": _findings(audit),
        "plan": plan_in_brief(plan),
        "scope": scope_rows(audit),
        "data": data_rows(audit),
        "privacy": privacy,
        "canaries": canaries_table(
            audit.accounts, analyse_canaries(audit.accounts), load_power()
        ),
        "membership": membership_table(inputs.probes, bounds),
        "memorisation": memorisation_table(inputs.probes),
        "rehearsal": rehearsal_table(plan, inputs),
        "calibration": calibration_table(audit),
        "rounds": rounds_table(audit),
        "disclosures": [disclosure_table(each, plan) for each in audit.disclosures],
        "traffic": traffic_table(audit),
        "evaluations": _evaluations(audit.accounts.aggregator),
        "measurement": _measurement(audit.accounts.aggregator),
        "transcripts": [
            transcript_table(account, audit.evidence)
            for account in audit.accounts.everyone
        ],
        "missing": list(audit.evidence.missing),
        "limits": limits(plan),
        "samples": inputs.samples.to_table() if inputs.samples else None,
    }
    content["checklist"] = checklist(audit, content)
    return apply_class(plan, content, report_class, include=include_unprotected)


def _run(plan: RunPlan) -> Table:
    """Return who took part in what."""
    protection = plan.protection
    return {
        "name": plan.name,
        "plan_digest": plan.digest.hex(),
        "num_rounds": plan.num_rounds,
        "aggregator_key": plan.aggregator.identity_key,
        "protection": protection.method,
        "threshold": protection.threshold_for(len(plan.silos)),
        "min_cohort": protection.min_cohort,
        "max_colluding": protection.max_colluding,
        "trust": protection.trust,
        "silos": [
            {"name": silo.name, "identity_key": silo.identity_key}
            for silo in plan.silos
        ],
    }


def verdict_table(audit: Audit, privacy: Table | None) -> Table:
    """Return the verdict in words and counts."""
    return {
        "severity": str(audit.verdict),
        "headline": headline(audit),
        "sentences": sentences(audit),
        "claim": claim_facts(audit, privacy),
        "not_covered": not_covered(audit),
        "counts": {str(each): len(audit.with_severity(each)) for each in Severity},
    }


def _findings(audit: Audit) -> list[Table]:
    """Return all findings, in the order in which the checks were made."""
    return [
        {
            "check": finding.check,
            "title": CHECKS[finding.check],
            "severity": str(finding.severity),
            "party": finding.party,
            "round_number": finding.round_number,
            "statement": finding.statement,
            "evidence": list(finding.evidence),
        }
        for finding in audit.findings
    ]


def _evaluations(account: Account | None) -> list[Table]:
    """Return the Fréchet distances, each with all that it depends on."""
    return [
        to_table(placed.record)
        for placed in (account.all(Evaluated) if account else ())
    ]


def _measurement(account: Account | None) -> Table | None:
    """Return mean and spread of what the silos measured, where they did."""
    placed = account.last(MeasuredInSilos) if account else None
    if placed is None:
        return None
    table: Table = to_table(placed.record)
    return table | {"sentence": measurement_sentence(placed.record)}
