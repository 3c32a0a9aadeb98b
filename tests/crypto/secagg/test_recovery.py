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
    assert open_secrets(deal(3, 3), 3, CHECKS) == VALUES


@pytest.mark.parametrize("wrong", [bytes(33), b"\xff" * 33, (7).to_bytes(33, "big")])
@pytest.mark.parametrize("liar", range(5))
def test_one_liar_is_left_out(liar, wrong):
    shares = deal(3, 5)
    shares[liar] = [wrong] * 3
    assert open_secrets(shares, 3, CHECKS) == VALUES


def test_two_liars_among_five():
    shares = deal(3, 5)
    shares[0][1] = shares[2][1] = bytes(33)
    assert open_secrets(shares, 3, CHECKS) == VALUES


def test_too_many_liars_and_the_dealer_is_named():
    shares = deal(3, 5)
    for liar in (0, 2, 3):
        shares[liar][1] = bytes(33)
    with pytest.raises(InvalidShare, match="silo 4"):
        open_secrets(shares, 3, CHECKS)


def test_too_few_responders():
    with pytest.raises(InvalidShare, match="2 silos, 3 are needed"):
        open_secrets(dict(list(deal(3, 5).items())[:2]), 3, CHECKS)
