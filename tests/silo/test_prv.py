"""Opacus's PRV beside the enforced price: they share no code."""

import math
import re

import pytest

from privacy.accounting import claims_agree, epsilon
from privacy.events import SampledGaussian
from silo.prv import PrvClaim, prv_epsilon


def run(q: float, sigma: float, steps: int) -> SampledGaussian:
    return SampledGaussian(
        sample_rate=q, noise_multiplier=sigma, clipping_norm=1.0, steps=steps
    )


@pytest.mark.parametrize(
    "events",
    [
        [run(4096 / 60000, 73.8, 4394)],
        [run(4096 / 60000, 2.38, 4394)],
        [run(0.01, 1.0, 1)],
        [run(1.0, 10.0, 100)],
        [run(0.02, 1.1, 300), run(0.1, 3.0, 50), run(0.02, 1.1, 200)],
        [run(1e-5, 1.0, 1000)],
    ],
)
def test_the_two_accountants_agree(events: list[SampledGaussian]) -> None:
    claim = prv_epsilon(events, 1e-5)
    price = epsilon(events, 1e-5)
    assert claim.epsilon is not None
    assert claim.reason == ""
    assert claims_agree(price, claim.epsilon, claim.eps_error)
    # It is an upper bound: its estimate plus its error.
    assert price * 0.9999 <= claim.epsilon <= price * 1.001 + 1.1 * claim.eps_error


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_wrong_ledger_is_noticed(factor: float) -> None:
    claim = prv_epsilon([run(0.02, 1.1 * factor, 300)], 1e-5)
    assert claim.epsilon is not None
    price = epsilon([run(0.02, 1.1, 300)], 1e-5)
    assert not claims_agree(price, claim.epsilon, claim.eps_error)


def test_pieces_are_counted_together() -> None:
    pieces = [run(0.02, 1.1, 100), run(0.1, 2.0, 5), run(0.02, 1.1, 200)]
    whole = [run(0.1, 2.0, 5), run(0.02, 1.1, 300)]
    assert prv_epsilon(pieces, 1e-5) == prv_epsilon(whole, 1e-5)


def test_a_smaller_error_can_be_asked_for() -> None:
    events = [run(0.02, 1.1, 300)]
    close = prv_epsilon(events, 1e-5, eps_error=0.001)
    assert close.eps_error == 0.001
    assert close.epsilon == pytest.approx(epsilon(events, 1e-5) + 0.001, abs=5e-4)


def test_a_small_epsilon_is_told_with_a_smaller_error() -> None:
    assert prv_epsilon([run(0.02, 1.1, 300)], 1e-5).eps_error == 0.01
    small = prv_epsilon([run(0.1, 20.0, 100)], 1e-5)
    assert small.eps_error == 0.001
    assert small.epsilon == pytest.approx(
        epsilon([run(0.1, 20.0, 100)], 1e-5) + 0.001, abs=1e-4
    )


def test_nothing_costs_nothing() -> None:
    assert prv_epsilon([], 1e-5) == PrvClaim(0.0, 0.01)


@pytest.mark.parametrize(
    ("event", "delta", "reason"),
    [
        (run(0.01, 2.0, 10**6), 1e-5, "needs .* cells"),
        (run(0.5, 1.0, 10**4), 1e-5, "needs .* cells"),
        (run(0.01, 1e-4, 10), 1e-5, "needs .* cells"),
        (run(0.01, 1.0, 10), 1e-16, "Floating point errors"),
    ],
)
def test_what_would_not_end_is_not_begun(
    event: SampledGaussian, delta: float, reason: str
) -> None:
    claim = prv_epsilon([event], delta)
    assert claim.epsilon is None
    assert re.search(reason, claim.reason), claim.reason
    assert "\n" not in claim.reason


def test_many_different_events_count_towards_the_limit() -> None:
    events = [run(0.01, 1.0 + i / 1000, 100) for i in range(60)]
    assert prv_epsilon(events[:5], 1e-5).epsilon is not None
    assert prv_epsilon(events, 1e-5).epsilon is None


@pytest.mark.parametrize(
    ("delta", "error"), [(0.0, 0.01), (1.0, 0.01), (1e-5, 0.0), (1e-5, math.nan)]
)
def test_numbers_out_of_range_are_refused(delta: float, error: float) -> None:
    with pytest.raises(ValueError, match="out of range"):
        prv_epsilon([run(0.1, 1.0, 1)], delta, eps_error=error)
