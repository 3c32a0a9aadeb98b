import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulation.errors import SettingsRejected
from simulation.partition import (
    MIN_IMAGES,
    iid,
    label_skew,
    partition,
    quantity_skew,
    shards,
)
from simulation.published import LABEL_SKEW, QUANTITY_SKEW, scaled
from simulation.settings import PartitionConfig

KINDS = ("iid", "label-skew", "quantity-skew", "shards")


def labels_of(num_images: int, num_classes: int = 10) -> np.ndarray:
    return np.random.default_rng(1).integers(0, num_classes, num_images)


def deal(kind, num_images, num_silos, seed=3, concentration=1.0):
    config = PartitionConfig(kind=kind, concentration=concentration)
    return partition(config, num_images, labels_of(num_images), num_silos, seed)


class Rigged:
    """A generator that draws what it is told, and leaves the order as it is."""

    def __init__(self, draws):
        self._draws = iter(draws)

    def dirichlet(self, concentrations):
        assert concentrations == [0.5, 0.5]
        return np.array(next(self._draws))

    def permutation(self, values):
        return np.arange(values) if isinstance(values, int) else np.asarray(values)


class TestEveryKind:
    @settings(max_examples=30, deadline=None)
    @given(
        kind=st.sampled_from(KINDS),
        num_silos=st.integers(1, 6),
        per_silo=st.integers(2 * MIN_IMAGES, 60),
        seed=st.integers(0, 2**63 - 1),
    )
    def test_every_index_once_and_no_silo_with_too_few(
        self, kind, num_silos, per_silo, seed
    ):
        num_images = num_silos * per_silo
        parts = deal(kind, num_images, num_silos, seed, concentration=5.0)
        assert len(parts) == num_silos
        assert sorted(np.concatenate(parts).tolist()) == list(range(num_images))
        assert min(map(len, parts)) >= MIN_IMAGES

    @pytest.mark.parametrize("kind", KINDS)
    def test_reproducible(self, kind):
        first, second = deal(kind, 200, 3), deal(kind, 200, 3)
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        other = deal(kind, 200, 3, seed=4)
        assert any(a.tolist() != b.tolist() for a, b in zip(first, other, strict=True))

    @pytest.mark.parametrize("kind", KINDS)
    def test_order_is_not_the_order_of_the_file(self, kind):
        for part in deal(kind, 200, 3):
            assert part.tolist() != sorted(part.tolist())

    @pytest.mark.parametrize("kind", KINDS)
    def test_too_few_images(self, kind):
        with pytest.raises(SettingsRejected, match="29 images are too few for 3 silos"):
            deal(kind, 29, 3)
        if kind == "iid":
            assert [len(part) for part in deal(kind, 30, 3)] == [10, 10, 10]


class TestIid:
    @pytest.mark.parametrize(
        ("num_images", "num_silos", "sizes"),
        [
            (30, 3, [10, 10, 10]),
            (32, 3, [11, 11, 10]),
            (7, 1, [7]),
            (5, 4, [2, 1, 1, 1]),
        ],
    )
    def test_sizes(self, num_images, num_silos, sizes):
        parts = iid(num_images, num_silos, np.random.default_rng(0))
        assert [len(part) for part in parts] == sizes

    def test_classes_are_mixed(self):
        labels = np.repeat(np.arange(10), 100)
        for part in iid(1000, 4, np.random.default_rng(0)):
            shares = np.bincount(labels[part], minlength=10) / len(part)
            assert shares.min() > 0.05


class TestLabelSkew:
    def test_a_silo_with_its_share_gets_no_more_of_a_class(self):
        """So none can end with more than its even share and one whole class."""
        labels = np.repeat(np.arange(10), 100)
        for seed in range(20):
            parts = label_skew(labels, 5, 0.5, np.random.default_rng(seed))
            assert max(map(len, parts)) < 1000 / 5 + 100

    @pytest.mark.parametrize(
        ("draws", "sizes"),
        [
            # Class 0 fills the first silo: half of class 1 would be its, but is not.
            ([[1.0, 0.0], [0.5, 0.5]], [(20, 0), (0, 20)]),
            # Nobody is full: shares as they are drawn.
            ([[0.5, 0.5], [0.25, 0.75]], [(10, 5), (10, 15)]),
            # The first attempt leaves the second silo with 8: drawn again.
            ([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6], [0.5, 0.5]], [(8, 10), (12, 10)]),
        ],
    )
    def test_by_hand(self, draws, sizes):
        """Two silos, two classes of twenty: an even share is twenty images."""
        labels = np.repeat([0, 1], 20)
        parts = label_skew(labels, 2, 0.5, Rigged(draws))
        assert [(sum(labels[p] == 0), sum(labels[p] == 1)) for p in parts] == sizes

    def test_smaller_concentration_is_more_skewed(self):
        labels = np.repeat(np.arange(10), 100)

        def skew(concentration):
            parts = label_skew(labels, 4, concentration, np.random.default_rng(0))
            shares = [np.bincount(labels[p], minlength=10) / len(p) for p in parts]
            return float(np.std(shares))

        assert skew(0.3) > 2 * skew(5.0) > 4 * skew(100.0)

    def test_needs_labels(self):
        config = PartitionConfig(kind="label-skew")
        with pytest.raises(SettingsRejected, match="labels"):
            partition(config, 100, None, 3, 0)

    def test_the_others_do_not(self):
        for kind in ("iid", "quantity-skew"):
            config = PartitionConfig(kind=kind, concentration=5.0)
            assert len(partition(config, 100, None, 3, 0)) == 3


