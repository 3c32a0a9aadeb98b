"""The public numbers of a round: what the aggregator sends and a silo permits."""

import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import Overflow
from privacy.grids import EVEN_MARGIN
from protocol.errors import EnvelopeRejected
from protocol.grids import (
    first_numbers,
    next_numbers,
    numbers_after_loss,
    round_grid,
    sign_seed,
)
from tests.protocol.examples import make_example

SEGMENTS = (100, 3000, 41)
LENGTH, PADDED = 3141, 4096
PLAIN = {"update.clipping_norm": 2.0}
ROTATED = PLAIN | {"update.rotation": True}
FOLLOWING = {"update.clipping": "previous-mean"}
EVEN = float(np.float32(6 * 2.0 / 64))
"""The range of a rotated update of norm 2 with 4096 values."""

EVERY = [
    base | extra for base, extra in itertools.product((PLAIN, ROTATED), ({}, FOLLOWING))
]


def floats(*values):
    return np.array(values, np.float32)


def mean_of(length):
    """Return a mean update of some norm, all of it in one tensor."""
    mean = np.zeros(LENGTH, np.float32)
    mean[:100] = length / 10
    return mean


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        (PLAIN, []),
        (PLAIN | FOLLOWING, [2.0]),
        (ROTATED, [EVEN]),
        (ROTATED | FOLLOWING, [EVEN, 2.0]),
    ],
)
def test_the_first_numbers_by_hand(changes, numbers):
    plan = make_example(changes)
    found = first_numbers(plan, SEGMENTS)
    assert found.tolist() == numbers
    assert found.dtype == np.float32
    made = round_grid(plan, SEGMENTS, 1, found)
    assert made.clipping_norm == 2.0
    if "update.rotation" in changes:
        assert made.grid.segments == (PADDED,)
        assert made.grid.value_bits == 16
    else:
        assert made.grid.segments == SEGMENTS
        assert made.grid.value_bits == 30
        assert set(made.grid.ranges.tolist()) == {2.0}


FLOOR = float(np.float32(3 * 0.1 / LENGTH**0.5))


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        (PLAIN, [0.03, FLOOR, FLOOR]),
        (PLAIN | FOLLOWING, [0.03, FLOOR, FLOOR, 0.3]),
        (ROTATED, [EVEN]),
        (ROTATED | FOLLOWING, [6 * 0.3 / 64, 0.3]),
    ],
)
def test_the_next_numbers_by_hand(changes, numbers):
    """A mean of norm 0.1 whose largest value is 0.01; the plan's norm is 2."""
    plan = make_example(changes)
    found = next_numbers(plan, SEGMENTS, mean_of(0.1))
    np.testing.assert_allclose(found, numbers, rtol=1e-6)
    made = round_grid(plan, SEGMENTS, 2, found)
    assert made.grid.value_bits == 16
    expected = 0.3 if "update.clipping" in changes else 2.0
    assert made.clipping_norm == pytest.approx(expected, rel=1e-6)
    if "update.rotation" in changes:
        even = EVEN_MARGIN * made.clipping_norm / PADDED**0.5
        assert made.grid.ranges[0] == np.float32(even)


def test_the_clipping_norm_never_exceeds_the_plans_nor_vanishes():
    plan = make_example(ROTATED | FOLLOWING)
    for length in (1.0, 100.0, 0.0, 1e-12):
        assert next_numbers(plan, SEGMENTS, mean_of(length))[-1] == 2.0
    assert next_numbers(plan, SEGMENTS, mean_of(0.5))[-1] == pytest.approx(1.5)


@given(st.floats(1e-9, 1e9), st.floats(0, 1e9), st.sampled_from(EVERY))
def test_what_the_aggregator_sends_the_silo_permits(clipping_norm, length, changes):
    """In every round, whatever the mean was; and the same number on both sides."""
    plan = make_example(changes | {"update.clipping_norm": clipping_norm})
    first = first_numbers(plan, SEGMENTS)
    following = next_numbers(plan, SEGMENTS, mean_of(length))
    lost = numbers_after_loss(plan, SEGMENTS, first)
    again = numbers_after_loss(plan, SEGMENTS, following)
    assert (again == following).all()
    for round_number, numbers in ((1, first), (2, following), (2, lost), (9, again)):
        made = round_grid(plan, SEGMENTS, round_number, numbers)
        assert 0 < made.clipping_norm <= clipping_norm
        assert (made.grid.ranges <= np.float32(clipping_norm) * 1.000001).all()
        made.check_headroom(plan, plan.update.field_bits(round_number, len(plan.silos)))


