import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from scipy.stats import beta

from privacy.attack_statistics import (
    at_false_positive_rate,
    auc,
    auc_interval,
    ceiling,
    group_of_two,
    held_out_needed,
    proportion_interval,
    roc,
)
from privacy.gaussian_curve import gaussian_delta


def gaussian_ceiling(fpr: float, mu: float) -> float:
    """Return the largest TPR at an FPR under mu-GDP: ``Φ(Φ⁻¹(FPR) + mu)``.

    Source: Dong, Roth & Su, 2022, definition 2.6.
    """
    if not mu >= 0:
        raise ValueError(f"mu: must not be negative, is {mu}")
    return float(ndtr(ndtri(fpr) + mu)) if 0 < fpr < 1 else fpr


def scores(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


SOME = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12).map(np.array)


def slow_at_most(members, held_out, allowed):
    """The best TPR over every cutoff, with so many false positives at most."""
    cutoffs = [-math.inf, *members, *held_out]
    counted = [(sum(members > c), sum(held_out > c)) for c in cutoffs]
    return max((one for one in counted if one[1] <= allowed), key=lambda one: one[0])


class TestArea:
    def test_by_hand(self):
        """Of the six pairs 3 > 1, 3 > 2, 3 = 3, 2 > 1, 2 = 2, 2 < 3: 4 of 6."""
        assert auc(scores(3, 2), scores(1, 2, 3)) == pytest.approx(4 / 6)
        assert auc(scores(1), scores(0)) == 1.0
        assert auc(scores(0), scores(1)) == 0.0

    @given(SOME, SOME)
    def test_against_all_pairs(self, members, held_out):
        wins = [(m > h) + (m == h) / 2 for m, h in product(members, held_out)]
        assert auc(members, held_out) == pytest.approx(sum(wins) / len(wins))
        assert auc(held_out, members) == pytest.approx(1 - auc(members, held_out))

    @pytest.mark.parametrize(
        "bad", [scores(), scores(math.nan), scores(1, math.inf)], ids=str
    )
    def test_what_cannot_be_compared_is_refused(self, bad):
        for both in ((bad, scores(1, 2)), (scores(1, 2), bad)):
            with pytest.raises(ValueError, match="finite"):
                auc(*both)


class TestBootstrap:
    @pytest.mark.parametrize(
        ("shift", "area"),
        [(0.0, 0.5), (1.0, ndtr(0.5**0.5)), (3.0, ndtr(3 * 0.5**0.5))],
    )
    def test_it_covers_the_true_area(self, shift, area):
        generator, covered = np.random.default_rng(1), 0
        for _ in range(100):
            members = generator.normal(shift, 1, 40)
            held_out = generator.normal(0, 1, 60)
            found = auc_interval(members, held_out, generator, num_resamples=199)
            covered += found.low <= area <= found.high
            assert 0 <= found.low <= found.high <= 1
        assert 88 <= covered <= 99  # 95 expected; 2.2 is the standard deviation

    def test_a_smaller_confidence_is_narrower(self):
        generator = np.random.default_rng(2)
        members, held_out = generator.normal(1, 1, 50), generator.normal(0, 1, 50)

        def width(confidence: float) -> float:
            fresh = np.random.default_rng(3)
            found = auc_interval(members, held_out, fresh, confidence=confidence)
            return found.high - found.low

        assert width(0.5) < width(0.9) < width(0.99)

    @pytest.mark.parametrize(
        ("members", "held_out", "ends"),
        [
            (np.arange(64) + 64.0, np.arange(64) + 0.0, (0.9692, 1.0)),
            (np.arange(64) + 0.0, np.arange(64) + 64.0, (0.0, 0.0308)),
            (np.ones(64), np.ones(64), (0.402, 0.598)),
        ],
        ids=["all apart", "all the wrong way", "all equal"],
    )
    def test_where_no_resample_differs_it_is_not_a_point(self, members, held_out, ends):
        found = auc_interval(members, held_out, np.random.default_rng(0))
        assert (found.low, found.high) == pytest.approx(ends, abs=1e-4)

    def test_newcombe_solves_its_equation(self):
        """At AUC 1 and n = m: (1 - A)² = z² A (1 - A) spread / n²."""
        members, held_out = np.arange(10) + 10.0, np.arange(10) + 0.0
        low = auc_interval(members, held_out, np.random.default_rng(0)).low
        spread = 1 + 9 * ((1 - low) / (2 - low) + low / (1 + low))
        assert (1 - low) ** 2 == pytest.approx(
            1.959964**2 * low * (1 - low) * spread / 100, rel=1e-5
        )

    def test_one_of_a_side_is_too_few(self):
        with pytest.raises(ValueError, match="two"):
            auc_interval(scores(1), scores(1, 2), np.random.default_rng(0))


