"""This silo's part in the federation's reference: sums of its features, once.

Order: check → note what was asked → charge the ledger, where noise is added → measure →
save the words (``fsync``) → transcript → READY; before the words leave, masked, that is
noted, too. Asked again after a crash the silo answers from what it saved.

Exact sums over two groups of silos that differ by this one would tell its own: so it
lets no image enter a second exact sum, of whatever run (:class:`PastReferences`). With
noise that is not needed: every release is on account.
"""

import logging
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from crypto.secagg.upload import Upload
from diffusion.features import FeatureExtractor, check_takes, load_extractor
from protocol.plan import RunPlan
from protocol.reference import (
    REFERENCE_ROUND,
    ReferenceRequest,
    check_reference_request,
    reference_dims,
    reference_words,
)
from protocol.reference_settings import reference_events
from protocol.reference_words import (
    MAX_ENTRY,
    MAX_FEATURE,
    MAX_IMAGES,
    Moments,
    num_words,
    to_vector,
    to_words,
)
from silo.central_images import clipped
from silo.data import ImageSet
from silo.errors import ConfigRejected, DataError, PolicyViolation
from silo.past_references import PastReferences
from silo.private_round import PrivateRounds
from silo.randomness import PrivateRandom
from silo.resources import LocalResources
from silo.store import RunStore, TrainedRound
from silo.training import TrainingState
from silo.units import PrivacyUnits, units_of

logger = logging.getLogger(__name__)

BLOCK = 500
"""Images whose features are measured at a time."""
VECTORS_BLOCK = 256
"""Images whose vectors are in memory at a time; more only where one unit has more."""

Vector = npt.NDArray[np.float64]


class ReferenceShare:
    """One silo's sums of features in one run.

    Args:
        weights: Inception's, where the plan measures with them; none for the cache.
        private: the mechanism, where the plan has one.

    Raises:
        ConfigRejected: there is no folder to remember exact sums in.
        DiffusionError: the extractor is missing, or does not take the model's images.
    """

    def __init__(
        self,
        plan: RunPlan,
        store: RunStore,
        resources: LocalResources,
        private: PrivateRounds | None,
    ) -> None:
        self._plan, self._store, self._images = plan, store, resources.images
        self._private = private
        config, size = plan.evaluation, plan.model.image_size
        self._extractor = load_extractor(
            config.extractor,
            weights=resources.inception_weights,
            sha256=config.extractor_sha256 or None,
        )
        check_takes(self._extractor, (plan.model.channels, size, size))
        if self._extractor.dims != reference_dims(plan):
            raise ConfigRejected(
                f"{self._extractor.name} gives {self._extractor.dims} features, "
                f"expected {reference_dims(plan)}"
            )
        if resources.references is None:
            raise ConfigRejected("a plan with a reference needs a folder to note it in")
        self._past = PastReferences(
            resources.references,
            store.folder,
            plan.digest.hex(),
            resources.images,
            may_repeat=resources.repeat_reference,
        )

    @property
    def is_charged(self) -> bool:
        """Whether noise is added, and the release is on account."""
        return self._plan.evaluation.is_noised

    def check(self, request: ReferenceRequest, asked_round: int) -> None:
        """Refuse what the plan does not ask for, comes too late, or a second time.

        Args:
            asked_round: the last round that this process was asked for.

        Raises:
            EnvelopeRejected, PolicyViolation: with the reason.
        """
        check_reference_request(request, self._plan)
        trained = self._store.load_trained()
        if asked_round > 0 or (trained and trained.round_number > REFERENCE_ROUND):
            raise PolicyViolation("the reference is summed before round 1")
        if request.extractor_digest != self._extractor.digest:
            raise PolicyViolation(
                f"the aggregator's weights of {self._extractor.name} are not this "
                "silo's"
            )
        if trained is not None and not self._store.has_update(REFERENCE_ROUND):
            raise PolicyViolation("the sums of features were revealed already")

    def sum_once(self, request: ReferenceRequest) -> None:
        """Sum up the features of this silo's images, unless that is on disk.

        Raises:
            DataError: too few images or too large a feature; for this operator alone.
            ReferenceRefused: another run's exact sum holds some of the images.
            BudgetExceeded: the noisy sums would cost more than a limit.
        """
        is_summed = self._store.load_trained() is not None
        if not self.is_charged:
            (self._past.check if is_summed else self._past.begin)()
        if is_summed:
            return
        vector = self._noisy_sums() if self.is_charged else self._exact_sums()
        trained = TrainedRound(
            round_number=REFERENCE_ROUND,
            model=request.model_digest().hex(),
            ledger=self._private.head if self._private is not None else None,
        )
        words = to_words(vector, len(self._plan.silos))
        self._store.save_round(trained, words, TrainingState(), {})

    def upload(self) -> Upload:
        """Return the words, ready to be masked; that they leave is on disk then.

        Raises:
            PolicyViolation: nothing was summed, it was revealed, or is damaged.
            ReferenceRefused: meanwhile some of the images left in another run.
        """
        upload = self._store.load_update(REFERENCE_ROUND)
        if upload is None or upload.words.size != reference_words(self._plan):
            raise PolicyViolation("there are no sums of features to send")
        if not self.is_charged:
            self._past.note()
        return upload

    def _exact_sums(self) -> Vector:
        """Return the sums over all images, refused where they cannot be exact."""
        least, count = self._plan.evaluation.min_reference_count, len(self._images)
        if not least <= count <= MAX_IMAGES:
            raise DataError(
                f"{count:,} images; the plan lets a silo with {least:,} to "
                f"{MAX_IMAGES:,} take part in the reference"
            )
        logger.info("reference: summing up the features of this silo's images")
        return to_vector(exact_moments(self._extractor, self._images))

    def _noisy_sums(self) -> Vector:
        """Charge the ledger; return the clipped sums with noise.

        What is too large for a word is clamped: that follows from the noisy sums.
        """
        if self._private is None:
            raise ConfigRejected("a noisy reference needs the plan's mechanism")
        (event,) = reference_events(self._plan)
        random = self._private.release(event, "reference statistics")
        vector = noisy_vector(
            self._extractor,
            self._images,
            units_of(self._images, self._plan.privacy.unit),
            clipping_norm=event.clipping_norm,
            noise_multiplier=event.noise_multiplier,
            max_images=self._plan.privacy.max_images_per_patient,
            random=random,
        )
        return np.clip(vector, -MAX_ENTRY, MAX_ENTRY)


