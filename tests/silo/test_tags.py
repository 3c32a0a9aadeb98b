import hashlib
import hmac
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import silo.tags
from crypto import labels
from crypto.merkle import MerkleTree
from protocol.errors import KeyFileRejected
from silo.config import DataConfig
from silo.data import ImageSet, load_images, with_patients
from silo.errors import StateBroken
from silo.tags import (
    commitment,
    has_common,
    key_digest,
    load_or_make_key,
    load_tags,
    save_tags,
    tags_of,
)

KEY = bytes(range(32))
PIXELS = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3, 1)


def image_set(pixels: np.ndarray) -> ImageSet:
    return ImageSet(pixels, (0.0, 255.0))


def as_list(tags: np.ndarray) -> list[bytes]:
    data = tags.tobytes()
    return [data[start : start + 32] for start in range(0, len(data), 32)]


def test_by_hand():
    shape = b"".join(size.to_bytes(8, "little") for size in (2, 3, 1))
    label = bytes([len(labels.IMAGE_TAG)]) + labels.IMAGE_TAG
    expected = sorted(
        hmac.new(KEY, label + b"\x01" + shape + image.tobytes(), "sha256").digest()
        for image in PIXELS
    )
    assert as_list(tags_of(image_set(PIXELS), KEY)) == expected


def test_patients_have_tags_of_their_own():
    images = with_patients(image_set(PIXELS), list("abaab"), "here")
    label = bytes([len(labels.PATIENT_TAG)]) + labels.PATIENT_TAG
    patients = {hmac.digest(KEY, label + name, "sha256") for name in (b"a", b"b")}
    tags = set(as_list(tags_of(images, KEY)))
    assert tags == patients | set(as_list(tags_of(image_set(PIXELS), KEY)))
    assert len(tags) == 7


class TestTheSameImage:
    """Neither its file, nor the type of its values, nor its place matters."""

    @pytest.mark.parametrize(
        "kind", ["i8", ">u2", "f2", "f4", ">f8", "i2"], ids=lambda kind: kind
    )
    def test_in_another_type(self, kind):
        other = image_set(PIXELS.astype(kind))
        assert np.array_equal(tags_of(other, KEY), tags_of(image_set(PIXELS), KEY))

    @pytest.mark.parametrize("kind", ["f8", ">f4"])
    def test_of_real_values(self, kind):
        values = (PIXELS - np.float32(8)) / np.float32(16)
        other = values.astype(kind)
        other[values == 0] = -0.0
        assert np.array_equal(
            tags_of(image_set(values), KEY), tags_of(image_set(other), KEY)
        )

    def test_from_a_folder_and_from_an_array(self, tmp_path):
        (tmp_path / "images").mkdir()
        for number, pixels in enumerate(PIXELS[..., 0]):
            Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        np.savez(tmp_path / "data.npz", images=PIXELS[::-1, ..., 0])
        files = load_images(DataConfig(source="folder", path="images"), tmp_path)
        array = load_images(DataConfig(), tmp_path)
        assert np.array_equal(tags_of(files, KEY), tags_of(array, KEY))

    def test_order_copies_and_layout_in_memory(self):
        order = [3, 1, 4, 0, 2, 2, 1]
        strange = np.asfortranarray(PIXELS[order])
        assert np.array_equal(
            tags_of(image_set(strange), KEY), tags_of(image_set(PIXELS), KEY)
        )

    @pytest.mark.parametrize("kind", [np.uint8, np.float32])
    def test_in_blocks(self, monkeypatch, kind):
        whole = tags_of(image_set(PIXELS.astype(kind)), KEY)
        monkeypatch.setattr(silo.tags, "BLOCK_BYTES", 8 * 6 * 2)
        assert np.array_equal(tags_of(image_set(PIXELS.astype(kind)), KEY), whole)


@pytest.mark.parametrize(
    ("change", "num_common"),
    [
        (lambda pixels: pixels + 1, 0),
        (lambda pixels: pixels.reshape(5, 3, 2, 1), 0),
        (lambda pixels: pixels.repeat(3, axis=3), 0),
        (lambda pixels: pixels / 255, 1),  # All of the values are zero in one.
        (lambda pixels: pixels.astype(float) + 256, 0),
        (lambda pixels: pixels.astype(int) - 256, 0),
        (lambda pixels: pixels + 0.25, 0),
    ],
)
def test_another_image(change, num_common):
    pixels = PIXELS.copy()
    pixels[0] = 0
    ours, theirs = image_set(pixels), image_set(change(pixels))
    common = set(as_list(tags_of(ours, KEY))) & set(as_list(tags_of(theirs, KEY)))
    assert len(common) == num_common


