"""Ciphertexts that a dishonest aggregator can make of those it was given."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from crypto.bfv.messages import ENCRYPTED_PREFIX_BYTES, decrypt_prefix
from crypto.bfv.parameters import (
    COEFF_MODULUS,
    FRESH_BYTES,
    PLAIN_MODULUS,
    POLY_BYTES,
    POLY_DEGREE,
    Residues,
)
from crypto.bfv.residues import pack_residues, unpack_residues
from crypto.bfv.silo_side import BfvSiloSide
from crypto.frame import Kind
from crypto.secagg.messages import Confirms
from tests.attacks.forging import BODY
from tests.crypto.bfv.federation import BfvFederation

Q = np.uint64(COEFF_MODULUS)
DELTA = COEFF_MODULUS // PLAIN_MODULUS
"""What a 1 of the plaintext counts in c0."""


@dataclass(frozen=True)
class Material:
    """What the aggregator holds when DECRYPT is due in slot 1: residues [c, 2, N].

    ``old`` are the uploads of slot 0, of the same vectors, and ``old_total`` their sum.
    """

    f: BfvFederation
    total: Residues
    uploads: dict[int, Residues]
    old_total: Residues
    old: dict[int, Residues]
    saved: dict[int, bytes]


def gather(f: BfvFederation) -> Material:
    """Play round 1 in slot 0 to the sum, then round 2 in slot 1 up to DECRYPT."""
    f.reach("confirms")
    f.reveal()
    old_total, old = total_of(f), uploads_of(f)
    f.slot, f.round_number = 1, 2
    f.ready()
    f.mask(f.everyone)
    f.confirm(f.everyone)
    saved = {i: f.silos[i].to_bytes() for i in f.everyone}
    return Material(f, total_of(f), uploads_of(f), old_total, old, saved)


def total_of(f: BfvFederation) -> Residues:
    return f.aggregator.slot.total.reshape(-1, 2, POLY_DEGREE).copy()


def uploads_of(f: BfvFederation) -> dict[int, Residues]:
    """Expand every upload: anybody can, c1 follows from a public seed."""
    found = {}
    for silo, frame in f.frames["masked"].items():
        data = np.frombuffer(frame[BODY][ENCRYPTED_PREFIX_BYTES:], np.uint8)
        fresh = data.reshape(-1, FRESH_BYTES)
        first = unpack_residues(fresh[:, :POLY_BYTES].tobytes(), len(fresh))
        seeds = fresh[None, :, POLY_BYTES:]
        second = np.concatenate([r for _, r in f.workers.expand_sum(seeds)])
        found[silo] = np.stack([first, second], axis=1)
    return found


def fresh_victim(m: Material, silo: int = 0) -> BfvSiloSide:
    """Return a silo that awaits DECRYPT, with a journal of its own."""
    arguments = list(m.f.silo_arguments(silo))
    arguments[-1] = copy.deepcopy(m.f.journals[silo])
    return BfvSiloSide(*arguments, **m.f.tools).restore(m.saved[silo])


def sign_decrypt(
    f: BfvFederation, residues: Residues, confirms: Confirms | None = None
) -> bytes:
    """Return DECRYPT of any ciphertexts, with the honest confirmations or others."""
    return sign_packed(f, pack_residues(residues).tobytes(), len(residues), confirms)


def sign_packed(
    f: BfvFederation, packed: bytes, number: int, confirms: Confirms | None = None
) -> bytes:
    """Return DECRYPT with any bytes for ciphertexts."""
    slot = f.aggregator.slot
    honest = Confirms(slot._survivors(), slot._state.confirmed)
    prefix = decrypt_prefix(confirms or honest, f.config.num_silos, number)
    return f.sign_as_aggregator(Kind.DECRYPT, prefix + packed, slot=f.slot)


# ------------------------------------------------------------------ arithmetic modulo q


def plus(a: Residues, b: Residues) -> Residues:
    return (a + b) % Q


def minus(a: Residues, b: Residues) -> Residues:
    return (a + (Q - b)) % Q


def with_chunk(residues: Residues, chunk: int, other: Residues) -> Residues:
    changed = residues.copy()
    changed[chunk] = other[chunk]
    return changed


def with_first(residues: Residues, chunk: int, add: np.ndarray) -> Residues:
    """Add signed numbers to the first coefficients of one chunk's c0."""
    changed = residues.copy()
    terms = np.array([int(a) % COEFF_MODULUS for a in add], np.uint64)
    place = changed[chunk, 0, : len(add)]
    changed[chunk, 0, : len(add)] = plus(place, terms)
    return changed


def noise(amplitude: int) -> np.ndarray:
    """Signed numbers up to an amplitude, for every coefficient."""
    rng = np.random.default_rng(1)
    return rng.integers(-amplitude, amplitude + 1, POLY_DEGREE)


Forge = Callable[[Material], Residues]
