"""How much noise a sum of ciphertexts has, and how many may be summed.

A fresh ciphertext decrypts to q/t · m + v with the plaintext m and the noise
v = e + r: e is drawn from the centred binomial distribution of 42 bits, of variance
10.5 (half of ±1 per bit), and r, with |r| <= 1/2, comes of rounding q/t · m. Noise
adds up. What is left of it, in bits, is log2(q / (2 t |v|)) for the largest |v|; at 0
a value would be wrong.

Source: Fan & Vercauteren, 2012 (the scheme); Hoeffding, 1963 (the tail).
"""

import math

from crypto.bfv.parameters import COEFF_MODULUS, MIN_NOISE_BUDGET_BITS, PLAIN_MODULUS

ERROR_VARIANCE = 10.5
"""Of one coefficient of e: 21 bits less 21 bits, each 0 or 1."""
ROUNDING = 0.5
RUN_COEFFICIENTS = 2.0**50
"""No run sums more coefficients: at most 2^29 in a vector, a million rounds."""
FAILURE = 2.0**-40
"""How likely any sum of a run may be refused for its noise."""


def largest_noise() -> float:
    """Return the |v| at which ``MIN_NOISE_BUDGET_BITS`` are left."""
    return COEFF_MODULUS / (2 * PLAIN_MODULUS) * 2.0**-MIN_NOISE_BUDGET_BITS


def likely_noise(num_silos: int, num_coefficients: float, failure: float) -> float:
    """Return a bound of |v| in so many coefficients of a sum over so many silos.

    Guarantees: exceeded with a probability below ``failure``, whatever the plaintexts.

    Source: Hoeffding, 1963, Theorem 2, for 42 n bits, over all coefficients.
    """
    tail = math.log(2 * num_coefficients / failure)
    return math.sqrt(2 * ERROR_VARIANCE * num_silos * tail) + ROUNDING * num_silos


def max_summed() -> int:
    """Return how many silos a run may sum, its noise budget kept.

    Guarantees: in a whole run a sum of so many has less left than
    ``MIN_NOISE_BUDGET_BITS`` with a probability below 2^-40.
    """
    tail = 2 * ERROR_VARIANCE * math.log(2 * RUN_COEFFICIENTS / FAILURE)
    root = math.sqrt(tail + 4 * ROUNDING * largest_noise()) - math.sqrt(tail)
    return math.floor((root / (2 * ROUNDING)) ** 2)
