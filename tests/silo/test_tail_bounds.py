import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from silo.tail_bounds import (
    binomial_gap,
    binomial_probabilities,
    count_surprise,
    gap_limit,
    norm_limit,
    normal_gap,
    normal_limit,
)

RATES = [0.1, 1e-3, 1e-8]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("num_values", [1, 10, 3000, 10**6])
def test_norms_stray_farther_less_often_than_stated(num_values, rate):
    limit = norm_limit(num_values, rate)
    above = stats.chi2.sf(num_values * (1 + limit), num_values)
    below = stats.chi2.cdf(num_values * max(0.0, 1 - limit), num_values)
    assert above + below <= rate
    # And not so rarely that the bound would say nothing: a tenth of it is passed.
    assert stats.chi2.sf(num_values * (1 + limit / 10), num_values) > rate


@pytest.mark.parametrize("rate", RATES)
def test_normals_are_larger_less_often_than_stated(rate):
    assert rate / 100 < 2 * stats.norm.sf(normal_limit(rate)) <= rate


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("n", [5, 50, 4000])
def test_distribution_functions_stray_less_often_than_stated(n, rate):
    limit = gap_limit(n, rate)
    assert stats.kstwo.sf(limit, n) <= rate * (1 + 1e-6)


def test_the_distance_from_the_normal_is_scipys():
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=100), rng.uniform(size=7), np.zeros(1)):
        expected = stats.kstest(values, "norm").statistic
        assert normal_gap(values) == pytest.approx(expected, rel=1e-9)
    assert normal_gap(np.array([0.0, np.nan])) >= 0.5


@given(n=st.integers(1, 300), rate=st.floats(1e-6, 1 - 1e-6))
def test_binomial_probabilities_are_scipys(n, rate):
    expected = stats.binom.pmf(np.arange(n + 1), n, rate)
    assert np.allclose(binomial_probabilities(n, rate), expected, atol=1e-10)


def test_a_certain_draw():
    assert binomial_probabilities(3, 1.0).tolist() == [0, 0, 0, 1]
    assert binomial_gap(np.array([3, 3]), 3, 1.0) == 0
    assert binomial_gap(np.array([3, 2]), 3, 1.0) == 0.5


def test_the_distance_from_a_binomial_by_hand():
    # Bin(2, 1/2) has 1/4, 1/2, 1/4; always one success has 0, 1, 0.
    assert binomial_gap(np.array([1, 1, 1]), 2, 0.5) == pytest.approx(0.25)


@given(n=st.integers(1, 2000), rate=st.floats(1e-4, 1.0), share=st.floats(0, 1))
def test_counts_are_no_likelier_than_stated(n, rate, share):
    count = round(share * n)
    tail = min(stats.binom.cdf(count, n, rate), stats.binom.sf(count - 1, n, rate))
    assert float(count_surprise(count, n, rate)) >= min(1.0, 2 * tail) * (1 - 1e-6)


def test_impossible_counts_are_a_surprise():
    assert float(count_surprise(0, 100, 0.5)) == pytest.approx(2 * 0.5**100)
    assert float(count_surprise(9, 10, 1.0)) == 0
    assert float(count_surprise(10, 10, 1.0)) == 1
    assert count_surprise([5, 0], 10, 0.5).tolist() == [1.0, 2 * 0.5**10]
