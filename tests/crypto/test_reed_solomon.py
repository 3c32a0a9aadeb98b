import secrets

from hypothesis import given
from hypothesis import strategies as st

from crypto.reed_solomon import consistent_shares
from crypto.shamir import PRIME, SHARE_BYTES, split


def shared(values):
    """Return shares of these numbers, for x = 1, 2, ..."""
    return {i: value.to_bytes(SHARE_BYTES, "big") for i, value in enumerate(values)}


def test_a_line_with_one_wrong_point_by_hand():
    # y = 3 x + 2 at x = 1 .. 4, the third one wrong.
    assert consistent_shares(shared([5, 8, 12, 14]), 2) == {0, 1, 3}


def test_all_right_and_the_zero_polynomial():
    assert consistent_shares(shared([5, 8, 11]), 2) == {0, 1, 2}
    assert consistent_shares(shared([0, 0, 0]), 2) == {0, 1, 2}
    assert consistent_shares(shared([0, 0, 7]), 1) == {0, 1}


def test_as_many_as_the_threshold_agree_always():
    assert consistent_shares(shared([9, 1, 4]), 3) == {0, 1, 2}


def test_two_wrong_points_of_four_are_too_many_for_a_line():
    assert consistent_shares(shared([5, 9, 12, 14]), 2) is None


def test_what_is_no_field_element_is_left_out():
    shares = shared([5, 8, 11, 14])
    shares[1] = PRIME.to_bytes(SHARE_BYTES, "big")
    shares[2] = b"short"
    assert consistent_shares(shares, 2) == {0, 3}
    assert consistent_shares({0: shares[0], 1: shares[1]}, 2) is None


@given(st.integers(1, 12), st.integers(0, 8), st.data())
def test_finds_any_lies_up_to_half_of_the_spare_shares(threshold, spare, data):
    total = threshold + spare
    secret = secrets.token_bytes(32)
    shares = dict(enumerate(split(secret, threshold, total, secrets.token_bytes)))
    liars = data.draw(
        st.sets(st.integers(0, total - 1), max_size=spare // 2), label="liars"
    )
    for liar in liars:
        value = int.from_bytes(shares[liar], "big")
        wrong = (value + data.draw(st.integers(1, PRIME - 1))) % PRIME
        shares[liar] = wrong.to_bytes(SHARE_BYTES, "big")
    assert consistent_shares(shares, threshold) == set(range(total)) - liars


def test_a_hundred_shares_with_sixteen_lies():
    shares = dict(enumerate(split(b"s" * 32, 67, 100, secrets.token_bytes)))
    liars = set(range(0, 64, 4))
    for liar in liars:
        shares[liar] = secrets.token_bytes(32).rjust(SHARE_BYTES, b"\x00")
    assert consistent_shares(shares, 67) == set(range(100)) - liars
