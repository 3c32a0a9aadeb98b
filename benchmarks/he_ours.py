"""The same round under exact BFV: packing, child processes, wire form, tags, checks.

Everything between an update's integers and the mean's is done and clocked, but for
signatures and messages: packing into slots, tags, encryption in child processes, the
upload's digest at both ends, reading and adding at the aggregator, the checks of noise
budget and tags, decryption. All silos upload the same vector, encrypted once: to the
aggregator it is n uploads.
"""

import hashlib
import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from benchmarks.he_cost import STAGES, RoundCost, Seconds
from benchmarks.he_parameters import fields_per_slot
from crypto.bfv.parameters import (
    FRESH_BYTES,
    MIN_NOISE_BUDGET_BITS,
    PLAIN_MODULUS,
    POLY_BYTES,
    POLY_DEGREE,
    SLOT_BITS,
    SUMMED_BYTES,
    Residues,
    Slots,
)
from crypto.bfv.residues import add_residues, pack_residues, unpack_residues
from crypto.bfv.tags import NUM_TAGS, TAG_SEED_BYTES, residuals
from crypto.bfv.workers import BLOCK_CIPHERTEXTS, Workers
from crypto.prg import num_processors
from crypto.ring import field_bits_for, words_needed

NUM_OPENERS = 2
"""How many survivors decrypt: the aggregator compares what they say."""
PAD = 1
"""Stands for the pads of a silo's tags, which cost nothing to derive."""

Values = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]


