"""Secret weights: one word each, and their sum."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import Overflow
from privacy.weights import total_weight
from protocol.settings import MAX_SILOS
from protocol.update_settings import MAX_WEIGHT


@given(st.integers(1, 2**32), st.data())
def test_every_sum_of_weights_is_accepted(max_weight, data):
    weights = st.lists(st.integers(1, max_weight), min_size=1, max_size=12)
    found = data.draw(weights)
    assert total_weight(sum(found), max_weight, len(found)) == sum(found)


@pytest.mark.parametrize("word", [0, 1, 2, 211, 2**32 + 3, 2**64 - 1, 2**64 - 3])
def test_sums_that_cannot_be_are_refused(word):
    """Three silos of 1 to 70 weigh 3 to 210."""
    assert total_weight(3, 70, 3) == 3
    assert total_weight(210, 70, 3) == 210
    with pytest.raises(Overflow, match="the sum of the weights"):
        total_weight(word, 70, 3)


def test_the_largest_cohort_of_the_heaviest_silos_does_not_wrap():
    assert MAX_SILOS * MAX_WEIGHT < 2**64
