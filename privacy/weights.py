"""A secret weight as digits that are summed with the update and read from the sum.

A weight w of 1 … W becomes its digits in base 2^q, least significant first, one for
each of ceil(bits(W) / q) fields. Digits of several silos are added field by field
without a carry, so the sum of the weights is the number that the summed digits stand
for, and it is all that the sum tells of them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from privacy.errors import Overflow

Fields = npt.NDArray[np.uint32]


def num_digits(max_weight: int, value_bits: int) -> int:
    """Return the fields that a weight of up to ``max_weight`` needs."""
    return -(-max_weight.bit_length() // value_bits)


def check_headroom(value_bits: int, field_bits: int, num_contributors: int) -> None:
    """Raise :class:`Overflow` if the sum of so many digits could leave its field."""
    if num_contributors * _largest_digit(value_bits) >= 1 << field_bits:
        raise Overflow(
            f"{num_contributors} digits of {value_bits} bits do not fit a field of "
            f"{field_bits} bits"
        )


def encode_weight(weight: int, max_weight: int, value_bits: int) -> Fields:
    """Return a weight's digits ``[num_digits]``, each of 0 … 2^q - 1.

    Raises:
        Overflow: the weight is not 1 … ``max_weight``. The text names neither.
    """
    if not 1 <= weight <= max_weight:
        raise Overflow("the weight is not in the plan's range")
    return np.array(
        [
            weight >> (index * value_bits) & _largest_digit(value_bits)
            for index in range(num_digits(max_weight, value_bits))
        ],
        dtype=np.uint32,
    )


def decode_weights(
    sums: Sequence[int], max_weight: int, value_bits: int, num_contributors: int
) -> int:
    """Return the sum of the weights whose digits were summed.

    Args:
        sums: the sums of the contributors' digits, least significant first.

    Raises:
        Overflow: a digit, or the sum of the weights, is not what so many contributors
            can have: somebody lied, or the masks did not cancel.
    """
    largest = num_contributors * _largest_digit(value_bits)
    is_possible = len(sums) == num_digits(max_weight, value_bits)
    is_possible &= all(0 <= digit <= largest for digit in sums)
    total = sum(digit << (index * value_bits) for index, digit in enumerate(sums))
    if not (is_possible and num_contributors <= total <= num_contributors * max_weight):
        raise Overflow("the sum of the weights is not one that so many silos can have")
    return total


def _largest_digit(value_bits: int) -> int:
    """Return 2^q - 1."""
    return (1 << value_bits) - 1
