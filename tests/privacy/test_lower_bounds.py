"""Lower bounds on epsilon: against a library, published tables and slow references."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from privacy.f_dp_audit import one_run_mu, refutes_mu
from privacy.gaussian_curve import gaussian_delta, gaussian_epsilon
from privacy.lower_bounds import (
    Errors,
    Guesses,
    clopper_pearson_upper,
    error_epsilon,
    error_mu,
    error_rates,
    gaussian_estimate,
    guess,
    guess_numbers,
    lower_bounds,
    one_run_epsilon,
    one_run_p_value,
)

DELTA = 1e-5

# canaries, mu, threshold, delta, significance: one-run, f-DP, Clopper–Pearson.
# Made with jax_privacy 2.0.0, auditing.CanaryScoreAuditor, on the scores of
# ``even_scores``: epsilon_one_run, epsilon_one_run_fdp, epsilon_clopper_pearson with
# one_sided=False, all with threshold_strategy=Explicit(threshold).
LIBRARY = [
    (200, 1.0, 0.8, 1e-5, 0.05, 0.575706, 1.041654, 0.454292),
    (1000, 2.0, 2.2, 1e-5, 0.05, 2.750827, 4.569683, 2.57591),
    (1000, 2.0, 1.5, 1e-5, 0.01, 1.926655, 2.868349, 1.850769),
    (1000, 0.27, 0.9, 1e-5, 0.05, 0.128462, 0.176619, 0.0226),
    (5000, 1.67, 2.5, 1e-6, 0.05, 3.030442, 4.961611, 2.895057),
    (1000, 6.0, 3.0, 1e-5, 0.05, 4.63617, 8.764547, 4.490324),
    (1000, 0.92, 1.6, 1e-3, 0.05, 0.530862, 1.213285, 0.994298),
]


def even_scores(num_canaries: int, mu: float):
    """Return the quantiles of two Gaussians that lie mu apart."""
    half = num_canaries // 2
    excluded = ndtri((np.arange(half) + 0.5) / half)
    return excluded + mu, excluded


def random_scores(random, num_canaries: int, mu: float):
    half = num_canaries // 2
    return random.normal(mu, 1, half), random.normal(0, 1, half)


@pytest.mark.parametrize("row", LIBRARY, ids=lambda row: f"{row[0]}-{row[1]}")
class TestAgainstALibrary:
    def test_one_run_and_f_dp(self, row):
        m, mu, threshold, delta, significance, one_run, f_dp, _ = row
        included, excluded = even_scores(m, mu)
        right = int((included >= threshold).sum())
        number = right + int((excluded >= threshold).sum())
        found = one_run_epsilon(m, Guesses(number, right), delta, 1 - significance)
        assert found == pytest.approx(one_run, abs=2e-6)
        least = one_run_mu(m, number, right, significance)
        assert gaussian_epsilon(least, delta) == pytest.approx(f_dp, abs=3e-5)

    def test_clopper_pearson(self, row):
        m, mu, threshold, delta, significance, *_, expected = row
        included, excluded = even_scores(m, mu)
        missed = int((included < threshold).sum())
        false = int((excluded >= threshold).sum())
        rates = [
            clopper_pearson_upper(count, m // 2, significance / 2)
            for count in (false, missed)
        ]
        both = [Errors(*rates, 0, 0), Errors(*rates[::-1], 0, 0)]
        found = max(error_epsilon(errors, delta) for errors in both)
        assert found == pytest.approx(expected, abs=2e-6)


class TestOneRun:
    def test_by_hand(self):
        # Two of two right at epsilon ln 3: (3/4)². At delta: α = max(P[1], P[0, 1]/2)
        # = max(6/16, (7/16)/2) = 6/16.
        plain = one_run_p_value(4, Guesses(2, 2), math.log(3), 0.0)
        assert plain == pytest.approx(9 / 16)
        more = one_run_p_value(4, Guesses(2, 2), math.log(3), 0.01)
        assert more == pytest.approx(9 / 16 + 2 * 4 * 0.01 * 6 / 16)

    def test_all_right_gives_the_known_cap(self):
        cap = one_run_epsilon(1000, Guesses(1000, 1000), 0.0, 0.95)
        q = 0.05 ** (1 / 1000)
        assert cap == pytest.approx(math.log(q / (1 - q)), rel=1e-6)
        assert cap == pytest.approx(5.81, abs=0.01)

    @given(
        r=st.integers(1, 12),
        data=st.data(),
        epsilon=st.floats(0, 4),
        delta=st.floats(0, 0.2),
    )
    def test_against_a_slow_reference(self, r, data, epsilon, delta):
        v, m = data.draw(st.integers(0, r)), data.draw(st.integers(r, 20))
        q = 1 / (1 + math.exp(-epsilon))
        mass = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
        beta = sum(mass[v:])
        alpha = max((sum(mass[v - i : v]) / i for i in range(1, v + 1)), default=0)
        expected = min(1.0, beta + 2 * m * delta * alpha)
        found = one_run_p_value(m, Guesses(r, v), epsilon, delta)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("m", [3, 10, 50])
    @pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0])
    @pytest.mark.parametrize("delta", [0.0, 0.01])
    def test_it_covers_mechanisms_that_use_up_epsilon_and_delta(
        self, m, epsilon, delta
    ):
        q = 1 / (1 + math.exp(-epsilon))
        for v in range(m + 1):
            p_value = one_run_p_value(m, Guesses(m, v), epsilon, delta)
            each_leaks = binom.sf(v - 1, m, delta + (1 - delta) * q)
            all_leak = delta + (1 - delta) * binom.sf(v - 1, m, q)
            assert max(each_leaks, all_leak) <= p_value + 1e-12

    @pytest.mark.parametrize(
        ("theory", "published"), [(9.99, 4.99), (4.37, 2.61), (1.99, 1.33)]
    )
    def test_a_published_table_of_gaussians(self, theory, published):
        """Mahloujifar et al., 2024: what one run certifies of a Gaussian mechanism."""
        low, high = 0.0, 5.0
        for _ in range(40):
            mu = (low + high) / 2
            low, high = (
                (mu, high) if gaussian_epsilon(mu, DELTA) < theory else (low, mu)
            )
        m, best = 100_000, 0.0
        for number in (100, 300, 1000, 3000, 10_000, 30_000):
            low, high = -10.0, 15.0
            for _ in range(60):
                t = (low + high) / 2
                tails = ndtr(-t) / 2 + ndtr(mu - t) / 2
                low, high = (t, high) if tails > number / 2 / m else (low, t)
            right = int(number * ndtr(mu - t) / (ndtr(-t) + ndtr(mu - t)))
            found = one_run_epsilon(m, Guesses(number, right), DELTA, 0.95)
            best = max(best, found)
        assert best == pytest.approx(published, rel=0.04)


class TestFDP:
    @pytest.mark.parametrize("m", [5, 20, 80])
    @pytest.mark.parametrize("mu", [0.3, 1.0, 2.0])
    def test_it_is_wrong_rarely_enough_by_enumeration(self, m, mu):
        """Guesses on all of m independent canaries are right with Φ(mu/2)."""
        wrong = sum(
            binom.pmf(v, m, ndtr(mu / 2))
            for v in range(m + 1)
            if refutes_mu(m, m, v, mu, 0.05)
        )
        assert wrong <= 0.05
        assert m == 5 or refutes_mu(m, m, m, 0.1 * mu, 0.05)

    @given(r=st.integers(1, 60), data=st.data())
    def test_more_right_guesses_refute_more(self, r, data):
        m = data.draw(st.integers(r, 100))
        v = data.draw(st.integers(0, r - 1))
        assert one_run_mu(m, r, v, 0.05) <= one_run_mu(m, r, v + 1, 0.05) * (1 + 1e-5)

    def test_more_than_one_run(self):
        guesses = Guesses(250, 225)
        plain = one_run_epsilon(1000, guesses, DELTA, 0.95)
        curved = gaussian_epsilon(one_run_mu(1000, 250, 225, 0.05), DELTA)
        assert curved > 1.3 * plain > 0


class TestErrors:
    def test_clopper_pearson_by_hand(self):
        # None of 10 seen: (1 − p)^10 = 0.05. All of 10: nothing is excluded.
        upper = clopper_pearson_upper(0, 10, 0.05)
        assert (1 - upper) ** 10 == pytest.approx(0.05)
        assert clopper_pearson_upper(10, 10, 0.05) == 1.0
        upper = clopper_pearson_upper(3, 20, 0.01)
        assert binom.cdf(3, 20, upper) == pytest.approx(0.01)

    def test_epsilon_and_mu_by_hand(self):
        errors = Errors(rare=0.1, other=0.3, num_rare=0, num_other=0)
        assert error_epsilon(errors, 0.1) == pytest.approx(math.log(6))
        assert error_mu(errors) == pytest.approx(1.2816 + 0.5244, abs=1e-4)
        assert error_epsilon(Errors(0.5, 0.95, 0, 0), 0.1) == 0.0
        assert error_mu(Errors(0.6, 0.6, 0, 0)) == 0.0

    def test_counts_of_both_directions(self):
        included = np.arange(16.0) + 8
        excluded = np.arange(16.0)
        found = {
            (errors.num_rare, errors.num_other)
            for errors in error_rates(included, excluded, 0.05)
        }
        # Beyond 15 of the excluded (none), at most 15 of the included: 8 … 15.
        assert found == {(0, 8), (2, 6)}


class TestGuesses:
    def test_numbers_depend_on_m_alone_and_are_even(self):
        assert guess_numbers(1000) == (500, 250, 124, 62)
        assert guess_numbers(4) == (2,)

    def test_highest_in_lowest_out(self):
        included, excluded = np.array([5.0, 4.0, 0.5]), np.array([1.0, 2.0, 4.5])
        assert guess(included, excluded, 2) == Guesses(2, 1)
        assert guess(included, excluded, 4) == Guesses(4, 2)

    def test_equal_scores_are_bad_luck(self):
        same = np.zeros(10)
        assert guess(same, same, 10) == Guesses(10, 0)


class TestValidity:
    """A bound above the truth comes as rarely as it says, whatever the threshold."""

    def test_gaussian_scores(self):
        random, mu, runs = np.random.default_rng(5), 1.0, 100
        truth = gaussian_epsilon(mu, DELTA)
        above: dict[str, int] = {}
        for _ in range(runs):
            for bound in lower_bounds(*random_scores(random, 100, mu), DELTA):
                above[bound.name] = above.get(bound.name, 0) + (bound.epsilon > truth)
        assert set(above) == {
            "one-run", "one-run, f-DP", "Clopper–Pearson",
            "Clopper–Pearson, Gaussian curve", "Gaussian estimate",
        }  # fmt: skip
        most = int(binom.isf(1e-4, runs, 0.05))
        assert max(above.values()) <= most
        assert above["Gaussian estimate"] > 0

    @pytest.mark.parametrize("epsilon", [0.5, 1.5])
    def test_randomised_response(self, epsilon):
        random, runs, above = np.random.default_rng(7), 50, 0
        q = 1 / (1 + math.exp(-epsilon))
        for _ in range(runs):
            coins = random.random(200) < 0.5
            answers = np.where(random.random(200) < q, coins, ~coins)
            scores = answers + 1e-6 * random.random(200)
            for bound in lower_bounds(scores[coins], scores[~coins], DELTA):
                if bound.curve == "any":
                    above += bound.epsilon > epsilon
        assert above <= int(binom.isf(1e-4, 2 * runs, 0.05))


class TestAttainable:
    """privacy.md's table: medians with ideal scores, 95 %, delta 1e-5."""

    @pytest.mark.parametrize(
        ("mu", "one_run", "f_dp", "plain", "curved"),
        [(0.92, 1.38, 1.50, 0.86, 2.54), (2.0, 3.05, 3.70, 2.53, 7.72)],
    )
    def test_a_thousand_canaries(self, mu, one_run, f_dp, plain, curved):
        random, found = np.random.default_rng(11), []
        for _ in range(9):
            bounds = lower_bounds(*random_scores(random, 1000, mu), DELTA)
            found.append([bound.epsilon for bound in bounds])
        medians = np.median(found, axis=0)
        assert medians[0] == pytest.approx(one_run, abs=0.25)
        assert medians[2] == pytest.approx(plain, abs=0.3)
        assert medians[3] == pytest.approx(curved, abs=0.5)
        # Guesses on both sides, and four numbers of them: more than the table's.
        assert f_dp <= medians[1] < gaussian_epsilon(mu, DELTA)


