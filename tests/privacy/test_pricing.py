"""One price for all kinds of events."""

import math
from dataclasses import replace

import pytest

from privacy import accounting
from privacy.accounting import Budget
from privacy.distributed import distributed_epsilon
from privacy.distributed import share_epsilon as distributed_share
from privacy.events import NoisySum, SampledGaussian, merged
from privacy.pricing import epsilon, share_epsilon, would_exceed

DELTA = 1e-5
GAUSSIAN = SampledGaussian(
    sample_rate=0.05, noise_multiplier=1.5, clipping_norm=1.0, steps=40
)
NOISE = NoisySum(
    sample_rate=0.05,
    clipping_norm=1.0,
    sensitivity=1000.0,
    share_variance=750_000,
    min_survivors=4,
    max_colluding=1,
    length=1000,
    steps=40,
)
"""The noise of three honest silos is 1.5 times the sensitivity: as GAUSSIAN's."""


def test_dp_sgd_alone_is_priced_by_pld():
    assert epsilon([GAUSSIAN], DELTA) == accounting.epsilon([GAUSSIAN], DELTA)
    assert epsilon([], DELTA) == 0.0


def test_noise_in_the_sum_alone_is_priced_as_distributed_epsilon_does():
    options = {"sample_rate": 0.05, "rounds": 40}
    assert epsilon([NOISE], DELTA) == distributed_epsilon(NOISE.noise, DELTA, **options)
    assert share_epsilon([NOISE], DELTA) == distributed_share(
        NOISE.noise, DELTA, **options
    )
    assert NOISE.noise.noise_multiplier == pytest.approx(1.5)


def test_pieces_and_their_order_do_not_matter():
    whole = epsilon([NOISE, GAUSSIAN], DELTA)
    pieces = [GAUSSIAN.times(15), NOISE.times(39), GAUSSIAN.times(25), NOISE.times(1)]
    assert epsilon(pieces, DELTA) == whole
    assert merged([NOISE, NOISE, GAUSSIAN]) == (NOISE.times(80), GAUSSIAN)


def test_a_mixture_costs_what_twice_the_steps_of_one_kind_cost():
    # Both are a Gaussian of multiplier 1.5 to Rényi divergence.
    mixed = epsilon([NOISE, GAUSSIAN], DELTA)
    assert mixed == pytest.approx(epsilon([NOISE.times(80)], DELTA), rel=1e-6)
    assert mixed > accounting.epsilon([GAUSSIAN.times(80)], DELTA)
    for one in (NOISE, GAUSSIAN):
        assert mixed > epsilon([one], DELTA)


def test_unsampled_events_join_sampled_ones():
    every = replace(NOISE, sample_rate=1.0, share_variance=10**9, steps=1)
    assert epsilon([NOISE, every], DELTA) > epsilon([NOISE], DELTA)
    more = [NOISE, replace(every, share_variance=10**7)]
    assert epsilon(more, DELTA) > epsilon([NOISE, every], DELTA)


def test_a_budget_counts_all_kinds():
    price = epsilon([NOISE, GAUSSIAN], DELTA)
    assert not would_exceed(Budget(price, DELTA), [GAUSSIAN], [NOISE])
    assert would_exceed(Budget(0.999 * price, DELTA), [GAUSSIAN], [NOISE])


@pytest.mark.parametrize(
    "changes",
    [
        {"share_variance": 1, "steps": 9999},
        {"sensitivity": 1e300},
        {"sensitivity": 1e300, "sample_rate": 1.0},
        {"steps": 1 << 53},
        {"length": 1 << 53, "share_variance": 1},
    ],
)
def test_what_cannot_be_priced_costs_infinity(changes):
    assert math.isinf(epsilon([replace(NOISE, **changes), GAUSSIAN], DELTA))


def test_much_noise_for_little_has_a_price():
    quiet = replace(NOISE, sensitivity=1e-300, min_survivors=1 << 16)
    assert 0 <= epsilon([quiet], DELTA) < 0.01


@pytest.mark.parametrize(
    "changes",
    [
        {"sample_rate": 0.0},
        {"clipping_norm": 0.0},
        {"steps": 0},
        {"max_colluding": 0},
        {"min_survivors": 3},
        {"steps": 1 << 60},
        {"min_survivors": 1 << 40},
        {"length": 1 << 60},
        {"sensitivity": 0.0},
        {"length": 0},
    ],
)
def test_an_event_out_of_range_is_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes)).split("_")[0]):
        replace(NOISE, **changes)
