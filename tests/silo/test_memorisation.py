import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import silo.memorisation
from silo.data import ImageSet
from silo.memorisation import (
    HISTOGRAM_EDGES,
    PAIRS_SHOWN,
    likest_pairs,
    memorisation,
    neighbours,
    vector_blocks,
)


def points(*values: float) -> np.ndarray:
    """Images of one pixel."""
    return np.array(values, dtype=np.float64)[:, None]


def image_set(*values: float) -> ImageSet:
    """Images of one pixel each, of values in [-1, 1]."""
    return ImageSet(np.array(values).reshape(-1, 1, 1, 1), (-1.0, 1.0))


def samples_of(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1)


class TestNeighbours:
    def test_by_hand(self):
        found = neighbours(points(1.0, 9.0), [points(0.0, 3.0), points(10.0)])
        assert found.nearest.tolist() == [1.0, 1.0]
        assert found.second.tolist() == [2.0, 6.0]
        assert found.index.tolist() == [0, 2]
        assert found.is_copy.tolist() == [False, True]
        assert found.ratio == pytest.approx([1 / 2, 1 / 6])

    def test_copies_of_twins_have_no_ratio(self):
        found = neighbours(points(0.0), [points(0.0), points(0.0, 5.0)])
        assert found.ratio.tolist() == [1.0]
        assert not found.is_copy.any()

    @settings(max_examples=30)
    @given(st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 9))
    def test_against_a_slow_reference_in_any_blocks(self, seed, count, size):
        generator = np.random.default_rng(seed)
        images = generator.integers(-2, 3, (count, 3)).astype(np.float64)
        samples = generator.integers(-2, 3, (6, 3)).astype(np.float64)
        blocks = [images[start : start + size] for start in range(0, count, size)]
        found = neighbours(samples, blocks)
        for row, sample in enumerate(samples):
            distances = sorted(float(np.linalg.norm(i - sample)) for i in images)
            assert [found.nearest[row], found.second[row]] == distances[:2]
            nearest = images[found.index[row]]
            assert np.linalg.norm(nearest - sample) == distances[0]

    def test_distances_survive_a_large_offset(self):
        """Squared norms of 1e16 would hide distances below 1 from the products."""
        found = neighbours(points(1e6 + 0.25), [points(1e6, 1e6 + 1, 0.0)])
        assert (found.nearest[0], found.second[0]) == (0.25, 0.75)

    def test_one_image_is_too_few(self):
        with pytest.raises(ValueError, match="two images"):
            neighbours(points(0.0), [points(0.0)])


def measured(samples, training, held_out, chosen=None):
    count = min(len(training), len(held_out))
    return memorisation(
        "own",
        samples,
        training,
        held_out,
        chosen=np.arange(count) if chosen is None else chosen,
        chosen_held_out=np.arange(count),
    )


class TestMemorisation:
    def test_by_hand(self):
        """Training -1, 0, 1; held out -0.2, 0.5, 0.73. Of the samples, -0.98 and 0.1
        are nearer to training images, and copies of them (0.02 < 0.98 / 3 and
        0.1 < 0.9 / 3); 0.72 is one of 0.73, by chance (0.01 < 0.22 / 3)."""
        training, held_out = image_set(-1, 0, 1), image_set(-0.2, 0.5, 0.73)
        result = measured(samples_of(-0.98, 0.1, 0.72), training, held_out).result
        nearer = result.nearer_to_training
        assert (nearer.count, nearer.total) == (2, 3)
        assert result.copies.count == result.copies_of_any.count == 2
        assert result.copies_of_held_out.count == 1
        assert (result.num_samples, result.num_searched) == (3, 3)
        counts = dict(zip(HISTOGRAM_EDGES, result.histogram_counts, strict=False))
        assert {edge for edge, count in counts.items() if count} == {-2.0, -1.1, 1.9}

    def test_all_training_images_are_searched(self):
        """The copied image is not among those that are compared."""
        training, held_out = image_set(-1, 0, 1, 0.5), image_set(-0.6, 0.3, 0.8)
        result = measured(samples_of(0.501), training, held_out).result
        assert (result.num_training, result.num_searched) == (3, 4)
        assert (result.copies.count, result.copies_of_any.count) == (0, 1)

    def test_a_copy_of_an_image_is_in_the_first_bin(self):
        result = measured(samples_of(1.0), image_set(0, 1), image_set(-1, -0.5)).result
        assert result.histogram_counts[0] == 1
        assert sum(result.histogram_counts) == 1

    def test_chance_alone_is_one_half(self):
        generator = np.random.default_rng(0)
        draws = [generator.uniform(-1, 1, (300, 2, 2, 1)) for _ in range(3)]
        samples = torch.from_numpy(draws[0]).float().permute(0, 3, 1, 2)
        result = measured(
            samples, *(ImageSet(each, (-1.0, 1.0)) for each in draws[1:])
        ).result
        share = result.nearer_to_training
        assert share.low < 0.5 < share.high
        assert result.copies.count < 15

    def test_unequal_sides_are_refused(self):
        with pytest.raises(ValueError, match="as many"):
            measured(
                samples_of(0), image_set(0, 1), image_set(0, 1), np.array([0, 1, 1])
            )

    def test_blocks_of_images_change_nothing(self, monkeypatch):
        generator = np.random.default_rng(1)
        images = ImageSet(generator.uniform(-1, 1, (20, 2, 2, 1)), (-1.0, 1.0))
        samples = torch.from_numpy(generator.uniform(-1, 1, (9, 1, 2, 2))).float()
        whole = measured(samples, images, images).result
        monkeypatch.setattr(silo.memorisation, "BLOCK_IMAGES", 3)
        assert len(list(vector_blocks(images, np.arange(20)))) == 7
        assert measured(samples, images, images).result == whole


def test_the_likest_pairs_come_first():
    training = image_set(-1, 0, 1)
    samples = samples_of(0.4, 0.99, -0.9, *np.linspace(0.4, 0.6, 30))
    found = measured(samples, training, image_set(-0.5, 0.5, 0.7)).everywhere
    pairs = likest_pairs(samples, training, found).flatten()
    assert len(pairs) == 2 * PAIRS_SHOWN
    assert pairs[:4].tolist() == pytest.approx([0.99, 1.0, -0.9, -1.0])
