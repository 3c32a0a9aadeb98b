"""Noise inside the secure sum: recomputed from the plan, and held against every sum.

The claim rests on how many silos' noise is in a sum. So beside events and prices, each
sum that anybody recorded is held to the number that the noise was reckoned for. That a
silo added the noise that it wrote down is its own word, as everywhere.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict

from audits.accounts import Account, Accounts
from audits.findings import Finding, count, fail, passed, settle, warn
from audits.spending import (
    quoted_noise,
    spendings,
    unknown_spending,
    unwritten,
    wrong_ledger,
)
from privacy.events import NoisySum
from privacy.pricing import epsilon, share_epsilon
from protocol.noise_claim import (
    as_sentence,
    assumption,
    claim,
    if_it_fails,
    signal,
    upward,
)
from protocol.noise_plan import min_survivors, prices, round_noise, run_noise
from protocol.plan import RunPlan
from protocol.records import NoiseSpent, RoundClosed, Survivors
from protocol.reference import REFERENCE_ROUND

CLAIM_TOLERANCE = 1e-3
"""How far a claim may be from the price recomputed, relatively."""
SENSITIVITY_TOLERANCE = 1e-9
"""Relative; other machines round a root otherwise."""


def check_noise(accounts: Accounts) -> list[Finding]:
    """Return the findings on a mechanism with noise inside the sum."""
    return [*_privacy(accounts), *_mechanism(accounts), *_epsilon(accounts)]


def _privacy(accounts: Accounts) -> list[Finding]:
    """Say what was spent, by the silo that spent most, and warn of too much noise."""
    plan, spent = accounts.plan, spendings(accounts)
    if unknown := unknown_spending(accounts, spent):
        return unknown
    most = max(spent, key=lambda spending: spending.epsilon)
    whole, share = quoted_noise(plan, most)
    said = f"{claim(plan, whole)}, the price of the whole run as planned, "
    said += assumption(plan)
    fails = as_sentence(if_it_fails(share))
    found = [passed("privacy", f"{as_sentence(said)} {fails}")]
    noise = signal(plan)
    return [*found, warn("privacy", noise)] if "WARNING" in noise else found


def _mechanism(accounts: Accounts) -> list[Finding]:
    """Check the events of each silo, and the number of silos in each sum."""
    plan = accounts.plan
    found = [
        finding
        for account in accounts.silos.values()
        for finding in _mechanism_of(plan, account)
    ]
    for account in accounts.everyone:
        found += _too_few(plan, account)
    event = round_noise(plan)
    return settle(
        "mechanism",
        found,
        f"Noise of variance {event.share_variance:,} from every silo, in every round "
        "that left one; no sum held fewer than the "
        f"{event.min_survivors} silos that the noise is reckoned for.",
    )


def _mechanism_of(plan: RunPlan, account: Account) -> Iterator[Finding]:
    """Yield where one silo's events are not those of the plan."""
    yield from wrong_ledger(plan, account)
    wanted = round_noise(plan)
    made: set[int] = set()
    for placed in account.all(NoiseSpent):
        spent = placed.record
        made.add(spent.round_number)
        for event in spent.events:
            if differing := _differing(event, wanted):
                yield fail(
                    "mechanism",
                    f"{account.party}, round {spent.round_number}: {differing}.",
                    party=account.party,
                    round_number=spent.round_number,
                )
        rounds = sum(event.steps for event in spent.events)
        if rounds < len(made):
            yield fail(
                "mechanism",
                f"{account.party}, round {spent.round_number}: "
                f"{count(rounds, 'round')} on account, {len(made)} were made.",
                party=account.party,
                round_number=spent.round_number,
            )
        if rounds > (most := run_noise(plan).steps):
            yield fail(
                "mechanism",
                f"{account.party}, round {spent.round_number}: "
                f"{count(rounds, 'round')} on account, the plan permits {most:,}.",
                party=account.party,
                round_number=spent.round_number,
            )
    yield from unwritten(account)