def make_reference(
    plan: RunPlan,
    store: RunStore,
    resources: LocalResources,
    private: PrivateRounds | None,
) -> ReferenceShare | None:
    """Return what sums up this silo's features, where the plan asks for that.

    Raises:
        ConfigRejected, DiffusionError: as :class:`ReferenceShare`.
    """
    if not plan.evaluation.is_pooled:
        return None
    return ReferenceShare(plan, store, resources, private)


def exact_moments(extractor: FeatureExtractor, images: ImageSet) -> Moments:
    """Return count, sum and sum of outer products of all images' features.

    Raises:
        DataError: a feature is NaN or above ``MAX_FEATURE`` in magnitude; no image is
            named.
    """
    dims = extractor.dims
    total, second = np.zeros(dims), np.zeros((dims, dims))
    for features in _blocks(extractor, images, np.arange(len(images))):
        if not (np.abs(features) <= MAX_FEATURE).all():
            raise DataError(
                f"{extractor.name} gives an image a feature above {MAX_FEATURE:g}, too "
                "large for exact sums"
            )
        total += features.sum(axis=0)
        second += features.T @ features
    return Moments(float(len(images)), total, second)


def noisy_vector(
    extractor: FeatureExtractor,
    images: ImageSet,
    units: PrivacyUnits,
    *,
    clipping_norm: float,
    noise_multiplier: float,
    max_images: int,
    random: PrivateRandom,
) -> Vector:
    """Return Σ_u min(1, C / |v_u|) v_u + N(0, (σ C)² I) over all privacy units u.

    v = (1, f, upper triangle of f fᵀ) of an image; v_u is its mean over at most
    ``max_images`` of a patient's images. The weight min(1, C / |v|) is the same for all
    of a v: the sums are moments of a weighted set of images.

    Guarantees: a unit changes the sum by at most C (1 + 1e-12) in L2 norm; an image
    whose features are not finite adds nothing. Sums and noise are in float64.
    """
    total: Vector = np.zeros(num_words(extractor.dims))
    rows, columns = np.triu_indices(extractor.dims)
    for picked in _picked(units, max_images, random):
        f = np.concatenate(list(_blocks(extractor, images, np.concatenate(picked))))
        vectors = np.hstack((np.ones((len(f), 1)), f, f[:, rows] * f[:, columns]))
        starts = np.cumsum([0, *(len(own) for own in picked[:-1])])
        counts = np.array([[len(own)] for own in picked])
        means = np.add.reduceat(vectors, starts, axis=0) / counts
        total += clipped(means, clipping_norm).sum(axis=0)
    random.add_noise_(total, noise_multiplier * clipping_norm)
    return total


def _picked(
    units: PrivacyUnits, most: int, random: PrivateRandom
) -> Iterator[list[npt.NDArray[np.int64]]]:
    """Yield each unit's images, or as many of them as may be, in blocks of units."""
    block: list[npt.NDArray[np.int64]] = []
    for unit in range(len(units)):
        own = units.images(unit)
        if len(own) > most:
            own = own[random.choose(len(own), most)]
        if block and sum(map(len, block)) + len(own) > VECTORS_BLOCK:
            yield block
            block = []
        block.append(own)
    if block:
        yield block


def _blocks(
    extractor: FeatureExtractor, images: ImageSet, chosen: npt.NDArray[np.int64]
) -> Iterator[Vector]:
    """Yield features float64 ``[n, dims]`` of some images, block by block."""
    for start in range(0, len(chosen), BLOCK):
        with torch.no_grad():
            block = images.batch(chosen[start : start + BLOCK])
            yield extractor.features(block)
