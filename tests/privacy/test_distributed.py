import math
from dataclasses import replace
from fractions import Fraction

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from crypto.prg import SecretRandom
from crypto.ring import add_into, pack_blocks, unpack, words_needed
from privacy.distributed import (
    DistributedNoise,
    calibrate_share,
    distributed_epsilon,
    grid_sensitivity,
    rounded_norm,
    share_epsilon,
    share_variance,
    signal_sentence,
    signal_to_noise,
    sum_ratio,
)
from privacy.errors import Uncalibrated
from privacy.grids import Grid
from privacy.noise import DiscreteGaussian, check_noisy_headroom
from privacy.quantization import Quantizer
from tests.distributions import Law, accepts, discrete_gaussian, rejects

NOISE = DistributedNoise(
    share_variance=Fraction(10**8),
    min_survivors=4,
    max_colluding=1,
    sensitivity=10_000.0,
    length=1 << 20,
)


def levels(vector, grid, seed):
    quantizer = Quantizer(np.asarray(vector, np.float32), grid, SecretRandom(seed))
    fields = np.empty(grid.length, np.uint32)
    quantizer.fill(0, fields)
    return fields.astype(np.int64) - grid.max_level


def one_range(value_bits, range_, length):
    return Grid(value_bits, np.array([range_], np.float32), (length,))


# Sensitivity


def test_rounded_norm_by_hand():
    # d = 1: at most c + 1 whatever happens. d = 10^6, c = 10^4:
    # 10^8 + 250,000 + √(200 ln 2) (10^4 + 500) = 100,373,624.
    assert rounded_norm(1.0, 1) == pytest.approx(2.0)
    assert rounded_norm(1e4, 10**6) == pytest.approx(math.sqrt(100_373_624.4), rel=1e-6)
    assert rounded_norm(0.0, 4) == pytest.approx(2.0)


@pytest.mark.parametrize(("value_bits", "step_norm"), [(24, 3000.0), (12, 150.0)])
def test_neighbours_stay_within_the_sensitivity(value_bits, step_norm):
    generator, length = np.random.default_rng(3), 1 << 14
    common = generator.normal(0, 1, length)
    unit = generator.normal(0, 1, length)
    unit *= 1 / np.linalg.norm(unit)
    max_level = (1 << (value_bits - 1)) - 1
    grid = one_range(value_bits, max_level / step_norm, length)
    bound = grid_sensitivity(grid, 1.0, arithmetic_error=2**-20 * np.sqrt(length))
    for seed in range(20):
        one = levels(common, grid, bytes([seed]) * 32)
        other = levels(common + unit, grid, bytes([seed]) * 32)
        moved = np.linalg.norm(one - other)
        assert moved <= bound
        # Rounding counts: without it the bound would not hold.
        assert moved > step_norm
        # The bound is not far from what happens.
        expected = math.sqrt(step_norm**2 + length / 6)
        assert bound <= expected * (1.06 if step_norm == 3000 else 1.5)


def test_clamping_brings_neighbours_no_further_apart():
    grid = one_range(24, 1.0, 4)
    one, other = [0.9, 5.0, -9.0, 0.0], [1.5, 6.0, 0.5, 0.0]
    moved = levels(one, grid, bytes(32)) - levels(other, grid, bytes(32))
    distance = np.abs(np.subtract(one, other)) / grid.steps[0]
    assert (np.abs(moved) <= np.ceil(distance) + 1).all()
    assert moved[1] == 0


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3),
    st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3),
    st.integers(0, 255),
    st.sampled_from([4, 10, 16, 17, 24]),
)
def test_the_sensitivity_holds_for_any_two_vectors(common, change, seed, value_bits):
    grid = one_range(value_bits, 2.0, 3)
    other = np.add(np.float32(common), np.float32(change), dtype=np.float32)
    distance = float(np.linalg.norm(other.astype(float) - np.float32(common)))
    moved = levels(common, grid, bytes([seed]) * 32) - levels(
        other, grid, bytes([seed]) * 32
    )
    if distance > 0:
        assert np.linalg.norm(moved) <= grid_sensitivity(grid, distance)


def test_sensitivity_takes_the_finest_step_and_counts_arithmetic():
    ranges = np.array([4.0, 1.0], np.float32)
    both = Grid(24, ranges, (1000, 24))
    assert grid_sensitivity(both, 1.0) == grid_sensitivity(
        one_range(24, 1.0, 1024), 1.0
    )
    more = grid_sensitivity(both, 1.0, arithmetic_error=0.5)
    assert more == pytest.approx(2 * grid_sensitivity(both, 1.0), rel=1e-4)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="clipping_norm"):
            grid_sensitivity(both, bad)


# Shares


