"""How well an attack tells members from others, how surely, and how well it could.

An attack gives a score to each of n members and m held-out examples, higher for
members. A cutoff says "member" of every score above it: the false-positive rate (FPR)
is the share of held-out examples above it, the true-positive rate (TPR) that of
members.

Sources: Hanley & McNeil, 1982, and Newcombe, 2006 (method 5), on the area under the
curve (AUC); Carlini et al., 2022, on low FPR; Kairouz, Oh & Viswanath, 2015, theorem
2.1, and Dong, Roth & Su, 2022, on what a guarantee allows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import binomtest, bootstrap, rankdata

Scores = npt.NDArray[np.float64]

CONFIDENCE = 0.95
NUM_RESAMPLES = 1000
MAX_ROC_POINTS = 200
USEFUL_FALSE_POSITIVES = 10
"""With fewer at a cutoff, the rate that it stands for is known too badly to be used."""
_RESAMPLED_VALUES = 1 << 20
"""Values resampled at a time, a matter of memory."""


@dataclass(frozen=True)
class Interval:
    """An interval from ``low`` to ``high``."""

    low: float
    high: float


def auc(members: Scores, held_out: Scores) -> float:
    """Return the chance that a member scores higher than a held-out example.

    The area under the ROC curve; equal scores count half.

    Raises:
        ValueError: no members, no held-out examples, or a score that is not finite.
    """
    _check(members, held_out)
    return float(_auc(members, held_out))


def auc_interval(
    members: Scores,
    held_out: Scores,
    generator: np.random.Generator,
    *,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval:
    """Return a bootstrap interval of the AUC: BCa, members and others drawn apart.

    Where every resample gives the same (the two are told apart without an error) the
    bootstrap knows nothing; the interval is then Newcombe's, of all A with
    ``(AUC - A)² <= z² V(A)``, V the variance of Hanley & McNeil.

    Raises:
        ValueError: fewer than two of either, or as :func:`auc`.

    Source: Efron, 1987 (BCa), as implemented in scipy.
    """
    _check(members, held_out)
    if min(len(members), len(held_out)) < 2:
        raise ValueError("an interval needs two members and two held-out examples")
    value = float(_auc(members, held_out))
    if value in (0.0, 1.0) or np.ptp(np.concatenate([members, held_out])) == 0:
        return _newcombe(value, len(members), len(held_out), confidence)
    found = bootstrap(
        (members, held_out),
        _auc,
        vectorized=True,
        paired=False,
        method="BCa",
        n_resamples=num_resamples,
        confidence_level=confidence,
        batch=max(1, _RESAMPLED_VALUES // (len(members) + len(held_out))),
        random_state=generator,
    ).confidence_interval
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return _newcombe(value, len(members), len(held_out), confidence)
    return Interval(float(found.low), float(found.high))


def proportion_interval(
    count: int, total: int, confidence: float = CONFIDENCE
) -> Interval:
    """Return the Clopper–Pearson interval of a share ``count / total``.

    Guarantees: covers the true probability at least as often as ``confidence``.

    Raises:
        ValueError: ``count`` is not in 0 … ``total``, or ``total`` is 0.
    """
    found = binomtest(count, total).proportion_ci(confidence, method="exact")
    return Interval(float(found.low), float(found.high))


@dataclass(frozen=True)
class AtRate:
    """What an attack finds at a cutoff: counts among members and held-out examples."""

    true_positives: int
    false_positives: int


def at_false_positive_rate(members: Scores, held_out: Scores, rate: float) -> AtRate:
    """Return the counts at the lowest cutoff with an FPR of at most ``rate``.

    The cutoff is a held-out example's score, or below all of them; scores equal to it
    are not above it.

    Raises:
        ValueError: the rate is not in [0, 1], or as :func:`auc`.
    """
    _check(members, held_out)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: must be in [0, 1], is {rate}")
    allowed = math.floor(rate * len(held_out) * (1 + 1e-12))
    return _at_most(np.sort(members), np.sort(held_out), allowed)


def held_out_needed(rate: float) -> int:
    """Return how many held-out examples make the TPR at an FPR a useful figure."""
    return math.ceil(USEFUL_FALSE_POSITIVES / rate * (1 - 1e-12))


def roc(
    members: Scores, held_out: Scores, max_points: int = MAX_ROC_POINTS
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return FPR and TPR of some cutoffs, both ascending, for a log–log plot.

    At each of at most ``max_points`` numbers of false positives, 0 and all of them
    included and the rest about evenly spaced in their logarithm, the best TPR.

    Raises:
        ValueError: fewer than three points, or as :func:`auc`.
    """
    _check(members, held_out)
    if max_points < 3:
        raise ValueError("max_points: must be at least 3")
    count = len(held_out)
    spaced = np.geomspace(1, count, max_points - 1)
    allowed = sorted({0, count, *np.rint(spaced).astype(int).tolist()})
    ordered = np.sort(members), np.sort(held_out)
    points = [_at_most(*ordered, k) for k in allowed]
    return (
        tuple(point.false_positives / count for point in points),
        tuple(point.true_positives / len(members) for point in points),
    )


