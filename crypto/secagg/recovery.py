"""Open committed secrets from shares of which some may be wrong.

A share cannot be checked alone, but a secret can: its commitment is public. When the
first shares do not give it, other subsets are tried, and the subset that worked is used
for the next secret, because whoever lies once is best left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, islice

from crypto.errors import InvalidShare
from crypto.shamir import combine_with, lagrange_at_zero

MAX_SUBSETS = 1000
"""Subsets tried for one secret; above, the slot is lost rather than the hour."""


def open_secrets(
    shares: Mapping[int, Sequence[bytes]],
    threshold: int,
    checks: Mapping[int, Callable[[bytes], bool]],
) -> dict[int, bytes]:
    """Return one secret for each silo, each equal to what that silo committed to.

    Args:
        shares: by responder, one share of each secret, in the order of ``checks``.
        threshold: shares that open a secret.
        checks: by silo, whether a value is the committed secret.

    Raises:
        InvalidShare: responders are too few, or no subset gives a secret; the message
            names the silo whose secret it is. Either that silo dealt wrong shares, or
            too many responders lie.
    """
    if len(shares) < threshold:
        raise InvalidShare(f"shares of {len(shares)} silos, {threshold} are needed")
    coefficients = lagrange_at_zero(sorted(shares)[:threshold])
    opened = {}
    for position, (silo, is_committed) in enumerate(checks.items()):
        column = {responder: row[position] for responder, row in shares.items()}
        for attempt in _candidates(coefficients, sorted(shares), threshold):
            secret = _combine_or_none(attempt, column)
            if secret is not None and is_committed(secret):
                opened[silo], coefficients = secret, attempt
                break
        else:
            raise InvalidShare(f"no shares give the committed secret of silo {silo}")
    return opened


def _candidates(
    first: dict[int, int], responders: Sequence[int], threshold: int
) -> Iterator[dict[int, int]]:
    """Yield the coefficients that worked last, then those of other subsets."""
    yield first
    for subset in islice(combinations(responders, threshold), MAX_SUBSETS):
        yield lagrange_at_zero(subset)


def _combine_or_none(
    coefficients: Mapping[int, int], shares: Mapping[int, bytes]
) -> bytes | None:
    """Return the combined secret, or nothing where shares are out of range."""
    try:
        return combine_with(coefficients, shares)
    except InvalidShare:
        return None
