"""The sum of secret weights, as it is read from the sum of the packed vectors.

A silo's weight w of 1 … W travels whole, in one 64-bit word of its own behind the
packed values. Words are added modulo 2^64 and Σ w ≤ n W is far below that, so the word
of the sum is Σ w, and it is all that the sum tells of the weights.
"""

from privacy.errors import Overflow


def total_weight(word: int, max_weight: int, num_contributors: int) -> int:
    """Return Σ w of the contributors, from the last word of their sum.

    Guarantees: n ≤ Σ w ≤ n W. Not that it is true: a silo that lies about its weight,
    or sends a word that is none, can move the sum to any number between.

    Raises:
        Overflow: so many weights cannot have this sum: somebody lied, or the masks did
            not cancel.
    """
    if not num_contributors <= word <= num_contributors * max_weight:
        raise Overflow("the sum of the weights is not one that so many silos can have")
    return word
