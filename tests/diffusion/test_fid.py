import dataclasses
import struct
import zipfile

import numpy as np
import pytest
import scipy.linalg

from diffusion.errors import CorruptFile, StatisticsRejected
from diffusion.fid import (
    FeatureStatistics,
    empty_statistics,
    frechet_distance,
    load_statistics,
    save_statistics,
)


@dataclasses.dataclass
class Extractor:
    name: str = "FD-small (test)"
    digest: str = "ab" * 32
    dims: int = 3
    image_shapes: tuple | None = None

    def features(self, images):
        raise NotImplementedError


def features(count, seed=0, dims=3):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, dims)) @ generator.normal(size=(dims, dims))


def statistics(rows, **changes):
    return empty_statistics(Extractor(dims=rows.shape[1], **changes)).update(rows)


def gaussian(mean, covariance):
    return FeatureStatistics(
        extractor="FD-small (test)",
        extractor_digest="ab" * 32,
        count=11,
        mean=np.array(mean, dtype=np.float64),
        scatter=np.array(covariance, dtype=np.float64) * 10,
    )


def test_mean_and_covariance_are_those_of_numpy():
    rows = features(20) + 100
    result = statistics(rows)
    assert result.count == 20
    np.testing.assert_allclose(result.mean, rows.mean(axis=0))
    np.testing.assert_allclose(result.covariance, np.cov(rows, rowvar=False))


@pytest.mark.parametrize("cuts", [(0,), (1,), (3, 3, 7), (19,), (1, 2, 4, 10)])
def test_a_stream_of_batches_equals_the_whole(cuts):
    rows = features(20) + 1e4  # far from zero: sums of squares would lose digits
    result = empty_statistics(Extractor())
    for batch in np.split(rows, cuts):
        result = result.update(batch)
    np.testing.assert_allclose(result.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        result.covariance, np.cov(rows, rowvar=False), rtol=1e-8, atol=1e-9
    )


def test_merging_equals_pooling_in_any_order():
    a, b, c = features(4, 1), features(9, 2) + 5, features(1, 3)
    sa, sb, sc = statistics(a), statistics(b), statistics(c)
    pooled = statistics(np.concatenate([a, b, c]))
    for merged in (sa.merge(sb).merge(sc), sc.merge(sb.merge(sa))):
        assert merged.count == 14
        np.testing.assert_allclose(merged.mean, pooled.mean)
        np.testing.assert_allclose(merged.covariance, pooled.covariance)
    nothing = empty_statistics(Extractor())
    assert nothing.merge(nothing).count == 0
    np.testing.assert_allclose(nothing.merge(sa).covariance, sa.covariance)


def test_updating_leaves_the_old_statistics_as_they_were():
    before = statistics(features(5))
    mean, scatter = before.mean.copy(), before.scatter.copy()
    before.update(features(3, 1))
    assert before.count == 5
    np.testing.assert_array_equal(before.mean, mean)
    np.testing.assert_array_equal(before.scatter, scatter)


def test_the_distance_of_diagonal_gaussians_in_closed_form():
    # |shift|² + Σ (sd_a - sd_b)² = (9 + 16) + ((1 - 2)² + (3 - 5)²) = 30.
    a = gaussian([0, 0], np.diag([1.0, 9.0]))
    b = gaussian([3, 4], np.diag([4.0, 25.0]))
    assert frechet_distance(a, b) == pytest.approx(30)
    assert frechet_distance(b, a) == pytest.approx(30)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dims", [1, 4, 30])
def test_the_distance_agrees_with_a_matrix_square_root(dims):
    a = statistics(features(200, 1, dims))
    b = statistics(features(150, 2, dims) + 0.5)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(
        a.covariance + b.covariance - 2 * np.real(root)
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_singular_covariances_are_allowed():
    a = statistics(features(3, 1, dims=10))
    b = statistics(features(4, 2, dims=10))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, b) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "FID (Inception pool3, 2048)"}, "cannot meet"),
        ({"digest": "cd" * 32}, "two versions"),
    ],
)
def test_different_extractors_never_meet(tmp_path, changes, message):
    ours, other = statistics(features(5)), statistics(features(5), **changes)
    save_statistics(tmp_path / "a.npz", ours)
    for function in (
        lambda: frechet_distance(ours, other),
        lambda: ours.merge(other),
        lambda: load_statistics(tmp_path / "a.npz", Extractor(**changes)),
    ):
        with pytest.raises(StatisticsRejected, match=message):
            function()


