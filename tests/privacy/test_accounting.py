"""The price against exact formulas, plain integration, published values and itself."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from privacy import accounting
from privacy.accounting import (
    MARGIN,
    RESOLUTION,
    TOLERANCE,
    Budget,
    claims_agree,
    delta_for,
    epsilon,
    epsilon_on_grid,
    gaussian_mu,
    price,
    privacy_profile,
    smallest_delta,
    would_exceed,
)
from privacy.calibration import calibrate
from privacy.errors import Uncalibrated
from privacy.events import SampledGaussian
from privacy.gaussian_curve import gaussian_delta, smallest_mu

RATE, STEPS, DELTA = 4096 / 60000, 4394, 1e-5
PUBLISHED = [(0.2, 73.8, 0.061), (1.0, 16.92, 0.268), (10.0, 2.38, 2.00)]
SEVERAL = settings(max_examples=4, deadline=None)


def run(q: float, sigma: float, steps: int) -> SampledGaussian:
    return SampledGaussian(
        sample_rate=q, noise_multiplier=sigma, clipping_norm=1.0, steps=steps
    )


def exact_gaussian_delta(mu: float, eps: float) -> float:
    """Balle & Wang, 2018, theorem 8, as it stands there."""
    return norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)


def exact_gaussian_epsilon(mu: float, delta: float) -> float:
    top = mu * mu + 40 * mu
    return brentq(lambda e: exact_gaussian_delta(mu, e) - delta, 0, top, xtol=1e-12)


def integrated_delta(q: float, sigma: float, eps: float) -> float:
    """One step: ∫ max(0, p − e^ε r) dx, the worse of both directions."""
    x = np.linspace(-14 * sigma, 1 + 14 * sigma, 400_001)
    without = norm.pdf(x, 0, sigma)
    with_one = (1 - q) * without + q * norm.pdf(x, 1, sigma)
    forth = np.maximum(0, with_one - math.exp(eps) * without)
    back = np.maximum(0, without - math.exp(eps) * with_one)
    return float(max(np.trapezoid(forth, x), np.trapezoid(back, x)))


@pytest.mark.parametrize(("target", "sigma", "mu"), PUBLISHED)
def test_published_multipliers(target: float, sigma: float, mu: float) -> None:
    found = calibrate(target, DELTA, sample_rate=RATE, clipping_norm=1.0, steps=STEPS)
    assert found == pytest.approx(sigma, rel=2e-3)
    spent = epsilon([run(RATE, found, STEPS)], DELTA)
    assert target * (1 - TOLERANCE) <= spent <= target * (1 - MARGIN)
    # mu-GDP of the whole profile tells nearly the same epsilon at this delta.
    assert gaussian_mu([run(RATE, found, STEPS)]) == pytest.approx(mu, rel=6e-3)
    assert exact_gaussian_delta(mu, target) == pytest.approx(DELTA, rel=0.08)


def test_a_grid_of_a_thousandth_is_rejected() -> None:
    events = [run(RATE, 73.8, STEPS)]
    coarse, halved = (epsilon_on_grid(events, DELTA, g) for g in (1e-3, 5e-4))
    assert coarse == pytest.approx(0.2204, rel=2e-3)
    assert coarse - halved > 50 * TOLERANCE * halved
    # On that grid alone one would take the multiplier 82.2 for 0.2.
    assert epsilon_on_grid([run(RATE, 82.1, STEPS)], DELTA, 1e-3) > 0.2
    assert epsilon_on_grid([run(RATE, 82.4, STEPS)], DELTA, 1e-3) < 0.2
    # A search that begins there goes on until the grid is fine enough.
    groups = accounting._groups(events)
    found, grid = accounting._refined(groups, DELTA, 1e-3)
    assert grid <= 1.25e-4
    assert found == pytest.approx(0.2, rel=1.5e-3)
    half = epsilon_on_grid(events, DELTA, grid / 2)
    assert 0 <= found - half <= TOLERANCE * half


@pytest.mark.parametrize(
    ("size", "batch", "steps", "sigma", "expected"),
    [
        (12000, 128, 500, 1.19, 1),
        (12000, 128, 500, 0.76, 3),
        (12000, 128, 500, 0.51, 10),
        (12000, 512, 2000, 7.21, 1),
        (12000, 512, 2000, 2.78, 3),
        (12000, 512, 2000, 1.18, 10),
        (1000, 64, 2000, 1.0, 22.4),
        (15000, 256, 2000, 1.0, 4.69),
    ],
)
def test_published_prices(
    size: int, batch: int, steps: int, sigma: float, expected: float
) -> None:
    # The multipliers have three digits: half a unit of 0.51 is 1.5 % of epsilon.
    found = epsilon([run(batch / size, sigma, steps)], DELTA)
    assert found == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize("mu", [1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("delta", [1e-10, 1e-5, 1e-2])
def test_full_batches_cost_what_the_exact_formula_says(mu: float, delta: float) -> None:
    steps = 1000
    found = epsilon([run(1.0, math.sqrt(steps) / mu, steps)], delta)
    if exact_gaussian_delta(mu, 0) <= delta:
        assert found == 0
        return
    exact = exact_gaussian_epsilon(mu, delta)
    assert exact <= found <= exact * (1 + TOLERANCE)
    assert delta_for([run(1.0, 1 / mu, 1)], exact) == pytest.approx(delta, rel=0.01)


@pytest.mark.parametrize("steps", [1000, 100_000])
@pytest.mark.parametrize("delta", [1e-9, 1e-6])
def test_transforms_of_many_steps_stay_on_the_safe_side(
    steps: int, delta: float
) -> None:
    # Composed one by one, not by the formula for plain Gaussians that is used else.
    groups = ((1.0, math.sqrt(steps), steps),)
    grid = accounting._first_grid(groups)
    found = accounting._epsilon_on_grid(groups, delta, grid)
    exact = exact_gaussian_epsilon(1.0, delta)
    assert exact <= found
    assert found <= exact * (1 + TOLERANCE) or delta < 100 * RESOLUTION * steps


@pytest.mark.parametrize(
    ("q", "sigma"), [(0.01, 0.5), (0.01, 1.0), (0.2, 2.0), (0.9, 0.8), (0.001, 0.4)]
)
def test_one_subsampled_step_against_plain_integration(q: float, sigma: float) -> None:
    for eps in (0.0, 0.05, 0.5, 2.0):
        exact = integrated_delta(q, sigma, eps)
        found = delta_for([run(q, sigma, 1)], eps)
        assert exact * (1 - 1e-6) - 1e-12 <= found <= exact * 1.02 + 1e-10


def test_nothing_costs_nothing() -> None:
    assert price([], 1e-5) == (0.0, 0.0)
    assert delta_for([], 0.0) == 0.0
    assert privacy_profile([], [0.0, 1.0]) == (0.0, 0.0)
    assert gaussian_mu([]) == 0.0


def test_extremes_are_infinite_or_honest() -> None:
    assert epsilon([run(0.01, 1.0, 10)], 1e-15) == math.inf
    events = [run(0.01, 1.0, 1000)]
    assert epsilon(events, smallest_delta(events)) == math.inf
    assert math.isfinite(epsilon(events, 10 * smallest_delta(events)))
    # More loss than any grid holds; a single Gaussian's is known: mu²/2 and more.
    assert epsilon([run(0.01, 1e-5, 10)], 1e-5) == math.inf
    assert epsilon([run(1.0, 1e-5, 1)], 1e-5) == math.inf
    assert delta_for([run(1.0, 1e-5, 1)], 1.0) == 1.0
    assert 5e5 < epsilon([run(1.0, 1e-3, 1)], 1e-5) < 5.1e5
    # So much noise that the two data sets can hardly be told apart at all.
    assert epsilon([run(0.5, 1e300, 1000)], 1e-5) == 0.0
    tiny = epsilon([run(0.5, 1e6, 1000)], 1e-9)
    exact = exact_gaussian_epsilon(0.5e-6 * math.sqrt(1000), 1e-9)
    assert exact * 0.9999 <= tiny <= exact * 1.001
    # A delta above the chance of ever being drawn needs no noise.
    assert epsilon([run(1e-6, 0.001, 10)], 1.1e-5) == 0.0
    assert delta_for([run(1e-6, 0.001, 10)], 0.0) <= 1.01e-5


def test_a_million_steps() -> None:
    found, grid = price([run(0.1, 500.0, 10**6)], 1e-5)
    exact = exact_gaussian_epsilon(0.1 * 1000 / 500, 1e-5)
    assert found == pytest.approx(exact, rel=0.01)
    assert grid < 1e-5


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_what_is_no_delta_is_refused(delta: float) -> None:
    for call in (
        lambda: epsilon([run(0.1, 1.0, 1)], delta),
        lambda: Budget(1.0, delta),
        lambda: gaussian_mu([run(0.1, 1.0, 1)], last_delta=delta),
        lambda: calibrate(1, delta, sample_rate=0.1, clipping_norm=1, steps=1),
    ):
        with pytest.raises(ValueError, match=r"^delta: "):
            call()


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_target_is_refused(target: float) -> None:
    for call in (
        lambda: Budget(target, 1e-5),
        lambda: calibrate(target, 1e-5, sample_rate=0.1, clipping_norm=1, steps=1),
    ):
        with pytest.raises(ValueError, match=r"^epsilon: "):
            call()
    if not target >= 0:
        with pytest.raises(ValueError, match=r"^epsilon: "):
            delta_for([run(0.1, 1.0, 1)], target)


MECHANISM = {
    "q": st.floats(0.02, 1.0),
    "sigma": st.floats(0.9, 30.0),
    "steps": st.integers(1, 2000),
}
LOOSER = 1 + MARGIN


@SEVERAL
@given(**MECHANISM, more=st.floats(1.0, 3.0))
def test_the_price_is_monotone(q: float, sigma: float, steps: int, more: float) -> None:
    cost = epsilon([run(q, sigma, steps)], 1e-6)
    assert cost <= epsilon([run(q, sigma, math.ceil(more * steps))], 1e-6) * LOOSER
    assert cost <= epsilon([run(min(1, more * q), sigma, steps)], 1e-6) * LOOSER
    assert cost <= epsilon([run(q, sigma, steps)], 1e-6 / more) * LOOSER
    assert cost * LOOSER >= epsilon([run(q, sigma * more, steps)], 1e-6)


@SEVERAL
@given(**MECHANISM, cut=st.floats(0, 1))
def test_pieces_cost_what_the_whole_costs(
    q: float, sigma: float, steps: int, cut: float
) -> None:
    first = round(cut * steps)
    other = run(0.05, 2.0, 40)
    pieces = [run(q, sigma, n) for n in (first, steps - first) if n]
    whole = epsilon([run(q, sigma, steps), other], 1e-6)
    assert epsilon([pieces[0], other, *pieces[1:]], 1e-6) == whole


def test_staged_composition_is_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = ((0.02, 1.3, 1000),)
    grid = accounting._first_grid(groups)
    direct = accounting._epsilon_on_grid(groups, 1e-6, grid)
    accounting._composed.cache_clear()
    monkeypatch.setattr(accounting, "STAGE_STEPS", 7)
    assert accounting._epsilon_on_grid(groups, 1e-6, grid) == pytest.approx(
        direct, rel=1e-8
    )
    accounting._composed.cache_clear()


def test_different_mechanisms_compose() -> None:
    # Two halves at nearly the same multiplier cost what the whole does between them.
    low, high = (epsilon([run(0.1, s, 400)], 1e-5) for s in (2.02, 2.0))
    assert low < epsilon([run(0.1, 2.02, 200), run(0.1, 2.0, 200)], 1e-5) < high
    # A plain Gaussian beside steps that hardly matter.
    alone = exact_gaussian_epsilon(1.0, 1e-5)
    both = epsilon([run(0.01, 100.0, 10), run(1.0, 1.0, 1)], 1e-5)
    assert alone <= both <= alone * 1.002


def test_different_plain_gaussians_compose_exactly() -> None:
    # 16 steps at 8 and 9 at 6: mu² = 16/64 + 9/36 = 1/2.
    exact = exact_gaussian_epsilon(math.sqrt(0.5), 1e-5)
    found = epsilon([run(1.0, 8.0, 16), run(1.0, 6.0, 9)], 1e-5)
    assert exact <= found <= exact * (1 + TOLERANCE)


def test_epsilon_and_delta_are_inverse() -> None:
    events = [run(0.02, 1.1, 300)]
    found = epsilon(events, 1e-5)
    assert delta_for(events, found) == pytest.approx(1e-5, rel=0.02)
    profile = privacy_profile(events, [0.0, 0.5, 1.0, found, 50.0])
    assert list(profile) == sorted(profile, reverse=True)
    assert profile[0] < 1
    assert 0 < profile[-1] <= 2 * smallest_delta(events)


def test_mu_of_one_gaussian_is_its_own() -> None:
    for mu in (0.05, 1.0, 5.0):
        found = gaussian_mu([run(1.0, 2 / mu, 4)])
        assert mu <= found <= mu * 1.001
    assert gaussian_mu([run(1.0, 1e-6, 1)]) == math.inf


def test_the_gaussian_curve_lies_above_the_profile() -> None:
    events = [run(0.02, 0.8, 100)]
    mu = gaussian_mu(events)
    for eps in np.linspace(0, epsilon(events, 1e-6), 5):
        assert delta_for(events, float(eps)) <= gaussian_delta(mu, float(eps)) * 1.05
    # Rare large losses: no central limit here, and mu grows with the range.
    assert gaussian_mu(events, last_delta=1e-3) < 0.9 * mu


def test_the_gaussian_curve_itself() -> None:
    assert gaussian_delta(0.0, 0.0) == 0.0
    for mu, eps in ((0.5, 0.0), (1.0, 1.0), (3.0, 10.0)):
        assert gaussian_delta(mu, eps) == pytest.approx(exact_gaussian_delta(mu, eps))
        delta = gaussian_delta(mu, eps)
        assert smallest_mu(eps, delta) == pytest.approx(mu, rel=1e-5)
        assert gaussian_delta(smallest_mu(eps, delta), eps) >= delta


def test_would_exceed_at_the_border() -> None:
    spent, planned = [run(0.02, 1.1, 100)], [run(0.02, 1.1, 200)]
    both = epsilon([run(0.02, 1.1, 300)], 1e-5)
    assert not would_exceed(Budget(both, 1e-5), spent, planned)
    assert would_exceed(Budget(both * (1 - 1e-12), 1e-5), spent, planned)
    assert not would_exceed(Budget(1e-9, 1e-5), [], [])
    assert would_exceed(Budget(1e9, 1e-16), spent, [])
    assert would_exceed(Budget(1e9, 1e-5), [], [run(0.5, 1e-5, 1)])


@pytest.mark.parametrize("taken", [1, 250, 499])
def test_what_fits_as_a_whole_fits_on_the_way(taken: int) -> None:
    sigma = calibrate(2.0, 1e-5, sample_rate=0.02, clipping_norm=1.0, steps=500)
    spent, rest = [run(0.02, sigma, taken)], [run(0.02, sigma, 500 - taken)]
    budget = Budget(2.0, 1e-5)
    assert not would_exceed(budget, spent, rest)
    assert not would_exceed(budget, spent, [])
    assert would_exceed(budget, spent, [*rest, run(0.02, sigma, 10)])


@SEVERAL
@given(
    target=st.floats(0.05, 10.0),
    q=st.sampled_from([0.05, 0.3, 1.0]),
    steps=st.integers(1, 1000),
)
def test_calibration_is_private_close_and_short(
    target: float, q: float, steps: int
) -> None:
    sigma = calibrate(target, 1e-5, sample_rate=q, clipping_norm=1.0, steps=steps)
    assert sigma == float(f"{sigma:.5g}")
    spent = epsilon([run(q, sigma, steps)], 1e-5)
    assert spent <= target
    one_less = sigma - 10.0 ** (math.floor(math.log10(sigma)) - 4)
    less_noise = epsilon([run(q, one_less, steps)], 1e-5)
    assert spent >= target * (1 - TOLERANCE) or less_noise > target * (1 - MARGIN)


def test_calibration_counts_what_was_before() -> None:
    before = [run(0.1, 4.0, 100), run(1.0, 20.0, 3)]
    alone = calibrate(3, 1e-5, sample_rate=0.1, clipping_norm=1, steps=300)
    after = calibrate(
        3, 1e-5, sample_rate=0.1, clipping_norm=1, steps=300, before=before
    )
    assert after > alone
    spent = epsilon([*before, run(0.1, after, 300)], 1e-5)
    assert 3 * (1 - TOLERANCE) <= spent <= 3


@pytest.mark.parametrize(
    ("target", "delta", "before", "message"),
    [
        (1.0, 1e-5, [run(0.02, 1.0, 2000)], "what was released before costs"),
        (1.0, 1e-13, [], "delta 1e-13 is too small"),
        (1e-9, 1e-9, [], "no noise multiplier up to 1e"),
    ],
)
def test_a_target_that_nothing_reaches(
    target: float, delta: float, before: list[SampledGaussian], message: str
) -> None:
    with pytest.raises(Uncalibrated, match=message) as caught:
        calibrate(
            target,
            delta,
            sample_rate=0.1,
            clipping_norm=1.0,
            steps=1000,
            before=before,
        )
    assert "\n" not in str(caught.value)


def test_a_target_that_everything_reaches() -> None:
    found = calibrate(1.0, 0.5, sample_rate=0.1, clipping_norm=1.0, steps=2)
    assert found == accounting.SMALLEST_MULTIPLIER
    assert epsilon([run(0.1, found, 2)], 0.5) == 0.0


@pytest.mark.parametrize(
    ("pld", "prv", "agree"),
    [
        (1.0, 1.01, True),
        (1.0, 1.0299, True),
        (1.0, 0.9901, True),
        (1.0, 1.0301, False),
        (1.0, 0.9899, False),
        (0.0, 0.0199, True),
        (0.0, 0.0201, False),
        (0.2, 0.2219, True),
        (0.2, 0.2221, False),
        (10.0, 10.119, True),
        (10.0, 10.121, False),
        (10.0, 9.899, False),
        (math.inf, math.inf, False),
        (1.0, math.nan, False),
        (1.0, math.inf, False),
    ],
)
def test_claims_agree_within_a_hundredth_and_the_stated_error(
    pld: float, prv: float, agree: bool
) -> None:
    assert claims_agree(pld, prv, 0.01) is agree


def test_claims_do_not_agree_by_an_unbounded_error() -> None:
    assert not claims_agree(1.0, 3.0, math.inf)
    assert not claims_agree(1.0, 1.0, -0.001)
