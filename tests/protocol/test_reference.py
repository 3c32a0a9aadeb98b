"""Sums of features as words: by hand, there and back, never beyond 64 bits."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.features import load_extractor
from privacy.events import SampledGaussian
from protocol.envelope import Kind
from protocol.errors import EncodingError, EnvelopeRejected
from protocol.heads import Head, ShownHead
from protocol.mechanism import calibrated, not_covered, run_epsilon, run_events
from protocol.reference import (
    ReferenceRequest,
    check_reference_request,
    reference_digest,
    reference_sentences,
    reference_words,
    smallest_count,
)
from protocol.reference_settings import reference_events, training_steps
from protocol.reference_words import (
    DIMS,
    MAX_ENTRY,
    Moments,
    fraction_bits,
    from_vector,
    from_words,
    num_words,
    to_vector,
    to_words,
)
from protocol.settings import MAX_SILOS
from tests.protocol.examples import make_example

HEAD = Head(party="aggregator", size=3, root="00" * 32, signature="11" * 64)
SHOWN = ShownHead(head=HEAD)

POOLED = {
    "evaluation.reference": "federation",
    "evaluation.every_rounds": 1,
    "evaluation.extractor": "fd-small-digits",
}
DP = {
    "privacy.mechanism": "dp-sgd",
    "privacy.noise_multiplier": 1.0,
    "privacy.delta": 1e-5,
    "privacy.sample_rate": 0.1,
}
NOISED = (
    POOLED
    | DP
    | {
        "evaluation.reference_noise_multiplier": 8.0,
        "evaluation.reference_clipping": 40.0,
    }
)


def test_by_hand() -> None:
    """Two images with features (1, 2) and (3, -0.5); three silos: units of 2^-27."""
    moments = Moments(2.0, np.array([4.0, 1.5]), np.array([[10.0, 0.5], [0.5, 4.25]]))
    vector = to_vector(moments)
    assert vector.tolist() == [2.0, 4.0, 1.5, 10.0, 0.5, 4.25]
    assert fraction_bits(3) == 27  # 3 * 10^7 * 2^10 < 2^35, and 62 - 35 is 27
    words = to_words(-vector, 3)
    assert words.tolist() == [
        2**64 - int(each * 2**27) for each in (2, 4, 1.5, 10, 0.5, 4.25)
    ]
    again = from_vector(from_words(words, 3), 2)
    assert again.count == -2.0
    assert again.total.tolist() == [-4.0, -1.5]
    assert again.second.tolist() == [[-10.0, -0.5], [-0.5, -4.25]]


def test_rounding_is_to_the_nearest_unit() -> None:
    unit = 2.0 ** -fraction_bits(MAX_SILOS)
    values = np.array([0.49, 0.51, -0.49, -0.51, 1.0]) * unit
    assert to_words(values, MAX_SILOS).view(np.int64).tolist() == [0, 1, 0, -1, 1]


@given(st.integers(2, MAX_SILOS), st.sampled_from([-1.0, 1.0]))
def test_the_largest_numbers_of_all_silos_do_not_wrap(n: int, sign: float) -> None:
    words = to_words(np.full(3, sign * MAX_ENTRY), n)
    total = sum(int(word) for word in words.view(np.int64)[:1]) * n
    assert abs(total) <= 2**62
    with np.errstate(over="ignore"):
        wrapped = words * np.uint64(n)
    assert from_words(wrapped, n).tolist() == [sign * n * MAX_ENTRY] * 3


@pytest.mark.parametrize("value", [MAX_ENTRY * 1.001, -MAX_ENTRY * 2, np.nan, np.inf])
def test_what_could_wrap_is_refused_and_not_clamped(value: float) -> None:
    with pytest.raises(ValueError, match="above"):
        to_words(np.array([1.0, value]), 3)


@given(
    st.integers(1, 5),
    st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=9),
)
def test_sums_come_back(dims: int, seeds: list[int]) -> None:
    """Mean of all is exact to half a unit a silo; any order of adding is the same."""
    n, parts = len(seeds), []
    for seed in seeds:
        f = np.random.default_rng(seed).uniform(-32, 32, (1 + seed % 7, dims))
        parts.append(to_vector(Moments(len(f), f.sum(0), f.T @ f)))
    total = np.add.reduce([to_words(part, n) for part in parts[::-1]])
    error = np.abs(from_words(total, n) - np.sum(parts, axis=0))
    assert error.max() <= n * 2.0 ** -(fraction_bits(n) + 1) + 1e-9
    assert len(total) == num_words(dims)


@pytest.mark.parametrize("kind", ["fd-small-digits", "fd-small-fashion"])
def test_the_dimensions_are_those_of_the_extractors(kind: str) -> None:
    assert load_extractor(kind).dims == DIMS[kind]  # type: ignore[arg-type]


def test_lengths() -> None:
    assert [num_words(DIMS[kind]) for kind in DIMS] == [2145, 8385, 2_100_225]
    with pytest.raises(ValueError, match="expected 2145"):
        from_vector(np.zeros(2144), 64)


def request(**changes: Any) -> ReferenceRequest:
    fields: dict[str, Any] = {
        "attempt": 1,
        "shown": SHOWN,
        "extractor_digest": "ab" * 32,
        "sum_notice": b"sum",
    }
    return ReferenceRequest(**(fields | changes))


def test_the_request_survives_the_wire() -> None:
    assert Kind.REFERENCE == 79
    body = request().to_body()
    assert ReferenceRequest.from_body(memoryview(body)) == request()
    assert request().model_digest() == reference_digest("ab" * 32)
    assert request().model_digest() != reference_digest("ac" * 32)
    for cut in range(0, len(body), 7):
        with pytest.raises(EnvelopeRejected):
            ReferenceRequest.from_body(memoryview(body[:cut]))


def test_a_request_that_the_plan_does_not_ask_for() -> None:
    check_reference_request(request(), make_example(POOLED))
    with pytest.raises(EnvelopeRejected, match="asks for no reference"):
        check_reference_request(request(), make_example())
    named = make_example(POOLED | {"evaluation.extractor_sha256": "cd" * 32})
    with pytest.raises(EnvelopeRejected, match="other weights"):
        check_reference_request(request(), named)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation.min_reference_count": 50}, "belongs to reference"),
        ({"evaluation.reference_uncovered": True}, "belongs to reference"),
        (POOLED | {"evaluation.every_rounds": 0}, "nothing is measured"),
        (POOLED | {"evaluation.min_reference_count": 15}, "must be 16 to"),
        (POOLED | {"protection.method": "none"}, 'needs protection.method "mask"'),
        (POOLED | {"evaluation.reference_uncovered": True}, "differential privacy"),
        (POOLED | DP, "epsilon does not cover"),
        (NOISED | {"evaluation.reference_clipping": 0.0}, "give it together"),
        (NOISED | {"evaluation.reference_clipping": 1025.0}, "at most 1024"),
        (NOISED | {"evaluation.reference_uncovered": True}, "are covered"),
        (NOISED | {"evaluation.extractor": "inception"}, "2,100,225 sums"),
        (
            NOISED
            | {
                "privacy.sample_rate": 1.0,
                "privacy.clipping_norm": 40.0,
                "privacy.noise_multiplier": 8.0,
            },
            "could not tell",
        ),
        (
            POOLED
            | {
                "privacy.mechanism": "silo",
                "privacy.unit": "silo",
                "privacy.epsilon": 5.0,
                "privacy.delta": 1e-5,
                "evaluation.reference_noise_multiplier": 1.0,
                "evaluation.reference_clipping": 1.0,
                "training.optimizer_state": "fresh",
                "update.rounding": "stochastic",
                "update.value_bits": 24,
            },
            'needs privacy.mechanism "dp-sgd"',
        ),
    ],
)
def test_a_plan_that_would_show_too_much_is_refused(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises((ValueError, EncodingError), match=words):
        make_example(changes, num_silos=5)


def test_the_noisy_reference_is_one_event_of_the_run() -> None:
    plan = make_example(NOISED)
    event = SampledGaussian(
        sample_rate=1.0, noise_multiplier=8.0, clipping_norm=40.0, steps=1
    )
    assert reference_events(plan) == (event,)
    first, second = run_events(plan)
    assert (first, second.steps) == (event, 12)
    assert training_steps(plan, (first, second)) == 12
    without = run_epsilon(make_example(DP), 1e-5)
    assert run_epsilon(plan, 1e-5) > without * 1.01
    target = dataclasses.replace(plan.privacy, epsilon=4.0, noise_multiplier=0.0)
    found = calibrated(_with_privacy(plan, target))
    spent = run_epsilon(_with_privacy(plan, found), 1e-5)
    assert 3.98 < spent <= 4.0
    alone = calibrated(_with_privacy(make_example(DP), target))
    assert alone.noise_multiplier < found.noise_multiplier


def _with_privacy(plan: Any, privacy: Any) -> Any:
    """Return what a mechanism depends on, without the checks of a whole plan."""
    from types import SimpleNamespace

    names = ("num_rounds", "training", "calibration", "evaluation")
    return SimpleNamespace(
        privacy=privacy, **{name: getattr(plan, name) for name in names}
    )


def test_what_is_not_covered_is_said() -> None:
    uncovered = make_example(POOLED | DP | {"evaluation.reference_uncovered": True})
    assert any("exact feature statistics" in each for each in not_covered(uncovered))
    noised = list(not_covered(make_example(NOISED)))
    assert not any("exact feature" in each for each in noised)
    assert any("if the silos' own sum fails" in each for each in noised)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (POOLED, "There is no differential privacy"),
        (POOLED | DP | {"evaluation.reference_uncovered": True}, "does NOT cover"),
        (NOISED, "epsilon counts that as one step"),
    ],
)
def test_the_operator_reads_what_leaves(changes: dict[str, Any], words: str) -> None:
    plan = make_example(changes)
    said = " ".join(reference_sentences(plan))
    assert words in said
    assert f"{8 * 2145:,} bytes" in said
    assert reference_words(plan) == 2145
    assert not list(reference_sentences(make_example()))


def test_the_smallest_count_is_that_of_each_silo_or_noisy_of_all() -> None:
    assert smallest_count(make_example(POOLED), 3) == 300
    assert smallest_count(make_example(NOISED), 3) == 100