def test_features_that_do_not_fit_are_refused():
    nothing = empty_statistics(Extractor())
    with pytest.raises(StatisticsRejected, match="shape"):
        nothing.update(np.zeros((2, 4)))
    with pytest.raises(StatisticsRejected, match="shape"):
        nothing.update(np.zeros(3))
    with pytest.raises(StatisticsRejected, match="not finite"):
        nothing.update(np.array([[1.0, np.inf, 0.0]]))
    with pytest.raises(StatisticsRejected, match="2 images"):
        frechet_distance(statistics(features(5)), statistics(features(1)))
    with pytest.raises(StatisticsRejected, match="lengths"):
        frechet_distance(statistics(features(5)), statistics(features(5, dims=2)))


def test_a_saved_file_comes_back(tmp_path):
    path = tmp_path / "reference.npz"
    before = statistics(features(20))
    save_statistics(path, before)
    after = load_statistics(path, Extractor())
    assert (after.count, after.extractor) == (20, "FD-small (test)")
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_allclose(after.covariance, before.covariance, rtol=1e-15)
    with np.load(path, allow_pickle=False) as file:
        assert int(file["count"]) == 20
        assert str(file["extractor_digest"]) == "ab" * 32


@pytest.mark.parametrize("kept", [0, 10, 400, -30])
def test_a_cut_file_is_one_clear_line(tmp_path, kept):
    path = tmp_path / "reference.npz"
    save_statistics(path, statistics(features(20)))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptFile, match=r"reference\.npz") as caught:
        load_statistics(path, Extractor())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", np.array("other")),
        ("count", np.array(1)),
        ("mean", np.array([1.0, np.nan, 0.0])),
        ("covariance", np.zeros((2, 2))),
        ("covariance", np.full((3, 3), 1e308)),
        ("extractor", None),
        ("mean", np.array([1.0, 2.0, 3.0], dtype=object)),  # a pickle
    ],
)
def test_a_file_with_other_content_is_refused(tmp_path, field, value):
    path = tmp_path / "reference.npz"
    save_statistics(path, statistics(features(20)))
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays[field] = value
    np.savez(path, **{n: v for n, v in arrays.items() if v is not None})
    with pytest.raises(CorruptFile, match="no feature statistics"):
        load_statistics(path, Extractor())


def test_a_missing_file_is_not_a_corrupt_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load_statistics(tmp_path / "absent.npz", Extractor())


def test_a_compressed_file_is_not_unpacked(tmp_path):
    """Statistics may come from a stranger: a small file must not become a large one."""
    path = tmp_path / "reference.npz"
    save_statistics(path, statistics(features(20)))
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez_compressed(path, **arrays | {"more": np.zeros(100_000)})
    with pytest.raises(CorruptFile, match="compressed"):
        load_statistics(path, Extractor())


def header(text: bytes) -> bytes:
    """Return an entry of an .npz file that is nothing but its header."""
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def claim(shape: str, dtype: str) -> bytes:
    said = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    return header(said.encode())


@pytest.mark.parametrize(
    "entry",
    [
        claim("(10000000000000,)", "<f8"),
        claim("(1000000000000,)", "<U0"),
        claim("(1000000000000,)", "|V0"),
        claim("(1099511627776, 1099511627776)", "<f8"),
        claim("(-5,)", "<f8"),
        header(b"(" * 4000),
        header(b"-" * 9000 + b"1"),
        header(b"'''"),
        b"",
    ],
    ids=lambda entry: repr(entry[10:60]),
)
def test_a_hostile_array_is_refused_before_there_is_room_for_it(tmp_path, entry):
    path = tmp_path / "reference.npz"
    save_statistics(path, statistics(features(20)))
    with zipfile.ZipFile(path) as packed:
        entries = {name: packed.read(name) for name in packed.namelist()}
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in (entries | {"mean.npy": entry}).items():
            packed.writestr(name, content)
    with pytest.raises(CorruptFile, match=r"reference\.npz"):
        load_statistics(path, Extractor())


@pytest.mark.parametrize(("place", "value"), [(8, 1), (10, 99), (10, 12), (10, 14)])
def test_an_encrypted_or_packed_entry_is_refused(tmp_path, place, value):
    path = tmp_path / "reference.npz"
    save_statistics(path, statistics(features(20)))
    content = bytearray(path.read_bytes())
    start = content.find(b"PK\x01\x02")
    while start >= 0:
        content[start + place] = value
        start = content.find(b"PK\x01\x02", start + 4)
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match=r"reference\.npz"):
        load_statistics(path, Extractor())
