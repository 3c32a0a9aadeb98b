"""Everything that follows from the seed of a silo's canaries: coins, places, signs.

The silo draws a fresh seed from the operating system, writes the commitment into its
transcript before it trains, and the seed itself at the end. Whoever has the seed then
computes the same canaries; nobody without it can tell which were included.

::

    commitment = H(CANARY_COMMITMENT, form, number of canaries, seed)
    stream(part) = AES-256 in counter mode under HKDF(seed, CANARIES, part)

In step t an included gradient canary that is drawn adds ``sign · step_sign(t) · C`` at
its coordinate, after the clip; its score grows by ``sign · step_sign(t)`` times what is
released there, in units of C. The alternation takes out of the score what changes
slowly: the silo's own gradients, which drift, and the pull of training against noise
that lies in the model already. With one sign throughout, a run without any fault
could show less noise than it added, and much more.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from crypto import labels
from crypto.encoding import digest
from crypto.kdf import derive
from crypto.prg import MASK_SEED_BYTES, SecretRandom

CanaryForm = Literal["gradient", "input"]
CanaryPart = Literal["included", "coordinates", "signs", "images"]

CANARY_SEED_BYTES = 32
MAX_CANARIES = 100_000


@dataclass(frozen=True)
class Canaries:
    """The gradient canaries of one seed.

    ``included`` ``[m]`` are independent fair coins; ``coordinates`` ``[m]``, distinct,
    say where in the flat gradient each canary is; ``signs`` ``[m]`` are 1 or -1.
    """

    included: npt.NDArray[np.bool_]
    coordinates: npt.NDArray[np.int64]
    signs: npt.NDArray[np.int8]

    @property
    def num_included(self) -> int:
        """The number of coins that came up heads."""
        return int(np.count_nonzero(self.included))


def canary_commitment(seed: bytes, num_canaries: int, form: CanaryForm) -> bytes:
    """Return the digest that binds a silo to its canaries.

    Guarantees: hides a seed that is uniform and used for nothing else (the digest as
    a random oracle); binds to seed, number and form (collision resistance).

    Raises:
        ValueError: wrong length, number or form; the message begins with its name.
    """
    _check(seed, num_canaries)
    if form not in get_args(CanaryForm):
        raise ValueError(f"form: must be gradient or input, is {form!r:.40}")
    number = num_canaries.to_bytes(4, "big")
    return digest(labels.CANARY_COMMITMENT, form.encode(), number, seed)


def step_sign(step: int) -> int:
    """Return by what every canary is multiplied in a step: 1 and -1 in turn."""
    return -1 if step % 2 else 1


def canary_stream(seed: bytes, part: CanaryPart) -> SecretRandom:
    """Return the secret random words of one part of what follows from a seed."""
    return SecretRandom(derive(seed, labels.CANARIES, part.encode(), MASK_SEED_BYTES))


def draw_included(seed: bytes, num_canaries: int) -> npt.NDArray[np.bool_]:
    """Return which canaries are included, bool ``[m]``: independent fair coins."""
    _check(seed, num_canaries)
    return _coins(canary_stream(seed, "included"), num_canaries)


def draw_canaries(seed: bytes, num_canaries: int, num_coordinates: int) -> Canaries:
    """Return the gradient canaries of a seed in a gradient of so many coordinates.

    Guarantees: a function of its arguments alone, the same on every machine. Given a
    uniform seed, coins and signs are fair and independent, and the coordinates are a
    uniform ordered choice without repetition, all independent of each other.

    Args:
        seed: 32 bytes.
        num_canaries: m, 1 to ``MAX_CANARIES``.
        num_coordinates: d >= m, the length of the flat gradient.

    Raises:
        ValueError: wrong length or number; the message begins with its name.
    """
    _check(seed, num_canaries)
    if num_coordinates < num_canaries:
        raise ValueError(
            f"num_canaries: {num_canaries:,} do not fit into a gradient of "
            f"{num_coordinates:,} coordinates"
        )
    signs = _coins(canary_stream(seed, "signs"), num_canaries)
    return Canaries(
        included=draw_included(seed, num_canaries),
        coordinates=_distinct(seed, num_canaries, num_coordinates),
        signs=np.where(signs, 1, -1).astype(np.int8),
    )


def _coins(stream: SecretRandom, number: int) -> npt.NDArray[np.bool_]:
    """Return fair coins, one bit each, the lowest bit of a byte first."""
    stored = np.frombuffer(stream.draw(-(-number // 8)), np.uint8)
    return np.unpackbits(stored, count=number, bitorder="little").astype(np.bool_)


def _distinct(seed: bytes, number: int, below: int) -> npt.NDArray[np.int64]:
    """Return distinct coordinates in the order of their first appearance.

    Words at or above the largest multiple of ``below`` are skipped, so that no
    coordinate is likelier than another; so are coordinates that came before.
    """
    stream, unbiased = canary_stream(seed, "coordinates"), (1 << 64) // below * below
    seen: dict[int, None] = {}
    while len(seen) < number:
        for word in np.frombuffer(stream.draw(8 * number), "<u8").tolist():
            if word < unbiased and len(seen) < number:
                seen.setdefault(word % below)
    return np.fromiter(seen, np.int64, number)


def _check(seed: bytes, num_canaries: int) -> None:
    """Refuse seeds and numbers out of range."""
    if len(seed) != CANARY_SEED_BYTES:
        raise ValueError(f"seed: must be {CANARY_SEED_BYTES} bytes, is {len(seed)}")
    if not 1 <= num_canaries <= MAX_CANARIES:
        raise ValueError(
            f"num_canaries: must be 1 to {MAX_CANARIES:,}, is {num_canaries:,}"
        )
