"""Privacy units: which images belong to one example, one patient, or to the silo."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from silo.data import ImageSet
from silo.errors import DataError

UnitKind = Literal["example", "patient", "silo"]


@dataclass(frozen=True)
class PrivacyUnits:
    """The units that are sampled, clipped and counted: image indices, by unit.

    ``order`` holds image indices, unit after unit; unit u has those from ``starts[u]``
    up to ``starts[u + 1]``. Every unit has at least one image. Copies of an image,
    value for value, are one example: all but the first are left out.
    """

    kind: UnitKind
    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """The number of units; secret."""
        return len(self.starts) - 1

    def images(self, unit: int) -> npt.NDArray[np.int64]:
        """Return the indices of a unit's images, int64 ``[m]``, m >= 1."""
        return self.order[self.starts[unit] : self.starts[unit + 1]]


def units_of(images: ImageSet, kind: UnitKind) -> PrivacyUnits:
    """Return the privacy units of a silo's images.

    Raises:
        DataError: the unit is the patient, and no image says whose it is.
    """
    if kind == "example":
        distinct = _distinct(images)
        return PrivacyUnits(kind, distinct, np.arange(len(distinct) + 1))
    if kind == "silo":
        every = np.arange(len(images), dtype=np.int64)
        return PrivacyUnits(kind, every, np.array([0, len(images)], np.int64))
    if images.patients is None:
        raise DataError(
            "the plan protects patients, and these images do not say whose they are; "
            "name the grouping in silo.toml ([data] patients)"
        )
    order = np.argsort(images.patients, kind="stable")
    ends = np.cumsum(np.bincount(images.patients))
    return PrivacyUnits(kind, order, np.concatenate(([0], ends)))


def _distinct(images: ImageSet) -> npt.NDArray[np.int64]:
    """Return the index of the first copy of every image, ascending."""
    first: dict[bytes, int] = {}
    for index, pixels in enumerate(images.pixels):
        digest = hashlib.sha256(pixels.tobytes()).digest()
        first.setdefault(digest, index)
    return np.fromiter(first.values(), np.int64, len(first))
