"""Claims of epsilon against the price of their events: each one, or between two.

A price takes up to half a second, and every round of every silo has a claim. More
events never cost less, so that in a long run some prices bound all claims between.
"""

import gc
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

from privacy.events import Event
from privacy.pricing import epsilon

CLAIM_TOLERANCE = 1e-3
"""By how much a claim may differ from the price of its events, relatively."""
MAX_PRICED = 64
"""Claims of one silo that are all priced; of more, so many, the first and the last."""

Events = Sequence[Event]


def wrong_claims(
    claims: Sequence[tuple[Events, float]], delta: float
) -> Iterator[tuple[int, float]]:
    """Yield the index of every claim that does not hold, and what its events cost.

    Guarantees: the last claim is within ``CLAIM_TOLERANCE`` of its price, and so is
    every other where there are at most ``MAX_PRICED``. Of more, a claim that was not
    priced lies between the prices of two others, one with no more and one with no fewer
    events than its own; any that does not is priced.

    Args:
        claims: events and the epsilon that a silo says they cost, in order.
    """
    known: dict[int, float] = {}
    for index in _chosen(len(claims)):
        known[index] = _price(tuple(claims[index][0]), delta)
    below = -1
    for index, (events, claim) in enumerate(claims):
        if index in known:
            below = index
        elif _is_between(claims, known, below, index):
            continue
        price = known.get(index)
        if price is None:
            price = _price(tuple(events), delta)
        if not abs(claim - price) <= CLAIM_TOLERANCE * price < math.inf:
            yield index, price


@lru_cache(maxsize=1024)
def _price(events: tuple[Event, ...], delta: float) -> float:
    """Return what events cost.

    The accountant leaves arrays behind that only the garbage collector finds, which
    counts objects and not their bytes.
    """
    price = epsilon(events, delta)
    gc.collect()
    return price


def _chosen(number: int) -> list[int]:
    """Return the indices of the claims to price, evenly spaced, first and last."""
    if number <= MAX_PRICED:
        return list(range(number))
    return [step * (number - 1) // (MAX_PRICED - 1) for step in range(MAX_PRICED)]


def _is_between(
    claims: Sequence[tuple[Events, float]],
    known: dict[int, float],
    below: int,
    index: int,
) -> bool:
    """Return whether a claim and its events lie between two that are priced."""
    above = next(other for other in range(index + 1, len(claims)) if other in known)
    events, claim = claims[index]
    grows = _is_part(claims[below][0], events) and _is_part(events, claims[above][0])
    low, high = known[below] * (1 - CLAIM_TOLERANCE), known[above]
    return grows and low <= claim <= high * (1 + CLAIM_TOLERANCE) < math.inf


def _is_part(fewer: Events, more: Events) -> bool:
    """Return whether the steps of every mechanism are among those of another list."""
    left, right = _steps(fewer), _steps(more)
    return all(steps <= right.get(one, 0) for one, steps in left.items())


def _steps(events: Events) -> dict[Event, int]:
    """Return the number of steps by mechanism."""
    found: dict[Event, int] = {}
    for event in events:
        one = event.times(1)
        found[one] = found.get(one, 0) + event.steps
    return found
