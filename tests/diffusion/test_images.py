import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.errors import ImagesRejected
from diffusion.images import save_grid, to_8_bit


def test_values_are_scaled_clamped_and_rounded():
    images = torch.tensor([-1.0, 0.0, 1.0, -5.0, 5.0, 0.5]).reshape(1, 1, 2, 3)
    values = to_8_bit(images)
    assert values.dtype == np.uint8
    assert values.shape == (1, 2, 3, 1)
    assert values.flatten().tolist() == [0, 128, 255, 0, 255, 191]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 2, 4, 4), "shape"),
        (torch.zeros(1, 4, 4), "shape"),
        (torch.full((1, 1, 2, 2), float("nan")), "not finite"),
    ],
)
def test_other_images_are_refused(images, message):
    with pytest.raises(ImagesRejected, match=message):
        to_8_bit(images)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_grid_is_laid_out_row_by_row(tmp_path, channels, mode):
    path = tmp_path / "grid.png"
    images = torch.stack(
        [torch.full((channels, 2, 2), value) for value in (-1.0, 0.0, 1.0, -1.0)]
    )
    save_grid(path, images, columns=3, enlarge=3)
    with Image.open(path) as grid:
        assert grid.mode == mode
        # 3 cells of 6 pixels and 4 gaps of 3; 2 rows and 3 gaps.
        assert grid.size == (30, 21)
        pixels = np.asarray(grid).reshape(21, 30, channels)[:, :, 0]
    assert pixels[5, 5] == 0
    assert pixels[5, 14] == 128
    assert pixels[5, 23] == 255
    assert pixels[14, 5] == 0
    assert pixels[14, 14] == 128  # an empty cell is ground
    assert pixels[0, 0] == 128
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_enlargement_is_bicubic(tmp_path):
    path = tmp_path / "grid.png"
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 8, 8, generator=generator) * 2 - 1
    save_grid(path, list(image), columns=1, enlarge=4)
    small = Image.fromarray(to_8_bit(image)[0, :, :, 0])
    expected = np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC))
    with Image.open(path) as grid:
        np.testing.assert_array_equal(np.asarray(grid)[4:36, 4:36], expected)


def test_an_empty_grid_and_bad_numbers_are_refused(tmp_path):
    image = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ImagesRejected, match="at least one"):
        save_grid(tmp_path / "a.png", image[:0], 1, 1)
    for columns, enlarge in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="columns and enlarge"):
            save_grid(tmp_path / "a.png", image, columns, enlarge)
    assert not list(tmp_path.iterdir())
