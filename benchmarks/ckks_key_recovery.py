"""CKKS gives the secret key to whoever sees the mean: the attack, to be run.

The design attacked is the usual one: silos share a secret key, encrypt their updates,
the aggregator adds ciphertexts, silos decrypt the sum, and the mean (or a model that
holds it) becomes known to the aggregator, as in every run of this project.

Why it works. A CKKS sum is a pair (c0, c1) with c0 + c1 s = m modulo q, where m holds
values *and noise*, and decryption gives m away with its noise: what the silos publish
is the real part of m's slots, hence the polynomial r = m + m', where m'(X) = m(1 / X)
is the conjugate. Encoding the published values at twice the scale gives r again, exact
to the integer. With c' and s' the conjugates of c and s,

    r = c0 + c0' + c1 s + c1' s'    modulo q.

In the number-theoretic transform (NTT) this is one linear equation in two unknowns,
s[i] and s'[i] = s[N - 1 - i], for each i. Two sums are two equations: a 2 x 2 system
gives all of s. Nothing is guessed, and nobody misbehaves.

BFV decrypts *exactly*: the noise e in c0 + c1 s = Delta m + e is rounded off and never
shown. The same equations then hold up to e, and solving them gives random numbers:
finding s is the learning-with-errors problem on which the scheme rests.
:func:`solve_bfv` does so, and shows with e handed to it that nothing else is missing.

Source: Li and Micciancio, EUROCRYPT 2021, eprint 2020/1533, for the attack from exact
decryptions; the reduction of real-valued sums to 2 x 2 systems follows from it.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tenseal as ts
import tenseal.sealapi as seal
import zstandard

from benchmarks.negacyclic import Integers, to_coefficients, to_values
from crypto.bfv.parameters import COEFF_MODULUS, PLAIN_MODULUS, POLY_DEGREE

Residues = npt.NDArray[np.object_]
"""``[num_primes, N]`` Python integers in NTT form."""
Values = npt.NDArray[np.float64]

MAX_STREAM_BYTES = 1 << 24
HEADER_BYTES = 16
SLOT_GENERATOR = 3
"""Slot j of SEAL's CKKS is the value at the 3^j-th power of the complex root."""


@dataclass(frozen=True, kw_only=True)
class CkksSetting:
    """Parameters of CKKS: degree N, bits of each prime (the last is special), scale."""

    poly_degree: int
    prime_bits: tuple[int, ...]
    scale_bits: int

    @property
    def num_slots(self) -> int:
        """Return how many real numbers a ciphertext holds: N / 2."""
        return self.poly_degree // 2

    @property
    def primes(self) -> tuple[int, ...]:
        """Return the primes in SEAL's order."""
        return tuple(prime.value() for prime in self._seal_primes())

    def make_context(self) -> Any:
        """Return a TenSEAL context with a new secret key."""
        made = ts.context(
            ts.SCHEME_TYPE.CKKS,
            poly_modulus_degree=self.poly_degree,
            coeff_mod_bit_sizes=list(self.prime_bits),
            encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        )
        made.global_scale = 2.0**self.scale_bits
        return made

    def make_encoder(self, num_primes: int) -> Any:
        """Return SEAL's encoder for ciphertexts with so many primes left."""
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(self.poly_degree)
        primes = self._seal_primes()
        parameters.set_coeff_modulus([*primes[:num_primes], primes[-1]])
        level = seal.SEC_LEVEL_TYPE.TC128
        return seal.CKKSEncoder(seal.SEALContext(parameters, True, level))

    def _seal_primes(self) -> list[Any]:
        """Return SEAL's objects for the primes."""
        made = seal.CoeffModulus.Create(self.poly_degree, list(self.prime_bits))
        return list(made)


NVFLARE = CkksSetting(poly_degree=8192, prime_bits=(60, 40, 40), scale_bits=40)
"""NVFlare's defaults: ``nvflare/lighter/impl/he.py``, class ``HEBuilder``."""
CHEAP = CkksSetting(poly_degree=4096, prime_bits=(40, 40), scale_bits=28)
"""The cheapest sensible set that TenSEAL takes."""
LARGE_PRIMES = CkksSetting(poly_degree=8192, prime_bits=(60, 60), scale_bits=40)


@dataclass(frozen=True)
class KnownSum:
    """What the aggregator has of one chunk: the summed ciphertext and its values.

    ``values`` are the decrypted numbers of all N / 2 slots. ``c0`` and ``c1`` are
    residues ``[num_primes, N]`` in NTT form; ``stretch`` is the ciphertext's scale.
    """

    c0: Residues
    c1: Residues
    stretch: float
    values: Values

    @classmethod
    def of(cls, vector: Any, values: npt.ArrayLike) -> "KnownSum":
        """Return it from TenSEAL's vector of one ciphertext, without any secret."""
        c0, c1, stretch = ciphertext_parts(vector)
        return cls(c0, c1, stretch, np.asarray(values, np.float64))


