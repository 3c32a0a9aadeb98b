"""Linear tags modulo t: which linear combination of uploads a ciphertext holds.

The slots of a vector count through its chunks: j = chunk * N + column. A silo's vector
has values w_j in its first ``num_values`` slots; the tags stand in the next two::

    tag_τ = Σ_j v_τj * w_j + pad_τ  mod t,   τ = 0, 1

with v from one key that all silos have and the aggregator has not, and pads of its
own for each silo, round and part. The sum of the contributors' uploads therefore has
*residuals* Σ_j v_τj * w_j - tag_τ that are minus the sum of the contributors' pads.

Guarantees: whoever has neither key, and adds, scales, leaves out or mixes ciphertexts
of any round as it likes, passes the check of both tags with probability at most 2^-88
unless the result holds exactly the confirmed silos' vectors, once each:

1. What is decrypted is a known combination Σ_i a_i * (w_i, tag_i) + (d, e), slot by
   slot, and d and e can be chosen: BFV without evaluation keys is assumed to let
   nothing else be computed (*linear-only* encryption).
2. Its residuals are <v, what d and unequal coefficients over the chunks add> - e -
   Σ_i a_i * pad_i; those that are asked for are -Σ_{i confirmed} pad_i.
3. The pads are unknown, independent and uniform: they cancel only where a_i, in the
   chunk of the tags, is 1 for exactly the confirmed silos and 0 for all others; any
   other choice passes with probability 1/t for each tag.
4. With that choice the combination passes if <v, x> = e, where x, not zero, is how far
   the values are from the true sum: v is unknown, and of the 2^44 numbers that one
   v_τj may be, at x_j other than 0 modulo t at most one solves it: 2^-44 for each tag.

x may depend on the values of the silos, but not on v or the pads, as long as nobody
learns which tag failed, or by how much (each trial costs a round).
"""

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from crypto.bfv.parameters import PLAIN_MODULUS, POLY_DEGREE, Slots
from crypto.kdf import derive
from crypto.labels import BFV_TAG_PADS, BFV_TAG_WEIGHTS

NUM_TAGS = 2
TAG_SEED_BYTES = 32
_BLOCK_SLOTS = 2 * POLY_DEGREE
"""Slots that are worked on together; sums of products of 45 bits are exact up to 128
chunks."""
_BLOCKS_PER_CHUNK = NUM_TAGS * POLY_DEGREE * 8 // 16
_BLOCK_SLACK = 16
_LOW_BITS = 23
_HALF_BITS = 22
_PAD_BYTES = 16

Words = npt.NDArray[np.uint64]


