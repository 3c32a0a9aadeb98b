from dataclasses import replace

import numpy as np
import pytest

from silo.data import ImageSet
from silo.memorisation import count_copies
from simulation.quality import measure
from simulation.settings import SimulationConfig
from simulation.sources import load_pool, subset


def points(*values: float) -> np.ndarray:
    """Images of one pixel."""
    return np.array(values, dtype=np.float64)[:, None]


class TestCopies:
    @pytest.mark.parametrize(
        ("sample", "is_copy"),
        [
            (0.0, True),  # 0 < 10 / 3
            (2.4, True),  # 2.4 < 7.6 / 3
            (2.5, False),  # 2.5 is a third of 7.5, and not less
            (5.0, False),
            (7.6, True),
            (10.0, True),
            (-4.9, True),  # 4.9 < 14.9 / 3
            (-5.1, False),
            (1000.0, False),
        ],
    )
    def test_by_hand(self, sample, is_copy):
        """Two training images, at 0 and 10."""
        assert count_copies(points(sample), points(0.0, 10.0)) == is_copy

    def test_a_twice_held_image_is_no_evidence(self):
        assert count_copies(points(0.0), points(0.0, 0.0, 10.0)) == 0

    def test_the_third_nearest_does_not_matter(self):
        assert count_copies(points(1.0), points(0.0, 10.0, 1e9, -1e9)) == 1

    def test_against_a_slow_reference(self):
        generator = np.random.default_rng(0)
        training = generator.normal(size=(40, 4))
        samples = np.concatenate([training[:7] + 1e-3, generator.normal(size=(20, 4))])
        slow = 0
        for sample in samples:
            distances = sorted(
                float(np.sqrt(((t - sample) ** 2).sum())) for t in training
            )
            slow += distances[0] < distances[1] / 3
        assert count_copies(samples, training) == slow >= 7


@pytest.fixture(scope="module")
def digits():
    return load_pool(SimulationConfig(), 0)


class TestMeasure:
    def test_noise_is_not_recognised_and_digits_are(self, digits):
        noise = np.random.default_rng(0).integers(0, 17, (200, 8, 8, 1), np.uint8)
        samples = np.concatenate([noise, digits.held_out.pixels])
        images = ImageSet(samples, (0.0, 16.0))
        quality = measure(images, digits.dealt, digits.held_out)
        assert quality.recognised_real > 0.95
        num_digits = len(digits.held_out)
        recognised = quality.recognised * (200 + num_digits)
        assert abs(recognised - quality.recognised_real * num_digits) < 0.1 * 200
        assert quality.num_samples == 200 + num_digits
        assert sum(quality.class_shares) == pytest.approx(1.0)
        assert len(quality.class_shares) == 10
        assert quality.copies < 10
        assert quality.as_asked is None

    def test_memorised_images_are_copies(self, digits):
        real = subset(digits.dealt, np.arange(400))
        samples = subset(real, np.arange(30))
        quality = measure(samples, real, digits.held_out)
        assert quality.copies == 30
        assert quality.as_asked == 1.0
        others = replace(samples, labels=(samples.labels + 1) % 10)
        assert measure(others, real, digits.held_out).as_asked == 0.0
        counts = np.bincount(samples.labels, minlength=10)
        assert np.abs(np.array(quality.class_shares) - counts / 30).max() < 0.05

    def test_needs_labels(self, digits):
        real = ImageSet(digits.dealt.pixels, (0.0, 16.0))
        with pytest.raises(ValueError, match="no labels"):
            measure(digits.held_out, real, digits.held_out)
