import secrets

import pytest

from crypto.errors import InvalidShare
from crypto.secagg.recovery import open_secrets
from crypto.shamir import split

VALUES = {silo: secrets.token_bytes(32) for silo in (1, 4, 6)}
CHECKS = {silo: value.__eq__ for silo, value in VALUES.items()}


def deal(threshold, num_shares):
    dealt = [
        split(v, threshold, num_shares, secrets.token_bytes) for v in VALUES.values()
    ]
    return {i: [shares[i] for shares in dealt] for i in range(num_shares)}


def test_right_shares_open_everything():
    assert open_secrets(deal(3, 3), 3, CHECKS, max_lying=1) == VALUES


@pytest.mark.parametrize("wrong", [bytes(33), b"\xff" * 33, (7).to_bytes(33, "big")])
@pytest.mark.parametrize("liar", range(5))
def test_one_liar_is_left_out(liar, wrong):
    shares = deal(3, 5)
    shares[liar] = [wrong] * 3
    assert open_secrets(shares, 3, CHECKS, max_lying=1) == VALUES


def test_two_liars_among_five():
    shares = deal(3, 5)
    shares[0][1] = shares[2][1] = bytes(33)
    assert open_secrets(shares, 3, CHECKS, max_lying=1) == VALUES


def test_too_many_liars_and_the_dealer_is_named():
    shares = deal(3, 5)
    for liar in (0, 2, 3):
        shares[liar][1] = bytes(33)
    with pytest.raises(InvalidShare, match="silo 4"):
        open_secrets(shares, 3, CHECKS, max_lying=1)


# Shares, threshold, liars allowed for, whether the dealer is at fault for sure.
CERTAIN = [
    (3, 3, 0, True),
    (3, 3, 1, False),  # One liar among three, and nothing to spare.
    (4, 3, 1, True),  # A subset of three honest ones would have been tried.
    (5, 3, 2, True),
    (5, 4, 2, False),
    (30, 15, 7, True),  # 15 to spare: decoding finds any seven.
    (30, 15, 8, False),  # Eight are beyond decoding, and subsets are too many.
]


@pytest.mark.parametrize(
    ("num_shares", "threshold", "max_lying", "is_certain"), CERTAIN
)
def test_a_dealer_is_at_fault_only_if_no_allowed_lie_explains_it(
    num_shares, threshold, max_lying, is_certain
):
    """The dealer has committed to another secret than it has dealt."""
    dealt = split(VALUES[4], threshold, num_shares, secrets.token_bytes)
    shares = {i: [share] for i, share in enumerate(dealt)}
    with pytest.raises(InvalidShare, match="silo 4") as raised:
        open_secrets(shares, threshold, {4: bytes(32).__eq__}, max_lying=max_lying)
    assert raised.value.silo == (4 if is_certain else None)


def test_too_few_responders():
    with pytest.raises(InvalidShare, match="2 silos, 3 are needed"):
        open_secrets(dict(list(deal(3, 5).items())[:2]), 3, CHECKS, max_lying=1)
