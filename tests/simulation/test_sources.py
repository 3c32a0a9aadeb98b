import numpy as np
import pytest

from silo.errors import DataError
from simulation.errors import SettingsRejected
from simulation.settings import SimulationConfig, SourceConfig
from simulation.sources import load_pool, subset


def pixels(num_images: int, first: int = 0) -> np.ndarray:
    """Images of 2×2, each full of its own number."""
    numbers = np.arange(first, first + num_images, dtype=np.uint8)
    return np.broadcast_to(numbers[:, None, None], (num_images, 2, 2))


def numbers(images) -> list[int]:
    return images.pixels[:, 0, 0, 0].tolist()


@pytest.fixture
def npz(tmp_path):
    def write(*, train=20, test=0, **fields) -> SimulationConfig:
        arrays = {"x_train": pixels(train), "y_train": np.arange(train)}
        if test:
            arrays["x_test"] = pixels(test, 100)
        np.savez(tmp_path / "data.npz", **arrays)
        source = SourceConfig(source="npz", path=str(tmp_path / "data.npz"))
        return SimulationConfig(data=source, **fields)

    return write


class TestDigits:
    def test_split(self):
        pool = load_pool(SimulationConfig(), 0)
        assert (len(pool.dealt), len(pool.held_out)) == (1500, 297)
        assert pool.dealt.pixels.shape[1:] == (8, 8, 1)
        assert set(pool.dealt.labels.tolist()) == set(range(10))
        batch = pool.dealt.batch(np.arange(1500))
        assert (float(batch.min()), float(batch.max())) == (-1.0, 1.0)

    def test_no_image_is_on_both_sides(self):
        from sklearn.datasets import load_digits

        pool = load_pool(SimulationConfig(), 0)
        sides = [
            sorted(image.tobytes() for image in side.pixels)
            for side in (pool.dealt, pool.held_out)
        ]
        everything = load_digits().images.astype(np.uint8)
        assert sorted(sides[0] + sides[1]) == sorted(i.tobytes() for i in everything)

    def test_the_seed_does_not_move_the_split(self):
        first, second = (
            load_pool(SimulationConfig(), 0),
            load_pool(SimulationConfig(), 1),
        )
        assert np.array_equal(first.held_out.pixels, second.held_out.pixels)

    def test_fewer(self):
        first = load_pool(SimulationConfig(num_images=90), 0)
        assert len(first.dealt) == 90
        assert len(first.held_out) == 297
        again = load_pool(SimulationConfig(num_images=90), 0)
        assert np.array_equal(first.dealt.pixels, again.dealt.pixels)
        other = load_pool(SimulationConfig(num_images=90), 1)
        assert not np.array_equal(first.dealt.pixels, other.dealt.pixels)

    def test_more_than_there_are(self):
        with pytest.raises(SettingsRejected, match=r"num_images: 1,501 of only 1,500"):
            load_pool(SimulationConfig(num_images=1501), 0)


class TestFiles:
    def test_the_source_has_a_test_split(self, npz):
        pool = load_pool(npz(test=5), 0)
        assert numbers(pool.dealt) == list(range(20))
        assert numbers(pool.held_out) == [100, 101, 102, 103, 104]

    def test_some_are_held_out(self, npz):
        pool = load_pool(npz(test=5, held_out_images=6), 0)
        assert len(pool.held_out) == 6
        assert sorted(numbers(pool.held_out) + numbers(pool.dealt)) == list(range(20))
        assert pool.dealt.labels.tolist() == numbers(pool.dealt)

    def test_held_out_and_fewer(self, npz):
        pool = load_pool(npz(held_out_images=6, num_images=10), 0)
        assert len(pool.dealt) == 10
        assert not set(numbers(pool.dealt)) & set(numbers(pool.held_out))

    @pytest.mark.parametrize("count", [20, 21])
    def test_all_held_out(self, npz, count):
        with pytest.raises(SettingsRejected, match=r"held_out_images: .* of only 20"):
            load_pool(npz(held_out_images=count), 0)

    def test_no_test_split(self, npz):
        with pytest.raises(DataError, match=r"set simulation\.held_out_images"):
            load_pool(npz(), 0)

    def test_a_folder_has_none(self, tmp_path):
        from PIL import Image

        for number in range(3):
            Image.fromarray(np.full((2, 2), number, np.uint8)).save(
                tmp_path / f"{number}.png"
            )
        source = SourceConfig(source="folder", path=str(tmp_path))
        with pytest.raises(SettingsRejected, match="which has no test split"):
            load_pool(SimulationConfig(data=source), 0)
        pool = load_pool(SimulationConfig(data=source, held_out_images=1), 0)
        assert len(pool.dealt) == 2

    def test_missing(self, tmp_path):
        source = SourceConfig(source="npz", path=str(tmp_path / "none.npz"))
        with pytest.raises(DataError, match="No such file"):
            load_pool(SimulationConfig(data=source), 0)


def test_subset_keeps_labels_beside_their_images():
    pool = load_pool(SimulationConfig(), 0)
    chosen = subset(pool.dealt, np.array([5, 2]))
    assert np.array_equal(chosen.pixels[1], pool.dealt.pixels[2])
    assert chosen.labels.tolist() == pool.dealt.labels[[5, 2]].tolist()
    assert chosen.value_range == pool.dealt.value_range
