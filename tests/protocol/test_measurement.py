"""One distance as two words: there and back, never beyond 64 bits, lies noticed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.envelope import Kind
from protocol.errors import EnvelopeRejected
from protocol.heads import Head, ShownHead
from protocol.measurement import (
    MAX_DISTANCE,
    MeasureRequest,
    check_measurement,
    mean_and_spread,
    measurement_round,
    silo_seed,
    to_words,
)
from protocol.settings import MAX_SILOS
from tests.protocol.examples import make_example

HEAD = Head(party="aggregator", size=3, root="00" * 32, signature="11" * 64)
SHOWN = ShownHead(head=HEAD, old_size=2, proof=(bytes(range(32)),))
distances = st.floats(0, MAX_DISTANCE)


def total(values: list[float]) -> np.ndarray:
    """Return the sum of the words of some distances, modulo 2^64."""
    return np.add.reduce([to_words(value) for value in values])


def test_by_hand() -> None:
    assert to_words(1.0).tolist() == [1 << 20, 1 << 16]
    assert to_words(2.5).tolist() == [5 << 19, 25 << 14]
    assert mean_and_spread(total([1.0, 3.0]), 2) == (2.0, 2**0.5)
    assert mean_and_spread(total([7.0] * 5), 5) == (7.0, 0.0)


@given(st.lists(distances, min_size=2, max_size=30))
def test_mean_and_spread_come_back(values: list[float]) -> None:
    mean, spread = mean_and_spread(total(values), len(values))
    assert mean == pytest.approx(np.mean(values), abs=2**-20)
    expected = np.std(values, ddof=1)
    # Rounded squares move the variance by 2^-16 at most, float64 the reference.
    slack = 2**-16 + 1e-9 * float(np.mean(np.square(values)))
    assert abs(spread**2 - expected**2) <= slack + 2**-18 * (1 + expected)


@given(st.floats(min_value=0, allow_infinity=True))
def test_a_thousand_silos_cannot_overflow(value: float) -> None:
    assert all(MAX_SILOS * int(word) < 1 << 64 for word in to_words(value))


def test_the_largest_distance_a_thousand_times() -> None:
    mean, spread = mean_and_spread(total([float("inf")] * MAX_SILOS), MAX_SILOS)
    assert (mean, spread) == (MAX_DISTANCE, 0.0)


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("-inf")])
def test_what_is_no_distance_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not negative"):
        to_words(value)


@pytest.mark.parametrize(
    ("words", "num_silos"),
    [
        ([1 << 63, 0], 3),
        ([3 << 20, 1 << 63], 3),
        ([3 << 20, 2 << 16], 3),  # squares that are too small for this sum
        ([1, 1], 1),
        ([1, 1, 1], 3),
    ],
)
def test_sums_that_no_silos_have_are_refused(words: list[int], num_silos: int) -> None:
    with pytest.raises(ValueError, match=r"silo"):
        mean_and_spread(np.array(words, dtype=np.uint64), num_silos)


def request(**changes: object) -> MeasureRequest:
    fields = {
        "round_number": 4,
        "attempt": 1,
        "shown": SHOWN,
        "average": b"\x00" * 8,
        "statistics": b"npz",
        "sum_notice": b"sum",
    }
    return MeasureRequest(**(fields | changes))  # type: ignore[arg-type]


def test_a_request_comes_back_whole() -> None:
    made = request()
    read = MeasureRequest.from_body(memoryview(made.to_body()))
    assert read.model_digest() == made.model_digest()
    assert bytes(read.sum_notice) == b"sum"
    assert (read.round_number, read.attempt, read.shown) == (4, 1, SHOWN)


def test_the_digest_covers_average_and_statistics() -> None:
    digests = {
        request().model_digest(),
        request(average=b"\x01" * 8).model_digest(),
        request(statistics=b"npZ").model_digest(),
        request(average=b"\x00" * 8 + b"n", statistics=b"pz").model_digest(),
    }
    assert len(digests) == 4


@pytest.mark.parametrize("cut", [1, 40])
def test_a_malformed_request_is_refused(cut: int) -> None:
    with pytest.raises(EnvelopeRejected):
        MeasureRequest.from_body(memoryview(request().to_body()[:-cut]))


def test_only_what_the_plan_asks_for_and_only_at_its_end() -> None:
    plan = make_example()
    number = plan.num_rounds + 1
    assert measurement_round(plan) == 0
    with pytest.raises(EnvelopeRejected, match="no measurement"):
        check_measurement(request(round_number=number), plan)
    asking = make_example({"evaluation.in_silos": True})
    assert measurement_round(asking) == number
    check_measurement(request(round_number=number), asking)
    for wrong in (1, number - 1, number + 1):
        with pytest.raises(EnvelopeRejected, match="expected"):
            check_measurement(request(round_number=wrong), asking)


def test_every_silo_has_other_samples_and_the_kind_is_reserved() -> None:
    plan = make_example()
    assert len({silo_seed(plan, silo) for silo in range(20)}) == 20
    assert Kind.MEASURE == 78
