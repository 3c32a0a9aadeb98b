"""Fréchet distances that silos measure: the request, and one value as two words.

After the last round of a plan with ``evaluation.in_silos`` one more slot of secure
aggregation sums two whole 64-bit words of each silo: the distance d of samples of its
own finished model, and its square, both in fixed point. From the sums S and Q over n
silos follow mean and standard deviation; a single distance stays with its silo.
"""

import hashlib
import math
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crypto import labels
from crypto.encoding import BytesLike
from protocol.bodies import check_names, join_body, read_count, read_shown, split_body
from protocol.errors import EnvelopeRejected
from protocol.heads import ShownHead
from protocol.plan import AGGREGATOR_NAME, PlanDraft, RunPlan
from protocol.settings import MAX_SILOS

Words = npt.NDArray[np.uint64]

MEASURE = "measure"
"""The stage at which silos sample and measure."""
NUM_WORDS = 2
WORD_BITS = 64

VALUE_BITS = 20
SQUARE_BITS = 16
"""Binary digits after the point, of a distance and of its square."""

MAX_DISTANCE = 1 << 16
"""Larger distances count as this one; a useless model has some thousands."""

_MOST = MAX_DISTANCE << VALUE_BITS
_MOST_SQUARED = MAX_DISTANCE**2 << SQUARE_BITS
assert MAX_SILOS * _MOST_SQUARED < 1 << WORD_BITS  # noqa: S101


@dataclass(frozen=True, kw_only=True)
class MeasureRequest:
    """The aggregator's request to measure a silo's own finished model.

    ``round_number`` is one more than the plan's rounds. ``average`` is the moving
    average of the shared parameters, little-endian float32 in the order of the layout;
    ``statistics`` the whole file of reference statistics. ``shown`` and ``sum_notice``
    are those of a round's request.
    """

    round_number: int
    attempt: int
    shown: ShownHead
    average: BytesLike
    statistics: BytesLike
    sum_notice: BytesLike = b""

    def to_body(self) -> bytes:
        """Return the body's bytes."""
        table = {
            "round_number": self.round_number,
            "attempt": self.attempt,
        }
        return join_body(
            table, self.shown.to_bytes(), self.average, self.statistics, self.sum_notice
        )

    @classmethod
    def from_body(cls, body: memoryview) -> "MeasureRequest":
        """Return the request of a body; its parts are views of it, not copies.

        Raises:
            EnvelopeRejected: malformed.
        """
        table, (shown, average, statistics, notice) = split_body(body, 4)
        check_names(table, ("round_number", "attempt"))
        return cls(
            round_number=read_count(table, "round_number"),
            attempt=read_count(table, "attempt"),
            shown=read_shown(shown, AGGREGATOR_NAME),
            average=average,
            statistics=statistics,
            sum_notice=notice,
        )

    def model_digest(self) -> bytes:
        """Return the digest that silos sign in READY: of all that they measure with."""
        return measurement_digest(self.average, self.statistics)


def measurement_digest(average: BytesLike, statistics: BytesLike) -> bytes:
    """Return the digest of average and reference statistics that silos sign.

    Silos that were sent others notice it, and their masks do not cancel.
    """
    digest = hashlib.sha256(labels.MEASUREMENT + b"\x00")
    for part in (average, statistics):
        digest.update(struct.pack(">Q", len(part)))
        digest.update(part)
    return digest.digest()


def measurement_round(plan: RunPlan) -> int:
    """Return the number of the measurement's slot, behind all rounds; 0 for none."""
    return plan.num_rounds + 1 if plan.evaluation.in_silos else 0


def silo_seed(plan: PlanDraft, silo: int) -> int:
    """Return the seed of one silo's samples; it follows from the plan."""
    return plan.seed_for("silo-evaluation", silo)


def to_words(distance: float) -> Words:
    """Return a Fréchet distance and its square as words ``[2]``, to be summed.

    The first is q = min(d, 2^16) 2^20, to the nearest; the second q^2 2^-24, so that
    the rounding of q is no part of the spread.

    Guarantees: sums of 1000 silos stay below 2^64.

    Raises:
        ValueError: the distance is negative or NaN.
    """
    if not distance >= 0:
        raise ValueError(f"a Fréchet distance is not negative, is {distance}")
    value = round(min(distance, MAX_DISTANCE) * 2**VALUE_BITS)
    shift = 2 * VALUE_BITS - SQUARE_BITS
    square = (value * value + (1 << (shift - 1))) >> shift
    return np.array([value, square], dtype=np.uint64)


def mean_and_spread(words: Words, num_silos: int) -> tuple[float, float]:
    """Return mean and standard deviation over n >= 2 silos, of the sum of their words.

    sqrt((Q - S^2 / n) / (n - 1)), in exact integers up to the root. The error of the
    mean is below 2^-20; that of a standard deviation s below 2^-16 / s, and below
    2^-8 for s = 0.

    Raises:
        ValueError: not two words, fewer than two silos, or sums that no distances of
            so many silos have: a silo lied, and which one is hidden.
    """
    if len(words) != NUM_WORDS or num_silos < 2:
        raise ValueError(f"{len(words)} words of {num_silos} silos, expected 2 of >= 2")
    n, total, squares = num_silos, int(words[0]), int(words[1])
    # At the squares' scale, times n; each of n squares was rounded by up to one half.
    shift = 2 * VALUE_BITS - SQUARE_BITS
    excess = (n * squares << shift) - total * total
    tolerance = n * n << (shift - 1)
    is_possible = total <= n * _MOST and squares <= n * _MOST_SQUARED
    if not is_possible or excess < -tolerance:
        raise ValueError("the sums are not those of distances: a silo lied")
    variance = max(excess, 0) / (n * (n - 1)) / 4**VALUE_BITS
    return total / n / 2**VALUE_BITS, math.sqrt(variance)


def check_measurement(request: MeasureRequest, plan: RunPlan) -> None:
    """Refuse a measurement that the plan does not ask for, or not now.

    Raises:
        EnvelopeRejected: with the reason.
    """
    if not plan.evaluation.in_silos:
        raise EnvelopeRejected("the plan asks for no measurement in the silos")
    if request.round_number != measurement_round(plan):
        raise EnvelopeRejected(
            f"a measurement as round {request.round_number}, expected "
            f"{measurement_round(plan)}"
        )
