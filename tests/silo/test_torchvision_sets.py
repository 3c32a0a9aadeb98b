"""CIFAR and CelebA, from files that the tests make."""

import hashlib
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

import silo.torchvision_sets as sets
from diffusion.config import UNetConfig
from diffusion.torchvision_compat import load_torchvision
from silo.config import DataConfig
from silo.data import load_images
from silo.errors import DataError
from simulation.settings import SimulationConfig, SourceConfig
from simulation.sources import load_pool

CIFAR = ("CIFAR10", "CIFAR100")


def config(dataset, **changes) -> DataConfig:
    fields = {"source": "torchvision", "path": "sets", "dataset": dataset}
    return DataConfig(**(fields | changes))


def refusal(chosen: DataConfig, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_images(chosen, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Opened:
    """An object whose pickle says that somebody opened it."""

    seen = False

    def __reduce__(self):
        return (setattr, (Opened, "seen", True))


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Write a data set in the form of CIFAR, and have its checksums expected."""

    def make(dataset: str, per_file: int = 4) -> dict[str, np.ndarray]:
        kind = getattr(load_torchvision().datasets, dataset)
        folder = tmp_path / "sets" / kind.base_folder
        folder.mkdir(parents=True)
        generator = np.random.default_rng(1)
        key = "labels" if dataset == "CIFAR10" else "fine_labels"
        pixels, digests, lists = {}, {}, {"train_list": [], "test_list": []}
        for which, entries in lists.items():
            for name, _ in getattr(kind, which):
                data = generator.integers(0, 256, (per_file, 3072), np.uint8)
                pixels[name] = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                content = {"data": data, key: list(range(per_file))}
                digests[name] = save(folder / name, content)
                entries.append([name, md5(folder / name)])
        meta = folder / kind.meta["filename"]
        digests[meta.name] = save(meta, {kind.meta["key"]: ["a", "b"]})
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(meta)})
        for which, entries in lists.items():
            monkeypatch.setattr(kind, which, entries)
        monkeypatch.setitem(sets.CIFAR_SHA256, dataset, digests)
        return pixels

    return make


def save(path: Path, content: object) -> str:
    path.write_bytes(pickle.dumps(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


class TestCifar:
    @pytest.mark.parametrize("dataset", CIFAR)
    def test_both_splits(self, tmp_path, cifar, dataset):
        pixels = cifar(dataset)
        *train, test = pixels
        loaded = load_images(config(dataset), tmp_path)
        expected = np.concatenate([pixels[name] for name in train])
        assert np.array_equal(loaded.pixels, expected)
        assert loaded.labels.tolist() == [0, 1, 2, 3] * len(train)
        batch = loaded.batch(np.array([0]))
        assert batch.shape == (1, 3, 32, 32)
        assert float(batch[0, 2, 5, 7]) == pytest.approx(
            expected[0, 5, 7, 2] / 127.5 - 1
        )
        loaded = load_images(config(dataset, split="test"), tmp_path)
        assert np.array_equal(loaded.pixels, pixels[test])
        assert "no val images" in refusal(config(dataset, split="val"), tmp_path)

    @pytest.mark.parametrize("dataset", CIFAR)
    def test_digests_of_all_files_that_are_opened(self, dataset):
        kind = getattr(load_torchvision().datasets, dataset)
        names = [name for name, _ in kind.train_list + kind.test_list]
        assert set(sets.CIFAR_SHA256[dataset]) == {*names, kind.meta["filename"]}
        for digest in sets.CIFAR_SHA256[dataset].values():
            assert len(bytes.fromhex(digest)) == 32

    @pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
    def test_a_pickle_that_is_not_the_published_one_is_not_opened(
        self, tmp_path, cifar, monkeypatch, name
    ):
        """Not even where torchvision's own checksum would let it pass."""
        cifar("CIFAR10")
        kind = load_torchvision().datasets.CIFAR10
        path = tmp_path / "sets" / kind.base_folder / name
        save(path, Opened())
        monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
        module = "torchvision.datasets.cifar.check_integrity"
        monkeypatch.setattr(module, lambda *arguments: True)
        message = refusal(config("CIFAR10"), tmp_path)
        assert "is not the published file of CIFAR10" in message
        assert name in message
        assert not Opened.seen

    def test_a_file_that_is_missing(self, tmp_path, cifar):
        cifar("CIFAR10")
        path = next((tmp_path / "sets").rglob("data_batch_5"))
        path.unlink()
        message = refusal(config("CIFAR10"), tmp_path)
        assert message.endswith(
            "data_batch_5: is missing; set download = true to fetch it"
        )

    @pytest.mark.parametrize("dataset", CIFAR)
    def test_nothing_is_fetched_unasked(self, tmp_path, monkeypatch, dataset):
        monkeypatch.setattr(sets, "_fetch", lambda *_: pytest.fail("fetched"))
        assert "set download = true" in refusal(config(dataset), tmp_path)

    def test_offline(self, tmp_path, monkeypatch):
        def offline(*arguments, **options):
            raise URLError("no route to host")

        name = "torchvision.datasets.utils.download_and_extract_archive"
        load_torchvision()
        monkeypatch.setattr(name, offline)
        message = refusal(config("CIFAR10", download=True), tmp_path)
        assert "CIFAR10 could not be loaded" in message
        assert "no route to host" in message

    def test_what_was_fetched_is_checked_before_it_is_opened(
        self, tmp_path, cifar, monkeypatch
    ):
        cifar("CIFAR100")
        there = next((tmp_path / "sets").rglob("train"))
        there.unlink()
        monkeypatch.setattr(sets, "_fetch", lambda *_: save(there, Opened()))
        message = refusal(config("CIFAR100", download=True), tmp_path)
        assert "is not the published file of CIFAR100" in message
        assert not Opened.seen

    def test_in_a_simulation(self, tmp_path, cifar):
        cifar("CIFAR10", per_file=3)
        source = SourceConfig(
            source="torchvision", path=str(tmp_path / "sets"), dataset="CIFAR10"
        )
        pool = load_pool(SimulationConfig(data=source, num_images=10), seed=1)
        assert (len(pool.dealt), len(pool.held_out)) == (10, 3)


NAMES = ("5_o_Clock_Shadow", "Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair",
         "Male", "Young")  # fmt: skip
# Hair black, blond, brown, grey; male; young; the split.
PEOPLE = (
    (1, 0, 0, 0, 1, 1, 0),
    (0, 1, 0, 0, 0, 1, 0),
    (0, 0, 1, 0, 0, 0, 0),
    (0, 0, 0, 1, 1, 0, 0),
    (0, 0, 0, 0, 1, 1, 0),  # no colour of hair
    (1, 0, 1, 0, 1, 1, 0),  # two
    (0, 0, 1, 0, 1, 1, 1),
    (1, 0, 0, 0, 0, 0, 1),
    (0, 0, 0, 1, 0, 1, 2),
    (0, 0, 0, 1, 0, 1, 2),
)
CLASSES = [12, 6, 1, 11, -1, -1, 13, 0, 7, 7]


@pytest.fixture
def celeba(tmp_path, monkeypatch) -> Path:
    """Write a data set in the form of CelebA, and have its checksums expected."""
    folder = tmp_path / "sets" / "celeba"
    images = folder / "img_align_celeba"
    images.mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, len(PEOPLE) + 1)]
    rows = {
        "list_attr_celeba.txt": [str(len(names)), " ".join(NAMES) + " "],
        "identity_CelebA.txt": [],
        "list_bbox_celeba.txt": [str(len(names)), "image_id x_1 y_1 width height"],
        "list_landmarks_align_celeba.txt": [str(len(names)), "x y"],
        "list_eval_partition.txt": [],
    }
    for number, (name, person) in enumerate(zip(names, PEOPLE, strict=True)):
        signs = " ".join("1" if value else "-1" for value in (0, *person[:6]))
        rows["list_attr_celeba.txt"].append(f"{name}  {signs}")
        rows["identity_CelebA.txt"].append(f"{name} {number}")
        rows["list_bbox_celeba.txt"].append(f"{name}    1 2 3 4")
        rows["list_landmarks_align_celeba.txt"].append(f"{name}  1 2")
        rows["list_eval_partition.txt"].append(f"{name} {person[6]}")
        Image.fromarray(picture(number)).save(images / name, quality=95)
    kind = load_torchvision().datasets.CelebA
    expected = [("", "", "img_align_celeba.zip")]
    for name, lines in rows.items():
        (folder / name).write_text("\n".join(lines) + "\n")
        expected.append(("", md5(folder / name), name))
    monkeypatch.setattr(kind, "file_list", expected)
    return folder