def test_shares_add_up():
    share = share_variance(Fraction(12), min_survivors=5, max_colluding=1)
    assert share == 3
    noise = replace(NOISE, share_variance=share, min_survivors=5, sensitivity=2.0)
    assert noise.honest == 4
    assert noise.noise_multiplier == pytest.approx(math.sqrt(12) / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_survivors": 3}, "min_survivors: 3 less 1 colluding are fewer than 3"),
        ({"max_colluding": 0}, "max_colluding: must be at least 1"),
        ({"share_variance": Fraction(1, 8)}, "variance: must be 1/4"),
        ({"sensitivity": math.inf}, "sensitivity, length: must be positive"),
        ({"length": 0}, "sensitivity, length: must be positive"),
    ],
)
def test_noise_that_cannot_be_relied_on_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(NOISE, **change)
    with pytest.raises(ValueError, match="min_survivors"):
        share_variance(1, min_survivors=3, max_colluding=1)


@pytest.mark.parametrize("variance", [0.25, 0.3, 0.5])
@pytest.mark.parametrize("num_shares", [2, 3, 5])
def test_a_sum_of_discrete_gaussians_is_nearly_one(variance, num_shares):
    law = discrete_gaussian(variance, 16)
    total = law
    for _ in range(num_shares - 1):
        total = total.plus(law)
    one = discrete_gaussian(num_shares * variance, 40)
    inside = np.abs(total.values) <= 8 * math.sqrt(num_shares * variance)
    x = total.values[inside]
    logs = np.log(total.probabilities[inside] / one.probabilities[x - one.first])
    assert np.abs(logs).max() <= sum_ratio(variance, num_shares)
    # It is not exactly one: a bound of zero would be wrong.
    assert np.abs(logs).max() > 1e-5


# The price


def hockey_stick(one, other, epsilon):
    return float(np.maximum(one - math.exp(epsilon) * other, 0).sum())


def sampled_pair(noise_law, shift, sample_rate):
    """Return the laws of a sum without and with a unit that may be drawn."""
    without = np.pad(noise_law.probabilities, (0, shift))
    shifted = np.pad(noise_law.probabilities, (shift, 0))
    return without, (1 - sample_rate) * without + sample_rate * shifted


@pytest.mark.parametrize("sample_rate", [0.01, 0.3, 1.0])
@pytest.mark.parametrize(("variance", "shift"), [(0.75, 1), (9, 3), (25, 20)])
def test_renyi_moments_of_shifted_discrete_gaussians(variance, shift, sample_rate):
    # What docs section 4 proves: equal to the continuous formula, and the larger of
    # the two directions.
    law = discrete_gaussian(variance, 36)
    without, with_ = sampled_pair(law, shift, sample_rate)
    positive = (without > 1e-280) & (with_ > 1e-280)
    for order in (2, 3, 6):
        k = np.arange(order + 1)
        weights = np.array([math.comb(order, int(i)) for i in k], float)
        weights *= sample_rate**k * np.power(1 - sample_rate, order - k)
        formula = (weights * np.exp((k * k - k) * shift**2 / (2 * variance))).sum()
        a, b = with_[positive], without[positive]
        moment = (a * (a / b) ** (order - 1)).sum()
        if order * shift < 20 * math.sqrt(variance):  # else beyond what float64 holds
            assert moment == pytest.approx(formula, rel=1e-6)
        assert (b * (b / a) ** (order - 1)).sum() <= formula * (1 + 1e-9)


@pytest.mark.parametrize(
    ("variance", "shift", "sample_rate", "rounds"),
    [(2, 2, 0.2, 1), (2, 2, 1.0, 1), (12, 5, 0.1, 3), (12, 4, 1.0, 3)],
)
def test_epsilon_is_above_the_exact_one(variance, shift, sample_rate, rounds):
    # One value, three honest shares whose sum is convolved, rounds composed exactly.
    share = discrete_gaussian(variance, 12)
    total = share.plus(share).plus(share)
    without, with_ = sampled_pair(total, shift, sample_rate)
    one, other = without, with_
    for _ in range(rounds - 1):
        one = np.multiply.outer(one, without).ravel()
        other = np.multiply.outer(other, with_).ravel()
        # What is far out is released as it is: a lower bound of the exact epsilon.
        kept = (one > 1e-9) | (other > 1e-9)
        one, other = one[kept], other[kept]
    delta = 1e-4
    noise = DistributedNoise(
        share_variance=Fraction(variance),
        min_survivors=4,
        max_colluding=1,
        sensitivity=float(shift),
        length=1,
    )
    epsilon = distributed_epsilon(noise, delta, sample_rate=sample_rate, rounds=rounds)
    assert hockey_stick(one, other, epsilon) <= delta
    assert hockey_stick(other, one, epsilon) <= delta
    # Not by much more than Rényi accounting costs.
    worse = (
        max(hockey_stick(one, other, e), hockey_stick(other, one, e))
        if (e := 0.6 * epsilon)
        else 0
    )
    assert worse > delta


