"""The network of the Fréchet Inception Distance: pytorch-fid's Inception, pool3.

The network's pieces are pytorch-fid's; its own constructor is not used, because that
always downloads. Weights come from a given path, from torch hub's cache, or, where
allowed, from the publisher, and are loaded without running code from the file.

Source: Heusel et al., 2017; M. Seitzer, pytorch-fid 0.3.0 (Apache-2.0).
"""

import pickle
import urllib.error
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.errors import CorruptFile, WeightsUnavailable
from diffusion.fd_small import check_images, file_digest
from diffusion.torchvision_compat import load_pytorch_fid, load_torchvision

WEIGHTS_NAME = "pt_inception-2015-12-05-6726825d.pth"
#: The publisher's convention: the name ends with the first digits of the SHA-256.
WEIGHTS_DIGEST_PREFIX = "6726825d"
INPUT_SIZE = 299
FEATURE_DIMS = 2048
PHYSICAL_BATCH_SIZE = 50

Float64Array = npt.NDArray[np.float64]


class Inception:
    """Inception's last pooling layer as a feature extractor.

    Images in [-1, 1] are mapped to [0, 1], grey ones repeated to three channels,
    resized bilinearly to 299×299 without antialiasing and mapped to [-1, 1] again:
    the convention of pytorch-fid, with which the distances are comparable.

    Attributes:
        name: ``FID (Inception pool3, 2048)``.
        digest: SHA-256 of the weights file, hexadecimal.
        dims: 2048.
        image_shapes: none, any size with 1 or 3 channels is accepted.
    """

    name = "FID (Inception pool3, 2048)"
    dims = FEATURE_DIMS
    image_shapes: tuple[tuple[int, int, int], ...] | None = None

    def __init__(self, digest: str, network: nn.Module) -> None:
        self.digest = digest
        self._network = network

    @torch.inference_mode()
    def features(self, images: Tensor) -> Float64Array:
        """Return the pool3 features, float64 ``[n, 2048]``.

        Raises:
            ImagesRejected: another shape, not finite, or not in [-1, 1].
        """
        check_images(images, self.image_shapes)
        rows = [torch.empty(0, FEATURE_DIMS)]
        for start in range(0, len(images), PHYSICAL_BATCH_SIZE):
            batch = images[start : start + PHYSICAL_BATCH_SIZE].float().cpu()
            pooled = self._network(prepare_images(batch))
            rows.append(pooled.flatten(start_dim=1))
        return torch.cat(rows).numpy().astype(np.float64)


def prepare_images(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as Inception's input ``[n, 3, 299, 299]``."""
    unit = (images + 1.0) / 2.0
    if unit.shape[1] == 1:
        unit = unit.repeat(1, 3, 1, 1)
    size = (INPUT_SIZE, INPUT_SIZE)
    resized = F.interpolate(unit, size=size, mode="bilinear", align_corners=False)
    return 2.0 * resized - 1.0


def load_inception(
    weights: Path | None, sha256: str | None, allow_download: bool
) -> Inception:
    """Load Inception with its published weights.

    Args:
        weights: the file; if none, torch hub's cache.
        sha256: the digest that the file must have. If none, its first eight digits
            must be those of the published name.
        allow_download: whether a file missing from the cache may be fetched.

    Raises:
        WeightsUnavailable: no file, no connection, another digest, or pytorch-fid
            is not installed.
        CorruptFile: the digest is right, but the content is not Inception's.
    """
    path = weights if weights is not None else cached_weights(allow_download)
    digest = file_digest(path)
    _check_digest(path.name, digest, sha256)
    try:
        network = build_network()
    except ImportError as error:
        raise WeightsUnavailable("Inception needs pytorch-fid installed") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise CorruptFile(f"{path.name} does not hold Inception's weights") from error
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise CorruptFile(f"{path.name} does not hold a state dictionary") from error
    return Inception(digest, feature_layers(network))


def cached_weights(allow_download: bool) -> Path:
    """Return the weights' path in torch hub's cache; fetch them if allowed.

    Raises:
        WeightsUnavailable: they are not there and cannot or may not be fetched.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_NAME
    if path.is_file():
        return path
    if not allow_download:
        raise WeightsUnavailable(
            f"{WEIGHTS_NAME} is not in {path.parent}; put it there, give its path, "
            "or allow the download"
        )
    url = load_pytorch_fid().FID_WEIGHTS_URL
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), WEIGHTS_DIGEST_PREFIX)
    except (OSError, urllib.error.URLError, RuntimeError) as error:
        raise WeightsUnavailable(f"cannot download {url}: {error}") from error
    return path


def build_network() -> nn.Module:
    """Build pytorch-fid's variant of Inception v3, with arbitrary parameters."""
    pieces = load_pytorch_fid()
    models = load_torchvision().models
    network: nn.Module = models.inception_v3(
        num_classes=1008, aux_logits=False, weights=None, init_weights=False
    )
    for name, width in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        inputs = {"Mixed_5b": 192, "Mixed_5c": 256, "Mixed_5d": 288}[name]
        setattr(network, name, pieces.FIDInceptionA(inputs, pool_features=width))
    for name, width in zip("bcde", (128, 160, 160, 192), strict=True):
        block = pieces.FIDInceptionC(768, channels_7x7=width)
        setattr(network, f"Mixed_6{name}", block)
    network.Mixed_7b = pieces.FIDInceptionE_1(1280)
    network.Mixed_7c = pieces.FIDInceptionE_2(2048)
    return network


def feature_layers(network: nn.Module) -> nn.Module:
    """Return Inception's layers up to the last pooling, frozen, in evaluation mode."""
    names = (
        ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1"),
        ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
        ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a"),
        ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
        ("Mixed_7a", "Mixed_7b", "Mixed_7c", "avgpool"),
    )
    layers = [network.get_submodule(name) for stage in names for name in stage]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _check_digest(file_name: str, digest: str, sha256: str | None) -> None:
    """Raise unless the digest is the expected one, or begins as published."""
    if sha256 is not None and digest != sha256.lower():
        raise WeightsUnavailable(f"{file_name} has SHA-256 {digest}, not {sha256}")
    if sha256 is None and not digest.startswith(WEIGHTS_DIGEST_PREFIX):
        raise WeightsUnavailable(
            f"{file_name} has SHA-256 {digest}, which does not begin with "
            f"{WEIGHTS_DIGEST_PREFIX}"
        )
