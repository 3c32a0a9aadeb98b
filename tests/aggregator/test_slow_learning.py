"""The rule of the one correction, on loss curves whose answer is worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.slow_learning import SlowLearning, improvement
from protocol.encoding import decode, encode, from_table, to_table


def fires(losses: list[float], window: int, min_improvement: float) -> int:
    """Return the round in which the rule fires; 0 for never."""
    watched = SlowLearning()
    for number, loss in enumerate(losses, start=1):
        watched = watched.after(
            number, loss, window=window, min_improvement=min_improvement
        )
    return watched.fired_in


@pytest.mark.parametrize(
    ("losses", "window", "fired_in"),
    [
        # Window 1, tau 1 %: 1.0 → 0.9 is 10 %, 0.9 → 0.895 is 0.56 %.
        ([1.0, 0.9, 0.895, 0.5], 1, 3),
        # Window 2: means 0.95, 0.8975 (5.5 %), 0.8935 (0.45 %).
        ([1.0, 0.9, 0.895, 0.892], 2, 4),
        # Not before window + 1 rounds are measured, however flat.
        ([1.0, 1.0, 1.0], 3, 0),
        ([1.0, 1.0, 1.0, 1.0], 3, 4),
        # A rise is no improvement.
        ([1.0, 2.0], 1, 2),
        # Halving for ever is not slow.
        ([2.0**-n for n in range(20)], 5, 0),
        # A single bad round within a falling window of 2: (1 + .6) → (.6 + .7).
        ([1.0, 0.6, 0.7, 0.3], 2, 0),
        ([1.0, math.nan, 0.5], 1, 2),
    ],
)
def test_by_hand(losses: list[float], window: int, fired_in: int) -> None:
    assert fires(losses, window, 0.01) == fired_in


def test_just_at_the_threshold_learning_is_not_slow() -> None:
    assert fires([1.0, 0.75], 1, 0.25) == 0
    assert fires([1.0, math.nextafter(0.75, 1)], 1, 0.25) == 2


def test_by_what_part_the_average_fell() -> None:
    assert improvement((4.0, 2.0, 1.0)) == pytest.approx((3.0 - 1.5) / 3.0)
    assert improvement((0.0, 1.0)) == 0.0


@given(
    st.lists(st.floats(1e-3, 10), min_size=1, max_size=30),
    st.integers(1, 6),
    st.floats(0.001, 0.9),
)
def test_it_fires_once_as_a_slow_reference_says(losses, window, tau) -> None:
    """The reference looks at the whole curve; nothing follows the first hit."""
    expected = 0
    for t in range(window, len(losses)):
        before = math.fsum(losses[t - window : t]) / window
        now = math.fsum(losses[t - window + 1 : t + 1]) / window
        ratio = (before - now) / before
        if math.isclose(ratio, tau, abs_tol=1e-9):
            return
        if ratio < tau:
            expected = t + 1
            break
    assert fires(losses, window, tau) == expected


def test_what_it_remembers_survives_the_disk() -> None:
    watched = SlowLearning()
    for number, loss in enumerate([0.1, 0.07, 0.3], start=1):
        watched = watched.after(number, loss, window=2, min_improvement=0.01)
    assert len(watched.losses) == 3
    assert from_table(SlowLearning, decode(encode(to_table(watched)))) == watched
