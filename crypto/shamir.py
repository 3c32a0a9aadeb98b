"""Shamir's secret sharing of 32-byte secrets over the prime field of 2^256 + 297.

The share of index i is the polynomial's value at x = i + 1, in 33 bytes; the secret is
its value at x = 0. Indices are those of the roster, never the order of messages. Shares
are not verifiable by themselves: whoever combines them compares the secret with a
public commitment. Python's integers are not constant-time, which is acceptable against
peers who see messages, not our clock.

Source: Shamir, "How to share a secret", Communications of the ACM 22 (1979).
"""

from collections.abc import Callable, Mapping, Sequence

from crypto.errors import InvalidShare

PRIME = 2**256 + 297
"""The smallest prime above 2^256: every 32-byte secret is a field element."""
SECRET_BYTES = 32
SHARE_BYTES = 33
MAX_SHARES = 65_535
_DRAW_BYTES = 49
"""257 + 128 bits, rounded up: reduced modulo the prime, the bias is below 2^-128."""


def split(
    secret: bytes, threshold: int, num_shares: int, random: Callable[[int], bytes]
) -> list[bytes]:
    """Return shares of a secret, for indices 0 to ``num_shares`` - 1.

    Guarantees: any ``threshold`` shares give the secret; fewer are independent of it,
    if ``random`` is uniform and secret.

    Args:
        secret: 32 bytes.
        threshold: 1 to ``num_shares``.
        random: returns so many secret random bytes, e.g. ``secrets.token_bytes``.

    Raises:
        ValueError: lengths or numbers are out of range.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"secret: must be {SECRET_BYTES} bytes, is {len(secret)}")
    if not 1 <= threshold <= num_shares <= MAX_SHARES:
        raise ValueError(f"threshold: {threshold} of {num_shares} shares")
    coefficients = [
        int.from_bytes(random(_DRAW_BYTES), "big") % PRIME for _ in range(threshold - 1)
    ]
    return _evaluate(int.from_bytes(secret, "big"), coefficients, num_shares)


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret of shares by index; those beyond the threshold are not used.

    Raises:
        InvalidShare: too few, out of range, or not the shares of 32 bytes.
    """
    if len(shares) < threshold:
        raise InvalidShare(f"{len(shares)} shares, {threshold} are needed")
    return combine_with(lagrange_at_zero(sorted(shares)[:threshold]), shares)


def lagrange_at_zero(indices: Sequence[int]) -> dict[int, int]:
    """Return the coefficient of each share; one set serves many secrets.

    Source: λ_i = ∏_{j≠i} x_j / (x_j - x_i) modulo p, with x = index + 1.

    Raises:
        InvalidShare: no index, an index twice, or one out of range.
    """
    if not indices or len(set(indices)) != len(indices):
        raise InvalidShare("no shares, or two of one index")
    if not all(0 <= index < MAX_SHARES for index in indices):
        raise InvalidShare(f"a share index outside 0 to {MAX_SHARES - 1}")
    coefficients = {}
    for i in indices:
        numerator = denominator = 1
        for j in indices:
            if j != i:
                numerator = numerator * (j + 1) % PRIME
                denominator = denominator * (j - i) % PRIME
        coefficients[i] = numerator * pow(denominator, -1, PRIME) % PRIME
    return coefficients


def combine_with(coefficients: Mapping[int, int], shares: Mapping[int, bytes]) -> bytes:
    """Return the secret s = Σ λ_i · y_i of the shares that have a coefficient.

    Raises:
        InvalidShare: a share is missing or out of range, or the sum is no 32 bytes.
    """
    secret = sum(
        coefficient * _field_element(index, shares)
        for index, coefficient in coefficients.items()
    )
    secret %= PRIME
    if secret >= 1 << (8 * SECRET_BYTES):
        raise InvalidShare("the shares do not combine to a secret of 32 bytes")
    return secret.to_bytes(SECRET_BYTES, "big")


def _field_element(index: int, shares: Mapping[int, bytes]) -> int:
    """Return the share of an index as a number below the prime."""
    share = shares.get(index, b"")
    y = int.from_bytes(share, "big")
    if len(share) != SHARE_BYTES or y >= PRIME:
        raise InvalidShare(f"the share of index {index} is no field element")
    return y


def _evaluate(secret: int, coefficients: Sequence[int], num_shares: int) -> list[bytes]:
    """Evaluate the polynomial by Horner's rule: the core that test vectors reach."""
    shares = []
    for x in range(1, num_shares + 1):
        y = 0
        for coefficient in reversed(coefficients):
            y = (y + coefficient) * x % PRIME
        shares.append(((y + secret) % PRIME).to_bytes(SHARE_BYTES, "big"))
    return shares
