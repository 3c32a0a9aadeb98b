"""Feature statistics as a mergeable stream of batches, and the Fréchet distance.

On Inception's features the distance is FID; on any other extractor's it is not, and
is called by that extractor's name.
"""

import io
import math
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from diffusion.errors import CorruptFile, StatisticsRejected
from diffusion.features import FeatureExtractor
from diffusion.files import save_atomically

Float64Array = npt.NDArray[np.float64]

FORMAT = "cloister/feature-statistics/1"


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureStatistics:
    """Count, mean and scatter of the features seen so far.

    Attributes:
        extractor: name of the extractor.
        extractor_digest: SHA-256 of its weights, hexadecimal.
        count: number of images.
        mean: float64 ``[dims]``; zeros for no image.
        scatter: float64 ``[dims, dims]``, the sum of (f - mean)(f - mean)ᵀ.
    """

    extractor: str
    extractor_digest: str
    count: int
    mean: Float64Array
    scatter: Float64Array

    @property
    def covariance(self) -> Float64Array:
        """Return the unbiased covariance ``[dims, dims]``, scatter / (count - 1).

        Raises:
            StatisticsRejected: there are fewer than two images.
        """
        if self.count < 2:
            raise StatisticsRejected(f"a covariance needs 2 images; got {self.count}")
        return self.scatter / (self.count - 1)

    def update(self, features: Float64Array) -> "FeatureStatistics":
        """Return the statistics with a batch added; these stay as they are.

        Args:
            features: ``[n, dims]``; none for n = 0.

        Raises:
            StatisticsRejected: another shape, or a value that is not finite.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise StatisticsRejected(
                f"features have shape {features.shape}, not (n, {len(self.mean)})"
            )
        if not np.isfinite(features).all():
            raise StatisticsRejected("features contain a value that is not finite")
        if len(features) == 0:
            return self
        features = features.astype(np.float64)
        mean = features.mean(axis=0)
        centred = features - mean
        batch = replace(
            self, count=len(features), mean=mean, scatter=centred.T @ centred
        )
        return self.merge(batch)

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Return the statistics of both sets of images together.

        scatter = scatter_a + scatter_b + d dᵀ n_a n_b / (n_a + n_b),
        d = mean_b - mean_a.

        Raises:
            StatisticsRejected: the other was measured by another extractor.

        Source:
            Chan, Golub & LeVeque, 1983, equation 2.1 (in several dimensions).
        """
        check_same_extractor(self, other)
        total = self.count + other.count
        if total == 0:
            return self
        shift = other.mean - self.mean
        between = np.outer(shift, shift) * (self.count * other.count / total)
        return replace(
            self,
            count=total,
            mean=self.mean + shift * (other.count / total),
            scatter=self.scatter + other.scatter + between,
        )


def empty_statistics(extractor: FeatureExtractor) -> FeatureStatistics:
    """Return the statistics of no image, to be updated with that extractor's."""
    return FeatureStatistics(
        extractor=extractor.name,
        extractor_digest=extractor.digest,
        count=0,
        mean=np.zeros(extractor.dims),
        scatter=np.zeros((extractor.dims, extractor.dims)),
    )


