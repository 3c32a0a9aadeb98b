"""What a hostile aggregator may send to be decrypted, case by case, and what follows.

Every case must end in a ``MalformedMessage``, in residuals or a noise budget that are
wrong, or in the exact sum: a bit flipped far below the noise of c0 changes nothing that
is decrypted. ``tests/crypto/bfv/test_workers.py`` plays hundreds of them,
``benchmarks/he_fuzz.py`` thousands.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np

from crypto.bfv.parameters import (
    COEFF_MODULUS,
    FRESH_BYTES,
    MIN_NOISE_BUDGET_BITS,
    PLAIN_MODULUS,
    POLY_BYTES,
    POLY_DEGREE,
    SEED_BYTES,
    SUMMED_BYTES,
)
from crypto.bfv.residues import add_residues, unpack_residues
from crypto.bfv.tags import pads, residuals
from crypto.bfv.workers import Workers
from crypto.errors import MalformedMessage

NUM_SILOS = 3
NUM_CHUNKS = 2
NUM_VALUES = NUM_CHUNKS * POLY_DEGREE - 2
TAG_SEED = bytes(range(32))
Q = COEFF_MODULUS
WRONG = "a wrong value was accepted"


@dataclass
class Upload:
    """One silo's vector with its tags, and its ciphertexts."""

    slots: np.ndarray
    pads: tuple[int, int]
    c0: np.ndarray
    seeds: np.ndarray


@dataclass
class Sum:
    """An honest sum of three silos; cases change copies of its parts."""

    workers: Workers
    key: bytes
    uploads: list[Upload]
    c0: np.ndarray
    c1: np.ndarray
    single: np.ndarray
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def expected(self) -> tuple[int, int]:
        """The residuals of the honest sum."""
        first, second = zip(*(upload.pads for upload in self.uploads), strict=True)
        return -sum(first) % PLAIN_MODULUS, -sum(second) % PLAIN_MODULUS

    def wire(self) -> bytearray:
        """Return the honest sum as it travels: c0 and c1, chunk by chunk."""
        return pack(np.stack([self.c0, self.c1], axis=1))

    def read(self, data: bytes | bytearray, key: bytes | None = None) -> str:
        """Read, decrypt and check as a silo does; say what came of it."""
        residues = unpack_residues(bytes(data), 2 * NUM_CHUNKS)
        decrypted = self.workers.decrypt(
            key or self.key,
            [residues.reshape(NUM_CHUNKS, 2, POLY_DEGREE)],
            tag_seed=TAG_SEED,
            num_values=NUM_VALUES,
        )
        if decrypted.noise_budget_bits < MIN_NOISE_BUDGET_BITS:
            decrypted.discard()
            return "too noisy"
        if decrypted.residuals != self.expected:
            decrypted.discard()
            return "other residuals"
        (slots,) = decrypted.slots()
        total = sum(upload.slots.astype(object) for upload in self.uploads)
        return "exact" if (slots == total % PLAIN_MODULUS).all() else WRONG

    def play(self, random: Random) -> str:
        """Play one case that is drawn; return and count what came of it."""
        case = random.choice(CASES)
        try:
            outcome = case(self, random)
        except MalformedMessage:
            outcome = "malformed"
        self.counts[f"{case.__name__}: {outcome}"] += 1
        return outcome


def pack(residues: np.ndarray) -> bytearray:
    """Pack without the check of the range, as an attacker may."""
    rows = residues.reshape(-1, POLY_DEGREE)
    packed = np.empty((len(rows), POLY_BYTES), np.uint8)
    low = rows.astype("<u8").view(np.uint8).reshape(len(rows), POLY_DEGREE, 8)
    packed[:, : 7 * POLY_DEGREE] = low[:, :, :7].reshape(len(rows), -1)
    packed[:, 7 * POLY_DEGREE :] = low[:, ::2, 7] | low[:, 1::2, 7] << 4
    return bytearray(packed.tobytes())


def make_sum(workers: Workers, largest: int = (1 << 44) - 1) -> Sum:
    """Have three silos encrypt, and add as the aggregator does."""
    key = workers.make_key()
    uploads = [_upload(workers, key, silo, largest) for silo in range(NUM_SILOS)]
    total = uploads[0].c0.copy()
    for upload in uploads[1:]:
        add_residues(total, upload.c0)
    c1 = _expand(workers, [upload.seeds for upload in uploads])
    single = _expand(workers, [uploads[0].seeds])
    return Sum(workers, key, uploads, total, c1, single)


