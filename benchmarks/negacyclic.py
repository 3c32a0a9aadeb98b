"""The number-theoretic transform as SEAL orders it, slow and obvious, with integers.

Only demonstrations and tests need it: ``benchmarks.ckks_key_recovery`` reads keys and
messages with it. A polynomial of degree below N modulo X^N + 1 and a prime q is given
by its values at the odd powers of psi, the smallest primitive 2 N-th root of unity:
place i holds the value at psi^(2 rev(i) + 1), where rev reverses the bits of i.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.object_]
"""``[N]`` Python integers: products of 60-bit numbers must not overflow."""


def to_values(coefficients: Integers, prime: int) -> Integers:
    """Return the values ``[N]`` of a polynomial, from its coefficients ``[N]``."""
    length = coefficients.size
    psi = smallest_root(2 * length, prime)
    values = coefficients * powers(psi, length, prime) % prime
    while length > 1:
        upper, lower = np.moveaxis(values.reshape(-1, 2, length // 2), 1, 0)
        turns = powers(pow(psi, 2 * values.size // length, prime), length // 2, prime)
        pair = [(upper + lower) % prime, (upper - lower) * turns % prime]
        values = np.stack(pair, 1).reshape(-1)
        length //= 2
    return values


def to_coefficients(values: Integers, prime: int) -> Integers:
    """Return the coefficients ``[N]`` of the polynomial with these values ``[N]``.

    Returns:
        Integers of the smallest magnitude, from -(q - 1) / 2 to (q - 1) / 2.
    """
    size = values.size
    inverse = pow(smallest_root(2 * size, prime), -1, prime)
    length = 2
    while length <= size:
        upper, lower = np.moveaxis(values.reshape(-1, 2, length // 2), 1, 0)
        turned = lower * powers(
            pow(inverse, 2 * size // length, prime), length // 2, prime
        )
        pair = [(upper + turned) % prime, (upper - turned) % prime]
        values = np.stack(pair, 1).reshape(-1)
        length *= 2
    found = values * pow(size, -1, prime) % prime * powers(inverse, size, prime) % prime
    return np.where(found > prime // 2, found - prime, found)


@cache
def smallest_root(order: int, prime: int) -> int:
    """Return the smallest primitive root of unity of an order, a power of two."""
    candidates = (pow(g, (prime - 1) // order, prime) for g in range(2, prime))
    root = next(r for r in candidates if pow(r, order // 2, prime) == prime - 1)
    return min(powers(root, order, prime)[1::2])


@cache
def powers(base: int, count: int, prime: int) -> Integers:
    """Return base^0 … base^(count - 1) modulo a prime."""
    found = [1] * count
    for index in range(1, count):
        found[index] = found[index - 1] * base % prime
    return np.array(found, object)