def _differing(event: NoisySum, wanted: NoisySum) -> str:
    """Say in what an event is not the plan's, or nothing."""
    ours, theirs = asdict(wanted.times(1)), asdict(event.times(1))
    same = math.isclose(
        event.sensitivity, wanted.sensitivity, rel_tol=SENSITIVITY_TOLERANCE
    )
    names = [
        name
        for name in ours
        if ours[name] != theirs[name] and not (name == "sensitivity" and same)
    ]
    return "; ".join(
        f"ran with {name.replace('_', ' ')} {theirs[name]:,}, the plan says "
        f"{ours[name]:,}"
        for name in names
    )


def _too_few(plan: RunPlan, account: Account) -> Iterator[Finding]:
    """Yield the sums that hold the noise of too few silos, as one party knows them."""
    least = min_survivors(plan)
    sums = [
        *((p.record.round_number, p.record.silos) for p in account.all(Survivors)),
        *(
            (p.record.round_number, p.record.survivors)
            for p in account.all(RoundClosed)
        ),
    ]
    for number, silos in sums:
        is_round = REFERENCE_ROUND < number <= plan.num_rounds
        if len(set(silos)) < least and is_round:
            yield fail(
                "mechanism",
                f"Round {number}: a sum of {count(len(set(silos)), 'silo')}, as "
                f"{account.party} records it; the noise is reckoned for at least "
                f"{least}.",
                party=account.party,
                round_number=number,
            )


def _epsilon(accounts: Accounts) -> list[Finding]:
    """Check every claim against its price, and the plan against its target."""
    plan = accounts.plan
    found = [
        finding
        for account in accounts.silos.values()
        for finding in _epsilon_of(plan, account)
    ]
    whole, share = prices(plan, plan.privacy.delta)
    target = plan.privacy.epsilon
    if target and whole > target * (1 + CLAIM_TOLERANCE):
        found.append(
            fail(
                "epsilon",
                f"The plan's noise costs epsilon {upward(whole)} in the whole run; its "
                f"target is {target:g}.",
            )
        )
    return settle(
        "epsilon",
        found,
        f"Recomputed from plan and events by Rényi divergence; the whole run costs "
        f"epsilon {upward(whole)} at most, {upward(share)} if secure aggregation "
        "fails.",
    )


def _epsilon_of(plan: RunPlan, account: Account) -> Iterator[Finding]:
    """Yield where one silo's claims do not hold."""
    delta, target = plan.privacy.delta, plan.privacy.epsilon
    for placed in account.all(NoiseSpent):
        spent = placed.record
        price = epsilon(spent.events, delta)
        whole = epsilon((*spent.earlier, *spent.events), delta)
        for what, claimed, due in (
            ("", spent.epsilon, price),
            (" if secure aggregation fails", spent.share_epsilon,
             share_epsilon(spent.events, delta)),
            (" with earlier runs", spent.account_epsilon, whole),
        ):  # fmt: skip
            stated = math.inf if claimed is None else claimed
            must_be_finite = what != " if secure aggregation fails"
            if not math.isclose(stated, due, rel_tol=CLAIM_TOLERANCE) or (
                must_be_finite and math.isinf(due)
            ):
                yield fail(
                    "epsilon",
                    f"{account.party}, round {spent.round_number}: claims epsilon "
                    f"{stated:.5g}{what}; its events cost {due:.5g}.",
                    party=account.party,
                    round_number=spent.round_number,
                )
    last = account.last(NoiseSpent)
    if last is not None and target:
        price = epsilon(last.record.events, delta)
        if price > target * (1 + CLAIM_TOLERANCE):
            yield fail(
                "epsilon",
                f"{account.party} spent epsilon {price:.5g}, the plan permits "
                f"{target:g}.",
                party=account.party,
                round_number=last.record.round_number,
            )
