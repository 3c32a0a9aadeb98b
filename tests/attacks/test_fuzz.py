"""Mutated messages, drawn by hypothesis; ``benchmarks.secagg_fuzz`` sends many more."""

from functools import cache
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto.errors import ProtocolViolation
from crypto.keys import AgreementKey
from tests.attacks.fuzzing import Fuzzer
from tests.attacks.mutations import LOW_ORDER

FUZZER = cache(Fuzzer)


@settings(
    max_examples=2000,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.integers(0, 2**64 - 1))
def test_a_typed_error_and_nothing_changed_or_a_correct_result(seed):
    FUZZER().send(Random(seed), play_on=0.2)


@settings(max_examples=200, deadline=None, database=None)
@given(st.integers(0, 2**64 - 1))
def test_no_message_takes_more_than_twice_its_size(seed):
    FUZZER().send(Random(seed), play_on=0, measure=True)


def test_every_outcome_occurs():
    """The mutations reach behind the signatures: all errors, and acceptance."""
    fuzzer, random = Fuzzer(), Random(1)
    for _ in range(3000):
        fuzzer.send(random, play_on=1)
    for outcome in (
        "on the way: InvalidSignature",
        "on the way: MalformedMessage",
        "on the way: ProtocolViolation",
        "signed: InvalidSignature",
        "signed: MalformedMessage",
        "signed: ProtocolViolation",
        "signed: DecryptionFailed",
        "signed: accepted",
        "played on: the sum is exact",
        "played on: DecryptionFailed",
        "played on: ProtocolViolation",
    ):
        assert fuzzer.counts[outcome], (outcome, fuzzer.counts)


@pytest.mark.parametrize("public", LOW_ORDER)
def test_the_points_of_low_order_are_refused_by_the_library(public):
    with pytest.raises(ProtocolViolation, match="low order"):
        AgreementKey.generate().exchange(public)
