"""Claims of epsilon in long runs: which are priced, and which are caught."""

import gc
from dataclasses import replace

import pytest

import audits.claims
from audits.claims import MAX_PRICED, wrong_claims
from privacy.events import SampledGaussian

EVENT = SampledGaussian(
    sample_rate=0.1, noise_multiplier=2.0, clipping_norm=1.0, steps=1
)
OTHER = replace(EVENT, noise_multiplier=1.0)
LONG = 1000


@pytest.fixture(autouse=True)
def priced(monkeypatch):
    """Steps cost their square root; what was priced is kept."""
    asked = []

    def epsilon(events, delta):
        asked.append(tuple(events))
        return sum(event.steps for event in events) ** 0.5

    monkeypatch.setattr(audits.claims, "epsilon", epsilon)
    monkeypatch.setattr(gc, "collect", lambda: 0)
    audits.claims._price.cache_clear()
    yield asked
    audits.claims._price.cache_clear()


def honest(number):
    return [((EVENT.times(n),), n**0.5) for n in range(1, number + 1)]


def test_every_claim_of_a_short_run_is_priced(priced):
    assert list(wrong_claims(honest(MAX_PRICED), 1e-5)) == []
    assert len(priced) == MAX_PRICED


def test_an_honest_long_run_needs_few_prices(priced):
    assert list(wrong_claims(honest(LONG), 1e-5)) == []
    assert len(priced) == MAX_PRICED
    assert {(EVENT,), (EVENT.times(LONG),)} <= set(priced)


@pytest.mark.parametrize("index", [0, 500, LONG - 1])
@pytest.mark.parametrize("factor", [0.5, 2.0, 0.0, float("inf")])
def test_a_lie_in_a_long_run_is_found(index, factor):
    claims = honest(LONG)
    events, claim = claims[index]
    claims[index] = (events, claim * factor)
    assert list(wrong_claims(claims, 1e-5)) == [(index, claim)]


def test_a_small_lie_about_the_last_round_is_found():
    claims = honest(LONG)
    claims[-1] = (claims[-1][0], claims[-1][1] * 0.998)
    assert [index for index, _ in wrong_claims(claims, 1e-5)] == [LONG - 1]


@pytest.mark.parametrize("events", [(EVENT.times(400),), (OTHER.times(700),)])
def test_events_out_of_order_are_priced_themselves(events, priced):
    """A claim that fits its neighbours is wrong if its own events do not."""
    claims = honest(LONG)
    claims[500] = (events, claims[500][1])
    assert [index for index, _ in wrong_claims(claims, 1e-5)] == [500]
    assert events in priced


@pytest.mark.parametrize("number", [0, 1, 2, MAX_PRICED + 1])
def test_any_number_of_claims(number):
    assert list(wrong_claims(honest(number), 1e-5)) == []
