"""The privacy of a run, as a report says it: claim, price, and what is left out."""

from math import isfinite
from typing import Any

from audits.audit import Audit
from audits.findings import Severity, listing
from audits.report.curves import NO_CURVES, budget, curves
from audits.spending import Spending, quoted_noise, spendings
from protocol import noise_claim
from protocol.mechanism import not_covered, run_epsilon, steps_of_run
from protocol.plan import RunPlan

Table = dict[str, Any]

IN_SEVERAL = (
    " Who is in s silos is a group of s in the same sum: s times epsilon, and a delta "
    "that grows as e to the (s - 1) epsilon."
)

NOTHING = (
    "No epsilon may be quoted of this run: a check failed. The findings say which."
)


def privacy_table(audit: Audit) -> Table | None:
    """Return what a report says of differential privacy; nothing without a mechanism.

    The curves are left out where no epsilon may be quoted.
    """
    accounts = audit.accounts
    plan = accounts.plan
    if not plan.privacy.is_private:
        return None
    spent, quotable = spendings(accounts), may_quote(audit)
    headings = ["Epsilon (PLD)", "Epsilon (PRV)"]
    if plan.privacy.is_in_sum:
        headings = ["Epsilon (Rényi)", "If secure aggregation fails"]
    return {
        "claim": claim(plan, spent) if quotable else NOTHING,
        "mechanism": _mechanism(plan),
        "headings": headings,
        "silos": [_spending(each) for each in spent],
        "not_covered": list(not_covered(plan)),
        "budget": budget(accounts, spent),
        **(curves(accounts, spent) if quotable else NO_CURVES),
    }


def claim_facts(audit: Audit, privacy: Table | None) -> list[list[str]]:
    """Return the claim's parts as pairs of words; nothing where nothing is claimed."""
    plan, spent = audit.evidence.plan, spendings(audit.accounts)
    if privacy is None or not may_quote(audit) or not spent:
        return []
    most = max(spent, key=lambda spending: spending.epsilon)
    if plan.privacy.is_in_sum:
        epsilon = noise_claim.upward(quoted_noise(plan, most)[0])
        against = noise_claim.assumption(plan)
        unit = noise_claim.unit_of(plan)
        relation = "as the unit says"
    else:
        epsilon, unit = quoted(plan, most), _unit(plan)
        against = (
            "everyone outside the silo: aggregator, network, other silos, whoever has "
            "the model; with or without secure aggregation"
        )
        relation = f"one {unit} added to or removed from one silo's data"
    mu = privacy["gaussian_mu"]
    facts = [
        ["Privacy unit", unit],
        ["Neighbouring data sets", relation],
        ["Epsilon", f"{epsilon}, for the whole run as planned"],
        ["Delta", f"{plan.privacy.delta:g}"],
        ["Against", against],
        ["Rounds", f"{plan.num_rounds:,} planned; all of them are in the price"],
    ]
    if mu is not None:
        released = f"mu {mu:.3g} for what was released, down to a delta of 1e-6"
        facts.insert(4, ["As Gaussian DP", released])
    return facts


def _unit(plan: RunPlan) -> str:
    """Name the privacy unit of DP-SGD."""
    return "image" if plan.privacy.unit == "example" else "patient"


def may_quote(audit: Audit) -> bool:
    """Return whether an epsilon may be quoted: only if no check failed at all."""
    return not audit.with_severity(Severity.FAIL)


def claim(plan: RunPlan, spent: list[Spending]) -> str:
    """Return the sentence that may be quoted; it is made from the evidence alone."""
    if not spent:
        return "Nothing can be claimed: no transcript says what was spent."
    most = max(spent, key=lambda spending: spending.epsilon)
    unit = _unit(plan)
    if plan.privacy.is_in_sum:
        whole, share = quoted_noise(plan, most)
        said = noise_claim.as_sentence(
            f"{noise_claim.claim(plan, whole)}, the price of the whole run as planned, "
            f"{noise_claim.assumption(plan)}"
        )
        fails = noise_claim.as_sentence(noise_claim.if_it_fails(share))
        sentence = f"{said} {fails} {noise_claim.signal(plan)}".rstrip()
        return sentence + _earlier(spent) + _silent(plan, spent) + IN_SEVERAL
    sentence = (
        f"Whoever sees all that the mechanism released, in all rounds, and the final "
        f"model learns almost the same whether or not any one {unit} was in a silo's "
        f"data: (epsilon {quoted(plan, most)}, delta {plan.privacy.delta:g})-"
        f"differential privacy per {unit}, neighbouring data sets differing by adding "
        "or removing one, for every silo: the price of the whole run as planned. What "
        "it does not cover is listed below."
    )
    return (
        sentence
        + _earlier(spent)
        + _silent(plan, spent)
        + f" It holds for each silo by itself; if several silos hold the same {unit}, "
        "their epsilons and deltas add up."
    )


