import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.config import UNetConfig
from silo.config import DataConfig
from silo.data import ImageSet, load_images
from silo.errors import DataError

PATIENT = "jane-doe-1957"
"""Stands in the name of every image file here, and in no message."""


def save_npz(path: Path, **arrays) -> DataConfig:
    np.savez(path, **arrays)
    return DataConfig(source="npz", path=path.name)


def save_images(folder: Path, *images: np.ndarray, suffix: str = ".png") -> DataConfig:
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number}-{PATIENT}{suffix}")
    return DataConfig(source="folder", path=folder.name)


def refusal(config: DataConfig, folder: Path) -> str:
    """Return the message; it is one line and names no image."""
    with pytest.raises(DataError) as caught:
        load_images(config, folder)
    message = str(caught.value)
    assert "\n" not in message
    assert PATIENT not in message
    return message


GREY = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


class TestRange:
    """Scaled to [-1, 1], by hand."""

    @pytest.mark.parametrize(
        ("value_range", "values", "expected"),
        [
            ((0.0, 255.0), np.array([0, 51, 102, 255], np.uint8), [-1, -0.6, -0.2, 1]),
            ((0.0, 16.0), np.array([0, 4, 8, 16], np.uint8), [-1, -0.5, 0, 1]),
            ((0.0, 1.0), np.array([0, 0.25, 0.5, 1], np.float32), [-1, -0.5, 0, 1]),
            ((-1.0, 1.0), np.array([-1, -0.25, 0, 1], np.float64), [-1, -0.25, 0, 1]),
            ((-4.0, 12.0), np.array([-4, 0, 4, 12], np.int16), [-1, -0.5, 0, 1]),
        ],
    )
    def test_by_hand(self, value_range, values, expected):
        images = ImageSet(values.reshape(1, 2, 2, 1), value_range)
        batch = images.batch(np.array([0]))
        assert batch.shape == (1, 1, 2, 2)
        assert batch.dtype.is_floating_point
        assert np.allclose(batch.numpy().ravel(), expected, atol=1e-6)

    def test_never_leaves_the_interval(self):
        pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
        batch = ImageSet(pixels, (0.0, 255.0)).batch(np.array([0]))
        assert batch.min() == -1
        assert batch.max() == 1
        assert (batch.flatten().diff() > 0).all()

    def test_channels_come_first_and_the_order_is_kept(self):
        pixels = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
        batch = ImageSet(pixels, (0.0, 2.0 * 23)).batch(np.array([1, 0]))
        back = np.rint((batch.numpy() + 1) * 23).transpose(0, 2, 3, 1)
        assert np.array_equal(back, pixels[[1, 0]])

    @pytest.mark.parametrize("value_range", [(0.0,), (1.0, 1.0), (255.0, 0.0), ()])
    def test_no_range(self, value_range):
        with pytest.raises(ValueError, match="value_range"):
            DataConfig(value_range=value_range)

    @pytest.mark.parametrize("edge", [float("inf"), float("nan")])
    def test_range_without_bounds(self, edge):
        with pytest.raises(ValueError, match="value_range"):
            DataConfig(value_range=(0.0, edge))


