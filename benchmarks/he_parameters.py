"""Sets of BFV parameters beside each other: bytes, noise budget, speed.

Budgets are the smallest of 200 sums, each of random members of a pool of 400 fresh
ciphertexts of random slots. Bytes are those of densely packed residues: a fresh
ciphertext under the secret key is c0 and a seed of 64 bytes, one under a public key is
c0 and c1. A special prime, which encryption under a public key needs, does not travel.
Rates are of SEAL itself in this process, without packing.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tenseal.sealapi as seal

from crypto.bfv.parameters import MIN_NOISE_BUDGET_BITS, PLAIN_MODULUS, SEED_BYTES

Rows = list[tuple[str, float, str, str]]

NUM_SUMS = 200
NUM_FRESH = 400
SUM_SIZES = (1, 10, 100)
VALUE_BITS = (8, 11, 12, 16)
COHORTS = (5, 10, 100)


@dataclass(frozen=True)
class Candidate:
    """One set: degree, bits of the primes, bits of t, and which key encrypts."""

    poly_degree: int
    prime_bits: tuple[int, ...]
    plain_bits: int
    has_seed: bool

    @property
    def name(self) -> str:
        """Return how rows call it."""
        kind = "secret key, seed" if self.has_seed else "public key"
        primes = ", ".join(map(str, self.prime_bits))
        return f"BFV {self.poly_degree} [{primes}] t {self.plain_bits} bits, {kind}"

    @property
    def fresh_bytes(self) -> int:
        """Return the bytes of a fresh ciphertext on the wire, residues packed."""
        data_bits = sum(self.prime_bits[: max(1, len(self.prime_bits) - 1)])
        poly_bytes = self.poly_degree * data_bits // 8
        return poly_bytes + SEED_BYTES if self.has_seed else 2 * poly_bytes

    def bytes_each(self, value_bits: int, num_silos: int) -> float:
        """Return bytes of a parameter, for values of so many bits of so many silos."""
        fields = fields_per_slot(self.plain_bits - 1, value_bits, num_silos)
        return self.fresh_bytes / (self.poly_degree * fields) if fields else np.inf


CANDIDATES = (
    *(Candidate(4096, (60, 49), bits, False) for bits in range(43, 47)),
    *(Candidate(4096, (54, 55), bits, False) for bits in (37, 38, 40)),
    *(Candidate(8192, (60, 60), bits, False) for bits in (43, 46)),
    *(Candidate(4096, (60,), bits, True) for bits in range(43, 50)),
)


def fields_per_slot(slot_bits: int, value_bits: int, num_silos: int) -> int:
    """Return how many sums of values fit side by side: b / (q + ceil(log2 n))."""
    return slot_bits // (value_bits + (num_silos - 1).bit_length())


class Bench:
    """SEAL with one candidate: keys, encoder, and what is measured of them."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
        degree = candidate.poly_degree
        parameters.set_poly_modulus_degree(degree)
        primes = seal.CoeffModulus.Create(degree, list(candidate.prime_bits))
        parameters.set_coeff_modulus(primes)
        plain = seal.PlainModulus.Batching(degree, candidate.plain_bits)
        parameters.set_plain_modulus(plain)
        level = seal.SEC_LEVEL_TYPE.TC128
        made = seal.SEALContext(parameters, True, level)
        if not made.parameters_set():
            raise ValueError(made.parameters_error_message())
        self.he_context = made
        self.plain_modulus = int(plain.value())
        generator = seal.KeyGenerator(made)
        secret = generator.secret_key()
        if candidate.has_seed:
            self.encryptor = seal.Encryptor(made, secret)
        else:
            public = seal.PublicKey()
            generator.create_public_key(public)
            self.encryptor = seal.Encryptor(made, public)
        self.decryptor = seal.Decryptor(made, secret)
        self.encoder = seal.BatchEncoder(made)
        self.evaluator = seal.Evaluator(made)
        self.randomness = np.random.default_rng(0)

    def slots(self, largest_sum: int) -> list[int]:
        """Return random slots, sums of so many of which stay below t."""
        limit = self.plain_modulus // largest_sum
        size = self.candidate.poly_degree
        found: list[int] = self.randomness.integers(0, limit, size).tolist()
        return found

    def encrypt(self, slots: list[int]) -> Any:
        """Return a ciphertext that the evaluator takes."""
        plain, made = seal.Plaintext(), seal.Ciphertext()
        self.encoder.encode(slots, plain)
        if self.candidate.has_seed:
            self.encryptor.encrypt_symmetric(plain, made)
        else:
            self.encryptor.encrypt(plain, made)
        return made

    def budgets(self, num_sums: int, num_fresh: int) -> dict[int, int]:
        """Return the smallest noise budget in bits of sums, by how many they add."""
        pool = [self.encrypt(self.slots(1)) for _ in range(num_fresh)]
        found = {}
        for size in SUM_SIZES:
            sums = (self.random_sum(pool, size) for _ in range(num_sums))
            found[size] = min(map(self.decryptor.invariant_noise_budget, sums))
        return found

    def random_sum(self, pool: list[Any], size: int) -> Any:
        """Add so many different members of the pool."""
        chosen = self.randomness.choice(len(pool), size, replace=False)
        total = seal.Ciphertext()
        self.evaluator.add_many([pool[index] for index in chosen], total)
        return total

    def is_exact(self) -> bool:
        """Return whether the sum of the largest size decrypts to the exact integers."""
        vectors = [self.slots(SUM_SIZES[-1]) for _ in range(SUM_SIZES[-1])]
        total, plain = seal.Ciphertext(), seal.Plaintext()
        self.evaluator.add_many([self.encrypt(vector) for vector in vectors], total)
        self.decryptor.decrypt(total, plain)
        expected = np.sum(vectors, axis=0).tolist()
        return bool(self.encoder.decode_uint64(plain) == expected)

    def rates(self, repeats: int) -> tuple[float, float]:
        """Return microseconds of CPU for encode, encrypt, save; decrypt, decode."""
        slots, plain, whole = self.slots(1), seal.Plaintext(), seal.Ciphertext()
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "ciphertext")
            began = time.process_time()
            for _ in range(repeats):
                self.encoder.encode(slots, plain)
                if self.candidate.has_seed:
                    self.encryptor.encrypt_symmetric(plain).save(path)
                else:
                    self.encryptor.encrypt(plain, whole)
                    whole.save(path)
            encrypting = time.process_time() - began
        whole = self.encrypt(slots)
        began = time.process_time()
        for _ in range(repeats):
            self.decryptor.decrypt(whole, plain)
            self.encoder.decode_uint64(plain)
        decrypting = time.process_time() - began
        return 1e6 * encrypting / repeats, 1e6 * decrypting / repeats


