"""The privacy of a run, as a report says it: claim, price, and what is left out."""

from math import exp, isfinite
from typing import Any

from audits.accounts import Accounts
from audits.audit import Audit
from audits.findings import Severity, listing
from audits.spending import Spending, quoted_noise, spendings
from privacy.accounting import gaussian_mu, privacy_profile
from privacy.events import SampledGaussian
from protocol import noise_claim
from protocol.mechanism import not_covered, run_epsilon, steps_of_run
from protocol.plan import RunPlan
from protocol.records import PrivacySpent

Table = dict[str, Any]

IN_SEVERAL = (
    " Who is in s silos is a group of s in the same sum: s times epsilon, and a delta "
    "that grows as e to the (s - 1) epsilon."
)

NOTHING = (
    "No epsilon may be quoted of this run: a check failed. The findings say which."
)

PROFILE_EPSILONS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0)
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)


def privacy_table(audit: Audit) -> Table | None:
    """Return what a report says of differential privacy; nothing without a mechanism.

    ``ceilings`` are the largest true-positive rates that any membership attack can
    have at a false-positive rate, by the privacy profile of the silo that spent most.
    """
    accounts = audit.accounts
    plan = accounts.plan
    if not plan.privacy.is_private:
        return None
    spent = spendings(accounts)
    table: Table = {
        "claim": claim(plan, spent) if may_quote(audit) else NOTHING,
        "mechanism": _mechanism(plan),
        "headings": ["Epsilon (PLD)", "Epsilon (PRV)"],
        "silos": [_spending(each) for each in spent],
        "not_covered": list(not_covered(plan)),
        "profile": [],
        "ceilings": [],
        "gaussian_mu": None,
    }
    if plan.privacy.is_in_sum:
        table["headings"] = ["Epsilon (Rényi)", "If secure aggregation fails"]
    events = _events_of_most(accounts, spent)
    if events:
        profile = list(
            zip(
                PROFILE_EPSILONS, privacy_profile(events, PROFILE_EPSILONS), strict=True
            )
        )
        table["profile"] = [[eps, float(delta)] for eps, delta in profile]
        table["ceilings"] = [
            [rate, ceiling(profile, rate)] for rate in FALSE_POSITIVE_RATES
        ]
        table["gaussian_mu"] = gaussian_mu(events)
    return table


def may_quote(audit: Audit) -> bool:
    """Return whether an epsilon may be quoted: only if no check failed at all."""
    return not audit.with_severity(Severity.FAIL)


def claim(plan: RunPlan, spent: list[Spending]) -> str:
    """Return the sentence that may be quoted; it is made from the evidence alone."""
    if not spent:
        return "Nothing can be claimed: no transcript says what was spent."
    most = max(spent, key=lambda spending: spending.epsilon)
    unit = "image" if plan.privacy.unit == "example" else "patient"
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
        f"data: (epsilon {_quoted(plan, most)}, delta {plan.privacy.delta:g})-"
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


def _quoted(plan: RunPlan, most: Spending) -> str:
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


def ceiling(profile: list[tuple[float, float]], rate: float) -> float:
    """Return the largest true-positive rate at a false-positive rate.

    TPR <= e^epsilon FPR + delta(epsilon) for every epsilon, and TPR <= 1 - (1 - FPR -
    delta) / e^epsilon by the same for the complement (Kairouz, Oh & Viswanath, 2015);
    the smallest over the profile's points.
    """
    bounds = [1.0]
    for epsilon, delta in profile:
        bounds.append(exp(epsilon) * rate + delta)
        bounds.append(1.0 - (1.0 - rate - delta) * exp(-epsilon))
    return min(bounds)


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


def _events_of_most(
    accounts: Accounts, spent: list[Spending]
) -> tuple[SampledGaussian, ...]:
    """Return the events of the silo that spent most."""
    if not spent:
        return ()
    most = max(spent, key=lambda spending: spending.epsilon)
    last = accounts.silos[most.silo].last(PrivacySpent)
    return last.record.events if last else ()


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
    unit = "image" if plan.privacy.unit == "example" else "patient"
    return (
        f"What any one {unit} can change about all that the mechanism released is "
        f"bounded: epsilon {_quoted(plan, most)} at delta {plan.privacy.delta:g}."
    )
