"""FD-small: small classifiers whose features a Fréchet distance is measured on.

A stand-in for Inception where that is missing, or where the images are small and
grey. Distances on it are called FD-small, never FID, and are comparable only under
the same weights (``digest``). Two sets of weights come with the package, trained on
public data sets by ``benchmarks/fd_small.py``:

- digits: scikit-learn's 8×8 digits, the 1,500 of ``digits_split`` in training;
- fashion: Fashion-MNIST, 28×28. It also serves other grey 28×28 images, such as
  chest X-rays, as a generic extractor that has never seen their kind.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.errors import CorruptFile, ImagesRejected, WeightsUnavailable
from diffusion.parameters import load_safetensors

#: Slack of the check that images lie in [-1, 1].
RANGE_TOLERANCE = 1e-3
PHYSICAL_BATCH_SIZE = 256

NUM_DIGITS = 1797
NUM_TRAINING_DIGITS = 1500
DIGITS_SPLIT_SEED = 20240611

Float64Array = npt.NDArray[np.float64]


def digits_split() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the fixed split of scikit-learn's digits: 1,500 training, 297 held out.

    Everyone who trains on digits uses this one, so that the 297 stay unseen by the
    extractor and by the model that is measured with it.

    Returns:
        Row numbers of ``sklearn.datasets.load_digits``, disjoint and exhaustive; a
        permutation by NumPy's frozen ``RandomState``, the same in every version.
    """
    order = np.random.RandomState(DIGITS_SPLIT_SEED).permutation(NUM_DIGITS)
    order = order.astype(np.int64)
    return order[:NUM_TRAINING_DIGITS], order[NUM_TRAINING_DIGITS:]


class SmallClassifier(nn.Module):
    """Three 3×3 convolutions with batch normalisation, mean-pooled, and a classifier.

    Args:
        widths: output channels of the convolutions; the last is the feature length.
        num_classes: classes of the training data.
    """

    def __init__(self, widths: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels = (1, *widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], 3, padding=1, bias=False)
            for i in range(3)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Map grey images ``[n, 1, h, w]`` to features ``[n, widths[-1]]``."""
        h = images
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            h = F.relu(norm(conv(h)))
            if index < 2:
                h = F.max_pool2d(h, 2)
        return h.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Map grey images ``[n, 1, h, w]`` to class scores ``[n, num_classes]``."""
        scores: Tensor = self.classifier(self.features(images))
        return scores


def make_classifier(tensors: Mapping[str, Tensor]) -> SmallClassifier:
    """Build the classifier whose sizes and values a state dictionary holds.

    Raises:
        CorruptFile: the tensors are not those of a ``SmallClassifier``.
    """
    try:
        widths = tuple(tensors[f"convs.{i}.weight"].shape[0] for i in range(3))
        model = SmallClassifier(
            (widths[0], widths[1], widths[2]), tensors["classifier.weight"].shape[0]
        )
        state = {name: value.float() for name, value in tensors.items()}
        batches = {f"norms.{i}.num_batches_tracked": torch.tensor(0) for i in range(3)}
        model.load_state_dict({**state, **batches})
    except (KeyError, IndexError, RuntimeError) as error:
        raise CorruptFile("the file does not hold an FD-small classifier") from error
    return model.eval().requires_grad_(False)


class FdSmall:
    """A trained ``SmallClassifier`` as a feature extractor.

    Attributes:
        name: what a distance on it is called, as ``FD-small (digits)``.
        digest: SHA-256 of the weights file, hexadecimal.
        dims: length of a feature vector.
        image_shapes: accepted ``(c, h, w)``.
    """

    def __init__(
        self,
        name: str,
        digest: str,
        image_shapes: tuple[tuple[int, int, int], ...],
        model: SmallClassifier,
    ) -> None:
        self.name = name
        self.digest = digest
        self.image_shapes = image_shapes
        self.dims: int = model.classifier.in_features
        self._model = model

    def features(self, images: Tensor) -> Float64Array:
        """Return the mean-pooled last layer, float64 ``[n, dims]``.

        Raises:
            ImagesRejected: another shape, not finite, or not in [-1, 1].
        """
        check_images(images, self.image_shapes)
        return self._in_batches(images, classify=False)

    def class_probabilities(self, images: Tensor) -> Float64Array:
        """Return the classifier's softmax, float64 ``[n, num_classes]``.

        For telling which classes a set of samples covers. A mean distance hides a
        missing class.

        Raises:
            ImagesRejected: as ``features``.
        """
        check_images(images, self.image_shapes)
        return self._in_batches(images, classify=True)

    @torch.inference_mode()
    def _in_batches(self, images: Tensor, classify: bool) -> Float64Array:
        """Run the classifier or its feature part over images, batch by batch."""
        rows = []
        for start in range(0, len(images), PHYSICAL_BATCH_SIZE):
            batch = images[start : start + PHYSICAL_BATCH_SIZE].float().cpu()
            if classify:
                rows.append(torch.softmax(self._model(batch).double(), dim=1))
            else:
                rows.append(self._model.features(batch).double())
        width = self._model.classifier.out_features if classify else self.dims
        result = torch.cat(rows) if rows else torch.empty(0, width)
        return result.numpy().astype(np.float64)


def load_fd_small(
    name: str,
    image_shapes: tuple[tuple[int, int, int], ...],
    path: Path,
    sha256: str | None,
) -> FdSmall:
    """Load an FD-small extractor.

    Raises:
        WeightsUnavailable: the file is missing, or has another digest than
            ``sha256``.
        CorruptFile: the file is cut off or holds something else.
    """
    digest = file_digest(path)
    if sha256 is not None and digest != sha256.lower():
        raise WeightsUnavailable(f"{path.name} has SHA-256 {digest}, not {sha256}")
    tensors, _ = load_safetensors(path)
    return FdSmall(name, digest, image_shapes, make_classifier(tensors))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises:
        WeightsUnavailable: there is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise WeightsUnavailable(f"{path}: {reason}") from error


def check_images(
    images: Tensor, image_shapes: tuple[tuple[int, int, int], ...] | None
) -> None:
    """Check shape, range and finiteness of images for an extractor.

    Args:
        images: ``[n, c, h, w]``.
        image_shapes: accepted ``(c, h, w)``; none for any with 1 or 3 channels.

    Raises:
        ImagesRejected: one of the three does not hold.
    """
    shape = tuple(images.shape[1:])
    accepted = shape in image_shapes if image_shapes else shape[:1] in ((1,), (3,))
    if images.dim() != 4 or not accepted:
        wanted = " or ".join(str(accepted) for accepted in image_shapes or ())
        raise ImagesRejected(
            f"images of shape {shape} do not fit the extractor, which takes "
            f"{wanted or '1 or 3 channels'}; choose another evaluation.extractor"
        )
    if not bool(images.isfinite().all()):
        raise ImagesRejected("images contain a value that is not finite")
    if images.numel() and float(images.abs().max()) > 1.0 + RANGE_TOLERANCE:
        raise ImagesRejected("images contain a value outside [-1, 1]")
