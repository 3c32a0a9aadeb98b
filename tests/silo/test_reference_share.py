"""One silo's sums of features: by hand, clipped, noisy by the right law."""

from typing import Any

import numpy as np
import pytest
import torch

from diffusion.features import load_extractor
from protocol.reference_words import Moments, num_words, to_vector
from silo.central_images import clipped
from silo.data import ImageSet
from silo.errors import DataError, ReferenceRefused
from silo.past_references import PastReferences
from silo.policy import Policy, refusals
from silo.randomness import PrivateRandom
from silo.reference_share import exact_moments, noisy_vector
from silo.units import units_of
from tests.protocol.examples import make_example
from tests.protocol.test_reference import DP, NOISED, POOLED


class TwoPixels:
    """An extractor that gives an image's first two pixels, times a factor."""

    name, digest, dims, image_shapes = "two pixels", "00" * 32, 2, None

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def features(self, images: torch.Tensor) -> np.ndarray:
        flat: np.ndarray = images.flatten(1)[:, :2].double().numpy() * self.factor
        return flat


def images(*rows: tuple[float, float], patients: list[int] | None = None) -> ImageSet:
    pixels = np.zeros((len(rows), 2, 2, 1), np.float32)
    pixels.reshape(len(rows), 4)[:, :2] = rows
    if patients is None:
        return ImageSet(pixels, (-1.0, 1.0))
    names = tuple(map(str, range(max(patients) + 1)))
    return ImageSet(
        pixels, (-1.0, 1.0), patients=np.array(patients), patient_names=names
    )


def noisy(
    data: ImageSet, *, norm: float = 100.0, noise: float = 0.0, most: int = 4, **kw: Any
) -> np.ndarray:
    unit = "example" if data.patients is None else "patient"
    return noisy_vector(
        TwoPixels(kw.get("factor", 1.0)),
        data,
        units_of(data, unit),  # type: ignore[arg-type]
        clipping_norm=norm,
        noise_multiplier=noise,
        max_images=most,
        random=PrivateRandom(kw.get("seed", 1)),
    )


def test_exact_sums_by_hand() -> None:
    found = exact_moments(TwoPixels(4.0), images((0.25, 0.5), (0.75, -0.125)))
    assert found.count == 2.0
    assert found.total.tolist() == [4.0, 1.5]
    assert found.second.tolist() == [[10.0, 0.5], [0.5, 4.25]]


@pytest.mark.parametrize("factor", [33.0, np.nan, -1e300])
def test_a_feature_out_of_range_is_refused(factor: float) -> None:
    with pytest.raises(DataError, match="too large for exact sums"):
        exact_moments(TwoPixels(factor), images((0.5, 0.5), (1.0, 0.0)))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    data = ImageSet(rng.uniform(-1, 1, (23, 8, 8, 1)).astype(np.float32), (-1.0, 1.0))
    extractor = load_extractor("fd-small-digits")
    whole = to_vector(exact_moments(extractor, data))
    wide: Any = {"clipping_norm": 60.0, "noise_multiplier": 0.0, "max_images": 1}
    units = units_of(data, "example")
    once = noisy_vector(extractor, data, units, random=PrivateRandom(1), **wide)
    monkeypatch.setattr("silo.reference_share.BLOCK", 5)
    monkeypatch.setattr("silo.reference_share.VECTORS_BLOCK", 4)
    np.testing.assert_allclose(to_vector(exact_moments(extractor, data)), whole)
    again = noisy_vector(extractor, data, units, random=PrivateRandom(1), **wide)
    np.testing.assert_allclose(again, once)


def test_without_clip_and_noise_it_is_the_exact_sum() -> None:
    data = images((0.25, 0.5), (0.75, -0.125))
    exact = to_vector(exact_moments(TwoPixels(), data))
    np.testing.assert_allclose(noisy(data), exact)


def test_the_clip_weighs_a_whole_image() -> None:
    """(1, f, f fᵀ) of (1, 0) is (1, 1, 0, 1, 0, 0), of norm √3."""
    found = noisy(images((1.0, 0.0)), norm=0.5)
    np.testing.assert_allclose(found, np.array([1, 1, 0, 1, 0, 0]) * 0.5 / 3**0.5)


def test_copies_and_what_is_not_finite_add_nothing() -> None:
    np.testing.assert_allclose(
        noisy(images((1.0, 0.0), (1.0, 0.0))), noisy(images((1.0, 0.0)))
    )
    assert not noisy(images((1.0, 0.0)), factor=np.nan).any()


def test_a_patient_is_one_unit_however_many_images() -> None:
    data = images((1.0, 0.0), (0.0, 1.0), (0.5, 0.5), patients=[0, 0, 1])
    expected = to_vector(
        Moments(2.0, np.array([1.0, 1.0]), np.array([[0.75, 0.25], [0.25, 0.75]]))
    )
    np.testing.assert_allclose(noisy(data), expected)
    one = noisy(images(*[(1.0, 0.0)] * 3, patients=[0, 0, 0]), norm=1.0, most=2)
    assert np.linalg.norm(one) == pytest.approx(1.0)