class TestRates:
    def test_clopper_pearson_by_its_definition(self):
        found = proportion_interval(3, 20)
        assert found.low == pytest.approx(beta.ppf(0.025, 3, 18), rel=1e-6)
        assert found.high == pytest.approx(beta.ppf(0.975, 4, 17), rel=1e-6)
        assert proportion_interval(0, 20).low == 0.0
        assert proportion_interval(20, 20).high == 1.0

    def test_by_hand(self):
        """Held out 1 … 100: at 1 % one may be above, so the cutoff is 99."""
        held_out = np.arange(1.0, 101.0)
        members = scores(98, 99, 99.5, 100, 101)
        found = at_false_positive_rate(members, held_out, 0.01)
        assert (found.true_positives, found.false_positives) == (3, 1)
        found = at_false_positive_rate(members, held_out, 0.001)
        assert (found.true_positives, found.false_positives) == (1, 0)
        found = at_false_positive_rate(members, held_out, 1.0)
        assert (found.true_positives, found.false_positives) == (5, 100)

    @given(SOME, SOME, st.floats(0, 1))
    def test_against_every_cutoff(self, members, held_out, rate):
        found = at_false_positive_rate(members, held_out, rate)
        assert found.false_positives <= rate * len(held_out) + 1e-9
        best = slow_at_most(members, held_out, math.floor(rate * len(held_out) + 1e-9))
        assert found.true_positives == best[0]

    def test_a_rate_of_whole_images_is_not_lost_to_rounding(self):
        """0.29 × 100 is 28.999… in floating point."""
        found = at_false_positive_rate(scores(72), np.arange(1.0, 101.0), 0.29)
        assert (found.true_positives, found.false_positives) == (1, 29)

    def test_how_many_are_needed(self):
        assert held_out_needed(0.01) == 1000
        assert held_out_needed(0.001) == 10_000

    def test_a_rate_that_is_none(self):
        with pytest.raises(ValueError, match="rate"):
            at_false_positive_rate(scores(1), scores(1), 1.5)


class TestCurve:
    @given(SOME, SOME, st.integers(3, 20))
    def test_points_are_the_best_there_are(self, members, held_out, max_points):
        fpr, tpr = roc(members, held_out, max_points)
        assert len(fpr) == len(tpr) <= max_points
        assert list(fpr) == sorted(fpr)
        assert list(tpr) == sorted(tpr)
        assert (fpr[-1], tpr[-1]) == (1.0, 1.0)
        for x, y in zip(fpr, tpr, strict=True):
            allowed = round(x * len(held_out))
            assert y == pytest.approx(
                slow_at_most(members, held_out, allowed)[0] / len(members)
            )

    def test_it_is_thinned(self):
        generator = np.random.default_rng(0)
        fpr, _ = roc(generator.normal(size=3000), generator.normal(size=30_000))
        assert 100 < len(fpr) <= 200
        assert fpr[:4] == (0.0, 1 / 30_000, 2 / 30_000, 3 / 30_000)


class TestCeiling:
    def test_by_hand(self):
        assert ceiling(0.01, [(math.log(2), 0.005)]) == pytest.approx(0.025)
        assert ceiling(0.9, [(math.log(2), 0.02)]) == pytest.approx(1 - 0.5 * 0.08)
        assert ceiling(0.3, [(0.0, 0.0)]) == pytest.approx(0.3)
        assert ceiling(0.3, [(math.inf, 0.0)]) == 1.0
        assert ceiling(0.3, []) == 1.0
        assert ceiling(0.01, [(3.0, 0.0), (math.log(2), 0.005)]) == pytest.approx(0.025)
        assert ceiling(0.0, [(5000.0, 1e-5)]) == pytest.approx(1e-5)

    @given(st.floats(0, 20), st.floats(0, 1), st.lists(st.floats(0, 1), min_size=2))
    def test_it_is_a_trade_off(self, epsilon, delta, rates):
        """It rises from at least delta to 1, is never below chance, and concave."""
        values = [ceiling(rate, [(epsilon, delta)]) for rate in sorted(rates)]
        assert values == sorted(values)
        for rate, value in zip(sorted(rates), values, strict=True):
            assert min(1.0, max(rate, delta)) - 1e-12 <= value <= 1.0
        low, high = min(rates), max(rates)
        middle = ceiling((low + high) / 2, [(epsilon, delta)])
        assert middle >= (values[0] + values[-1]) / 2 - 1e-9

    def test_randomised_response_reaches_it(self):
        """It tells a bit truly with e^ε / (1 + e^ε); the test "it says 1" is tight."""
        epsilon = 1.3
        truth = math.exp(epsilon) / (1 + math.exp(epsilon))
        assert ceiling(1 - truth, [(epsilon, 0.0)]) == pytest.approx(truth)

    @pytest.mark.parametrize("fpr", [0.001, 0.01, 0.3, 0.8])
    def test_the_profile_of_a_gaussian_gives_its_own_curve(self, fpr):
        mu = 1.2
        profile = [(e, gaussian_delta(mu, e)) for e in np.linspace(0, 12, 4000)]
        exact = gaussian_ceiling(fpr, mu)
        assert exact == pytest.approx(ndtr(ndtr_inverse(fpr) + mu))
        assert exact <= ceiling(fpr, profile) <= exact + 1e-4

    def test_the_ends_of_a_gaussian_curve(self):
        assert (gaussian_ceiling(0.0, 2.0), gaussian_ceiling(1.0, 2.0)) == (0.0, 1.0)

    @pytest.mark.parametrize("guarantee", [(-1.0, 0.0), (1.0, -0.1), (1.0, 1.1)])
    def test_what_is_no_guarantee(self, guarantee):
        with pytest.raises(ValueError, match="no guarantee"):
            ceiling(0.5, [guarantee])
        with pytest.raises(ValueError, match="fpr"):
            ceiling(1.5, [(1.0, 0.0)])
        with pytest.raises(ValueError, match="mu"):
            gaussian_ceiling(0.5, -1.0)

    def test_two_units(self):
        """P(M(a)) ≤ e^ε P(M(b)) + δ ≤ e^ε (e^ε P(M(c)) + δ) + δ."""
        epsilon, delta = group_of_two(math.log(3), 0.01)
        assert (epsilon, delta) == pytest.approx((math.log(9), 0.04))


def ndtr_inverse(probability: float) -> float:
    """By bisection."""
    low, high = -10.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if ndtr(middle) < probability else (low, middle)
    return low