def residuals(
    slots: Slots, tag_seed: bytes, first_chunk: int, num_values: int
) -> tuple[int, int]:
    """Return what some chunks of a vector add to its two residuals.

    The residuals of a vector are the sums, modulo t, over all of its chunks, in any
    order and grouping. With zeros in the slots of the tags they are Σ_j v_τj * w_j.

    Args:
        slots: uint64 ``[c, N]``, each below t: the chunks from ``first_chunk`` on.
        tag_seed: 32 secret bytes that all silos have: the v_τj follow from it.
        first_chunk: the number of the first chunk, from 0.
        num_values: how many slots of the whole vector hold values.

    Raises:
        ValueError: another shape, type or length, or a slot of t or more.
    """
    _check(slots, tag_seed, first_chunk, num_values)
    flat = slots.reshape(-1)
    sums = [0] * NUM_TAGS
    first_slot = first_chunk * POLY_DEGREE
    keystream = _keystream(tag_seed, first_chunk)
    values = flat[: max(0, num_values - first_slot)]
    for start in range(0, values.size, _BLOCK_SLOTS):
        block = values[start : start + _BLOCK_SLOTS]
        words = _next_words(keystream, -(-block.size // POLY_DEGREE))
        for tag, product in enumerate(_products(block, words)):
            sums[tag] += product
    for tag in range(NUM_TAGS):
        column = num_values + tag - first_slot
        if 0 <= column < flat.size:
            sums[tag] -= int(flat[column])
    return sums[0] % PLAIN_MODULUS, sums[1] % PLAIN_MODULUS


def pads(key: bytes) -> tuple[int, int]:
    """Return the two pads of one silo, round and part, modulo t.

    Args:
        key: 32 secret bytes that belong to this silo, round and part, that all silos
            have, and that are used for nothing else.

    Guarantees: each is within 2^-82 of uniform (128 bits modulo t).
    """
    if len(key) != TAG_SEED_BYTES:
        raise ValueError(f"a key of {len(key)} bytes")
    data = derive(key, BFV_TAG_PADS, b"", NUM_TAGS * _PAD_BYTES)
    first, second = data[:_PAD_BYTES], data[_PAD_BYTES:]
    return (
        int.from_bytes(first, "big") % PLAIN_MODULUS,
        int.from_bytes(second, "big") % PLAIN_MODULUS,
    )


def weight_words(tag_seed: bytes, first_chunk: int, num_chunks: int) -> Words:
    """Return the keystream of some chunks: uint64 ``[num_chunks, N, 2]``.

    v_τj is made of the 22 highest bits of word τ of slot j, and of its 22 lowest: 44
    uniform bits, so that there is no bias. The keystream is AES-256 in counter mode
    under a key derived from the seed, from the block at which the first chunk begins.
    """
    return _next_words(_keystream(tag_seed, first_chunk), num_chunks)


def _keystream(tag_seed: bytes, first_chunk: int) -> CipherContext:
    """Return the cipher, at the block at which a chunk begins."""
    key = derive(tag_seed, BFV_TAG_WEIGHTS, b"", 32)
    counter = (first_chunk * _BLOCKS_PER_CHUNK).to_bytes(16, "big")
    return Cipher(AES256(key), CTR(counter)).encryptor()


def _next_words(keystream: CipherContext, num_chunks: int) -> Words:
    """Return the keystream of the next chunks: uint64 ``[num_chunks, N, 2]``."""
    size = num_chunks * _BLOCKS_PER_CHUNK * 16
    buffer = bytearray(size + _BLOCK_SLACK)
    keystream.update_into(bytes(size), buffer)
    words = np.frombuffer(buffer, "<u8", size // 8)
    return words.reshape(num_chunks, POLY_DEGREE, NUM_TAGS)


def _products(values: Slots, words: Words) -> list[int]:
    """Return Σ_j v_τj * w_j of at most ``_BLOCK_SLOTS`` slots, for both tags.

    From products of 22 and 23 bits, the sums of which are exact.
    """
    words = words.reshape(-1, NUM_TAGS)[: values.size]
    halves = (
        (0, words & np.uint64((1 << _HALF_BITS) - 1)),
        (_HALF_BITS, words >> np.uint64(64 - _HALF_BITS)),
    )
    low = values & np.uint64((1 << _LOW_BITS) - 1)
    high = values >> np.uint64(_LOW_BITS)
    totals = [0] * NUM_TAGS
    for tag in range(NUM_TAGS):
        for shift, half in halves:
            totals[tag] += int(np.dot(half[:, tag], low)) << shift
            totals[tag] += int(np.dot(half[:, tag], high)) << (shift + _LOW_BITS)
    return totals


def _check(slots: Slots, tag_seed: bytes, first_chunk: int, num_values: int) -> None:
    """Refuse arguments that no caller of ours should pass."""
    if slots.dtype != np.uint64 or slots.ndim != 2 or slots.shape[1] != POLY_DEGREE:
        raise ValueError(f"slots: {slots.dtype} {slots.shape}")
    if slots.size and int(slots.max()) >= PLAIN_MODULUS:
        raise ValueError("slots: one is t or more")
    if len(tag_seed) != TAG_SEED_BYTES:
        raise ValueError(f"a tag seed of {len(tag_seed)} bytes")
    if first_chunk < 0 or num_values < 0:
        raise ValueError("first_chunk and num_values: must not be negative")