def quoted(plan: RunPlan, most: Spending) -> str:
    """Return the epsilon of the whole run as planned, or what was spent if more.

    A run that ended early is not cheaper: who ended it may have looked at it.
    """
    planned = run_epsilon(plan, plan.privacy.delta)
    return noise_claim.upward(max(planned, most.epsilon))


def _earlier(spent: list[Spending]) -> str:
    """Say what was spent together with earlier runs, where there are any."""
    if not any(spending.has_earlier for spending in spent):
        return ""
    total = noise_claim.upward(max(spending.account_epsilon for spending in spent))
    return f" Together with earlier runs on the same data: epsilon {total}."


def _silent(plan: RunPlan, spent: list[Spending]) -> str:
    """Say of how many silos nothing is known."""
    silent = len(plan.silos) - len(spent)
    if not silent:
        return ""
    said = f" Nothing is said of {silent} silos whose transcripts are missing."
    if plan.privacy.is_in_sum:
        said += " What is said of the others rests on the noise of those, too."
    return said


def _mechanism(plan: RunPlan) -> list[list[str]]:
    """Return the mechanism as pairs of words."""
    if plan.privacy.is_in_sum:
        return noise_claim.mechanism_rows(plan)
    privacy = plan.privacy
    unit = privacy.unit
    rows = [
        ["Mechanism", "DP-SGD: Poisson sampling, clipping, Gaussian noise"],
        ["Privacy unit", unit],
        ["Neighbouring relation", f"one {unit} added or removed"],
        ["Delta", f"{privacy.delta:g}"],
        ["Target epsilon", f"{privacy.epsilon:g}" if privacy.epsilon else "none given"],
        ["Sample rate", f"{privacy.sample_rate:g}"],
        ["Noise multiplier", f"{privacy.noise_multiplier:g}"],
        ["Clipping norm of a gradient", f"{privacy.clipping_norm:g}"],
        ["Steps of the whole run", f"{steps_of_run(plan):,}"],
        ["Accountants", "PLD (enforced and recomputed here), PRV (the silos' second)"],
    ]
    if unit == "patient":
        most = privacy.max_images_per_patient
        rows.insert(2, ["Images of a patient in a step", f"at most {most}"])
    return rows


def _spending(each: Spending) -> Table:
    """Return what one silo spent."""
    return {
        "silo": each.silo,
        "round_number": each.round_number,
        "steps": each.steps,
        "multiplicity": each.multiplicity,
        "epsilon": _finite(each.epsilon),
        "epsilon_prv": each.epsilon_prv,
        "share_epsilon": _finite(each.share_epsilon),
        "second": _finite(
            each.epsilon_prv if each.share_epsilon is None else each.share_epsilon
        ),
        "account_epsilon": _finite(each.account_epsilon),
    }


def _finite(epsilon: float | None) -> float | None:
    """Return an epsilon; None for infinity, which JSON cannot hold."""
    return epsilon if epsilon is not None and isfinite(epsilon) else None


def board_sentence(audit: Audit) -> str:
    """Return the verdict's sentence on privacy."""
    plan, spent = audit.evidence.plan, spendings(audit.accounts)
    if not plan.privacy.is_private:
        return ""
    if not may_quote(audit):
        return NOTHING
    if len(spent) < len(plan.silos):
        named = {each.silo for each in spent}
        silent = listing(silo.name for silo in plan.silos if silo.name not in named)
        return f"What {silent} spent of the privacy budget is not known."
    most = max(spent, key=lambda spending: spending.epsilon)
    if plan.privacy.is_in_sum:
        whole, share = quoted_noise(plan, most)
        return noise_claim.as_sentence(
            f"{noise_claim.claim(plan, whole)}, {noise_claim.assumption(plan)}; "
            f"{noise_claim.if_it_fails(share)}"
        )
    unit = _unit(plan)
    return (
        f"What any one {unit} can change about all that the mechanism released is "
        f"bounded: epsilon {quoted(plan, most)} at delta {plan.privacy.delta:g}."
    )
