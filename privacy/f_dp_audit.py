"""The one-run bound for a whole trade-off curve: that of a Gaussian mechanism.

Of m canaries, r were guessed on and v guesses were right. If the mechanism is mu-GDP,
the chance of v or more is at most τ, unless the masses that would have to lie on more
right guesses than v overflow: the recursion below bounds how fast they may shrink.
"""

from scipy.special import ndtr, ndtri

MAX_MU = 256.0
"""Of mu beyond this nothing is asked: its epsilon is above 30,000."""


def blow_up_inverse(x: float, mu: float) -> float:
    """Return ``Φ(Φ⁻¹(x) − mu)``: the least chance of an event of chance x next door.

    Source: Mahloujifar, Melis & Chaudhuri, 2024 (the inverse blow-up function, here of
    a Gaussian mechanism).
    """
    return float(ndtr(ndtri(x) - mu))


def refutes_mu(
    num_canaries: int,
    num_guesses: int,
    num_correct: int,
    mu: float,
    significance: float,
    slack: float = 0.0,
) -> bool:
    """Return whether so many right guesses refute mu-GDP at this significance.

    With ``slack``, whether they refute a curve that lies nowhere more than ``slack``
    below that of mu: no chance at or below it is then made use of.

    With c = v, c' = r, τ the significance::

        r_c = τ c / m,  h_c = τ (c' − c) / m,  for i from c − 1 down to 0:
        h_i = max(h_(i+1), blow_up_inverse(r_(i+1) - slack))
        r_i = r_(i+1) + i / (c' − i) (h_i − h_(i+1))

    and mu is refuted if ``r_0 + h_0 > c' / m``.

    Guarantees: wrong at most at the rate ``significance`` for any mu-GDP mechanism,
    however the scores depend on each other.

    Source: Mahloujifar, Melis & Chaudhuri, 2024 (arXiv 2410.22235), the recursion of
    their numerical audit with a cap on the number of guesses.
    """
    limit = num_guesses / num_canaries
    right = significance * num_correct / num_canaries
    wrong = significance * (num_guesses - num_correct) / num_canaries
    for i in range(num_correct - 1, -1, -1):
        more = max(wrong, blow_up_inverse(min(1.0, max(0.0, right - slack)), mu))
        if more <= wrong:
            break
        right += i / (num_guesses - i) * (more - wrong)
        wrong = more
        if right + wrong > limit:
            return True
    return right + wrong > limit


def one_run_mu(
    num_canaries: int, num_guesses: int, num_correct: int, significance: float
) -> float:
    """Return the largest mu that these guesses refute, 1e-6 below at most; or 0.

    Args:
        num_canaries: m.
        num_guesses: r, 1 to m, fixed before the scores were seen.
        num_correct: v, 0 to r.
        significance: how often the bound may be too large, in (0, 0.5).
    """

    def is_refuted(mu: float) -> bool:
        return refutes_mu(num_canaries, num_guesses, num_correct, mu, significance)

    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while is_refuted(high):
        low, high = high, 2 * high
        if high > MAX_MU:
            return low
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low
