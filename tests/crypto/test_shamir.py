import itertools
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import shamir
from crypto.errors import InvalidShare
from tests.crypto import references
from tests.crypto.vectors import load


def unhex_shares(case):
    return {int(i): bytes.fromhex(share) for i, share in case["shares"].items()}


@pytest.mark.parametrize("case", load("shamir", "generate"))
def test_known_answers_of_the_core(case):
    secret = int(case["secret"], 16)
    coefficients = [int(c, 16) for c in case["coefficients"]]
    shares = shamir._evaluate(secret, coefficients, case["num_shares"])
    assert [share.hex() for share in shares] == case["shares"]


@pytest.mark.parametrize("case", load("shamir", "verify"))
def test_known_shares_combine(case):
    secret = shamir.combine(unhex_shares(case), case["threshold"])
    assert secret.hex() == case["secret"]


@pytest.mark.parametrize("case", load("shamir", "invalid"), ids=lambda c: c["why"])
def test_invalid_shares_raise(case):
    with pytest.raises(InvalidShare):
        shamir.combine(unhex_shares(case), case["threshold"])


@given(st.binary(min_size=32, max_size=32), st.data())
def test_every_subset_gives_the_secret(secret, data):
    num_shares = data.draw(st.integers(1, 6))
    threshold = data.draw(st.integers(1, num_shares))
    shares = shamir.split(secret, threshold, num_shares, secrets.token_bytes)
    for subset in itertools.combinations(range(num_shares), threshold):
        chosen = {i: shares[i] for i in reversed(subset)}
        assert shamir.combine(chosen, threshold) == secret
        points = [(i + 1, int.from_bytes(shares[i], "big")) for i in subset]
        schoolbook = references.interpolate_at_zero(points)
        assert schoolbook.to_bytes(32, "big") == secret


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_fewer_shares_fit_every_secret(secret, other):
    """For any other secret there is a polynomial through the same two shares."""
    shares = shamir.split(secret, 3, 5, secrets.token_bytes)
    points = [(x, int.from_bytes(shares[x - 1], "big")) for x in (2, 5)]
    through = [(0, int.from_bytes(other, "big")), *points]

    def at(x):
        moved = [(x_i - x, y_i) for x_i, y_i in through]
        return references.interpolate_at_zero(moved).to_bytes(33, "big")

    assert (at(2), at(5)) == (shares[1], shares[4])
    forged = {0: at(1), 1: shares[1], 4: shares[4]}
    assert shamir.combine(forged, 3) == other


def test_toy_field_fewer_shares_carry_nothing():
    """p = 7, threshold 2: one share takes every value once, whatever the secret."""
    for secret in range(7):
        assert {(secret + c * 3) % 7 for c in range(7)} == set(range(7))


def test_coefficients_use_all_the_randomness_and_nothing_else():
    drawn = []

    def random(num_bytes):
        drawn.append(num_bytes)
        return (len(drawn)).to_bytes(num_bytes, "big")

    shares = shamir.split(bytes(31) + b"\x05", 3, 4, random)
    assert drawn == [49, 49]
    assert [int.from_bytes(s, "big") for s in shares] == [8, 15, 26, 41]


def test_coefficients_serve_many_secrets():
    coefficients = shamir.lagrange_at_zero([4, 0, 2])
    for _ in range(3):
        secret = secrets.token_bytes(32)
        shares = dict(enumerate(shamir.split(secret, 3, 5, secrets.token_bytes)))
        assert shamir.combine_with(coefficients, shares) == secret


def test_one_wrong_share_gives_another_secret():
    secret = secrets.token_bytes(32)
    shares = dict(enumerate(shamir.split(secret, 2, 3, secrets.token_bytes)))
    shares[1] = shares[2]
    assert shamir.combine({0: shares[0], 1: shares[1]}, 2) != secret


@pytest.mark.parametrize("indices", [[], [1, 1]])
def test_indices_are_distinct(indices):
    with pytest.raises(InvalidShare):
        shamir.lagrange_at_zero(indices)


@pytest.mark.parametrize(
    ("length", "threshold", "num_shares"),
    [(31, 1, 1), (33, 1, 1), (32, 0, 1), (32, 3, 2), (32, 1, 65_536)],
)
def test_split_refuses(length, threshold, num_shares):
    with pytest.raises(ValueError):
        shamir.split(bytes(length), threshold, num_shares, secrets.token_bytes)