def test_one_value_that_is_not_whole():
    pixels = PIXELS.astype(np.float32)
    pixels[:, 0, 0] += 0.25
    assert not has_common(
        tags_of(image_set(pixels), KEY), tags_of(image_set(PIXELS), KEY)
    )


def test_another_key():
    other = tags_of(image_set(PIXELS), bytes(32))
    assert not has_common(other, tags_of(image_set(PIXELS), KEY))
    assert key_digest(KEY) != key_digest(bytes(32))


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
@settings(max_examples=60, deadline=None)
def test_overlap_is_what_sets_say(first, second):
    def tags(numbers: set[int]) -> np.ndarray:
        # Tags that end in zeros: numpy's byte strings must not lose them.
        data = b"".join(sorted(bytes([n]) + bytes(31) for n in numbers))
        return np.unique(np.frombuffer(data, "S32"))

    assert has_common(tags(first), tags(second)) == bool(first & second)


class TestCommitment:
    def test_by_hand(self):
        tags = tags_of(image_set(PIXELS), KEY)
        label, tree = labels.LEDGER_COMMITMENT, MerkleTree(as_list(tags)).root()
        message = bytes([len(label)]) + label
        for part in (KEY, tree):
            message += len(part).to_bytes(8, "big") + part
        assert commitment(tags, KEY) == hashlib.sha256(message).digest()

    def test_hides_and_binds(self):
        tags = tags_of(image_set(PIXELS), KEY)
        assert commitment(tags, KEY) != commitment(tags, bytes(32))
        assert commitment(tags, KEY) != commitment(tags[1:], KEY)


class TestFiles:
    def test_tags(self, tmp_path):
        tags = tags_of(image_set(PIXELS), KEY)
        save_tags(tmp_path / "tags", tags)
        assert np.array_equal(load_tags(tmp_path / "tags"), tags)
        assert stat.S_IMODE((tmp_path / "tags").stat().st_mode) == 0o600

    @pytest.mark.parametrize("kept", [0, 5, 17, 16 + 33, -1])
    def test_tags_cut_off(self, tmp_path, kept):
        path = tmp_path / "tags"
        save_tags(path, tags_of(image_set(PIXELS), KEY))
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(StateBroken, match="is damaged"):
            load_tags(path)

    def test_the_key_is_made_once(self, tmp_path):
        key = load_or_make_key(tmp_path, may_make=True)
        assert len(key) == 32
        assert load_or_make_key(tmp_path, may_make=False) == key
        assert load_or_make_key(tmp_path, may_make=True) == key
        assert stat.S_IMODE((tmp_path / "tags.key").stat().st_mode) == 0o600

    def test_two_keys_differ(self, tmp_path):
        (tmp_path / "other").mkdir()
        first = load_or_make_key(tmp_path, may_make=True)
        assert load_or_make_key(tmp_path / "other", may_make=True) != first

    def test_a_lost_key_is_not_replaced(self, tmp_path):
        with pytest.raises(StateBroken, match=r"tags\.key: is missing"):
            load_or_make_key(tmp_path, may_make=False)
        assert not list(tmp_path.iterdir())

    def test_a_key_that_others_may_read(self, tmp_path):
        load_or_make_key(tmp_path, may_make=True)
        (tmp_path / "tags.key").chmod(0o644)
        with pytest.raises(KeyFileRejected, match="other users"):
            load_or_make_key(tmp_path, may_make=True)


def test_the_silo_itself_is_a_unit_whatever_its_images_are():
    key = bytes(32)
    images = [
        ImageSet(np.full((1, 2, 2, 1), value, np.uint8), (0.0, 255.0))
        for value in (1, 2)
    ]
    first, second = (tags_of(each, key) for each in images)
    assert not has_common(first, second)
    first, second = (tags_of(each, key, whole_silo=True) for each in images)
    assert has_common(first, second)
    assert len(first) == 2
