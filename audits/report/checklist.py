"""Pitfalls of private, federated training, each held against this run.

After the table of pitfalls with severities in google-deepmind/jax_privacy. ``state``
is "avoided" where plan or evidence exclude the pitfall, "present" where they show it,
"unknown" where neither can.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from audits.audit import Audit
from audits.findings import Severity
from audits.sums import least_survivors
from protocol.records import LedgerOpened

Table = dict[str, Any]
State = Literal["avoided", "present", "unknown", "not applicable"]
Verdict = tuple[State, str]

LARGE_EPSILON = 10.0


@dataclass(frozen=True)
class Pitfall:
    """One pitfall: its severity, its name, and how a run is held against it."""

    severity: Literal["critical", "serious", "minor"]
    title: str
    judge: Callable[[Audit, Table], Verdict]


def checklist(audit: Audit, content: Table) -> list[Table]:
    """Return every pitfall with what the evidence says of it."""
    rows = []
    for pitfall in PITFALLS:
        state, why = pitfall.judge(audit, content)
        rows.append(
            {
                "severity": pitfall.severity,
                "pitfall": pitfall.title,
                "state": state,
                "why": why,
            }
        )
    return rows


def _checked(audit: Audit, check: str, good: str) -> Verdict:
    """Return what the findings of one check say of a pitfall."""
    found = [finding for finding in audit.findings if finding.check == check]
    if not found:
        return "not applicable", f"the check “{check}” has nothing to look at here"
    bad = [finding for finding in found if finding.severity == Severity.FAIL]
    if bad:
        return "present", bad[0].statement
    if any(finding.severity == Severity.WARN for finding in found):
        return "unknown", f"the check “{check}” has a reservation"
    return "avoided", good


def _no_privacy(audit: Audit, content: Table) -> Verdict:
    privacy = audit.evidence.plan.privacy
    if not privacy.is_private:
        return "present", "no mechanism: mean and model may reveal training examples"
    return "avoided", f"mechanism {privacy.mechanism}"


def _clear(audit: Audit, content: Table) -> Verdict:
    if audit.evidence.plan.protection.method == "none":
        return "present", "the plan sends every update in the clear"
    is_encrypted = audit.evidence.plan.protection.is_encrypted
    word = "encrypted" if is_encrypted else "masked"
    return _checked(audit, "protection", f"all updates were {word}, as the plan says")


def _one_key(audit: Audit, content: Table) -> Verdict:
    if not audit.evidence.plan.protection.is_encrypted:
        return "not applicable", "the silos share no key"
    return (
        "present",
        "every silo has the key; one that gives it to the aggregator opens every "
        "update, and no number of honest silos prevents it",
    )


def _randomness(audit: Audit, content: Table) -> Verdict:
    return _checked(audit, "randomness", "the operating system's, as each silo says")


def _uncounted(audit: Audit, content: Table) -> Verdict:
    return _checked(audit, "mechanism", "events and rounds fit, in every transcript")


def _one_price(audit: Audit, content: Table) -> Verdict:
    return _checked(audit, "epsilon", "recomputed here; compared with every claim")


def _sampling(audit: Audit, content: Table) -> Verdict:
    privacy = audit.evidence.plan.privacy
    if not privacy.is_private or privacy.mechanism == "silo":
        return "not applicable", "nothing is sampled by a mechanism"
    return (
        "unknown",
        "plan and price say Poisson; that the silos' batches are is for "
        "`silo self-test` to show",
    )


def _clip(audit: Audit, content: Table) -> Verdict:
    if not audit.evidence.plan.privacy.is_private:
        return "not applicable", "nothing is clipped for privacy"
    return (
        "unknown",
        "gradients leave no trace in transcripts; gradient canaries cannot show it "
        "either, `silo self-test` can",
    )


def _large(audit: Audit, content: Table) -> Verdict:
    privacy = content["privacy"]
    if not privacy or privacy["budget"]["planned"] is None:
        return "not applicable", "no epsilon"
    planned = privacy["budget"]["planned"]
    if planned > LARGE_EPSILON * (1 + 1e-6):
        return "present", f"epsilon {planned:.4g} promises little by itself"
    return "avoided", f"epsilon {planned:.4g}, not above {LARGE_EPSILON:g}"


def _delta(audit: Audit, content: Table) -> Verdict:
    privacy = audit.evidence.plan.privacy
    if not privacy.is_private:
        return "not applicable", "no delta"
    return (
        "unknown",
        f"delta is {privacy.delta:g}; it should be below one over the number of units "
        "of the smallest silo, which no transcript tells",
    )


def _person(audit: Audit, content: Table) -> Verdict:
    unit = audit.evidence.plan.privacy.unit
    if not audit.evidence.plan.privacy.is_private:
        return "not applicable", "no privacy unit"
    if unit == "example":
        return (
            "unknown",
            "the unit is one image; who has several images has a multiple of epsilon",
        )
    return "avoided", f"the unit is a {unit}"


def _shared_people(audit: Audit, content: Table) -> Verdict:
    if not audit.evidence.plan.privacy.is_private:
        return "not applicable", "no epsilon to add up"
    return "unknown", "nobody has stated that the silos hold different people"


def _fresh(audit: Audit, content: Table) -> Verdict:
    if not audit.evidence.plan.privacy.is_private:
        return "not applicable", "no ledgers"
    fresh = [
        account.party
        for account in audit.accounts.silos.values()
        if any(placed.record.fresh for placed in account.all(LedgerOpened))
    ]
    if fresh:
        return "present", f"new accounts were opened by {', '.join(fresh)}"
    return "avoided", "every silo counted its earlier runs on the same data"


def _tuning(audit: Audit, content: Table) -> Verdict:
    return (
        "unknown",
        "trials whose results somebody looked at cost privacy; only those in a silo's "
        "ledger are counted",
    )


def _statistics(audit: Audit, content: Table) -> Verdict:
    if audit.evidence.plan.evaluation.is_asked_for:
        return (
            "present",
            "the plan publishes Fréchet distances against real reference statistics; "
            "no epsilon covers them",
        )
    return "avoided", "the plan publishes no measurement against real images"


def _small_sums(audit: Audit, content: Table) -> Verdict:
    plan = audit.evidence.plan
    if plan.protection.method == "none":
        return "not applicable", "there are no sums to hide in"
    least = least_survivors(audit.accounts)
    honest = least - plan.protection.max_colluding
    if honest < 3:
        return (
            "present",
            f"a sum may hold as few as {honest} honest updates: each silo can subtract "
            "its own, and knows more of the others",
        )
    return "avoided", f"every sum holds at least {honest} honest updates"


def _differencing(audit: Audit, content: Table) -> Verdict:
    if audit.evidence.plan.update.weights != "secret":
        return "avoided", "weights are public or equal"
    return "present", "the aggregator learns the sum of the silos' numbers of examples"


def _trusted(audit: Audit, content: Table) -> Verdict:
    protection = audit.evidence.plan.protection
    if protection.method == "none" or protection.trust == "semi-honest":
        return "present", "the plan trusts the aggregator to follow the protocol"
    return "avoided", "silos confirm the survivors before anything is opened"


def _one_model(audit: Audit, content: Table) -> Verdict:
    return _checked(audit, "same-model", "all silos got the same model in each round")


def _witnessed(audit: Audit, content: Table) -> Verdict:
    rows = content["rounds"]
    threshold = audit.evidence.plan.protection.threshold_for(
        len(audit.evidence.plan.silos)
    )
    if any(row["witnesses"] is None or row["witnesses"] < threshold for row in rows):
        return (
            "unknown",
            "not every round was witnessed by enough silos; a history with two faces "
            "would be found from the heads that silos kept",
        )
    return "avoided", "in each round enough silos signed the aggregator's history"


def _weak_test(audit: Audit, content: Table) -> Verdict:
    if not content["canaries"]["silos"]:
        return "not applicable", "no canaries; nothing is concluded from attacks here"
    return (
        "avoided",
        "results are worded as lower bounds, beside the table of what each check can "
        "catch",
    )


PITFALLS: tuple[Pitfall, ...] = (
    Pitfall("critical", "No differential privacy", _no_privacy),
    Pitfall("critical", "Updates readable by the aggregator", _clear),
    Pitfall("critical", "Noise from a seed that somebody knows", _randomness),
    Pitfall("critical", "Priced as Poisson, drawn otherwise", _sampling),
    Pitfall("critical", "Clipped per draw or batch, not per unit", _clip),
    Pitfall("critical", "Steps that are not counted", _uncounted),
    Pitfall("critical", "Another model for each silo", _one_model),
    Pitfall("serious", "An epsilon that events do not bear out", _one_price),
    Pitfall("serious", "Earlier runs left out of account", _fresh),
    Pitfall("serious", "Too few updates in a sum", _small_sums),
    Pitfall("serious", "One key that opens every update", _one_key),
    Pitfall("serious", "An aggregator that is trusted", _trusted),
    Pitfall("serious", "The same people in several silos", _shared_people),
    Pitfall("serious", "A privacy unit smaller than a person", _person),
    Pitfall("serious", "Choices tuned on the same data", _tuning),
    Pitfall("serious", "A large epsilon", _large),
    Pitfall("minor", "A delta that is too large", _delta),
    Pitfall("minor", "Statistics of real data published", _statistics),
    Pitfall("minor", "Sizes that give themselves away", _differencing),
    Pitfall("minor", "A history without witnesses", _witnessed),
    Pitfall("minor", "Safety concluded from a weak attack", _weak_test),
)
