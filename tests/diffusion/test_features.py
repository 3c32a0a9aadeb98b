"""FD-small: loading, refusing, and that it rises with noise and blur."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import sklearn.datasets
import torch

from diffusion.errors import CorruptFile, ImagesRejected, WeightsUnavailable
from diffusion.fd_small import digits_split
from diffusion.features import (
    WEIGHTS_FOLDER,
    load_extractor,
    load_fd_small_digits,
    load_fd_small_fashion,
)
from diffusion.fid import empty_statistics, frechet_distance
from diffusion.parameters import load_safetensors, save_safetensors

FASHION_FILE = (
    Path(__file__).resolve().parents[3] / "shared/data/fashion_mnist/fashion_mnist.npz"
)


@pytest.fixture(scope="module")
def digits():
    data = sklearn.datasets.load_digits()
    images = torch.tensor(data.images / 8.0 - 1.0, dtype=torch.float32)[:, None]
    return images, data.target


@pytest.fixture(scope="module")
def fashion():
    if not FASHION_FILE.is_file():
        pytest.skip("Fashion-MNIST is not in ../shared/data")
    with np.load(FASHION_FILE, allow_pickle=False) as file:
        images = torch.from_numpy(file["x_test"][:1500]).float()[:, None]
        return images / 127.5 - 1.0, file["y_test"][:1500]


def noisy(images, stddev):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + stddev * noise).clamp(-1, 1)


def blurred(images, stddev):
    return torch.from_numpy(
        scipy.ndimage.gaussian_filter(images.numpy(), (0, 0, stddev, stddev))
    ).clamp(-1, 1)


def check_the_distance_rises(extractor, reference, fresh, real_limit):
    def statistics(images):
        return empty_statistics(extractor).update(extractor.features(images))

    target = statistics(reference)

    def distance(images):
        return frechet_distance(statistics(images), target)

    real = distance(fresh)
    assert real < real_limit
    for damage, amounts in ((noisy, (0.1, 0.2, 0.4, 0.8)), (blurred, (0.5, 0.7, 1, 2))):
        values = [real, *(distance(damage(fresh, amount)) for amount in amounts)]
        assert all(a < b for a, b in itertools.pairwise(values)), values
        assert values[-1] > 10


def test_digits_distance_rises_with_noise_and_blur(digits):
    images, _ = digits
    training, held_out = digits_split()
    extractor = load_extractor("fd-small-digits")
    check_the_distance_rises(extractor, images[training], images[held_out], 0.7)


def test_fashion_distance_rises_with_noise_and_blur(fashion):
    images, _ = fashion
    extractor = load_extractor("fd-small-fashion")
    check_the_distance_rises(extractor, images[:1000], images[1000:], 0.6)


def test_fashion_distance_rises_on_enlarged_digits_too(digits):
    # Another domain than its own: 8×8 digits at 28×28. Needs no data set on disk.
    images = torch.nn.functional.interpolate(
        digits[0][:800], size=(28, 28), mode="bilinear", align_corners=False
    )
    extractor = load_extractor("fd-small-fashion")
    real = extractor.features(images)
    target = empty_statistics(extractor).update(real[:400])
    values = [frechet_distance(empty_statistics(extractor).update(real[400:]), target)]
    for stddev in (0.2, 0.4, 0.8):
        features = extractor.features(noisy(images[400:], stddev))
        values.append(
            frechet_distance(empty_statistics(extractor).update(features), target)
        )
    assert all(a < b for a, b in itertools.pairwise(values)), values


def test_digits_accuracy_on_held_out_images(digits):
    images, labels = digits
    _, held_out = digits_split()
    probabilities = load_fd_small_digits().class_probabilities(images[held_out])
    assert probabilities.shape == (297, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-6)
    assert (probabilities.argmax(axis=1) == labels[held_out]).mean() > 0.97


def test_fashion_accuracy_on_test_images(fashion):
    images, labels = fashion
    probabilities = load_fd_small_fashion().class_probabilities(images[:1000])
    assert (probabilities.argmax(axis=1) == labels[:1000]).mean() > 0.88


def test_the_split_of_the_digits_is_fixed():
    training, held_out = digits_split()
    assert (len(training), len(held_out)) == (1500, 297)
    assert sorted([*training, *held_out]) == list(range(1797))
    digest = hashlib.sha256(training.astype("<i8").tobytes()).hexdigest()
    assert digest == "652cae3c659b0db6da6d7606b398c69616b3ddd3675d056cc2844109097426ca"


@pytest.mark.parametrize(
    ("kind", "name", "dims", "shape"),
    [
        ("fd-small-digits", "FD-small (digits)", 64, (1, 8, 8)),
        ("fd-small-fashion", "FD-small (fashion)", 128, (1, 28, 28)),
    ],
)
def test_an_extractor_says_what_it_is(kind, name, dims, shape):
    extractor = load_extractor(kind)
    assert (extractor.name, extractor.dims) == (name, dims)
    assert extractor.image_shapes == (shape,)
    path = WEIGHTS_FOLDER / f"{kind.replace('-', '_')}.safetensors"
    assert extractor.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    images = torch.zeros(2, *shape)
    features = extractor.features(images)
    assert (features.dtype, features.shape) == (np.float64, (2, dims))
    assert extractor.features(images[:0]).shape == (0, dims)


def test_features_do_not_depend_on_the_batch():
    extractor = load_fd_small_digits()
    images = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    together = extractor.features(images)
    alone = np.concatenate([extractor.features(images[[i]]) for i in (0, 299)])
    np.testing.assert_allclose(together[[0, 299]], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 1, 28, 28), "shape"),
        (torch.zeros(1, 3, 8, 8), "shape"),
        (torch.zeros(1, 8, 8), "shape"),
        (torch.full((1, 1, 8, 8), 255.0), "outside"),
        (torch.full((1, 1, 8, 8), float("nan")), "not finite"),
    ],
)
def test_images_out_of_convention_are_refused(images, message):
    extractor = load_fd_small_digits()
    for function in (extractor.features, extractor.class_probabilities):
        with pytest.raises(ImagesRejected, match=message):
            function(images)


def test_both_weights_files_are_small_and_together_below_500_kb():
    sizes = [p.stat().st_size for p in WEIGHTS_FOLDER.glob("*.safetensors")]
    assert len(sizes) == 2
    assert sum(sizes) <= 500_000


def test_a_given_digest_is_enforced(tmp_path):
    path = WEIGHTS_FOLDER / "fd_small_digits.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    extractor = load_extractor("fd-small-digits", weights=path, sha256=digest.upper())
    assert extractor.digest == digest
    with pytest.raises(WeightsUnavailable, match="SHA-256"):
        load_extractor("fd-small-digits", sha256="00" * 32)
    with pytest.raises(WeightsUnavailable, match="absent"):
        load_extractor("fd-small-digits", weights=tmp_path / "absent.safetensors")


def test_a_damaged_or_foreign_weights_file_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    content = (WEIGHTS_FOLDER / "fd_small_digits.safetensors").read_bytes()
    path.write_bytes(content[:1000])
    with pytest.raises(CorruptFile, match=r"w\.safetensors"):
        load_extractor("fd-small-digits", weights=path)
    tensors, _ = load_safetensors(WEIGHTS_FOLDER / "fd_small_digits.safetensors")
    del tensors["norms.1.running_mean"]
    for foreign in ({"a": torch.zeros(1)}, tensors):
        save_safetensors(path, foreign, {})
        with pytest.raises(CorruptFile, match="FD-small"):
            load_extractor("fd-small-digits", weights=path)


def test_an_unknown_extractor_is_refused():
    with pytest.raises(ValueError, match="clip"):
        load_extractor("clip")
