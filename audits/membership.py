"""What opened canaries tell: were they committed to, and do their scores fit the claim?

A silo that planted canaries wrote a commitment before it trained, and opened it at the
end with every canary's score. From the seed follows which were included; from that and
the scores how much privacy was lost at least, and whether noise, sampling and steps can
have been those that were claimed. Scores are the silo's word, as its events are: a silo
that invents them deceives this check, not one that made a mistake.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from audits.accounts import Account, Accounts
from audits.findings import Finding, fail, listing, settle, warn
from audits.openings import broken, canaries_of, canary_events, opening, unopened
from privacy.accounting import gaussian_mu
from privacy.canary_tests import (
    NUM_SIMULATIONS,
    CanaryClaim,
    Power,
    power,
    refutations,
)
from privacy.events import SampledGaussian
from privacy.gaussian_curve import gaussian_epsilon
from privacy.lower_bounds import LowerBound, Scores, lower_bounds
from privacy.pricing import epsilon
from protocol.audit_records import CanariesCommitted, CanariesOpened
from protocol.canaries import CanaryForm, draw_included
from protocol.noise_claim import upward
from protocol.plan import RunPlan
from protocol.reference_settings import training_events

CONFIDENCE = 0.95
"""Of each lower bound that is told."""

FALSE_ALARM = 1e-6
"""How often canaries of a run whose silos did all as claimed fail it, at most: shared
out over the silos, their canaries of both forms, and the tests."""

LAST_DELTA = 1e-11
"""Down to which the Gaussian curve that is tested lies above the claimed profile; the
test of the curve makes no use of smaller chances."""

DELTA_WITHOUT_CLAIM = 1e-5
"""At which bounds are told where the plan has no delta."""

MAX_SIMULATED = 10_000
"""Canaries of a simulated run, at most: the power of more is told as that of so many,
which is no larger and takes seconds."""

MIN_IN_GROUP = 2
"""Fewer included, or not included, canaries tell nothing."""

FORMS: tuple[CanaryForm, ...] = ("gradient", "input")


@dataclass(frozen=True, kw_only=True)
class CanaryAnalysis:
    """What one silo's canaries of one form tell.

    ``claimed_epsilon`` is the price of the silo's events of this run, None where
    nothing is claimed of what the canaries saw. ``expected_gap`` is by how much
    included gradient canaries score higher under the claim, ``expected_stddev`` what
    the noise does to every score, ``expected_included_stddev`` noise and sampling
    together to the included ones, in clipping norms; None for input canaries.
    ``powers`` are how often each fault is caught in simulated runs, ``refuted`` the
    tests that the claim did not pass, as sentences, ``doubtful`` the names of bounds
    above the claim, which may be chance.
    """

    silo: str
    form: CanaryForm
    num_canaries: int
    num_included: int
    included_scores: tuple[float, ...]
    excluded_scores: tuple[float, ...]
    claimed_epsilon: float | None
    delta: float
    expected_gap: float | None
    expected_stddev: float | None
    expected_included_stddev: float | None
    bounds: tuple[LowerBound, ...]
    powers: tuple[Power, ...]
    refuted: tuple[str, ...]
    doubtful: tuple[str, ...]


def analyse_canaries(accounts: Accounts) -> tuple[CanaryAnalysis, ...]:
    """Return what the canaries of every silo tell that opened them as committed.

    Guarantees: deterministic; empty where no silo planted any.
    """
    return tuple(
        _analysis(accounts.plan, account, opened.record)
        for account in accounts.silos.values()
        for form in FORMS
        if (opened := opening(account, form)) and not list(broken(account, form))
    )


def check_canaries(accounts: Accounts) -> list[Finding]:
    """Return the findings on canaries; none where no silo planted any."""
    planted = [
        (account, form)
        for account in accounts.silos.values()
        for form in FORMS
        if canaries_of(account, CanariesCommitted, form) or opening(account, form)
    ]
    if not planted:
        return []
    found = [
        finding
        for account, form in planted
        for finding in (
            *broken(account, form),
            *unopened(account, form),
        )
    ]
    analyses = analyse_canaries(accounts)
    for analysis in analyses:
        found += _refuted(analysis)
    return settle("canaries", found, _statement(analyses), *_evidence(analyses))


def _analysis(
    plan: RunPlan, account: Account, opened: CanariesOpened
) -> CanaryAnalysis:
    """Return what canaries tell that were opened as committed."""
    scores = np.array(opened.scores, np.float64)
    is_included = draw_included(bytes.fromhex(opened.seed), scores.size)
    included, excluded = scores[is_included], scores[~is_included]
    claim = _claim(plan, account, opened)
    delta = claim.delta if claim else DELTA_WITHOUT_CLAIM
    bounds: tuple[LowerBound, ...] = ()
    refuted: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    powers: tuple[Power, ...] = ()
    if min(included.size, excluded.size) >= MIN_IN_GROUP:
        bounds = lower_bounds(included, excluded, delta, CONFIDENCE)
        if claim:
            refuted = _contradictions(plan, included, excluded, claim)
            doubtful = tuple(_above(bounds, claim))
            powers = power(claim, min(scores.size, MAX_SIMULATED), _alarm(plan))
    mechanism = claim if claim and claim.events else None
    noise = mechanism.noise_stddev if mechanism else None
    return CanaryAnalysis(
        silo=account.party,
        form=opened.form,
        num_canaries=scores.size,
        num_included=included.size,
        included_scores=tuple(included.tolist()),
        excluded_scores=tuple(excluded.tolist()),
        claimed_epsilon=claim.epsilon if claim else None,
        delta=delta,
        expected_gap=mechanism.expected_gap if mechanism else None,
        expected_stddev=noise,
        expected_included_stddev=math.sqrt(
            mechanism.noise_stddev**2 + mechanism.sampling_variance
        )
        if mechanism
        else None,
        bounds=bounds,
        powers=powers,
        refuted=refuted,
        doubtful=doubtful,
    )


def _alarm(plan: RunPlan) -> float:
    """Return the chance of a false alarm that canaries of one form in one silo have."""
    return FALSE_ALARM / (len(plan.silos) * len(FORMS))


def _contradictions(
    plan: RunPlan, included: Scores, excluded: Scores, claim: CanaryClaim
) -> tuple[str, ...]:
    """Return what the claim did not pass, as sentences without their beginning."""
    found = refutations(included, excluded, claim, _alarm(plan))
    return tuple(f"{one.test}: {one.statement}" for one in found)


def _above(bounds: tuple[LowerBound, ...], claim: CanaryClaim) -> Iterator[str]:
    """Yield the names of bounds above the claim, each against its kind of curve."""
    claimed = {
        "any": claim.epsilon,
        "gaussian": max(claim.epsilon, gaussian_epsilon(claim.mu, claim.delta)),
    }
    for bound in bounds:
        if bound.kind == "bound" and bound.epsilon > claimed[bound.curve]:
            yield bound.name


def _claim(
    plan: RunPlan, account: Account, opened: CanariesOpened
) -> CanaryClaim | None:
    """Return what a silo claims of what its canaries saw.

    Nothing without DP-SGD: what is noised in the sum alone is not private in the silo,
    where canaries are scored.
    """
    events = canary_events(account)
    if plan.privacy.is_in_sum or not events or not plan.privacy.is_private:
        return None
    scored: tuple[SampledGaussian, ...] = ()
    if opened.form == "gradient":
        scored = _scored(training_events(plan, events), opened.num_steps)
    return _priced(events, plan.privacy.delta, scored)


@lru_cache(maxsize=64)
def _priced(
    events: tuple[SampledGaussian, ...],
    delta: float,
    scored: tuple[SampledGaussian, ...],
) -> CanaryClaim:
    """Return a claim with its price, and the Gaussian curve above its profile."""
    return CanaryClaim(
        epsilon=epsilon(events, delta),
        mu=gaussian_mu(events, last_delta=LAST_DELTA),
        delta=delta,
        events=scored,
        last_delta=LAST_DELTA,
    )


def _scored(
    events: tuple[SampledGaussian, ...], num_steps: int
) -> tuple[SampledGaussian, ...]:
    """Return the first so many steps: after a crash not all were scored."""
    left, scored = num_steps, []
    for event in events:
        steps = min(event.steps, left)
        if steps:
            scored.append(event.times(steps))
        left -= steps
    return tuple(scored)


def _refuted(analysis: CanaryAnalysis) -> Iterator[Finding]:
    """Yield the tests that a silo's claim did not pass, or that a bound lies above."""
    for sentence in analysis.refuted:
        yield fail(
            "canaries",
            f"{analysis.silo}: its {analysis.form} canaries contradict its claim of "
            f"epsilon {upward(analysis.claimed_epsilon)}: {sentence}.",
            *_bounds(analysis),
            party=analysis.silo,
        )
    if analysis.doubtful and not analysis.refuted:
        yield warn(
            "canaries",
            f"{analysis.silo}: by its {analysis.form} canaries epsilon may be above "
            f"the claimed {upward(analysis.claimed_epsilon)}: so says "
            f"{listing(analysis.doubtful)}, which without fault happens in one run of "
            f"{round(1 / (1 - CONFIDENCE))} at most for each bound.",
            *_bounds(analysis),
            party=analysis.silo,
        )


