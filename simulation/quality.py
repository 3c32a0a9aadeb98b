"""Are the samples digits, and are they new? For the demo, whose images are public.

Recognisable: a support-vector machine that was trained on the real digits is surer
than 0.5 of one class. New: no sample is a memorised training image, by the ratio test
of ``silo.memorisation``.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from silo.data import ImageSet
from silo.memorisation import count_copies

SURE = 0.5

Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What was measured on ``num_samples`` samples.

    ``recognised`` is the share with a probability above 0.5, ``recognised_real`` the
    same share of held-out real images; ``class_shares`` the shares of the ten digits
    among the samples; ``copies`` the number that fail the ratio test. ``as_asked`` is
    the share whose most probable digit is the class that the model was asked for.
    """

    num_samples: int
    recognised: float
    recognised_real: float
    class_shares: tuple[float, ...]
    copies: int
    as_asked: float | None = None


def measure(samples: ImageSet, real: ImageSet, held_out: ImageSet) -> Quality:
    """Compare samples with the real images they were learnt from.

    Args:
        samples, real, held_out: grey images of one size; the real ones with labels,
            samples of a model with classes with those that were asked for.

    Raises:
        ValueError: the real images have no labels.
    """
    if real.labels is None:
        raise ValueError("the real images have no labels")
    classifier = _Recogniser(_vectors(real), real.labels)
    generated = _vectors(samples)
    probabilities = classifier.probabilities(generated)
    chosen = probabilities.argmax(axis=1)
    classes = np.bincount(chosen, minlength=probabilities.shape[1])
    asked = samples.labels
    sure = classifier.probabilities(_vectors(held_out)).max(axis=1) > SURE
    return Quality(
        num_samples=len(generated),
        recognised=float((probabilities.max(axis=1) > SURE).mean()),
        recognised_real=float(sure.mean()),
        class_shares=tuple((classes / len(generated)).tolist()),
        copies=count_copies(generated, _vectors(real)),
        as_asked=None if asked is None else float((chosen == asked).mean()),
    )


class _Recogniser:
    """An RBF support-vector machine with probabilities by pairwise coupling.

    Calibration one class against the rest would not do: it is sure of one class for
    98 % of uniform noise, this one for 1 % (measured on scikit-learn 1.9).
    """

    def __init__(self, vectors: Vectors, labels: npt.NDArray[np.int64]) -> None:
        from sklearn.svm import SVC

        self._model = SVC(gamma="scale", C=10.0, probability=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self._model.fit(vectors, labels)

    def probabilities(self, vectors: Vectors) -> Vectors:
        """Return the probability of each class, ``[n, classes]``."""
        return np.asarray(self._model.predict_proba(vectors))


def _vectors(images: ImageSet) -> Vectors:
    """Return images in [-1, 1] as float64 ``[n, pixels]``."""
    batch = images.batch(np.arange(len(images)))
    return batch.flatten(start_dim=1).numpy().astype(np.float64)
