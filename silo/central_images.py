"""Central images: a few noisy means of this silo's images, on account.

    y_j = (sum over drawn units u of min(1, C / |x_u|) x_u + N(0, (sigma C)^2 I)) / B

for j = 1 … n: every y_j from a Poisson sample of its own. x_u is the image of privacy
unit u in [-1, 1], or the mean over some of a patient's images; C, sigma and B are those
of the plan. That is n steps of DP-SGD whose "gradient" is the image itself, and it is
reserved, counted, priced, summed and audited as such.

Source: Li et al., 2025 (DP-FETA, arXiv 2504.01395), section 3; here with Poisson
sampling and per silo.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from diffusion.means import CentralImages
from protocol.mechanism import steps_per_round
from protocol.plan import PlanDraft
from silo.data import ImageSet
from silo.errors import DataError
from silo.private_training import Kept
from silo.randomness import PrivateRandom
from silo.training import TrainingState
from silo.units import PrivacyUnits

CHUNK_UNITS = 256
"""Units whose images are in memory at a time."""

Vectors = npt.NDArray[np.float64]


def release_central_images(
    model: CentralImages,
    images: ImageSet,
    units: PrivacyUnits,
    plan: PlanDraft,
    *,
    first_step: int = 0,
    random: PrivateRandom,
    keep: Callable[[Kept], None],
    checkpoint_steps: int,
) -> TrainingState:
    """Put noisy means of a silo's images into a model; return an empty state.

    Guarantees:
        Every image is a Gaussian mechanism on a Poisson sample of the units, at the
        plan's rate, clipping norm and noise multiplier, that of an empty sample, too.
        A unit adds a vector of norm at most C (1 + 1e-12) before the division; norms,
        sums and noise are in float64. ``keep`` hears of every image before this
        function returns.

    Args:
        model: holds the images of the first ``first_step`` steps; changed in place.
        first_step: how many images were made before.
        random: sampling and noise.
        keep: is called whenever the number of images made is a multiple of
            ``checkpoint_steps``, and after the last one.

    Raises:
        DataError: there are no images.
        ValueError: the plan has no noise multiplier.
    """
    if not plan.privacy.noise_multiplier > 0:
        raise ValueError("privacy.noise_multiplier: was never calibrated")
    if not len(units):
        raise DataError("there are no images to average")
    num_steps, noised_steps = steps_per_round(plan), 0
    for step in range(first_step, num_steps):
        total = _noisy_sum(images, units, plan, random)
        noised_steps += 1
        mean = torch.from_numpy(total / plan.training.examples_per_step)
        with torch.no_grad():
            model.images[step].copy_(mean.reshape(model.images.shape[1:]))
        if (step + 1) % checkpoint_steps == 0 or step + 1 == num_steps:
            keep(Kept(step + 1, noised_steps, TrainingState()))
            noised_steps = 0
    return TrainingState()


def _noisy_sum(
    images: ImageSet, units: PrivacyUnits, plan: PlanDraft, random: PrivateRandom
) -> Vectors:
    """Return the noisy sum over one Poisson sample of the units, ``[c * h * w]``."""
    privacy = plan.privacy
    total: Vectors = np.zeros(images.pixels[0].size)
    drawn = random.poisson_sample(len(units), privacy.sample_rate)
    for start in range(0, len(drawn), CHUNK_UNITS):
        chosen = drawn[start : start + CHUNK_UNITS]
        vectors = _unit_images(
            images, units, chosen, privacy.max_images_per_patient, random
        )
        total += clipped(vectors, privacy.clipping_norm).sum(axis=0)
    random.add_noise_(total, privacy.noise_multiplier * privacy.clipping_norm)
    return total


def clipped(vectors: Vectors, clipping_norm: float) -> Vectors:
    """Return vectors ``[m, d]``, each with a norm of at most ``clipping_norm``.

    One with a value that is NaN or infinite becomes zero.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    kept = np.where(np.isfinite(norms), vectors, 0.0)
    factors = clipping_norm / np.maximum(norms, clipping_norm)
    result: Vectors = kept * np.where(np.isfinite(norms), factors, 0.0)
    return result


def _unit_images(
    images: ImageSet,
    units: PrivacyUnits,
    chosen: npt.NDArray[np.int64],
    max_images: int,
    random: PrivateRandom,
) -> Vectors:
    """Return each unit's image, or the mean over its images, ``[m, c * h * w]``."""
    picked = []
    for unit in chosen:
        own = units.images(int(unit))
        if len(own) > max_images:
            own = own[random.choose(len(own), max_images)]
        picked.append(own)
    flat = images.batch(np.concatenate(picked)).flatten(1).double().numpy()
    starts = np.cumsum([0, *(len(own) for own in picked[:-1])])
    counts = np.array([[len(own)] for own in picked])
    means: Vectors = np.add.reduceat(flat, starts, axis=0) / counts
    return means