def check_same_extractor(a: FeatureStatistics, b: FeatureStatistics) -> None:
    """Check that two statistics were measured by one and the same extractor.

    Raises:
        StatisticsRejected: name, weights or length of the features differ.
    """
    if a.extractor != b.extractor:
        raise StatisticsRejected(f"{a.extractor} cannot meet {b.extractor}")
    if a.extractor_digest != b.extractor_digest:
        raise StatisticsRejected(f"two versions of {a.extractor} cannot meet")
    if a.mean.shape != b.mean.shape:
        raise StatisticsRejected("the features have different lengths")


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Return the squared Fréchet distance of the two Gaussians.

    |mu_a - mu_b|² + tr(Sigma_a) + tr(Sigma_b) - 2 tr((Sigma_a Sigma_b)^½), where the
    last trace is the sum of the roots of the eigenvalues of
    Sigma_a^½ Sigma_b Sigma_a^½: symmetric, so it needs no complex matrix root.

    Guarantees:
        Finite and not negative. Singular covariances (fewer images than dims) are
        allowed. It is biased upwards by about 1 / count.

    Raises:
        StatisticsRejected: different extractors, fewer than two images on a side,
            or a value that is not finite.

    Source:
        Dowson & Landau, 1982, equation 4; Heusel et al., 2017, equation 6.
    """
    check_same_extractor(a, b)
    covariance_a, covariance_b = a.covariance, b.covariance
    root_a = _symmetric_root(covariance_a)
    product = root_a @ covariance_b @ root_a
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    overlap = float(np.sqrt(np.maximum(eigenvalues, 0.0)).sum())
    shift = a.mean - b.mean
    traces = float(np.trace(covariance_a) + np.trace(covariance_b))
    return max(float(shift @ shift) + traces - 2.0 * overlap, 0.0)


def save_statistics(path: Path, statistics: FeatureStatistics) -> None:
    """Save statistics as .npz, whole or not at all.

    Raises:
        StatisticsRejected: there are fewer than two images.
        OSError: the folder is missing or not writable.
    """
    buffer = io.BytesIO()
    np.savez(
        buffer,
        format=np.array(FORMAT),
        extractor=np.array(statistics.extractor),
        extractor_digest=np.array(statistics.extractor_digest),
        count=np.array(statistics.count, dtype=np.int64),
        mean=statistics.mean,
        covariance=statistics.covariance,
    )
    save_atomically(path, buffer.getvalue())


def load_statistics(path: Path, extractor: FeatureExtractor) -> FeatureStatistics:
    """Load statistics that were measured by this very extractor.

    Raises:
        StatisticsRejected: they were measured by another one.
        CorruptFile: the file is cut off, damaged or of another kind.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} does not exist")
    return read_statistics(path.read_bytes(), extractor, path.name)


def read_statistics(
    content: bytes, extractor: FeatureExtractor, name: str
) -> FeatureStatistics:
    """Return the statistics of a file's content, which may come from a stranger.

    Guarantees: no array is larger than the content, so nothing is unpacked; whatever
    the content is, nothing but these errors is raised.

    Raises:
        StatisticsRejected, CorruptFile: as :func:`load_statistics`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            entries = packed.infolist()
            is_plain = all(e.compress_type == zipfile.ZIP_STORED for e in entries)
            if not is_plain or sum(e.file_size for e in entries) > len(content):
                raise CorruptFile(f"{name} is compressed; save_statistics writes none")
            for entry in entries:
                _check_header(packed, entry)
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            loaded = _from_arrays({entry: file[entry] for entry in file.files})
    except CorruptFile:
        raise
    except zipfile.BadZipFile as error:
        raise CorruptFile(f"{name} is cut off or damaged") from error
    except Exception as error:
        # A stranger's file raises whatever the readers of zip and numpy meet first.
        raise CorruptFile(f"{name} holds no feature statistics") from error
    check_same_extractor(empty_statistics(extractor), loaded)
    return loaded


def _check_header(packed: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Raise ``ValueError`` if an array claims to be larger than what is there of it.

    numpy makes room for what the header says before it reads the values.
    """
    with packed.open(entry) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if not dtype.itemsize or math.prod(shape) * dtype.itemsize > entry.file_size:
        raise ValueError("an array that is larger than its entry")


def _from_arrays(arrays: dict[str, npt.NDArray[np.generic]]) -> FeatureStatistics:
    """Rebuild statistics from a file's arrays; ValueError if they do not fit."""
    if str(arrays["format"]) != FORMAT:
        raise ValueError("another format")
    count = int(np.asarray(arrays["count"], dtype=np.int64))
    mean = np.asarray(arrays["mean"], dtype=np.float64)
    covariance = np.asarray(arrays["covariance"], dtype=np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or count < 2:
        raise ValueError("shapes or count do not fit")
    with np.errstate(over="ignore"):
        scatter = covariance * (count - 1)
    if not (np.isfinite(mean).all() and np.isfinite(scatter).all()):
        raise ValueError("a value is not finite")
    return FeatureStatistics(
        extractor=str(arrays["extractor"]),
        extractor_digest=str(arrays["extractor_digest"]),
        count=count,
        mean=mean,
        scatter=scatter,
    )


def _symmetric_root(matrix: Float64Array) -> Float64Array:
    """Return the root of a symmetric matrix; tiny negative eigenvalues count as 0."""
    eigenvalues, vectors = np.linalg.eigh(matrix)
    root = (vectors * np.sqrt(np.maximum(eigenvalues, 0.0))) @ vectors.T
    return np.asarray(root, dtype=np.float64)
