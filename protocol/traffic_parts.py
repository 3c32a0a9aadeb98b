"""The bytes of a vector, and of a broadcast, told apart by the parts of the model."""

import itertools
from collections.abc import Sequence
from typing import TypeAlias

from crypto.bfv.parameters import FRESH_BYTES
from protocol.plan import RunPlan
from protocol.traffic_encrypted import chunks_of

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
    its own, which count to it, and a silo sends some of them only. A ciphertext holds
    values of all parts: each has as large a share of the bytes as of the values.
    """
    if plan.update.is_dealt:
        return {
            stretch[0][0]: _stretch_bytes(plan, stretch, round_number)
            for stretch in stretches_of(plan, segments)
        }
    if plan.protection.is_encrypted:
        return _shares(plan, segments, round_number)
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


def _stretch_bytes(plan: RunPlan, stretch: Segments, round_number: int) -> int:
    """Return the bytes that a stretch takes on its way up."""
    size = sum(length for _, length in stretch)
    if not plan.protection.is_encrypted:
        return plan.vector_bytes(round_number, size)
    num_words = plan.num_words(round_number, size)
    return FRESH_BYTES * sum(chunks_of(plan, round_number, (num_words,)))


def _shares(plan: RunPlan, segments: Segments, round_number: int) -> dict[str, int]:
    """Return the bytes of ciphertexts, shared out by the number of values."""
    whole = _stretch_bytes(plan, segments, round_number)
    size = sum(length for _, length in segments)
    parts = {part: 0 for part, _ in segments}
    end = before = 0
    for part, length in segments:
        end += length
        here = whole * end // size
        parts[part] += here - before
        before = here
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