@pytest.mark.parametrize(
    ("sample_rate", "rounds"),
    [(0.01, 1), (0.01, 3000), (0.2, 1), (0.2, 100), (1.0, 1), (1.0, 20)],
)
def test_epsilon_beside_two_accountants(sample_rate, rounds):
    delta = 1e-5
    ours = distributed_epsilon(NOISE, delta, sample_rate=sample_rate, rounds=rounds)
    event = dp_accounting.GaussianDpEvent(NOISE.noise_multiplier)
    if sample_rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(sample_rate, event)
    event = dp_accounting.SelfComposedDpEvent(event, rounds)
    renyi, exact = rdp.RdpAccountant(), pld.PLDAccountant()
    renyi.compose(event)
    exact.compose(event)
    # Integer orders alone cost a little, at small epsilon most.
    assert ours == pytest.approx(renyi.get_epsilon(delta), rel=0.02, abs=1e-3)
    assert exact.get_epsilon(delta) < ours
    if rounds > 1:
        assert ours < 1.15 * exact.get_epsilon(delta)


def test_epsilon_moves_as_it_should():
    def price(noise=NOISE, delta=1e-5, sample_rate=0.05, rounds=100):
        return distributed_epsilon(noise, delta, sample_rate=sample_rate, rounds=rounds)

    assert price(rounds=101) > price() > price(rounds=99)
    assert price(sample_rate=0.06) > price()
    assert price(delta=1e-6) > price()
    assert price(replace(NOISE, min_survivors=6)) < price()
    assert price(replace(NOISE, max_colluding=2, min_survivors=5)) == price()
    assert price(replace(NOISE, share_variance=Fraction(9 * 10**7))) > price()
    assert price(replace(NOISE, sensitivity=1.1e4)) > price()
    alone = share_epsilon(NOISE, 1e-5, sample_rate=0.05, rounds=100)
    third = replace(NOISE, share_variance=Fraction(10**8, 3))
    assert alone == pytest.approx(price(third), rel=1e-9)
    assert alone > price()


def test_what_the_bounds_leave_out_is_paid_for():
    # 100 rounds with a failure of 2^-100 each cannot have a delta of 1e-28.
    assert distributed_epsilon(NOISE, 1e-28, sample_rate=0.1, rounds=100) == math.inf
    # At a variance of 1/4 a sum of shares is not close to discrete Gaussian.
    low = replace(NOISE, share_variance=Fraction(1, 4), sensitivity=0.1, length=1)
    ideal = replace(low, share_variance=Fraction(100), sensitivity=2.0)
    prices = [
        distributed_epsilon(noise, 1e-5, sample_rate=1, rounds=1)
        for noise in (low, ideal)
    ]
    assert prices[0] >= prices[1] + 2 * sum_ratio(0.25, 3) > prices[1] + 0.5


@pytest.mark.parametrize(
    "change", [{"delta": 0.0}, {"delta": 1.0}, {"sample_rate": 0.0}, {"rounds": 0}]
)
def test_prices_out_of_range_are_refused(change):
    given_ = {"delta": 1e-5, "sample_rate": 0.5, "rounds": 1} | change
    with pytest.raises(ValueError, match="out of range"):
        distributed_epsilon(NOISE, given_.pop("delta"), **given_)


def test_calibration_errs_on_the_private_side():
    settings_ = {"sample_rate": 0.05, "rounds": 200}
    noise = calibrate_share(
        2.0,
        1e-5,
        min_survivors=5,
        max_colluding=2,
        sensitivity=20_000.0,
        length=1000,
        **settings_,
    )
    assert noise.share_variance.denominator == 1
    assert distributed_epsilon(noise, 1e-5, **settings_) <= 2.0
    less = replace(noise, share_variance=noise.share_variance * Fraction(998, 1000))
    assert distributed_epsilon(less, 1e-5, **settings_) > 2.0


def test_calibration_says_what_cannot_be_reached():
    with pytest.raises(Uncalibrated, match="no noise of up to 2\\^24 grid steps"):
        calibrate_share(
            0.01,
            1e-5,
            min_survivors=4,
            max_colluding=1,
            sensitivity=1e8,
            length=1000,
            sample_rate=0.5,
            rounds=1000,
        )


# Several local steps between two sums are not covered