def measure(*, smoke: bool = False) -> Rows:
    """Return budgets, exactness and rates of every candidate, and bytes of some."""
    rows: Rows = []
    for candidate in CANDIDATES:
        rows += measure_one(candidate, *((2, 100, 2) if smoke else (200, 400, 200)))
    return rows


def measure_one(
    candidate: Candidate, num_sums: int, num_fresh: int, repeats: int
) -> Rows:
    """Return the rows of one candidate."""
    bench = Bench(candidate)
    is_ours = candidate.has_seed and bench.plain_modulus == PLAIN_MODULUS
    name = candidate.name + (" (ours)" if is_ours else "")
    target = f">= {MIN_NOISE_BUDGET_BITS}" if is_ours else ""
    rows: Rows = [
        (f"{name}: budget after a sum of {size}, smallest", budget, "bits", target)
        for size, budget in bench.budgets(num_sums, num_fresh).items()
    ]
    rows.append((f"{name}: sum of 100 is exact", bench.is_exact(), "yes = 1", ""))
    encrypting, decrypting = bench.rates(repeats)
    slots = candidate.poly_degree
    rows.append((f"{name}: encrypt and save", slots / encrypting, "Mslots/s", ""))
    rows.append((f"{name}: decrypt and decode", slots / decrypting, "Mslots/s", ""))
    for bits in VALUE_BITS:
        for num_silos in COHORTS:
            each = candidate.bytes_each(bits, num_silos)
            label = f"{name}: values of {bits} bits, n = {num_silos}"
            rows.append((label, each, "B/parameter", ""))
    return rows