class TestNpz:
    @pytest.mark.parametrize(
        ("split", "images", "labels"),
        [
            ("train", "images", "labels"),
            ("train", "x_train", "y_train"),
            ("test", "x_test", "y_test"),
            ("train", "train_images", "train_labels"),
            ("test", "test_images", "test_labels"),
            ("val", "val_images", "val_labels"),
        ],
    )
    def test_names(self, tmp_path, split, images, labels):
        other = np.zeros((5, 3, 3), np.uint8)
        arrays = {images: GREY, labels: np.array([[3], [1]]), "unrelated": other}
        save_npz(tmp_path / "data.npz", **arrays)
        loaded = load_images(DataConfig(split=split), tmp_path)
        assert np.array_equal(loaded.pixels, GREY[..., np.newaxis])
        assert loaded.pixels.dtype == np.uint8
        assert loaded.labels.tolist() == [3, 1]
        assert len(loaded) == 2

    def test_every_split_of_one_file(self, tmp_path):
        splits = {
            f"{split}_images": GREY[:1] + index for index, split in enumerate(SPLITS)
        }
        save_npz(tmp_path / "data.npz", **splits)
        for index, split in enumerate(SPLITS):
            loaded = load_images(DataConfig(split=split), tmp_path)
            assert loaded.pixels[0, 0, 0, 0] == index
            assert loaded.labels is None

    def test_colour_and_real_numbers(self, tmp_path):
        pixels = np.linspace(0, 1, 2 * 3 * 3 * 3, dtype=np.float32).reshape(2, 3, 3, 3)
        save_npz(tmp_path / "data.npz", images=pixels)
        config = DataConfig(value_range=(0.0, 1.0))
        assert np.array_equal(load_images(config, tmp_path).pixels, pixels)

    def test_path_of_its_own(self, tmp_path):
        save_npz(tmp_path / "data.npz", images=GREY)
        absolute = DataConfig(path=str(tmp_path / "data.npz"))
        assert len(load_images(absolute, Path("elsewhere"))) == 2

    @pytest.mark.parametrize(
        ("arrays", "words"),
        [
            ({"pictures": GREY}, "none of the arrays pictures holds train images"),
            ({}, "none of the arrays (none)"),
            ({"images": GREY[0]}, "expected numbers [n, h, w]"),
            ({"images": GREY.astype(complex)}, "expected numbers"),
            ({"images": np.array([["a"]])}, "expected numbers"),
            ({"images": GREY > 3}, "expected numbers"),
            ({"images": GREY[:0]}, "holds no images"),
            ({"images": GREY[:, :0]}, "holds no images"),
            ({"images": GREY + np.float32(np.nan)}, "NaN or infinite"),
            ({"images": np.where(GREY == 3, np.inf, 0.0)}, "NaN or infinite"),
            ({"images": GREY.astype(int) - 1}, "values from -1 to 16 are outside"),
            ({"images": GREY.astype(int) + 239}, "[0, 255]"),
            ({"images": GREY, "labels": np.zeros(3, int)}, "2 images but 3 labels"),
            ({"images": GREY, "labels": np.eye(2, dtype=int)}, "2 images but 4 labels"),
            ({"images": GREY, "labels": np.array(["cat", "dog"])}, "whole numbers"),
            ({"images": GREY, "labels": np.array([0.5, np.nan])}, "whole numbers"),
        ],
    )
    def test_refused(self, tmp_path, arrays, words):
        config = save_npz(tmp_path / "data.npz", **arrays)
        message = refusal(config, tmp_path)
        assert message.startswith(str(tmp_path / "data.npz"))
        assert words in message

    def test_known_names_are_listed(self, tmp_path):
        config = save_npz(tmp_path / "data.npz", a=GREY, b=GREY)
        message = refusal(config, tmp_path)
        assert "a, b" in message
        assert "images or x_train or train_images" in message

    def test_missing(self, tmp_path):
        message = refusal(DataConfig(), tmp_path)
        assert message == f"{tmp_path / 'data.npz'}: No such file or directory"

    def test_missing_folder(self, tmp_path):
        assert "No such file" in refusal(DataConfig(path="none/data.npz"), tmp_path)

    def test_a_folder(self, tmp_path):
        assert "directory" in refusal(DataConfig(path="."), tmp_path)

    @pytest.mark.parametrize("kept", [0, 1, 30, 200, -1])
    def test_cut_off(self, tmp_path, kept):
        config = save_npz(tmp_path / "data.npz", images=GREY)
        content = (tmp_path / "data.npz").read_bytes()
        (tmp_path / "data.npz").write_bytes(content[:kept])
        assert "not a readable .npz file" in refusal(config, tmp_path)

    def test_altered(self, tmp_path):
        config = save_npz(tmp_path / "data.npz", images=GREY)
        content = bytearray((tmp_path / "data.npz").read_bytes())
        content[len(content) // 3] ^= 0xFF  # Inside the array: its checksum fails.
        (tmp_path / "data.npz").write_bytes(bytes(content))
        assert "not a readable .npz file" in refusal(config, tmp_path)

    def test_pickled_objects_are_not_loaded(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "sprung",))

        objects = np.array([Trap()], dtype=object)
        config = save_npz(tmp_path / "data.npz", images=objects)
        assert "not a readable .npz file" in refusal(config, tmp_path)
        assert not (tmp_path / "sprung").exists()

    def test_one_array_alone(self, tmp_path):
        np.save(tmp_path / "data.npy", GREY)
        assert "not a readable" in refusal(DataConfig(path="data.npy"), tmp_path)


