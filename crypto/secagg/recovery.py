"""Open committed secrets from shares of which some may be wrong.

A share cannot be checked alone, but a secret can: its commitment is public. When the
first shares do not give it, the shares are decoded as a Reed-Solomon code word, which
shows who lied as long as at most half of the shares beyond the threshold are wrong;
then, where they are few, all subsets are tried. Whoever lied about one secret is left
out for the next.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from math import comb

from crypto.errors import InvalidShare
from crypto.reed_solomon import consistent_shares
from crypto.shamir import combine_with, lagrange_at_zero

MAX_SUBSETS = 1000
"""Subsets tried for one secret, where there are no more."""


def open_secrets(
    shares: Mapping[int, Sequence[bytes]],
    threshold: int,
    checks: Mapping[int, Callable[[bytes], bool]],
    *,
    max_lying: int,
) -> dict[int, bytes]:
    """Return one secret for each silo, each equal to what that silo committed to.

    Args:
        shares: by responder, one share of each secret, in the order of ``checks``.
        threshold: shares that open a secret.
        checks: by silo, whether a value is the committed secret.
        max_lying: responders that may lie.

    Raises:
        InvalidShare: responders are too few, or nothing gives a secret; the message
            names the silo whose secret it is. ``silo`` of the error is that silo if it
            must have dealt wrong shares unless more than ``max_lying`` responders lie.
    """
    if len(shares) < threshold:
        raise InvalidShare(f"shares of {len(shares)} silos, {threshold} are needed")
    coefficients = lagrange_at_zero(sorted(shares)[:threshold])
    opened = {}
    for position, (silo, is_committed) in enumerate(checks.items()):
        column = {responder: row[position] for responder, row in shares.items()}
        for attempt in _candidates(coefficients, column, threshold):
            secret = _combine_or_none(attempt, column)
            if secret is not None and is_committed(secret):
                opened[silo], coefficients = secret, attempt
                break
        else:
            is_certain = _finds_every_lie(len(shares), threshold, max_lying)
            raise InvalidShare(
                f"no shares give the committed secret of silo {silo}",
                silo=silo if is_certain else None,
            )
    return opened


def _finds_every_lie(num_shares: int, threshold: int, max_lying: int) -> bool:
    """Whether true shares would have been found among so many lies."""
    spare = num_shares - threshold
    if spare >= 2 * max_lying:
        return True
    return spare >= max_lying and comb(num_shares, threshold) <= MAX_SUBSETS


def _candidates(
    last: dict[int, int], column: Mapping[int, bytes], threshold: int
) -> Iterator[dict[int, int]]:
    """Yield coefficients: those that worked last, then those of other subsets."""
    yield last
    honest = consistent_shares(column, threshold)
    if honest is not None:
        yield lagrange_at_zero(sorted(honest)[:threshold])
    if comb(len(column), threshold) <= MAX_SUBSETS:
        for subset in combinations(sorted(column), threshold):
            yield lagrange_at_zero(subset)


def _combine_or_none(
    coefficients: Mapping[int, int], shares: Mapping[int, bytes]
) -> bytes | None:
    """Return the combined secret, or nothing where shares are out of range."""
    try:
        return combine_with(coefficients, shares)
    except InvalidShare:
        return None