def _upload(workers: Workers, key: bytes, silo: int, largest: int) -> Upload:
    """Encrypt odd values, the largest that a sum of three may have among them."""
    rng = np.random.default_rng(silo)
    shape = (NUM_CHUNKS, POLY_DEGREE)
    slots = rng.integers(0, largest // NUM_SILOS, shape, dtype=np.uint64) | np.uint64(1)
    slots[:, :9] = largest // NUM_SILOS
    slots[:, 0] = largest if not silo else 0
    slots.flat[NUM_VALUES:] = 0
    own = pads(bytes([silo]) * 32)
    tags = zip(residuals(slots, TAG_SEED, 0, NUM_VALUES), own, strict=True)
    slots.flat[NUM_VALUES:] = [(a + b) % PLAIN_MODULUS for a, b in tags]
    data = b"".join(workers.encrypt(key, [slots]))
    fresh = np.frombuffer(data, np.uint8).reshape(NUM_CHUNKS, FRESH_BYTES)
    c0 = unpack_residues(fresh[:, :POLY_BYTES].tobytes(), NUM_CHUNKS)
    return Upload(slots, own, c0, fresh[:, POLY_BYTES:].copy())


def _expand(workers: Workers, seeds: list[np.ndarray]) -> np.ndarray:
    """Return the sum of c1 over some silos."""
    return np.concatenate([part for _, part in workers.expand_sum(np.stack(seeds))])


def truncated(made: Sum, random: Random) -> str:
    data = made.wire()
    return made.read(data[: random.randrange(len(data))])


def too_long(made: Sum, random: Random) -> str:
    return made.read(made.wire() + bytes(random.choice([1, 60, SUMMED_BYTES])))


def bits_flipped(made: Sum, random: Random) -> str:
    data = made.wire()
    for place in random.sample(range(8 * len(data)), random.choice([1, 1, 2, 20])):
        data[place // 8] ^= 1 << place % 8
    return made.read(data)


def residue_too_large(made: Sum, random: Random) -> str:
    residues = np.stack([made.c0, made.c1], axis=1)
    residues.flat[random.randrange(residues.size)] = random.randrange(Q, 1 << 60)
    return made.read(pack(residues))


def random_residues(made: Sum, random: Random) -> str:
    rng = np.random.default_rng(random.randrange(1 << 32))
    shape = (NUM_CHUNKS, 2, POLY_DEGREE)
    residues = rng.integers(0, random.choice([1, 2, Q]), shape, dtype=np.uint64)
    if random.random() < 0.5:
        residues[0] = np.stack([made.c0[0], made.c1[0]])
    return made.read(pack(residues))


def garbage(made: Sum, random: Random) -> str:
    return made.read(random.randbytes(NUM_CHUNKS * SUMMED_BYTES))


def other_key(made: Sum, random: Random) -> str:
    rng = np.random.default_rng(random.randrange(1 << 32))
    residues = rng.integers(0, Q, (1, POLY_DEGREE), dtype=np.uint64)
    if random.random() < 0.5:
        residues[:] = 0
    return made.read(made.wire(), bytes(pack(residues)))


def swapped(made: Sum, random: Random) -> str:
    residues = np.stack([made.c0, made.c1], axis=1)
    axis = random.choice([0, 1])
    return made.read(pack(np.flip(residues, axis)))


def wrong_seed(made: Sum, random: Random) -> str:
    seeds = [upload.seeds.copy() for upload in made.uploads]
    place = random.randrange(NUM_CHUNKS * SEED_BYTES)
    random.choice(seeds).reshape(-1)[place] ^= 1 << random.randrange(8)
    return made.read(pack(np.stack([made.c0, _expand(made.workers, seeds)], 1)))


def one_silo_as_the_sum(made: Sum, random: Random) -> str:
    residues = np.stack([made.uploads[0].c0, made.single], axis=1)
    return made.read(pack(residues))


def coefficients(made: Sum, random: Random) -> str:
    """Add, or take away, multiples of one silo, in one chunk or all."""
    residues = np.stack([made.c0, made.c1], axis=1)
    single = np.stack([made.uploads[0].c0, made.single], axis=1)
    factor = random.choice([1, 2, Q - 1])
    chunks = random.choice([slice(0, 1), slice(1, 2), slice(None)])
    for _ in range(1 if factor == Q - 1 else factor):
        part = np.ascontiguousarray(residues[chunks])
        term = single[chunks]
        term = (np.uint64(Q) - term) % np.uint64(Q) if factor == Q - 1 else term
        add_residues(part, np.ascontiguousarray(term))
        residues[chunks] = part
    return made.read(pack(residues))


def known_plaintext(made: Sum, random: Random) -> str:
    """Add q / t times a constant: to every slot the same number is added."""
    residues = np.stack([made.c0, made.c1], axis=1)
    number = random.randrange(1, PLAIN_MODULUS)
    term = np.zeros_like(residues)
    term[random.randrange(NUM_CHUNKS), 0, 0] = (number * Q) // PLAIN_MODULUS
    add_residues(residues, term)
    return made.read(pack(residues))


CASES: tuple[Callable[[Sum, Random], str], ...] = (
    truncated, too_long, bits_flipped, residue_too_large, random_residues, garbage,
    other_key, swapped, wrong_seed, one_silo_as_the_sum, coefficients, known_plaintext,
)  # fmt: skip
