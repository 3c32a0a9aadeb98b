"""Curves of the price: epsilon over rounds, privacy profile, ceiling on attacks."""

from collections.abc import Sequence
from functools import lru_cache
from math import isfinite
from typing import Any

import numpy as np

from audits.accounts import Account, Accounts
from audits.spending import Spending, spent_records
from privacy import pricing
from privacy.accounting import gaussian_mu, privacy_profile
from privacy.attack_statistics import ceiling, group_of_two
from privacy.events import Event, SampledGaussian
from protocol.mechanism import run_epsilon
from protocol.records import PrivacySpent

Table = dict[str, Any]
Points = list[list[float]]

PROFILE_POINTS = 97
SMALLEST_DELTA = 1e-9
RENYI_DELTAS = tuple(10.0 ** (-power / 2) for power in range(1, 19))
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)
TRADE_OFF_RATES = tuple(float(x) for x in np.logspace(-3, 0, 31))
MAX_ROUND_POINTS = 24

NO_CURVES: Table = {
    "over_rounds": [],
    "profile": [],
    "trade_off": [],
    "ceilings": [],
    "gaussian_mu": None,
}


def curves(accounts: Accounts, spent: list[Spending]) -> Table:
    """Return what follows from the events of the silo that spent most, and over rounds.

    ``ceilings`` are the largest true-positive rates that any membership attack can
    have at a false-positive rate; ``trade_off`` is the same as a curve.
    """
    table = dict(NO_CURVES)
    delta = accounts.plan.privacy.delta
    table["over_rounds"] = [
        {"silo": each.silo, "points": _over_rounds(accounts.silos[each.silo], delta)}
        for each in spent
    ]
    events = events_of_most(accounts, spent)
    if not events:
        return table
    profile, mu = _described(tuple(events))
    table["profile"] = [list(point) for point in profile]
    table["ceilings"] = _ceilings(profile, FALSE_POSITIVE_RATES)
    table["trade_off"] = trade_off(table["profile"])
    table["gaussian_mu"] = mu
    return table


def budget(accounts: Accounts, spent: list[Spending]) -> Table:
    """Return target, price of the whole run as planned, and what was spent at most."""
    privacy = accounts.plan.privacy
    planned = run_epsilon(accounts.plan, privacy.delta)
    most = max((each.epsilon for each in spent), default=None)
    return {
        "delta": privacy.delta,
        "target": privacy.epsilon or None,
        "planned": planned if isfinite(planned) else None,
        "spent": most if most is not None and isfinite(most) else None,
    }


@lru_cache(maxsize=32)
def _described(
    events: tuple[Event, ...],
) -> tuple[tuple[tuple[float, float], ...], float | None]:
    """Return the privacy profile of events, and its Gaussian curve if it has one."""
    profile = tuple((epsilon, delta) for epsilon, delta in profile_of(events))
    gaussians = [each for each in events if isinstance(each, SampledGaussian)]
    if len(gaussians) < len(events):
        return profile, None
    mu = gaussian_mu(gaussians)
    return profile, mu if isfinite(mu) else None


def profile_of(events: Sequence[Event]) -> Points:
    """Return pairs of epsilon and delta that hold, epsilon ascending.

    By PLD at even steps of epsilon; with noise in the sum by Rényi divergence at some
    deltas.
    """
    gaussians = [event for event in events if isinstance(event, SampledGaussian)]
    if len(gaussians) == len(events):
        last = pricing.epsilon(gaussians, SMALLEST_DELTA)
        epsilons = np.linspace(0.0, last if isfinite(last) else 20.0, PROFILE_POINTS)
        values = [float(each) for each in epsilons]
        deltas = privacy_profile(gaussians, values)
        return [[eps, float(d)] for eps, d in zip(values, deltas, strict=True)]
    pairs = [[pricing.epsilon(events, delta), delta] for delta in RENYI_DELTAS]
    return sorted(pair for pair in pairs if isfinite(pair[0]))


def events_of_most(accounts: Accounts, spent: list[Spending]) -> tuple[Event, ...]:
    """Return the events of the silo that spent most."""
    if not spent:
        return ()
    most = max(spent, key=lambda spending: spending.epsilon)
    records = spent_records(accounts.silos[most.silo])
    return records[-1].record.events if records else ()


def attack_profile(accounts: Accounts, silo: str) -> Points:
    """Return what bounds attacks on single images of a silo, as a privacy profile.

    That of what DP-SGD released in this run; with what earlier runs on the same data
    released where the run began from an earlier one's parameters. Where a patient is
    the unit, one of their images in the place of none changes two units. Empty where
    nothing bounds them.
    """
    plan = accounts.plan
    account = accounts.silos.get(silo)
    spent = account.last(PrivacySpent) if account else None
    if plan.privacy.mechanism != "dp-sgd" or spent is None:
        return []
    earlier = spent.record.earlier if plan.initial.origin == "run" else ()
    profile, _ = _described((*earlier, *spent.record.events))
    if plan.privacy.unit == "patient":
        return [list(group_of_two(epsilon, delta)) for epsilon, delta in profile]
    return [list(point) for point in profile]


def trade_off(profile: Points) -> Points:
    """Return the ceiling as a curve, for figures; nothing without a profile."""
    return _ceilings(profile, TRADE_OFF_RATES) if profile else []


def _ceilings(profile: Sequence[Sequence[float]], rates: Sequence[float]) -> Points:
    """Return pairs of a false-positive rate and the ceiling there."""
    return [[rate, ceiling(rate, profile)] for rate in rates]


def _over_rounds(account: Account, delta: float) -> Points:
    """Return pairs of a round and what a silo had spent after it; at most so many."""
    records = [placed.record for placed in spent_records(account)]
    step = max(1, -(-len(records) // MAX_ROUND_POINTS))
    chosen = records[::-step][::-1]
    priced = [
        (each.round_number, pricing.epsilon(each.events, delta)) for each in chosen
    ]
    return [[number, price] for number, price in priced if isfinite(price)]