SPLITS = ("train", "test", "val")


class TestFolder:
    def test_grey(self, tmp_path):
        config = save_images(tmp_path / "images", *GREY)
        loaded = load_images(config, tmp_path)
        assert np.array_equal(loaded.pixels, GREY[..., np.newaxis])
        assert loaded.labels.tolist() == [0, 0]

    def test_colour(self, tmp_path):
        pixels = np.arange(3 * 3 * 3, dtype=np.uint8).reshape(3, 3, 3)
        loaded = load_images(save_images(tmp_path / "images", pixels), tmp_path)
        assert np.array_equal(loaded.pixels[0], pixels)

    def test_folders_are_labels_in_sorted_order(self, tmp_path):
        save_images(tmp_path / "images" / "pneumonia", GREY[0], GREY[1])
        save_images(tmp_path / "images" / "normal", GREY[1])
        (tmp_path / "images" / "notes.txt").write_text("no image")
        config = DataConfig(source="folder", path="images")
        loaded = load_images(config, tmp_path)
        assert loaded.labels.tolist() == [0, 1, 1]
        assert np.array_equal(loaded.pixels[0, ..., 0], GREY[1])

    def test_transparency_is_dropped(self, tmp_path):
        pixels = np.full((3, 3, 4), 7, np.uint8)
        loaded = load_images(save_images(tmp_path / "images", pixels), tmp_path)
        assert loaded.pixels.shape == (1, 3, 3, 3)

    def test_missing(self, tmp_path):
        config = DataConfig(source="folder", path="none")
        assert refusal(config, tmp_path) == f"{tmp_path / 'none'}: is not a folder"

    def test_empty(self, tmp_path):
        (tmp_path / "images").mkdir()
        config = DataConfig(source="folder", path="images")
        assert "holds no images" in refusal(config, tmp_path)

    def test_sizes(self, tmp_path):
        config = save_images(tmp_path / "images", GREY[0], GREY[1, :2])
        assert "image 2 of 2 is 2×3 with 1 channel, the first is 3×3 with 1" in refusal(
            config, tmp_path
        )

    def test_channels(self, tmp_path):
        colour = np.zeros((3, 3, 3), np.uint8)
        config = save_images(tmp_path / "images", GREY[0], colour)
        assert "3×3 with 3 channels" in refusal(config, tmp_path)

    @pytest.mark.parametrize("content", [b"", b"\x89PNG", b"not an image"])
    def test_unreadable(self, tmp_path, content):
        config = save_images(tmp_path / "images", *GREY)
        (tmp_path / "images" / f"1-{PATIENT}.png").write_bytes(content)
        assert "image 2 in sorted order cannot be read" in refusal(config, tmp_path)

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    def test_cut_off(self, tmp_path, suffix, share):
        noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
        config = save_images(tmp_path / "images", noise, suffix=suffix)
        path = next((tmp_path / "images").iterdir())
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        assert "cannot be read" in refusal(config, tmp_path)

    @pytest.mark.parametrize(
        "pixels",
        [
            np.array([[0, 256], [4095, 65535]], np.uint16),
            np.array([[0, 256], [4095, 65535]], np.int32),
            np.array([[0.0, 0.5], [1.0, 300.0]], np.float32),
        ],
    )
    def test_more_than_8_bits_are_refused_not_cut_off(self, tmp_path, pixels):
        config = save_images(tmp_path / "images", pixels, suffix=".tif")
        assert "more than 8 bits" in refusal(config, tmp_path)

    def test_16_bit_png(self, tmp_path):
        pixels = np.array([[0, 256], [4095, 65535]], np.uint16)
        config = save_images(tmp_path / "images", pixels)
        assert "more than 8 bits" in refusal(config, tmp_path)

    def test_image_of_absurd_size(self, tmp_path):
        """A header of a few bytes that promises 10^10 pixels."""
        buffer = io.BytesIO()
        Image.fromarray(GREY[0]).save(buffer, "PNG")
        content = bytearray(buffer.getvalue())
        content[16:24] = struct.pack(">II", 100_000, 100_000)
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / f"{PATIENT}.png").write_bytes(bytes(content))
        config = DataConfig(source="folder", path="images")
        assert "cannot be read" in refusal(config, tmp_path)