class TestQuantitySkew:
    def test_sizes_by_hand(self):
        first, second = quantity_skew(
            100, 2, 0.5, Rigged([[0.95, 0.05], [0.25, 0.75]])
        )  # 5 were too few: drawn again.
        assert (first.tolist(), second.tolist()) == (
            list(range(25)),
            list(range(25, 100)),
        )

    def test_hopeless(self):
        with pytest.raises(SettingsRejected) as caught:
            deal("quantity-skew", 60, 6, concentration=0.01)
        assert "partition.concentration: 0.01" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_label_skew_hopeless(self):
        with pytest.raises(SettingsRejected, match="use a larger one"):
            config = PartitionConfig(kind="label-skew", concentration=1e-3)
            partition(config, 30, np.zeros(30, int), 3, 0)


class TestShards:
    def test_by_hand(self):
        """Two silos, two shards each: sorted by label, cut in four, dealt in order."""
        labels = np.array([1, 0, 1, 0, 2, 2, 0, 1])
        parts = shards(labels, 2, 2, Rigged([]))
        # Sorted: images 1 3 6 (label 0), 0 2 7 (label 1), 4 5 (label 2), cut in twos.
        assert [part.tolist() for part in parts] == [[1, 3, 6, 0], [2, 7, 4, 5]]

    def test_a_silo_has_few_labels(self):
        """McMahan et al.: two shards of one size hold two labels, or up to four."""
        labels = np.repeat(np.arange(10), 100)
        parts = shards(labels, 5, 2, np.random.default_rng(0))
        assert [len(part) for part in parts] == [200] * 5
        assert all(len(np.unique(labels[part])) == 2 for part in parts)

    def test_more_shards_than_images(self):
        with pytest.raises(SettingsRejected, match="80 shards of only 60 images"):
            shards(np.zeros(60, int), 2, 40, np.random.default_rng(0))


FASHION = np.repeat(np.arange(10), 6000)


def published(kind, labels, num_silos=5, seed=3):
    config = PartitionConfig(kind=f"published-{kind}")
    return partition(config, len(labels), labels, num_silos, seed)


class TestPublished:
    def test_the_table_of_labels(self):
        parts = published("label-skew", FASHION)
        counts = [np.bincount(FASHION[part], minlength=10).tolist() for part in parts]
        assert counts == [list(row) for row in LABEL_SKEW]
        assert [sum(row) for row in counts] == [13446, 7913, 12357, 13838, 12446]

    def test_the_sizes(self):
        sizes = [len(part) for part in published("quantity-skew", FASHION)]
        assert sizes == [529, 14, 46_087 - 1, 11_898, 1_473]
        assert sum(QUANTITY_SKEW) == 60_001  # as published, one too many

    @pytest.mark.parametrize(
        ("total", "sizes"),
        [
            (6000, [53, 1, 4609, 1190, 147]),
            (100, [1, 1, 76, 20, 2]),  # the second would have none
            (5, [1, 1, 1, 1, 1]),
        ],
    )
    def test_fewer_images(self, total, sizes):
        labels = labels_of(total)
        assert [len(p) for p in published("quantity-skew", labels)] == sizes

    @settings(max_examples=30, deadline=None)
    @given(
        kind=st.sampled_from(["label-skew", "quantity-skew"]),
        num_images=st.integers(5, 400),
        num_classes=st.integers(1, 10),
        seed=st.integers(0, 2**63 - 1),
    )
    def test_every_index_once_and_none_without(
        self, kind, num_images, num_classes, seed
    ):
        parts = published(kind, labels_of(num_images, num_classes), seed=seed)
        assert sorted(np.concatenate(parts).tolist()) == list(range(num_images))
        assert min(map(len, parts)) >= 1

    @given(
        table=st.lists(st.integers(0, 1000), min_size=1).filter(any),
        total=st.integers(0, 10_000),
    )
    def test_scaled_adds_up_and_is_off_by_less_than_one(self, table, total):
        counts = scaled(np.array(table), total)
        assert counts.sum() == total
        exact = np.array(table) * total / sum(table)
        assert np.abs(counts - exact).max() < 1 + 1e-9

    def test_refused(self):
        with pytest.raises(SettingsRejected, match="for 5 silos, not 3"):
            published("label-skew", FASHION, num_silos=3)
        with pytest.raises(SettingsRejected, match="4 images are too few"):
            published("quantity-skew", labels_of(4))
        with pytest.raises(SettingsRejected, match="the images have others"):
            published("label-skew", labels_of(300, 11))
        config = PartitionConfig(kind="published-label-skew")
        with pytest.raises(SettingsRejected, match="needs images with labels"):
            partition(config, 100, None, 5, 0)