def picture(number: int) -> np.ndarray:
    """Return 218×178 pixels: a border of 20 rows, above and below a ramp."""
    pixels = np.full((218, 178, 3), 255, np.uint8)
    pixels[20:198] = np.linspace(0, 100, 178)[None, :, None]
    pixels[20:198, :, 2] = 10 * number
    return pixels


class TestCelebA:
    def test_splits(self, tmp_path, celeba):
        for split, count in (("train", 6), ("val", 2), ("test", 2)):
            images = load_images(config("CelebA", split=split), tmp_path)
            assert images.pixels.shape == (count, 64, 64, 3)
            assert images.pixels.dtype == np.uint8
            assert images.labels is None

    def test_the_middle_is_cut_out_and_made_smaller(self, tmp_path, celeba):
        images = load_images(config("CelebA"), tmp_path)
        # Neither border is left, and the ramp goes from one edge to the other.
        assert int(images.pixels[..., :2].max()) < 110
        red = images.pixels[0, :, :, 0].astype(int)
        assert red[:, 0].max() < 6
        assert red[:, -1].min() > 94
        for number in range(6):
            blue = images.pixels[number, 20:40, 20:40, 2]
            assert abs(float(blue.mean()) - 10 * number) < 3
        images.check_fits(
            UNetConfig(
                architecture="residual",
                dim=4,
                channels=3,
                dim_mults=(1,),
                image_size=64,
            )
        )
        batch = images.batch(np.array([0, 5]))
        assert batch.shape == (2, 3, 64, 64)
        assert -1 <= float(batch.min()) < float(batch.max()) <= 1

    def test_sixteen_classes(self, tmp_path, celeba):
        images = load_images(config("CelebA16"), tmp_path)
        assert images.labels.tolist() == [12, 6, 1, 11]
        assert len(images) == 4
        columns = np.array([(0, *person[:6]) for person in PEOPLE])
        assert sets.celeba_classes(columns, NAMES).tolist() == CLASSES
        whole = load_images(config("CelebA"), tmp_path)
        assert np.array_equal(images.pixels, whole.pixels[:4])

    def test_decoded_once_and_mapped(self, tmp_path, celeba, monkeypatch):
        first = load_images(config("CelebA"), tmp_path)
        assert isinstance(first.pixels, np.memmap)
        monkeypatch.setattr(sets, "_small", lambda *_: pytest.fail("decoded again"))
        again = load_images(config("CelebA"), tmp_path)
        assert np.array_equal(again.pixels, first.pixels)

    def test_changed_images_are_decoded_anew(self, tmp_path, celeba):
        first = np.array(load_images(config("CelebA"), tmp_path).pixels)
        Image.fromarray(picture(20)).save(celeba / "img_align_celeba" / "000001.jpg")
        again = load_images(config("CelebA"), tmp_path).pixels
        assert not np.array_equal(again[0], first[0])
        assert np.array_equal(again[1:], first[1:])
        assert len(list(celeba.glob(f"{sets.DECODED}-CelebA-train-*"))) == 1

    def test_a_crash_in_the_middle_leaves_nothing_that_is_used(
        self, tmp_path, celeba, monkeypatch
    ):
        class Crash(BaseException):
            pass

        def crash(path, number):
            if number == 3:
                raise Crash
            return real(path, number)

        real = sets._small
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(sets, "_small", crash)
            load_images(config("CelebA"), tmp_path)
        assert len(load_images(config("CelebA"), tmp_path)) == 6

    @pytest.mark.parametrize("download", [False, True])
    def test_nothing_there(self, tmp_path, download):
        message = refusal(config("CelebA", download=download), tmp_path)
        assert "files of CelebA are missing or changed" in message
        assert "img_align_celeba" in message

    def test_a_list_that_was_changed(self, tmp_path, celeba):
        path = celeba / "list_attr_celeba.txt"
        path.write_text(path.read_text().replace("-1", "1"))
        assert "missing or changed" in refusal(config("CelebA"), tmp_path)

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda path: path.write_bytes(b"no image"), "image 2 in"),
            (lambda path: path.unlink(), "No such file"),
            (
                lambda path: Image.new("RGB", (100, 218)).save(path),
                "image 2 is 100×218, smaller than 178",
            ),
        ],
    )
    def test_a_damaged_image(self, tmp_path, celeba, damage, words):
        damage(celeba / "img_align_celeba" / "000002.jpg")
        message = refusal(config("CelebA"), tmp_path)
        assert words in message
        assert "000002" not in message