@dataclass(frozen=True, eq=False)
class Federation:
    """Silos that encrypt two chunks each, and what the aggregator keeps of them.

    ``updates`` are ``[num_silos, 2, N / 2]``; ``uploads`` are their ciphertexts as
    bytes; ``public`` is the aggregator's context, ``secret`` the silos'.
    """

    setting: CkksSetting
    secret: Any
    public: Any
    updates: Values
    uploads: list[list[bytes]]

    @classmethod
    def play(
        cls, setting: CkksSetting, num_silos: int, randomness: np.random.Generator
    ) -> "Federation":
        """Make a key and let every silo encrypt a normal update of deviation 0.05."""
        secret = setting.make_context()
        public = ts.context_from(secret.serialize(save_secret_key=False))
        updates = randomness.normal(0, 0.05, (num_silos, 2, setting.num_slots))
        uploads = [
            [ts.ckks_vector(secret, chunk.tolist()).serialize() for chunk in update]
            for update in updates
        ]
        return cls(setting, secret, public, updates, uploads)

    def known_sums(self, *, divide: bool = False) -> list[KnownSum]:
        """Return both chunk sums with the values that the silos publish.

        With ``divide`` the aggregator multiplies by 1 / n and rescales, as NVFlare's
        does, before the silos decrypt.
        """
        return [self._known_sum(chunk, divide) for chunk in (0, 1)]

    def _known_sum(self, chunk: int, divide: bool) -> KnownSum:
        """Add one chunk of all silos and have it decrypted."""
        vectors = [
            ts.ckks_vector_from(self.public, upload[chunk]) for upload in self.uploads
        ]
        total = sum(vectors[1:], vectors[0])
        if divide:
            total = total * (1 / len(vectors))
        opened = ts.ckks_vector_from(self.secret, total.serialize()).decrypt()
        return KnownSum.of(total, opened)

    def stored_upload(self, silo: int, chunk: int) -> Any:
        """Return an upload as the aggregator reads it."""
        return ts.ckks_vector_from(self.public, self.uploads[silo][chunk])


def recover_key(first: KnownSum, second: KnownSum, setting: CkksSetting) -> Residues:
    """Return the secret key, in NTT form, modulo each prime that the sums still have.

    The aggregator's computation: it takes ciphertexts, means and public parameters.
    """
    known = [
        encode_real_parts(one, setting) - one.c0 - mirrored(one.c0)
        for one in (first, second)
    ]
    keys = [
        solve_pairs((first.c1[i], second.c1[i]), (known[0][i], known[1][i]), prime)
        for i, prime in enumerate(setting.primes[: len(first.c0)])
    ]
    return np.stack(keys)


def encode_real_parts(known: KnownSum, setting: CkksSetting) -> Residues:
    """Return r = m + m', encoded from the published values at twice their scale."""
    num_primes = len(known.c0)
    plain = seal.Plaintext()
    encoder = setting.make_encoder(num_primes)
    encoder.encode(known.values.tolist(), 2 * known.stretch, plain)
    stored = stored_residues(plain, num_primes * setting.poly_degree)
    return stored.reshape(num_primes, -1)


def solve_pairs(
    coefficients: tuple[Residues, Residues],
    right: tuple[Residues, Residues],
    prime: int,
) -> Residues:
    """Solve a s + a' s' = r and b s + b' s' = u for s, slot by slot, modulo a prime."""
    (a, b), (r, u) = coefficients, right
    determinant = (a * mirrored(b) - mirrored(a) * b) % prime
    numerator = (r * mirrored(b) - u * mirrored(a)) % prime
    return numerator * inverses(determinant, prime) % prime


def decrypt_with(key: Residues, vector: Any, setting: CkksSetting) -> Values:
    """Return the values ``[N / 2]`` of one ciphertext under a recovered key.

    The first prime alone is enough: messages are far below it.
    """
    c0, c1, stretch = ciphertext_parts(vector)
    prime = setting.primes[0]
    message = to_coefficients((c0[0] + c1[0] * key[0]) % prime, prime)
    return slot_values(message, stretch)