class TestFits:
    @pytest.mark.parametrize(
        ("size", "channels", "fits"), [(8, 1, True), (8, 3, False), (16, 1, False)]
    )
    def test_model(self, size, channels, fits):
        images = ImageSet(np.zeros((2, size, size, channels), np.uint8), (0.0, 255.0))
        model = UNetConfig(
            architecture="residual", dim=4, channels=1, dim_mults=(1,), image_size=8
        )
        if fits:
            images.check_fits(model)
            return
        with pytest.raises(
            DataError, match="the plan's model takes 8×8 with 1 channel"
        ):
            images.check_fits(model)

    def test_not_square(self):
        images = ImageSet(np.zeros((2, 8, 9, 1), np.uint8), (0.0, 255.0))
        model = UNetConfig(
            architecture="residual", dim=4, channels=1, dim_mults=(1,), image_size=8
        )
        with pytest.raises(DataError, match="8×9"):
            images.check_fits(model)


def idx(array: np.ndarray) -> bytes:
    """Return an array in the IDX format of MNIST: magic, sizes, bytes."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim)
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def save_torchvision(folder: Path, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """Write a data set as torchvision keeps it; return train and test images."""
    raw = folder / dataset / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(1)
    splits = []
    for name, count in (("train", 6), ("t10k", 3)):
        pixels = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
        splits.append(pixels)
    return splits[0], splits[1]


@pytest.mark.parametrize("dataset", ["FashionMNIST", "MNIST"])
class TestTorchvision:
    def config(self, dataset, **changes) -> DataConfig:
        fields = {"source": "torchvision", "path": "sets", "dataset": dataset}
        return DataConfig(**(fields | changes))

    def test_both_splits(self, tmp_path, dataset):
        train, test = save_torchvision(tmp_path / "sets", dataset)
        loaded = load_images(self.config(dataset), tmp_path)
        assert np.array_equal(loaded.pixels[..., 0], train)
        assert loaded.labels.tolist() == [0, 1, 2, 3, 4, 5]
        loaded = load_images(self.config(dataset, split="test"), tmp_path)
        assert np.array_equal(loaded.pixels[..., 0], test)

    def test_there_is_no_third_split(self, tmp_path, dataset):
        save_torchvision(tmp_path / "sets", dataset)
        message = refusal(self.config(dataset, split="val"), tmp_path)
        assert "no val images" in message

    def test_not_downloaded(self, tmp_path, dataset):
        message = refusal(self.config(dataset), tmp_path)
        assert "set download = true to fetch it" in message
        assert not (tmp_path / "sets").exists()

    @pytest.mark.parametrize("kept", [0, 3, 20, 1000])
    def test_cut_off(self, tmp_path, dataset, kept):
        save_torchvision(tmp_path / "sets", dataset)
        path = tmp_path / "sets" / dataset / "raw" / "train-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:kept])
        assert dataset in refusal(self.config(dataset), tmp_path)

    def test_still_compressed(self, tmp_path, dataset):
        save_torchvision(tmp_path / "sets", dataset)
        path = tmp_path / "sets" / dataset / "raw" / "train-images-idx3-ubyte"
        path.write_bytes(gzip.compress(path.read_bytes()))
        assert dataset in refusal(self.config(dataset), tmp_path)


def test_unknown_torchvision_set(tmp_path):
    config = DataConfig(source="torchvision", path="sets", dataset="SVHN")
    assert "choose one of MNIST, FashionMNIST, CIFAR10, CIFAR100, CelebA" in refusal(
        config, tmp_path
    )


def npz_patients(folder: Path, whose: object, **changes) -> DataConfig:
    arrays = {"images": np.concatenate([GREY, GREY]), "labels": np.arange(4)}
    save_npz(folder / "data.npz", **arrays, whose=whose)
    return DataConfig(**({"patients": "whose"} | changes))


class TestPatientsOfArrays:
    @pytest.mark.parametrize(
        ("patients", "names"),
        [
            (np.array(["b", "a", "b", "c"]), ("a", "b", "c")),
            (np.array([b"b", b"a", b"b", b"c"]), ("a", "b", "c")),
            (np.array([7, 3, 7, 9]), ("3", "7", "9")),
            (np.array([[7], [3], [7], [9]], np.uint64), ("3", "7", "9")),
            (np.array([" b", "a", "b ", "c\n"]), ("a", "b", "c")),
            (np.array(["e\u0301", "a", "\u00e9", "\u00ea"]), ("a", "é", "ê")),
        ],
    )
    def test_dense_indices(self, tmp_path, patients, names):
        loaded = load_images(npz_patients(tmp_path, patients), tmp_path)
        assert loaded.patient_names == names
        assert loaded.patients.tolist() == [1, 0, 1, 2]
        assert loaded.patients.dtype == np.int64
        assert loaded.labels.tolist() == [0, 1, 2, 3]

    def test_none_unless_asked_for(self, tmp_path):
        config = npz_patients(tmp_path, np.array(list("abcd")), patients="")
        loaded = load_images(config, tmp_path)
        assert loaded.patients is None
        assert loaded.patient_names == ()

    @pytest.mark.parametrize(
        ("patients", "words"),
        [
            (["a", "", PATIENT, "d"], "image 2 of 4 has no patient"),
            (["a", "b", "  ", PATIENT], "image 3 of 4 has no patient"),
            (["a", "b", PATIENT, "nan"], "image 4 of 4 has no patient"),
            (["None", "b", PATIENT, "d"], "image 1 of 4 has no patient"),
            (["a", "<NA>", PATIENT, "d"], "image 2 of 4 has no patient"),
            ([3, 1, -1, 2], "image 3 has a negative number for a patient"),
            ([1.0, 2.0, np.nan, 3.0], "is float64; expected text or whole numbers"),
            ([True, False, True, True], "is bool; expected text or whole numbers"),
            (["a", PATIENT, "c"], "4 images but 3 patients"),
            ([["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"]], "but 8 patients"),
        ],
    )
    def test_refused(self, tmp_path, patients, words):
        config = npz_patients(tmp_path, np.array(patients))
        assert words in refusal(config, tmp_path)

    def test_no_such_array(self, tmp_path):
        config = npz_patients(tmp_path, np.arange(4), patients="who")
        assert "has no array 'who' of patients" in refusal(config, tmp_path)

    def test_objects_are_not_unpickled(self, tmp_path):
        patients = np.array([PATIENT, None, 3, 4], dtype=object)
        message = refusal(npz_patients(tmp_path, patients), tmp_path)
        assert "Python objects; expected text or whole numbers" in message


class TestPatientsOfFolders:
    CONFIG = DataConfig(source="folder", path="images", patients="folder")

    def test_the_folder_is_the_patient_and_no_label(self, tmp_path):
        save_images(tmp_path / "images" / "p2", GREY[0], GREY[1])
        save_images(tmp_path / "images" / "p1", GREY[1])
        loaded = load_images(self.CONFIG, tmp_path)
        assert loaded.patient_names == ("p1", "p2")
        assert loaded.patients.tolist() == [0, 1, 1]
        assert loaded.labels is None

    def test_a_folder_in_a_patients_folder(self, tmp_path):
        """Neither 2019 nor 2020 is a person, and anna must not become two."""
        save_images(tmp_path / "images" / "anna" / "2019", GREY[0])
        save_images(tmp_path / "images" / "anna" / "2020", GREY[1])
        message = refusal(self.CONFIG, tmp_path)
        assert "image 1 of 2 in sorted order lies deeper than that" in message
        assert "anna" not in message

    def test_an_image_outside_all_folders(self, tmp_path):
        save_images(tmp_path / "images" / "a-folder", GREY[0], GREY[1])
        Image.fromarray(GREY[1]).save(tmp_path / "images" / f"{PATIENT}.png")
        message = refusal(self.CONFIG, tmp_path)
        assert message == (
            f"{tmp_path / 'images'}: image 3 of 3 in sorted order lies in no patient's "
            "folder; each must lie in its patient's folder, just below the root"
        )


@pytest.mark.parametrize(
    ("source", "patients", "words"),
    [
        ("npz", "folder", 'must be "folder" for a folder of images'),
        ("folder", "whose", 'must be "folder" for a folder of images'),
        ("torchvision", "folder", "does not name any"),
    ],
)
def test_patients_that_a_source_cannot_name(source, patients, words):
    with pytest.raises(ValueError, match=words):
        DataConfig(source=source, patients=patients)
