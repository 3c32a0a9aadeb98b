"""The bytes of a vector, and of a broadcast, told apart by the parts of the model."""

import itertools
from collections.abc import Sequence
from typing import TypeAlias

from protocol.plan import RunPlan

FLOAT_BYTES = 4

Segments: TypeAlias = Sequence[tuple[str, int]]
"""The part and the length of every federated tensor, in the order of the layout."""


def stretches_of(plan: RunPlan, segments: Segments) -> list[Segments]:
    """Return the tensors of each stretch of the vector (``protocol.stretches``)."""
    if not plan.update.is_dealt:
        return [segments]
    groups = itertools.groupby(segments, key=lambda segment: segment[0])
    return [tuple(group) for _, group in groups]


def vector_by_part(
    plan: RunPlan, segments: Segments, round_number: int
) -> dict[str, int]:
    """Return how many bytes of a round's vector belong to each part.

    Fields are packed across the border of two tensors: the word in which one ends
    counts to it, so that the parts add up to the whole vector. What rotation pads is
    "padding", the word of a secret weight "weight". Rotated fields are no part's own;
    their number still is. Where parts are dealt, each has words, padding and weight of
    its own, which count to it, and a silo sends some of them only.
    """
    if plan.update.is_dealt:
        return {
            stretch[0][0]: plan.vector_bytes(round_number, sum(n for _, n in stretch))
            for stretch in stretches_of(plan, segments)
        }
    per_word = 64 // plan.field_bits(round_number)
    size = sum(length for _, length in segments)
    padding = plan.update.num_values(size) - size
    rows = [*segments, ("padding", padding)] if padding else [*segments]
    parts = {part: 0 for part, _ in rows}
    end = before = 0
    for part, length in rows:
        end += length
        words = -(-end // per_word)
        parts[part] += 8 * (words - before)
        before = words
    if plan.update.weights == "secret":
        parts["weight"] = 8
    return parts


def broadcast_by_part(segments: Segments, broadcast_bits: int = 0) -> dict[str, int]:
    """Return how many bytes of one broadcast belong to each part.

    Args:
        broadcast_bits: of a level of a quantised difference, which has a range for each
            tensor besides; the byte in which a tensor ends counts to it. 0: float32.
    """
    parts = {part: 0 for part, _ in segments}
    end = before = 0
    for part, length in segments:
        end += length * (broadcast_bits or 8 * FLOAT_BYTES)
        whole = -(-end // 8)
        parts[part] += whole - before + (FLOAT_BYTES if broadcast_bits else 0)
        before = whole
    return parts


# ------------------------------------------------------------------------ counted