def slot_values(message: Integers, stretch: float) -> Values:
    """Return the real parts of m at the 3^j-th powers of the complex root, unscaled."""
    size = message.size
    turns = np.exp(1j * np.pi * np.arange(size) / size)
    at_odd_powers = np.fft.ifft(message.astype(np.float64) * turns) * size
    places = [(pow(SLOT_GENERATOR, j, 2 * size) - 1) // 2 for j in range(size // 2)]
    values: Values = at_odd_powers[places].real / stretch
    return values


def true_key(he_context: Any, setting: CkksSetting) -> Residues:
    """Return the secret key that a TenSEAL context holds, to compare with."""
    num_primes = len(setting.primes)
    stored = stored_residues(
        he_context.secret_key().data, num_primes * setting.poly_degree
    )
    return stored.reshape(num_primes, -1)


def fraction_right(found: Residues, key: Residues) -> float:
    """Return which part of the found residues are those of the key."""
    return float((found == key[: len(found)]).mean())


# The same on exact BFV, with this project's parameters.


@dataclass(frozen=True)
class ExactSum:
    """A BFV ciphertext, its decrypted polynomial modulo t, and the key; all ``[N]``.

    ``c0``, ``c1`` and ``key`` are in NTT form modulo q, ``message`` is coefficients.
    """

    c0: Integers
    c1: Integers
    message: Integers
    key: Integers

    @property
    def scaled_message(self) -> Integers:
        """Return Delta m, as SEAL rounds it: q m / t to the nearest, in NTT form."""
        scaled = (self.message * COEFF_MODULUS + PLAIN_MODULUS // 2) // PLAIN_MODULUS
        return to_values(scaled % COEFF_MODULUS, COEFF_MODULUS)

    @property
    def noise(self) -> Integers:
        """Return e, which only holders of the key can compute: coefficients ``[N]``."""
        left = self.c0 + self.c1 * self.key - self.scaled_message
        return to_coefficients(left % COEFF_MODULUS, COEFF_MODULUS)


def make_exact_sum(num_silos: int, randomness: np.random.Generator) -> ExactSum:
    """Encrypt for so many silos, add, and decrypt."""
    he_context = make_bfv_context(COEFF_MODULUS)
    key = seal.KeyGenerator(he_context).secret_key()
    encryptor = seal.Encryptor(he_context, key)
    encoder, evaluator = seal.BatchEncoder(he_context), seal.Evaluator(he_context)
    total = None
    for _ in range(num_silos):
        plain, one = seal.Plaintext(), seal.Ciphertext()
        slots = randomness.integers(0, (1 << 44) // num_silos, POLY_DEGREE)
        encoder.encode(slots.tolist(), plain)
        encryptor.encrypt_symmetric(plain, one)
        if total is None:
            total = one
        else:
            evaluator.add_inplace(total, one)
    opened = seal.Plaintext()
    seal.Decryptor(he_context, key).decrypt(total, opened)
    evaluator.transform_to_ntt_inplace(total)
    c0, c1 = stored_residues(total, 2 * POLY_DEGREE).reshape(2, -1)
    message = [opened.data(index) for index in range(opened.coeff_count())]
    padded = message + [0] * (POLY_DEGREE - len(message))
    return ExactSum(c0, c1, np.array(padded, object), stored_residues(key, POLY_DEGREE))


def solve_bfv(known: ExactSum, noise: Integers | None = None) -> Integers:
    """Return s = (Delta m + e - c0) / c1, with e = 0 for whoever does not know it."""
    right = known.scaled_message - known.c0
    if noise is not None:
        right = right + to_values(noise % COEFF_MODULUS, COEFF_MODULUS)
    return right % COEFF_MODULUS * inverses(known.c1, COEFF_MODULUS) % COEFF_MODULUS


def make_bfv_context(*primes: int) -> Any:
    """Return SEAL's context of our plain modulus with these primes."""
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    parameters.set_poly_modulus_degree(POLY_DEGREE)
    parameters.set_coeff_modulus([seal.Modulus(prime) for prime in primes])
    parameters.set_plain_modulus(PLAIN_MODULUS)
    return seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)


def ciphertext_parts(vector: Any) -> tuple[Residues, Residues, float]:
    """Return c0, c1 and the scale of a TenSEAL vector of one ciphertext."""
    (ciphertext,) = vector.ciphertext()
    num_primes = ciphertext.coeff_modulus_size()
    count = num_primes * ciphertext.poly_modulus_degree()
    c0, c1 = stored_residues(ciphertext, 2 * count).reshape(2, num_primes, -1)
    return c0, c1, ciphertext.scale


def stored_residues(thing: Any, count: int) -> Integers:
    """Return the last ``count`` numbers of what SEAL writes of an object."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stored"
        thing.save(str(path))
        packed = path.read_bytes()[HEADER_BYTES:]
    raw = zstandard.ZstdDecompressor().decompress(packed, MAX_STREAM_BYTES)
    return np.frombuffer(raw[-8 * count :], "<u8").astype(object)


def mirrored(residues: Residues) -> Residues:
    """Return the conjugate: X to 1 / X turns SEAL's order of NTT points around."""
    return residues[..., ::-1]


def inverses(numbers: Integers, prime: int) -> Integers:
    """Return 1 / x modulo a prime, for each number."""
    return np.array([pow(int(number), -1, prime) for number in numbers], object)
