"""The one set of BFV parameters, pinned as numbers, and the lengths that follow.

Silos and aggregator build their contexts from these numbers; no context, parameter or
structure is ever read from a message. Why this set: docs/decisions/0018.

A ciphertext is a pair (c0, c1) of polynomials of degree below N with coefficients
(*residues*) modulo q; it holds N *slots*, numbers modulo t. Ciphertexts are made under
the secret key, so that c1 follows from a public seed of 64 bytes: a *fresh* one travels
as c0 and the seed, a *summed* one as c0 and c1.
"""

import numpy as np
import numpy.typing as npt

from crypto.aead import NONCE_BYTES, TAG_BYTES

POLY_DEGREE = 4096
"""N; also the number of slots of a ciphertext."""
COEFF_MODULUS = 1_152_921_504_606_830_593
"""q, a prime of 60 bits. At N = 4096 the standard demands at most 109 bits for 128-bit
security, and 75 for 192: this is the only modulus, there are no evaluation keys."""
PLAIN_MODULUS = 35_184_371_884_033
"""t, a prime of 45 bits, 1 modulo 2 N."""
SLOT_BITS = 44
"""Every number below 2^44 fits in a slot; sums of slots must stay below it."""
MIN_NOISE_BUDGET_BITS = 5
"""What must be left after the sum: 2^5 times the noise that was found decrypts yet."""

BLOCK_CHUNKS = 32
"""Ciphertexts that are worked on at a time: 1 MiB of slots."""

SEED_BYTES = 64
RESIDUE_BITS = 60
POLY_BYTES = POLY_DEGREE * RESIDUE_BITS // 8
"""30,720: the residues of one polynomial, packed."""
FRESH_BYTES = POLY_BYTES + SEED_BYTES
SUMMED_BYTES = 2 * POLY_BYTES
SECRET_KEY_BYTES = POLY_BYTES
SEALED_KEY_BYTES = NONCE_BYTES + SECRET_KEY_BYTES + TAG_BYTES

Residues = npt.NDArray[np.uint64]
"""``[..., N]``, each below q."""
Slots = npt.NDArray[np.uint64]
"""``[..., N]``, each below t."""