class TestEstimate:
    def test_the_interval_holds_the_truth_as_often_as_it_says(self):
        random, mu, runs = np.random.default_rng(3), 2.0, 500
        truth = gaussian_epsilon(mu, DELTA)
        above = sum(
            gaussian_estimate(*random_scores(random, 400, mu), DELTA).epsilon > truth
            for _ in range(runs)
        )
        assert binom.ppf(1e-4, runs, 0.05) <= above <= binom.isf(1e-4, runs, 0.05)

    def test_no_noise_is_infinite_and_no_gap_nothing(self):
        ones, zeros = np.ones(10), np.zeros(10)
        assert gaussian_estimate(ones, zeros, DELTA).epsilon == math.inf
        assert gaussian_estimate(zeros, zeros, DELTA).epsilon == 0.0
        assert gaussian_estimate(zeros, ones, DELTA).epsilon == 0.0
        tiny = np.array([0.0, 5e-324] * 5)
        assert gaussian_estimate(ones * 2**52, tiny, DELTA).epsilon == math.inf

    def test_it_says_what_it_is(self):
        bounds = lower_bounds(*even_scores(100, 1.0), DELTA)
        kinds = [(bound.kind, bound.curve) for bound in bounds]
        assert kinds == [
            ("bound", "any"), ("bound", "gaussian"), ("bound", "any"),
            ("bound", "gaussian"), ("estimate", "gaussian"),
        ]  # fmt: skip


@given(mu=st.floats(0.01, 30), delta=st.floats(1e-9, 0.1))
def test_epsilon_of_a_gaussian_curve_is_the_inverse_of_its_delta(mu, delta):
    found = gaussian_epsilon(mu, delta)
    if found:
        assert gaussian_delta(mu, found) == pytest.approx(delta, rel=1e-5)
    else:
        assert gaussian_delta(mu, 0.0) <= delta * (1 + 1e-9)


def test_too_few_scores_are_refused():
    with pytest.raises(ValueError, match="two in each group"):
        lower_bounds(np.ones(1), np.zeros(5), DELTA)
    with pytest.raises(ValueError, match="delta"):
        lower_bounds(np.ones(5), np.zeros(5), 0.0)