def test_vectors_of_many_patients_are_not_in_memory_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A block is of so many images, not of so many patients with all theirs."""
    rows = [(0.1 * n, 0.5) for n in range(10)]
    data = images(*rows, patients=[0, 0, 0, 1, 2, 2, 3, 3, 3, 3])
    whole, units, real = noisy(data), [], clipped

    def clip(vectors: np.ndarray, norm: float) -> np.ndarray:
        units.append(len(vectors))
        return real(vectors, norm)

    monkeypatch.setattr("silo.reference_share.VECTORS_BLOCK", 3)
    monkeypatch.setattr("silo.reference_share.clipped", clip)
    np.testing.assert_allclose(noisy(data), whole)
    assert units == [1, 2, 1]


def test_leaving_a_unit_out_moves_the_sum_by_at_most_the_norm() -> None:
    rng = np.random.default_rng(3)
    rows = [tuple(row) for row in rng.uniform(-1, 1, (30, 2))]
    whole = noisy(images(*rows), norm=0.7, factor=20.0)
    for index in range(30):
        fewer = noisy(images(*rows[:index], *rows[index + 1 :]), norm=0.7, factor=20.0)
        assert np.linalg.norm(whole - fewer) <= 0.7 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("claimed", "accepted"), [(3.0, True), (1.5, False), (6.0, False)]
)
def test_the_noise_has_the_law_of_the_event(claimed: float, accepted: bool) -> None:
    """Mean square of 40 noise vectors of 2,145 values, against (σ C)²."""
    extractor = load_extractor("fd-small-digits")
    data = ImageSet(np.zeros((1, 8, 8, 1), np.float32), (-1.0, 1.0))
    values = [
        noisy_vector(
            extractor,
            data,
            units_of(data, "example"),
            clipping_norm=2.0,
            noise_multiplier=1.5,
            max_images=1,
            random=PrivateRandom(seed),
        )
        for seed in range(40)
    ]
    z = np.array(values) / claimed
    assert z.shape == (40, num_words(64))
    size = z.size
    # The image adds a vector of norm at most 2: less than 1e-3 of the mean square.
    limit = 5 * (2 / size) ** 0.5 + 1e-3
    assert (abs(np.mean(z**2) - 1) < limit) == accepted
    if accepted:
        off_diagonal = np.abs(np.corrcoef(z)[np.triu_indices(40, 1)])
        assert off_diagonal.max() < 5.5 / num_words(64) ** 0.5


class Memory:
    """What one silo remembers over runs."""

    def __init__(self, root: Any) -> None:
        self.root = root

    def past(
        self, plan: str, *rows: tuple[float, float], may_repeat: bool = False
    ) -> PastReferences:
        run = self.root / plan
        run.mkdir(exist_ok=True)
        return PastReferences(
            self.root / "references", run, plan, images(*rows), may_repeat=may_repeat
        )


def test_images_are_remembered_under_a_key(tmp_path: Any) -> None:
    past = Memory(tmp_path).past
    first = past("aa", (1.0, 0.0), (0.0, 1.0))
    first.begin()
    past("bb", (0.0, 1.0)).begin()
    first.note()
    first.check()
    for refuse in (
        past("bb", (0.0, 1.0)).check,
        past("bb", (0.0, 1.0)).note,
        past("bb", (0.5, 0.0), (0.0, 1.0)).begin,
    ):
        with pytest.raises(ReferenceRefused, match=r"of plan aa; .* --repeat-refer"):
            refuse()
    past("bb", (0.5, 0.0)).begin()
    past("bb", (0.0, 1.0), may_repeat=True).begin()
    past("bb", (0.5, 0.0), may_repeat=True).note()
    with pytest.raises(ReferenceRefused):
        past("cc", (0.0, 1.0)).begin()
    assert sorted(p.name for p in (tmp_path / "references").iterdir()) == [
        "aa.tags",
        "bb.tags",
        "tags.key",
    ]
    files = [*(tmp_path / "references").iterdir(), tmp_path / "aa" / "reference.tags"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_what_left_is_remembered_whatever_the_data_are_now(tmp_path: Any) -> None:
    """Between the sum and its leaving the process ended, and silo.toml was changed."""
    past = Memory(tmp_path).past
    past("aa", (1.0, 0.0)).begin()
    past("aa", (0.0, 1.0)).note()
    past("bb", (0.0, 1.0)).begin()
    with pytest.raises(ReferenceRefused):
        past("bb", (1.0, 0.0)).begin()


@pytest.mark.parametrize(
    ("changes", "permit", "refused"),
    [
        (POOLED, False, True),
        (POOLED, True, False),
        (POOLED | DP | {"evaluation.reference_uncovered": True}, False, True),
        (NOISED, False, False),
        ({}, False, False),
    ],
)
def test_exact_statistics_leave_only_where_the_policy_permits(
    changes: dict[str, Any], permit: bool, refused: bool
) -> None:
    reasons = refusals(Policy(permit_reference=permit), make_example(changes))
    assert any("permit_reference" in reason for reason in reasons) == refused
    assert len(reasons) == refused