def local_steps_example(cutoff, own_stddev, others_stddev):
    """Return P(sum > 0) without and with one example, after two steps in one silo.

    The example's gradient is 1. In the second step the gradients of 64 others are all
    +1 if the silo's own noisy state is above the cutoff, else all -1. Released is the
    sum of both steps and of all silos' noise.
    """
    z = np.linspace(-12, 12, 200_001)
    weights = stats.norm.pdf(z) * (z[1] - z[0])
    chances = []
    for example in (0, 1):
        state = example + own_stddev * z
        mean = state + 64 * np.where(state > cutoff, 1, -1) + example
        rest = math.hypot(own_stddev, math.sqrt(2) * others_stddev)
        chances.append(float(weights @ stats.norm.sf(-mean / rest)))
    return chances


def test_several_local_steps_must_not_be_credited_with_others_noise():
    num_silos, joint_stddev, delta = 10, 2.0, 1e-5
    own = joint_stddev / math.sqrt(num_silos)
    others = joint_stddev * math.sqrt(1 - 1 / num_silos)
    # What a careless account would claim: two steps, each with the noise of all silos.
    accountant = pld.PLDAccountant()
    event = dp_accounting.GaussianDpEvent(joint_stddev)
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, 2))
    claimed = accountant.get_epsilon(delta)
    assert claimed == pytest.approx(2.94, abs=0.01)
    without, with_ = local_steps_example(1.7, own, others)
    assert with_ - math.exp(claimed) * without > 0.06  # 6,000 times delta
    # The silo's own noise is what it may claim, and that claim holds.
    accountant = pld.PLDAccountant()
    event = dp_accounting.GaussianDpEvent(own)
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, 2))
    alone = accountant.get_epsilon(delta)
    assert alone == pytest.approx(11.5, abs=0.1)
    for cutoff in np.linspace(-2, 4, 25):
        without, with_ = local_steps_example(cutoff, own, others)
        assert with_ - math.exp(alone) * without <= delta
    # With one step there is no state to follow: the claim with all noise holds.
    one, other = stats.norm.sf([1.7, 0.7], scale=joint_stddev)
    assert other - math.exp(claimed) * one <= delta


# Silo level


def test_signal_to_noise_by_hand():
    # Four silos' shares of variance 100 in 400 values: the noise of the sum is
    # √(4 · 100 · 400) = 400 steps long, of the mean 100; a mean of 50 steps is half.
    noise = replace(NOISE, share_variance=Fraction(100), length=400)
    ratio = signal_to_noise(50 * 0.25, noise, num_contributors=4, step=0.25)
    assert ratio == pytest.approx(0.5)
    assert signal_sentence(ratio).startswith("WARNING: the noise is 2 times as long")
    assert signal_sentence(3.0) == "The mean update is 3 times as long as its noise."


def test_silo_level_noise_drowns_the_mean_of_a_few_silos():
    for min_survivors, least in ((4, 1489), (10, 596)):
        noise = calibrate_share(
            8.0,
            1e-3,
            min_survivors=min_survivors,
            max_colluding=1,
            sensitivity=1e5,
            length=1_540_000,
            sample_rate=1,
            rounds=100,
        )
        best = signal_to_noise(1, noise, num_contributors=min_survivors, step=1e-5)
        assert 1 / best >= least


# All together, as docs/noise-inside-the-sum.md says it should be wired


def test_the_sum_of_noisy_fields_has_the_promised_noise():
    length, num_silos, stddev = 100_000, 4, 900
    grid = one_range(20, 8.0, length)
    sampler = DiscreteGaussian(stddev**2)
    check_noisy_headroom(
        grid.max_level, sampler.bound, field_bits=32, num_contributors=num_silos
    )
    generator = np.random.default_rng(7)
    total = np.zeros(words_needed(length, 32), np.uint64)
    without = np.zeros(length, np.int64)
    for silo in range(num_silos):
        vector = generator.normal(0, 1, length).astype(np.float32)
        without += levels(vector, grid, bytes([silo]) * 32)
        quantizer = Quantizer(vector, grid, SecretRandom(bytes([silo]) * 32))
        secret = SecretRandom(bytes([silo + 9]) * 32)

        def fill(start, target, quantizer=quantizer, secret=secret):
            quantizer.fill(start, target)
            drawn = np.empty(target.size, np.int64)
            sampler.fill(drawn, secret)
            shifted = (drawn + sampler.bound).astype(target.dtype)
            np.add(target, shifted, out=target)

        add_into(total, pack_blocks(fill, length, 32))
    middle = num_silos * (grid.max_level + sampler.bound)
    sums = unpack(total, 32, length).astype(np.int64) - middle
    # Dither is drawn in the order of packing, so levels differ by one here and there.
    noise = sums - without
    assert accepts(noise, discrete_gaussian(num_silos * stddev**2))
    assert rejects(noise, discrete_gaussian((num_silos - 1) * stddev**2))


def test_laws_compose_as_expected():
    law = Law(0, np.array([0.5, 0.5]))
    assert law.plus(law).probabilities.tolist() == [0.25, 0.5, 0.25]
