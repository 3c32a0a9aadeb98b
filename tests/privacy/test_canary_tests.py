"""Tests of a claim by its canaries: what they catch, and what they spare."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, hypergeom, norm

from privacy.canary_tests import (
    FAULTS,
    SOUND,
    CanaryClaim,
    Fault,
    gap_deviation,
    gap_p_value,
    noise_p_value,
    outlier_p_value,
    power,
    refutations,
    simulated_scores,
)
from privacy.events import SampledGaussian
from privacy.f_dp_audit import refutes_mu

FALSE_ALARM = 1e-6


def claim_of(epsilon: float, mu: float, sigma: float) -> CanaryClaim:
    """Return a claim of the reference mechanism: Fashion-MNIST, batches of 4096."""
    event = SampledGaussian(
        sample_rate=0.0683, noise_multiplier=sigma, clipping_norm=1.0, steps=4394
    )
    return CanaryClaim(epsilon=epsilon, mu=mu, delta=1e-5, events=(event,))


TEN = claim_of(10.0, 2.005, 2.38)
ONE = claim_of(1.0, 0.268, 16.92)


class TestByHand:
    def test_what_a_claim_expects(self):
        assert TEN.expected_gap == pytest.approx(300.1, abs=0.1)
        assert TEN.noise_stddev == pytest.approx(157.76, abs=0.01)
        assert TEN.sampling_variance == pytest.approx(300.1 * 0.9317, rel=1e-3)
        twice = replace(TEN, events=TEN.events * 2)
        assert twice.expected_gap == 2 * TEN.expected_gap
        assert twice.noise_stddev == pytest.approx(math.sqrt(2) * TEN.noise_stddev)

    def test_noise_counts_the_scores_near_their_means(self):
        stddev, gap = TEN.noise_stddev, TEN.expected_gap
        excluded = np.array([0.0, 0.06, -1.1, 2.0]) * stddev
        included = gap + np.array([-0.99, -0.01, 0.2, 3.0]) * stddev
        # Five of eight within 1, four within 1/4, three within 1/16.
        p_values = [
            binom.sf(count - 1, 8, norm.cdf(width) - norm.cdf(-width))
            for width, count in ((1, 5), (1 / 4, 4), (1 / 16, 3))
        ]
        found = noise_p_value(included, excluded, TEN)
        assert found == pytest.approx(3 * min(p_values))
        far = np.full(4, 5.0) * stddev
        assert noise_p_value(gap + far, far, TEN) == 1.0

    def test_outliers_by_counting(self):
        every = SampledGaussian(
            sample_rate=1.0, noise_multiplier=1.0, clipping_norm=1.0, steps=5
        )
        claim = CanaryClaim(epsilon=1.0, mu=0.3, delta=1e-5, events=(every,))
        excluded = np.arange(32.0)
        included = np.append(np.arange(28.0) + 5.5, [100, 101, 102, 103])
        # The two highest of 64 are included (1/32), and six of eight (1/8), of which
        # four are the loud ones; excluded scores are 5 higher by sampling.
        order = np.sort(np.concatenate([excluded + 5, included]))[::-1][:8]
        seen = int(np.isin(order, included).sum())
        chances = [
            hypergeom.sf(1, 64, 32, 2),
            hypergeom.sf(seen - 1, 64, 32, 8),
        ]
        found = outlier_p_value(included, excluded, claim)
        assert found == pytest.approx(4 * min(chances))
        assert outlier_p_value(np.zeros(32) + 5, np.zeros(32), claim) == 1.0

    def test_the_gap_in_standard_errors(self):
        excluded = np.zeros(100)
        included = np.full(25, TEN.expected_gap + 1.0)
        noise = TEN.noise_stddev**2
        error = math.sqrt((noise + TEN.sampling_variance) / 25 + noise / 100)
        assert gap_deviation(included, excluded, TEN) == pytest.approx(1 / error)
        # What varies more than claimed is taken as it varies.
        excluded = np.repeat([-1e4, 1e4], 50)
        error = math.sqrt((noise + TEN.sampling_variance) / 25 + 1e8 / 99)
        assert gap_deviation(included, excluded, TEN) == pytest.approx(1 / error)


class TestPower:
    @pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
    def test_every_fault_is_caught_at_epsilon_10(self, fault):
        found = {one.fault: one for one in power(TEN, 1000, FALSE_ALARM)}
        assert found[fault.name].caught >= 0.99

    def test_what_no_one_run_bound_sees_at_epsilon_10(self):
        for one in power(TEN, 1000, FALSE_ALARM):
            caught = dict(one.by_test)
            assert caught["one-run"] == caught["one-run, f-DP"] == 0.0
        assert dict(power(TEN, 1000, FALSE_ALARM)[1].by_test)["noise"] == 1.0

    def test_at_epsilon_1_noise_is_seen_and_steps_are_not(self):
        found = {one.fault: one.caught for one in power(ONE, 1000, FALSE_ALARM)}
        assert found["noise × 0.5"] == found["no noise"] == 1.0
        assert found["half of the steps not counted"] < 0.5

    def test_input_canaries_have_no_law_to_simulate(self):
        assert power(replace(TEN, events=()), 1000, FALSE_ALARM) == ()


class TestFalseAlarms:
    @pytest.mark.parametrize("claim", [ONE, TEN], ids=["one", "ten"])
    @pytest.mark.parametrize("level", [0.2, 1e-6])
    def test_a_sound_mechanism_is_spared(self, claim, level):
        random, runs = np.random.default_rng(2), 100
        alarms = sum(
            bool(
                refutations(*simulated_scores(claim, 200, SOUND, random), claim, level)
            )
            for _ in range(runs)
        )
        assert alarms <= binom.isf(1e-4, runs, level)

    @pytest.mark.parametrize("size", [0.5, 3.0])
    def test_gradients_at_the_coordinates_raise_no_alarm(self, size):
        """A few coordinates have gradients far above the noise, most hardly any."""
        random = np.random.default_rng(4)
        for _ in range(30):
            groups = [
                group + size * TEN.noise_stddev * random.standard_t(2, group.size)
                for group in simulated_scores(TEN, 1000, SOUND, random)
            ]
            assert refutations(*groups, TEN, FALSE_ALARM) == ()

    def test_nor_do_they_hide_halved_noise(self):
        random, halved = np.random.default_rng(4), Fault(name="halved", noise=0.5)
        for _ in range(10):
            groups = [
                group + 0.2 * TEN.noise_stddev * random.standard_t(2, group.size)
                for group in simulated_scores(TEN, 1000, halved, random)
            ]
            found = refutations(*groups, TEN, FALSE_ALARM)
            assert found[0].test == "noise"
            assert "too close to their means" in found[0].statement


def test_leaked_input_canaries_are_caught_by_every_bound():
    claim = CanaryClaim(epsilon=0.5, mu=0.15, delta=1e-10)
    random = np.random.default_rng(1)
    leaked = random.normal(6, 1, 500), random.normal(0, 1, 500)
    found = {one.test for one in refutations(*leaked, claim, FALSE_ALARM)}
    assert found == {"one-run", "one-run, f-DP", "Clopper–Pearson"}


def test_what_delta_permits_is_not_held_against_a_claim():
    """All may leak with chance delta: at 1e-6 one run alone refutes nothing then."""
    claim = CanaryClaim(epsilon=0.5, mu=0.15, delta=1e-5)
    random = np.random.default_rng(1)
    leaked = random.normal(6, 1, 500), random.normal(0, 1, 500)
    found = {one.test for one in refutations(*leaked, claim, FALSE_ALARM)}
    assert found == {"one-run, f-DP", "Clopper–Pearson"}


def test_the_gap_of_few_canaries_is_no_false_alarm():
    """Real gradients of unknown size make the spread: it is Student's, not Gauss's."""
    random = np.random.default_rng(1)
    p_values = [
        gap_p_value(*random.normal(0, 30 * TEN.noise_stddev, (2, 4)), TEN)
        for _ in range(4000)
    ]
    for level in (0.01, 0.001):
        assert np.mean(np.array(p_values) <= level) <= 1.5 * level


def test_chances_below_the_last_delta_refute_no_curve():
    numbers = 1000, 62, 62, 0.2
    assert refutes_mu(*numbers, 1e-8)
    assert refutes_mu(*numbers, 1e-8, 1e-11)
    assert not refutes_mu(*numbers, 1e-8, 1e-9)


def test_a_gap_is_told_with_its_side():
    random = np.random.default_rng(1)
    for size, side in ((2.0, "more"), (0.0, "less")):
        fault = Fault(name="", size=size)
        groups = simulated_scores(TEN, 1000, fault, random)
        found = {one.test: one for one in refutations(*groups, TEN, FALSE_ALARM)}
        assert f"left {side} in" in found["gap"].statement


def test_a_claim_out_of_range_is_refused():
    with pytest.raises(ValueError, match="claim"):
        CanaryClaim(epsilon=-1.0, mu=0.0, delta=1e-5)
