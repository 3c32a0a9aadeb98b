"""The privacy of a run, as a report says it: claim, price, and what is left out."""

from math import ceil, exp, floor, isfinite, log10
from typing import Any

from audits.accounts import Accounts
from audits.budget import Spending, spendings
from audits.findings import listing
from privacy.accounting import gaussian_mu, privacy_profile
from privacy.events import SampledGaussian
from protocol.mechanism import not_covered, steps_of_run
from protocol.plan import RunPlan
from protocol.records import PrivacySpent

Table = dict[str, Any]

PROFILE_EPSILONS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0)
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)


def privacy_table(accounts: Accounts) -> Table | None:
    """Return what a report says of differential privacy; nothing without a mechanism.

    ``ceilings`` are the largest true-positive rates that any membership attack can
    have at a false-positive rate, by the privacy profile of the silo that spent most.
    """
    plan = accounts.plan
    if not plan.privacy.is_private:
        return None
    spent = spendings(accounts)
    table: Table = {
        "claim": claim(plan, spent),
        "mechanism": _mechanism(plan),
        "silos": [_spending(each) for each in spent],
        "not_covered": list(not_covered(plan)),
        "profile": [],
        "ceilings": [],
        "gaussian_mu": None,
    }
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


def claim(plan: RunPlan, spent: list[Spending]) -> str:
    """Return the sentence that may be quoted; it is made from the evidence alone."""
    if not spent:
        return "Nothing can be claimed: no transcript says what was spent."
    most = max(spent, key=lambda spending: spending.epsilon)
    unit = "image" if plan.privacy.unit == "example" else "patient"
    sentence = (
        f"Whoever sees everything that left the silos, all rounds and the final model, "
        f"learns almost the same whether or not any one {unit} was in a silo's data: "
        f"(epsilon {_up(most.epsilon)}, delta {plan.privacy.delta:g})-differential "
        f"privacy per {unit}, neighbouring data sets differing by adding or removing "
        f"one, for the silo that spent most ({most.silo})."
    )
    if any(spending.has_earlier for spending in spent):
        total = max(spending.account_epsilon for spending in spent)
        sentence += (
            f" Together with earlier runs on the same data: epsilon {_up(total)}."
        )
    silent = len(plan.silos) - len(spent)
    if silent:
        sentence += f" Nothing is said of {silent} silos whose transcripts are missing."
    return sentence + (
        f" It holds for each silo by itself; if several silos hold the same {unit}, "
        "their epsilons add up."
    )


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
        "epsilon": each.epsilon,
        "epsilon_prv": each.epsilon_prv,
        "account_epsilon": each.account_epsilon,
    }


def _events_of_most(
    accounts: Accounts, spent: list[Spending]
) -> tuple[SampledGaussian, ...]:
    """Return the events of the silo that spent most."""
    if not spent:
        return ()
    most = max(spent, key=lambda spending: spending.epsilon)
    last = accounts.silos[most.silo].last(PrivacySpent)
    return last.record.events if last else ()


def _up(epsilon: float) -> str:
    """Return an epsilon in four digits, rounded up."""
    if not isfinite(epsilon) or epsilon <= 0:
        return f"{epsilon:g}"
    unit = 10.0 ** (floor(log10(epsilon)) - 3)
    return f"{ceil(epsilon / unit - 1e-9) * unit:.6g}"


def board_sentence(plan: RunPlan, spent: list[Spending]) -> str:
    """Return the verdict's sentence on privacy."""
    if not plan.privacy.is_private:
        return ""
    if len(spent) < len(plan.silos):
        named = {each.silo for each in spent}
        silent = listing(silo.name for silo in plan.silos if silo.name not in named)
        return f"What {silent} spent of the privacy budget is not known."
    most = max(spent, key=lambda spending: spending.epsilon)
    unit = "image" if plan.privacy.unit == "example" else "patient"
    return (
        f"What any one {unit} can change about all that left a silo is bounded: "
        f"epsilon {_up(most.epsilon)} at delta {plan.privacy.delta:g}."
    )