@pytest.mark.parametrize("changes", EVERY)
def test_after_a_lost_first_round_the_range_is_even(changes):
    plan = make_example(changes)
    numbers = numbers_after_loss(plan, SEGMENTS, first_numbers(plan, SEGMENTS))
    made = round_grid(plan, SEGMENTS, 2, numbers)
    length = PADDED if plan.update.rotation else LENGTH
    assert made.clipping_norm == 2.0
    even = np.float32(EVEN_MARGIN * 2.0 / length**0.5)
    assert set(made.grid.ranges.tolist()) == {even}


@pytest.mark.parametrize(
    ("changes", "round_number", "numbers", "words"),
    [
        (PLAIN, 1, [1.0], "needs 0 numbers"),
        (PLAIN, 2, [], "needs 3 numbers"),
        (PLAIN, 2, [1.0, 1.0, 1.0, 1.0], "needs 3 numbers"),
        (PLAIN, 2, [1.0, 1.0, 2.5], "larger than the clipping norm"),
        (PLAIN, 2, [1.0, 1.0, 0.0], "positive"),
        (PLAIN, 2, [1.0, 1.0, -1.0], "positive"),
        (PLAIN, 2, [1.0, 1.0, math.nan], "positive"),
        (PLAIN | FOLLOWING, 1, [], "needs 1 numbers"),
        (PLAIN | FOLLOWING, 1, [1.9], "of round 1 must be the plan's"),
        (PLAIN | FOLLOWING, 2, [1.0, 1.0, 1.0], "needs 4 numbers"),
        (PLAIN | FOLLOWING, 2, [1.0, 1.0, 1.0, 2.1], "permits at most 2"),
        (PLAIN | FOLLOWING, 2, [1.0, 1.0, 1.0, 0.9], "larger than the clipping norm"),
        (PLAIN | FOLLOWING, 2, [1.0, 1.0, 1.0, 0.0], "permits at most 2"),
        (PLAIN | FOLLOWING, 2, [1.0, 1.0, 1.0, math.nan], "permits at most 2"),
        (ROTATED, 1, [], "needs 1 numbers"),
        (ROTATED, 2, [EVEN, 2.0], "needs 1 numbers"),
        (ROTATED, 1, [EVEN * 1.0001], "not the one of the clipping norm"),
        (ROTATED, 2, [EVEN / 2], "not the one of the clipping norm"),
        (ROTATED | FOLLOWING, 1, [EVEN / 2, 1.0], "round 1 must be the plan's"),
        (ROTATED | FOLLOWING, 2, [EVEN, 1.0], "not the one of the clipping norm"),
        (ROTATED | FOLLOWING, 2, [EVEN * 2, 4.0], "permits at most 2"),
    ],
)
def test_what_a_silo_refuses(changes, round_number, numbers, words):
    with pytest.raises(EnvelopeRejected, match=words):
        round_grid(make_example(changes), SEGMENTS, round_number, floats(*numbers))


def test_what_a_silo_permits():
    for changes, numbers in (
        (PLAIN, [1.0, 2.0, 0.1]),
        (PLAIN | FOLLOWING, [1.0, 0.5, 0.1, 1.0]),
        (ROTATED, [EVEN]),
        (ROTATED | FOLLOWING, [EVEN / 2, 1.0]),
    ):
        made = round_grid(make_example(changes), SEGMENTS, 2, floats(*numbers))
        assert made.clipping_norm == (1.0 if "update.clipping" in changes else 2.0)


def test_headroom_is_that_of_the_values_whatever_the_weights():
    """Fields of 4 bits are at most 14: of 18 silos 252, of 19 silos 266."""
    secret = {"update.weights": "secret", "update.max_weight": 2**32}
    for num_silos, changes in itertools.product((18, 19), ({}, secret)):
        rotated = ROTATED | {"update.value_bits": 4} | changes
        plan = make_example(rotated, num_silos=num_silos)
        made = round_grid(plan, SEGMENTS, 1, first_numbers(plan, SEGMENTS))
        made.check_headroom(plan, 10)
        if num_silos == 18:
            made.check_headroom(plan, 8)
            continue
        with pytest.raises(Overflow, match="19 values of 4 bits"):
            made.check_headroom(plan, 8)


def test_the_seed_of_the_signs():
    plan, other = make_example(), make_example({"seed": 8})
    content = b"cloister/1/rotation-signs\x00" + plan.digest + bytes(7) + b"\x02"
    assert sign_seed(plan, 2) == hashlib.sha256(content).digest()
    seeds = {sign_seed(p, number) for p in (plan, other) for number in (1, 2, 3)}
    assert len(seeds) == 6
