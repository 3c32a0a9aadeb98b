"""Which of some shares lie on one polynomial: Reed-Solomon decoding.

Shamir's shares are a Reed-Solomon code word. Of m shares with threshold t, up to
(m - t) / 2 wrong ones, rounded down, are found whatever they are.

Source: Gao, "A new algorithm for decoding Reed-Solomon codes" (2003), algorithm 1.
Polynomials are lists of coefficients, the constant first, without leading zeros.
"""

from collections.abc import Mapping

from crypto.shamir import PRIME, SHARE_BYTES

Polynomial = list[int]


def consistent_shares(
    shares: Mapping[int, bytes], threshold: int
) -> frozenset[int] | None:
    """Return the indices of the shares on the one polynomial that most agree on.

    Args:
        shares: by index; the share of index i belongs to x = i + 1. Those that are no
            field elements are left out.
        threshold: coefficients of the polynomial.

    Returns:
        None if they are fewer than the threshold, or if no polynomial fits. Where more
        than half of the shares beyond the threshold are wrong, None or another
        polynomial's: the caller compares what they give with a commitment.
    """
    points = {
        index + 1: value
        for index, share in shares.items()
        if len(share) == SHARE_BYTES and (value := int.from_bytes(share, "big")) < PRIME
    }
    if len(points) < threshold:
        return None
    found = _decode(points, threshold)
    if found is None:
        return None
    right = [x for x, y in points.items() if _value(found, x) == y]
    return frozenset(x - 1 for x in right)


def _decode(points: Mapping[int, int], num_coefficients: int) -> Polynomial | None:
    """Return the polynomial of Gao's algorithm, if there is one."""
    previous, current = _vanishing(points), _interpolation(points)
    cofactor_before: Polynomial = []
    cofactor: Polynomial = [1]
    while 2 * (len(current) - 1) >= len(points) + num_coefficients:
        quotient, remainder = _divide(previous, current)
        previous, current = current, remainder
        product = _multiply(quotient, cofactor)
        cofactor_before, cofactor = cofactor, _subtract(cofactor_before, product)
    if not current:
        return []
    quotient, remainder = _divide(current, cofactor)
    return None if remainder or len(quotient) > num_coefficients else quotient


def _vanishing(points: Mapping[int, int]) -> Polynomial:
    """Return the product of X - x over all points."""
    product = [1]
    for x in points:
        product = _multiply(product, [-x % PRIME, 1])
    return product


def _interpolation(points: Mapping[int, int]) -> Polynomial:
    """Return the polynomial through all points, by Newton's divided differences."""
    xs = list(points)
    differences = [points[x] for x in xs]
    for order in range(1, len(xs)):
        for i in range(len(xs) - 1, order - 1, -1):
            step = pow(xs[i] - xs[i - order], -1, PRIME)
            differences[i] = (differences[i] - differences[i - 1]) * step % PRIME
    result: Polynomial = []
    for x, difference in zip(reversed(xs), reversed(differences), strict=True):
        result = _multiply(result, [-x % PRIME, 1])
        result = _subtract(result, [-difference % PRIME])
    return result


def _multiply(one: Polynomial, other: Polynomial) -> Polynomial:
    """Return the product of two polynomials."""
    if not one or not other:
        return []
    product = [0] * (len(one) + len(other) - 1)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            product[i + j] += a * b
    return _trimmed([coefficient % PRIME for coefficient in product])


def _subtract(one: Polynomial, other: Polynomial) -> Polynomial:
    """Return the difference of two polynomials."""
    length = max(len(one), len(other))
    padded = [p + [0] * (length - len(p)) for p in (one, other)]
    return _trimmed([(a - b) % PRIME for a, b in zip(*padded, strict=True)])


def _divide(one: Polynomial, other: Polynomial) -> tuple[Polynomial, Polynomial]:
    """Return quotient and remainder; ``other`` is not zero."""
    remainder, inverse = list(one), pow(other[-1], -1, PRIME)
    quotient = [0] * max(0, len(one) - len(other) + 1)
    for place in range(len(quotient) - 1, -1, -1):
        factor = remainder[place + len(other) - 1] * inverse % PRIME
        quotient[place] = factor
        for i, coefficient in enumerate(other):
            remainder[place + i] = (remainder[place + i] - factor * coefficient) % PRIME
    return _trimmed(quotient), _trimmed(remainder)


def _value(polynomial: Polynomial, x: int) -> int:
    """Evaluate by Horner's rule."""
    y = 0
    for coefficient in reversed(polynomial):
        y = (y * x + coefficient) % PRIME
    return y


def _trimmed(polynomial: Polynomial) -> Polynomial:
    """Remove leading zeros."""
    while polynomial and not polynomial[-1]:
        polynomial.pop()
    return polynomial
