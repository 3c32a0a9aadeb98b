"""Inception's loading code, on a file that the test makes; no download ever."""

import hashlib
import sys

import numpy as np
import pytest
import torch

from diffusion.errors import CorruptFile, ImagesRejected, WeightsUnavailable
from diffusion.features import load_extractor
from diffusion.inception import (
    WEIGHTS_NAME,
    Inception,
    build_network,
    prepare_images,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A randomly initialised Inception, saved as the published file is."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(build_network().state_dict(), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_with_the_right_digest_gives_features(weights):
    path, digest = weights
    extractor = load_extractor("inception", weights=path, sha256=digest)
    assert extractor.name == "FID (Inception pool3, 2048)"
    assert (extractor.digest, extractor.dims) == (digest, 2048)
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    features = extractor.features(images)
    assert (features.dtype, features.shape) == (np.float64, (2, 2048))
    assert np.isfinite(features).all()
    assert extractor.features(images[:0]).shape == (0, 2048)


def test_the_layers_are_those_of_pytorch_fid(weights):
    # Its own class, filled with our network instead of a download.
    from pytorch_fid.inception import InceptionV3

    path, digest = weights
    network = build_network()
    network.load_state_dict(torch.load(path, weights_only=True))
    theirs = object.__new__(InceptionV3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pytorch_fid.inception.fid_inception_v3", lambda: network)
        theirs.__init__()
    theirs.eval()
    images = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(images.repeat(1, 3, 1, 1))[0].flatten().double().numpy()
    extractor = load_extractor("inception", weights=path, sha256=digest)
    found = extractor.features(images * 2 - 1)[0]
    largest = np.abs(expected).max()  # tiny: the parameters are random
    assert largest > 0
    np.testing.assert_allclose(found / largest, expected / largest, atol=1e-4)


def test_another_digest_is_refused_before_the_file_is_read(weights):
    path, digest = weights
    with pytest.raises(WeightsUnavailable, match="does not begin with 6726825d"):
        load_extractor("inception", weights=path)
    with pytest.raises(WeightsUnavailable, match=digest):
        load_extractor("inception", weights=path, sha256="00" * 32)


@pytest.mark.parametrize("content", [b"", b"no zip file", b"PK\x03\x04 cut off"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(CorruptFile, match=r"w\.pth does not hold") as caught:
        load_extractor("inception", weights=path, sha256=digest)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [{"a": torch.zeros(1)}, [1, 2], torch.zeros(1)])
def test_a_file_with_other_content_is_refused(tmp_path, value):
    path = tmp_path / "w.pth"
    torch.save(value, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(CorruptFile, match=r"w\.pth does not hold"):
        load_extractor("inception", weights=path, sha256=digest)


class Trap:
    def __reduce__(self):
        return (sys.exit, ("code of the file was run",))


def test_code_in_the_file_is_not_run(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"a": Trap()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(CorruptFile):
        load_extractor("inception", weights=path, sha256=digest)


def test_without_a_file_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsUnavailable, match="allow the download") as caught:
        load_extractor("inception")
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsUnavailable, match="absent"):
        load_extractor("inception", weights=tmp_path / "absent.pth")


def test_the_download_asks_for_the_published_digits_and_fails_clearly(
    tmp_path, monkeypatch
):
    asked = []

    def offline(url, destination, hash_prefix):
        asked.append((url.rsplit("/", 1)[-1], destination, hash_prefix))
        raise OSError("no connection")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(WeightsUnavailable, match=r"cannot download .*no connection"):
        load_extractor("inception", allow_download=True)
    place = str(tmp_path / "checkpoints" / WEIGHTS_NAME)
    assert asked == [(WEIGHTS_NAME, place, "6726825d")]


def test_the_input_convention_is_that_of_pytorch_fid():
    images = torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2)
    prepared = prepare_images(images)
    assert prepared.shape == (1, 3, 299, 299)
    assert torch.equal(prepared[:, 0], prepared[:, 2])
    # Bilinear without aligned corners: flat in the outer quarters, linear between.
    row = prepared[0, 0, 0]
    assert row[:70].tolist() == [-1.0] * 70
    assert row[-70:].tolist() == [1.0] * 70
    assert row[149].item() == pytest.approx(0, abs=1e-6)


def test_images_out_of_range_are_refused():
    extractor = Inception("", torch.nn.Identity())
    with pytest.raises(ImagesRejected, match="outside"):
        extractor.features(torch.full((1, 1, 4, 4), 2.0))
    with pytest.raises(ImagesRejected, match="shape"):
        extractor.features(torch.zeros(1, 2, 4, 4))