def _statement(analyses: tuple[CanaryAnalysis, ...]) -> str:
    """Return what passing means, and how little that may be."""
    said = f"No violation found in the canaries of {_whose(analyses)}. "
    if not any(analysis.claimed_epsilon is not None for analysis in analyses):
        return said + (
            "Nothing is claimed of what they saw, so nothing could be refuted; the "
            "bounds say what was lost at least."
        )
    return said + (
        "This proves no epsilon: the bounds say what was lost at least, and the "
        "evidence says which faults would have been found. All these tests together "
        f"fail a run without fault at most once in {round(1 / FALSE_ALARM):,} runs. "
        "Gradient canaries are added after the clip and see no fault of the clip."
    )


def _whose(analyses: tuple[CanaryAnalysis, ...]) -> str:
    """Return whose canaries were analysed."""
    return listing(dict.fromkeys(analysis.silo for analysis in analyses))


def _evidence(analyses: tuple[CanaryAnalysis, ...]) -> Iterator[str]:
    """Yield bounds and power, silo by silo."""
    for analysis in analyses:
        yield from _bounds(analysis)
        if analysis.powers:
            caught = ", ".join(
                f"{one.fault} {one.caught:.0%}" for one in analysis.powers
            )
            yield (
                f"{analysis.silo}: found among {NUM_SIMULATIONS} simulated runs with "
                f"ideal scores of {min(analysis.num_canaries, MAX_SIMULATED):,} "
                f"canaries: {caught}"
            )


def _bounds(analysis: CanaryAnalysis) -> Iterator[str]:
    """Yield what the bounds and the estimate say, in one line."""
    head = (
        f"{analysis.silo}, {analysis.num_canaries:,} {analysis.form} canaries, "
        f"{analysis.num_included:,} included"
    )
    if not analysis.bounds:
        yield f"{head}: too few to tell anything"
        return
    said = "; ".join(
        f"{bound.name} {'at least ' if bound.kind == 'bound' else ''}"
        f"{downward(bound.epsilon)}" + ("" if bound.kind == "bound" else " (no bound)")
        for bound in analysis.bounds
    )
    yield (
        f"{head}: epsilon at delta {analysis.delta:g}, each with {CONFIDENCE:.0%} "
        f"confidence: {said}"
    )


def downward(bound: float) -> str:
    """Return a lower bound in three digits after the point at most, rounded down."""
    return f"{math.floor(bound * 1000) / 1000:g}" if math.isfinite(bound) else "∞"
