"""Reference statistics of the federation itself: the request, and what is signed.

Before round 1, where a plan says ``evaluation.reference = "federation"``, one slot of
secure aggregation sums what every silo's images look like to the extractor: their
number, the sum of their features, and that of the outer products
(``protocol.reference_words``). To secure aggregation it is round 0. The aggregator then
measures against mean and covariance of all silos' images together, and learns no
silo's own.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from crypto import labels
from crypto.encoding import BytesLike
from protocol.bodies import (
    check_names,
    digest_in,
    join_body,
    read_count,
    read_shown,
    split_body,
)
from protocol.errors import EnvelopeRejected
from protocol.heads import ShownHead
from protocol.plan import AGGREGATOR_NAME, RunPlan
from protocol.reference_words import DIMS, num_words

REFERENCE = "reference"
"""The stage at which silos sum up their features."""
REFERENCE_ROUND = 0
WORD_BITS = 64


@dataclass(frozen=True, kw_only=True)
class ReferenceRequest:
    """The aggregator's request for the sums of a silo's features.

    ``extractor_digest`` is the SHA-256 of the weights that all measure with. ``shown``
    and ``sum_notice`` are those of a round's request.
    """

    attempt: int
    shown: ShownHead
    extractor_digest: str
    sum_notice: BytesLike = b""
    round_number: ClassVar[int] = REFERENCE_ROUND

    def to_body(self) -> bytes:
        """Return the body's bytes."""
        table = {"attempt": self.attempt, "extractor_digest": self.extractor_digest}
        return join_body(table, self.shown.to_bytes(), self.sum_notice)

    @classmethod
    def from_body(cls, body: memoryview) -> "ReferenceRequest":
        """Return the request of a body.

        Raises:
            EnvelopeRejected: malformed.
        """
        table, (shown, notice) = split_body(body, 2)
        check_names(table, ("attempt", "extractor_digest"))
        return cls(
            attempt=read_count(table, "attempt"),
            shown=read_shown(shown, AGGREGATOR_NAME),
            extractor_digest=digest_in(table, "extractor_digest"),
            sum_notice=notice,
        )

    def model_digest(self) -> bytes:
        """Return the digest that silos sign in READY: of what they measure with."""
        return reference_digest(self.extractor_digest)


def reference_digest(extractor_digest: str) -> bytes:
    """Return the digest that silos sign: of the extractor; the plan says the rest."""
    content = labels.REFERENCE + b"\x00" + bytes.fromhex(extractor_digest)
    return hashlib.sha256(content).digest()


def reference_dims(plan: RunPlan) -> int:
    """Return the length of a feature vector of the plan's extractor."""
    return DIMS[plan.evaluation.extractor]


def reference_words(plan: RunPlan) -> int:
    """Return the number of words that each silo sends for the reference."""
    return num_words(reference_dims(plan))


def first_slot_round(plan: RunPlan) -> int:
    """Return the round of a run's first slot: 0 where statistics are summed first."""
    return REFERENCE_ROUND if plan.evaluation.is_pooled else 1


def check_reference_request(request: ReferenceRequest, plan: RunPlan) -> None:
    """Refuse a request that the plan does not ask for.

    Raises:
        EnvelopeRejected: with the reason.
    """
    config = plan.evaluation
    if not config.is_pooled:
        raise EnvelopeRejected("the plan asks for no reference statistics of silos")
    if config.extractor_sha256 not in ("", request.extractor_digest):
        raise EnvelopeRejected("the plan names other weights of the extractor")


def smallest_count(plan: RunPlan, num_survivors: int) -> int:
    """Return the fewest images that a sum over so many silos holds.

    Exact sums: every silo has refused to send fewer than the plan's number. With noise
    no silo may let its number decide, and only the noisy total is compared.
    """
    config = plan.evaluation
    return config.min_reference_count * (1 if config.is_noised else num_survivors)


def reference_sentences(plan: RunPlan) -> Iterator[str]:
    """Yield what the reference lets leave, where the plan asks for it."""
    config = plan.evaluation
    if not config.is_pooled:
        return
    size = 8 * reference_words(plan)
    least = max(plan.protection.min_cohort, plan.protection.threshold)
    yield (
        "Reference of the evaluation: before round 1 this silo measures all of its "
        f"images with {config.extractor} and lets their number, the sum of their "
        f"features and that of the outer products leave in a secure sum, {size:,} "
        f"bytes. The aggregator learns mean and covariance over at least {least} "
        "silos together, and no silo's own."
    )
    if config.is_noised:
        yield (
            "This silo adds Gaussian noise of its own to them (clipping norm "
            f"{config.reference_clipping:g}, noise multiplier "
            f"{config.reference_noise_multiplier:g}); epsilon counts that as one step."
        )
        return
    covered = "There is no differential privacy"
    if plan.privacy.is_private:
        covered = "Epsilon does NOT cover them, as the plan says"
    yield (
        f"They are exact. {covered}: who knows an image can test whether it is likely "
        f"to be in them. A silo with fewer than {config.min_reference_count:,} images "
        "refuses, and so does one whose images are in another run's exact statistics: "
        "the difference of two sums could show one silo's own."
    )
