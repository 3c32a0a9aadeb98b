"""The federation's own reference statistics: one secure sum, made before round 1.

The aggregator learns count, mean and covariance of all silos' features together, keeps
them as ``reference.npz`` in the run's folder, and measures against that file in all
rounds. Where there is no sum, a record says why, and a published file takes its place
if one was given. Started again after a crash it goes on with the slot, or reads the
file that the transcript names.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aggregator.errors import CohortTooSmall, RoundAborted, StateBroken
from aggregator.evaluation import Reference
from aggregator.sums import Sum, Summation
from crypto.secagg.parts import whole
from diffusion.errors import DiffusionError, StatisticsRejected
from diffusion.features import FeatureExtractor
from diffusion.fid import FeatureStatistics, load_statistics, save_statistics
from protocol.audit_records import ReferencePooled, ReferenceSkipped
from protocol.envelope import Kind
from protocol.heads import ShownHead
from protocol.plan import RunPlan
from protocol.reference import (
    REFERENCE,
    REFERENCE_ROUND,
    WORD_BITS,
    ReferenceRequest,
    reference_digest,
    reference_dims,
    reference_words,
    smallest_count,
)
from protocol.reference_words import (
    MAX_FEATURE,
    MAX_IMAGES,
    Moments,
    fraction_bits,
    from_vector,
    from_words,
)
from protocol.stretches import Agreed, Dealing

logger = logging.getLogger(__name__)

REFERENCE_FILE = "reference.npz"

Pooled = ReferencePooled | ReferenceSkipped


@dataclass(frozen=True, kw_only=True)
class ReferenceTask:
    """What the reference asks of every silo: see ``aggregator.sums.Task``."""

    extractor_digest: str
    num_words: int
    round_number: int = REFERENCE_ROUND
    field_bits: int = WORD_BITS
    kind: Kind = Kind.REFERENCE
    stage: str = REFERENCE

    def request(
        self, shown: ShownHead, attempt: int, *, sum_notice: bytes = b""
    ) -> ReferenceRequest:
        """Return the request to every silo."""
        return ReferenceRequest(
            attempt=attempt,
            shown=shown,
            extractor_digest=self.extractor_digest,
            sum_notice=sum_notice,
        )

    def dealing(self, plan: RunPlan, agreed: Agreed) -> Dealing:
        """Return the one stretch, which all members fill whatever the plan deals."""
        return Dealing(agreed, whole(self.num_words, agreed.members))

    def model_digest(self) -> bytes:
        """Return the digest of the extractor that silos sign."""
        return reference_digest(self.extractor_digest)


def pool_reference(
    plan: RunPlan,
    extractor: FeatureExtractor | None,
    summation: Summation,
    path: Path,
) -> Pooled:
    """Sum up the silos' features; save the statistics, and return what came of it.

    Args:
        extractor: None leaves the reference out.
        path: of the file; it is on disk before this returns.
    """
    if extractor is None:
        return _skipped("started without evaluation")
    task = ReferenceTask(
        extractor_digest=extractor.digest, num_words=reference_words(plan)
    )
    try:
        total = summation.sum_round(task)
        statistics = pooled_statistics(plan, extractor, total)
    except (CohortTooSmall, RoundAborted, ValueError, StatisticsRejected) as error:
        return _skipped(str(error))
    save_statistics(path, statistics)
    return ReferencePooled(
        round_number=REFERENCE_ROUND,
        survivors=tuple(plan.silos[silo].name for silo in sorted(total.survivors)),
        extractor=extractor.name,
        extractor_digest=extractor.digest,
        count=statistics.count,
        noise_multiplier=plan.evaluation.reference_noise_multiplier,
        reference=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def load_pooled(path: Path, extractor: FeatureExtractor, record: Pooled) -> Reference:
    """Return the statistics that a record tells of, from their file.

    Raises:
        StateBroken: the file is missing, or another one.
    """
    digest = record.reference if isinstance(record, ReferencePooled) else ""
    try:
        statistics, content = load_statistics(path, extractor), path.read_bytes()
    except (OSError, DiffusionError) as error:
        raise StateBroken(f"{path}: {error}; put it back from a backup") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise StateBroken(
            f"{path}: is not the reference that the transcript names; put it back "
            "from a backup"
        )
    return Reference(
        extractor=extractor, statistics=statistics, digest=digest, content=content
    )


def pooled_statistics(
    plan: RunPlan, extractor: FeatureExtractor, total: Sum
) -> FeatureStatistics:
    """Return the statistics of a sum of words.

    Exact: mean and covariance are those of all silos' images up to the rounding of the
    words. Noisy: the count is rounded, and eigenvalues of the scatter that noise made
    negative are 0.

    Raises:
        ValueError: the sums are not those of features, or hold too few images: the
            aggregator has seen them then.
        StatisticsRejected: there are fewer than two images.
    """
    num_silos, survivors = len(plan.silos), len(total.survivors)
    is_noised = plan.evaluation.is_noised
    vector = from_words(total.words, num_silos)
    moments = from_vector(vector, reference_dims(plan))
    least = smallest_count(plan, survivors)
    if not least <= moments.count <= survivors * MAX_IMAGES + 1:
        raise ValueError(
            f"the sums hold {moments.count:.0f} images, expected {least:,} or more"
        )
    scatter = _scatter(moments)
    if is_noised:
        scatter = _without_negative(scatter)
    else:
        _check_possible(moments, scatter, survivors / 2 ** fraction_bits(num_silos))
    return FeatureStatistics(
        extractor=extractor.name,
        extractor_digest=extractor.digest,
        count=round(moments.count),
        mean=moments.total / moments.count,
        scatter=scatter,
    )


def _scatter(moments: Moments) -> npt.NDArray[np.float64]:
    """Return Σ f fᵀ - n m mᵀ, the scatter around the mean, ``[dims, dims]``."""
    total = moments.total
    return moments.second - np.outer(total, total) / moments.count


def _without_negative(scatter: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the nearest symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(scatter)
    return np.asarray((vectors * np.maximum(values, 0)) @ vectors.T)


def _check_possible(
    moments: Moments, scatter: npt.NDArray[np.float64], rounding: float
) -> None:
    """Refuse sums that no images have: a silo lied, and which one is hidden.

    Args:
        rounding: by how much the silos' rounding may have changed a sum, at most.
    """
    tolerance = rounding * (1 + 2 * MAX_FEATURE) + 1e-9 * moments.count
    is_possible = (
        moments.count == round(moments.count)
        and (np.abs(moments.total) <= moments.count * MAX_FEATURE + rounding).all()
        and (np.diagonal(scatter) >= -tolerance).all()
    )
    if not is_possible:
        raise ValueError("the sums are not those of features: a silo lied")


def _skipped(reason: str) -> ReferenceSkipped:
    """Return the record of a reference that was not made."""
    return ReferenceSkipped(round_number=REFERENCE_ROUND, reason=reason[:400])


def in_words(pooled: Pooled, *, has_published: bool = False) -> str:
    """Return what came of the reference in one line."""
    if isinstance(pooled, ReferencePooled):
        noise = ", with noise" if pooled.noise_multiplier else ""
        return (
            f"reference: {pooled.count:,} images of {len(pooled.survivors)} silos "
            f"({pooled.extractor}{noise}), {pooled.reference[:16]}"
        )
    instead = "nothing is evaluated"
    if has_published:
        instead = "the published reference takes its place"
    return f"no reference of the silos: {pooled.reason}; {instead}"