def ceiling(fpr: float, guarantees: Sequence[Sequence[float]]) -> float:
    """Return the largest TPR at an FPR that (epsilon, delta) guarantees allow.

        min over all (ε, δ) of  e^ε FPR + δ  and  1 - e^-ε (1 - δ - FPR)

    at most 1. It bounds every attack whatever it knows, on one privacy unit that is
    added or removed: of rates over members of a data set whose size is itself random
    (Poisson), and very nearly of rates over members of one of fixed size. A measured
    curve may pass it by chance. Several guarantees, such as a privacy profile, bound
    it together.

    Raises:
        ValueError: the FPR is not in [0, 1], or a guarantee is impossible.

    Source: Kairouz, Oh & Viswanath, 2015, theorem 2.1.
    """
    _check_rate(fpr)
    highest = 1.0
    for epsilon, delta in guarantees:
        if not (epsilon >= 0 and 0 <= delta <= 1):
            raise ValueError(f"no guarantee: epsilon {epsilon}, delta {delta}")
        if math.isinf(epsilon):
            continue
        by_members = delta + fpr * math.exp(min(epsilon, 700.0))
        by_others = 1 - math.exp(-epsilon) * (1 - delta - fpr)
        highest = min(highest, by_members, by_others)
    return highest


def group_of_two(epsilon: float, delta: float) -> tuple[float, float]:
    """Return what a guarantee for one unit says of two units changed together.

    Source: Dwork & Roth, 2014, lemma 2.2 with delta: ``(2 ε, (1 + e^ε) δ)``.
    """
    return 2 * epsilon, min(1.0, (1 + math.exp(min(epsilon, 700.0))) * delta)


def _auc(members: Scores, held_out: Scores, axis: int = -1) -> npt.NDArray[np.float64]:
    """Return the Mann–Whitney statistic over ``n m``, along an axis."""
    both = np.concatenate([members, held_out], axis=axis)
    ranks = rankdata(both, axis=axis)
    n, m = members.shape[axis], held_out.shape[axis]
    of_members = np.take(ranks, np.arange(n), axis=axis).sum(axis=axis)
    return np.asarray((of_members - n * (n + 1) / 2) / (n * m))


def _newcombe(value: float, n: int, m: int, confidence: float) -> Interval:
    """Return Newcombe's interval (method 5) of an AUC of n members and m others."""
    z = float(ndtri(0.5 + confidence / 2))
    pairs = (n + m) / 2 - 1

    def excess(area: float) -> float:
        spread = 1 + pairs * ((1 - area) / (2 - area) + area / (1 + area))
        return (value - area) ** 2 - z * z * area * (1 - area) * spread / (n * m)

    tiny = 1e-12
    low = 0.0 if value <= 0 else brentq(excess, tiny, max(value - tiny, 2 * tiny))
    high = (
        1.0 if value >= 1 else brentq(excess, min(value + tiny, 1 - 2 * tiny), 1 - tiny)
    )
    return Interval(float(low), float(high))


def _at_most(members: Scores, held_out: Scores, allowed: int) -> AtRate:
    """Return the counts at the lowest cutoff with so many false positives at most."""
    if allowed >= len(held_out):
        return AtRate(len(members), len(held_out))
    cutoff = held_out[len(held_out) - 1 - allowed]
    return AtRate(_above(members, cutoff), _above(held_out, cutoff))


def _above(ascending: Scores, cutoff: float) -> int:
    """Return how many of some sorted scores are above a cutoff."""
    return int(len(ascending) - np.searchsorted(ascending, cutoff, side="right"))


def _check(members: Scores, held_out: Scores) -> None:
    """Refuse what cannot be compared."""
    for scores in (members, held_out):
        if not len(scores) or not np.isfinite(scores).all():
            raise ValueError("scores: must be some, and finite, on both sides")


def _check_rate(fpr: float) -> None:
    """Refuse what is no rate."""
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr: must be in [0, 1], is {fpr}")