class Packing:
    """Values side by side in slots, planar, tags behind them."""

    def __init__(self, num_values: int, value_bits: int, num_silos: int) -> None:
        self.num_fields = fields_per_slot(SLOT_BITS, value_bits, num_silos)
        self.width = np.uint64(SLOT_BITS // self.num_fields)
        self.num_values = num_values
        self.num_slots = -(-num_values // self.num_fields)
        self.num_chunks = -(-(self.num_slots + NUM_TAGS) // POLY_DEGREE)

    def blocks(self) -> Iterator[slice]:
        """Yield the chunks, some at a time."""
        for first in range(0, self.num_chunks, BLOCK_CIPHERTEXTS):
            yield slice(first, min(first + BLOCK_CIPHERTEXTS, self.num_chunks))

    def pack(self, values: Values, block: slice) -> Slots:
        """Return some chunks of slots, ``[c, N]``."""
        first, last = block.start * POLY_DEGREE, block.stop * POLY_DEGREE
        slots = np.zeros(last - first, np.uint64)
        stop = min(last, self.num_slots)
        for index in range(self.num_fields):
            start = index * self.num_slots
            part = values[start + first : min(start + stop, self.num_values)]
            slots[: part.size] |= part << (np.uint64(index) * self.width)
        return slots.reshape(-1, POLY_DEGREE)

    def unpack(self, slots: Slots, block: slice, values: Values) -> None:
        """Write the values of some chunks of slots where they belong."""
        first = block.start * POLY_DEGREE
        stop = min(block.stop * POLY_DEGREE, self.num_slots)
        flat, mask = slots.reshape(-1)[: stop - first], (np.uint64(1) << self.width)
        for index in range(self.num_fields):
            start = index * self.num_slots
            target = values[start + first : min(start + stop, self.num_values)]
            shift = np.uint64(index) * self.width
            target[:] = (flat[: target.size] >> shift) & (mask - np.uint64(1))


class Silo:
    """One silo: the shared key, the tags' key, and its child processes."""

    def __init__(self, workers: Workers, packing: Packing) -> None:
        self.workers, self.packing = workers, packing
        self.key = workers.make_key()
        self.tag_seed = os.urandom(TAG_SEED_BYTES)

    def encrypt(self, values: Values) -> Bytes:
        """Return an upload ``[chunks, FRESH_BYTES]``; its digest is made, too."""
        upload = bytearray()
        for piece in self.workers.encrypt(self.key, self._slots(values)):
            upload += piece
        hashlib.sha256(upload).digest()
        return np.frombuffer(upload, np.uint8).reshape(-1, FRESH_BYTES)

    def _slots(self, values: Values) -> Iterator[Slots]:
        """Yield the slots block by block, the last one with the tags."""
        packing, tags = self.packing, np.full(NUM_TAGS, PAD, object)
        for block in packing.blocks():
            slots = packing.pack(values, block)
            tags += self._residuals(slots, block)
            if block.stop == packing.num_chunks:
                at = packing.num_slots - block.start * POLY_DEGREE
                place_tags(slots, at, tags % PLAIN_MODULUS)
            yield slots

    def _residuals(self, slots: Slots, block: slice) -> tuple[int, int]:
        """Return what a block adds to the tags."""
        return residuals(slots, self.tag_seed, block.start, self.packing.num_slots)

    def decrypt(self, summed: Bytes, num_silos: int) -> Values:
        """Return the sum of all values, once budget and tags have been checked."""
        packing = self.packing
        held = self.workers.decrypt(
            self.key,
            (read_summed(summed[block]) for block in packing.blocks()),
            tag_seed=self.tag_seed,
            num_values=packing.num_slots,
        )
        if held.noise_budget_bits < MIN_NOISE_BUDGET_BITS:
            raise RuntimeError(f"{held.noise_budget_bits} bits of noise budget")
        if set(held.residuals) != {-num_silos * PAD % PLAIN_MODULUS}:
            raise RuntimeError("another sum than that of all silos")
        total = np.empty(packing.num_values, np.uint64)
        for block, slots in zip(packing.blocks(), held.slots(), strict=True):
            packing.unpack(slots, block, total)
        return total


class Aggregator:
    """The aggregator: sums of c0, all seeds, and its own child processes."""

    def __init__(self, workers: Workers, packing: Packing) -> None:
        self.workers, self.packing = workers, packing
        self.total = np.zeros((packing.num_chunks, POLY_DEGREE), np.uint64)
        self.seeds: list[Bytes] = []

    def add(self, upload: Bytes) -> None:
        """Take one upload."""
        hashlib.sha256(upload.data).digest()
        for block in self.packing.blocks():
            part = np.ascontiguousarray(upload[block, :POLY_BYTES])
            read = unpack_residues(part.reshape(-1).data, len(part))
            add_residues(self.total[block], read)
        self.seeds.append(upload[:, POLY_BYTES:].copy())

    def summed(self) -> Bytes:
        """Return the sum ``[chunks, SUMMED_BYTES]``: c0, c1 of each chunk."""
        out = np.empty((self.packing.num_chunks, SUMMED_BYTES), np.uint8)
        for first, c1 in self.workers.expand_sum(np.stack(self.seeds)):
            block = slice(first, first + len(c1))
            out[block, :POLY_BYTES] = pack_residues(self.total[block])
            out[block, POLY_BYTES:] = pack_residues(c1)
        return out


def read_summed(data: Bytes) -> Residues:
    """Return chunks of a sum, ``[c, 2, N]``."""
    read = unpack_residues(np.ascontiguousarray(data).reshape(-1).data, 2 * len(data))
    return read.reshape(-1, 2, POLY_DEGREE)


def place_tags(slots: Slots, at: int, tags: npt.NDArray[np.object_]) -> None:
    """Write tags into the spare slots behind the values.

    Raises:
        ValueError: the first would stand in the block before.
    """
    if at < 0:
        raise ValueError("tags on both sides of a block: choose another length")
    slots.reshape(-1)[at : at + NUM_TAGS] = tags.astype(np.uint64)


def start_children(silo: Silo) -> None:
    """Have every child process started, which a run does once."""
    blocks = [np.zeros((1, POLY_DEGREE), np.uint64)] * (2 * num_processors())
    for _ in silo.workers.encrypt(silo.key, blocks):
        pass


def ours_round(
    num_parameters: int,
    num_silos: int,
    value_bits: int,
    num_children: int | None = None,
) -> RoundCost:
    """Return the cost of a round with so many child processes a side (all cores)."""
    packing = Packing(num_parameters, value_bits, num_silos)
    randomness = np.random.default_rng(0)
    values = randomness.integers(0, 1 << value_bits, num_parameters, np.uint64)
    stages = {stage: Seconds() for stage in STAGES}
    with Workers(num_children) as workers:
        silo, aggregator = Silo(workers, packing), Aggregator(workers, packing)
        start_children(silo)
        with stages["encrypt"].count():
            upload = silo.encrypt(values)
        with stages["add"].count():
            for _ in range(num_silos):
                aggregator.add(upload)
            summed = aggregator.summed()
        with stages["decrypt"].count():
            total = silo.decrypt(summed, num_silos)
    words = words_needed(num_parameters, field_bits_for(value_bits, num_silos))
    difference = np.abs(total.astype(np.int64) - num_silos * values.astype(np.int64))
    return RoundCost(
        stages=stages,
        num_silos=num_silos,
        upload_bytes=upload.nbytes,
        sum_bytes=summed.nbytes,
        num_openers=NUM_OPENERS,
        opened_bytes=8 * words,
        max_error=float(difference.max()) / num_silos,
    )
