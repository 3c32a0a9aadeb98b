"""Keyed tags of a silo's privacy units: which data sets overlap, without keeping them.

A tag is HMAC-SHA-256 under a key that never leaves the silo: one for each image, over
its decoded pixels, and one for each patient, where patients are known, over the
identifier. Two data sets overlap if they share a tag.

An image is the same whatever file it came from and whatever type its values had in
memory, as long as every value is the same number; so are copies of it in one data set.
NOT recognised are images that were changed by even one value: encoded again with loss,
scaled, cropped, turned, brought to another range (0 … 1 instead of 0 … 255) or from
grey to colour. Without patients' identifiers, such copies open an account of their own.
"""

import hmac
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from crypto import labels
from crypto.encoding import digest
from crypto.merkle import MerkleTree
from protocol.files import load_secret, parse_key, save_secret
from silo.data import ImageSet
from silo.errors import StateBroken

TAG_BYTES = 32
KEY_FILE = "tags.key"
FILE_HEADER = b"cloister tags 1\n"
BLOCK_BYTES = 1 << 24
"""Bytes of pixels that are brought to one form at a time."""

Tags: TypeAlias = npt.NDArray[np.bytes_]
"""``[m]`` of type ``S32``, sorted, no tag twice."""


def tags_of(images: ImageSet, key: bytes, *, whole_silo: bool = False) -> Tags:
    """Return the tags of all images and, where they are known, of all patients.

    With ``whole_silo`` there is one more, always the same: the silo itself is the unit,
    whatever its images are.

    Guarantees: the result depends on the set of images and patients only, not on their
    order, number of copies, or the type of their values. Patients and images never
    share a tag (domain separation); to anybody without the key the tags are random.
    """
    found = bytearray()
    for prefix, pixels in _canonical(images.pixels):
        found += hmac.digest(key, prefix + pixels, "sha256")
    prefix = _prefix(labels.PATIENT_TAG)
    for name in images.patient_names:
        found += hmac.digest(key, prefix + name.encode(), "sha256")
    if whole_silo:
        found += hmac.digest(key, _prefix(labels.SILO_TAG), "sha256")
    return np.unique(np.frombuffer(bytes(found), dtype=f"S{TAG_BYTES}"))


def has_common(first: Tags, second: Tags) -> bool:
    """Return whether two sorted sets of tags share one, in O(m log n)."""
    small, large = sorted((first, second), key=len)
    places = np.searchsorted(large, small)
    inside = places < len(large)
    return bool(np.any(large[places[inside]] == small[inside]))


def commitment(tags: Tags, nonce: bytes) -> bytes:
    """Return what may leave the silo: a digest of 32 random bytes and the tags' root.

    Guarantees: binding (another set of tags has another commitment, under collision
    resistance of SHA-256) and hiding: without the nonce it tells neither the tags nor
    their number, nor whether two ledgers have the same.

    Source: the root is that of RFC 6962, section 2.1, over the sorted tags.
    """
    data, tree = tags.tobytes(), MerkleTree()
    for start in range(0, len(data), TAG_BYTES):
        tree.append(data[start : start + TAG_BYTES])
    return digest(labels.LEDGER_COMMITMENT, nonce, tree.root())


def save_tags(path: Path, tags: Tags) -> None:
    """Write the tags, whole or not at all, readable by their owner alone."""
    save_secret(path, FILE_HEADER + tags.tobytes())


def load_tags(path: Path) -> Tags:
    """Return the tags of a file.

    Raises:
        StateBroken: cut off, or not such a file.
        KeyFileRejected: missing, or others may read it.
    """
    data = load_secret(path)
    body = data[len(FILE_HEADER) :]
    if not data.startswith(FILE_HEADER) or len(body) % TAG_BYTES:
        raise StateBroken(f"{path}: is damaged, or holds no tags")
    return np.frombuffer(body, dtype=f"S{TAG_BYTES}")


def load_or_make_key(folder: Path, *, may_make: bool) -> bytes:
    """Return the key of the tags, made once from the operating system's randomness.

    Only who holds the folder alone may call this.

    Args:
        may_make: whether there is no ledger yet that another key would not recognise.

    Raises:
        StateBroken: the key is missing and must not be made.
        KeyFileRejected: malformed, or others may read it.
    """
    path = folder / KEY_FILE
    if not path.exists():
        if not may_make:
            raise StateBroken(
                f"{path}: is missing; without it no earlier ledger is recognised, "
                "restore it from a backup"
            )
        save_secret(path, os.urandom(TAG_BYTES).hex().encode() + b"\n")
    return parse_key(load_secret(path).decode(errors="replace"), str(path))


def key_digest(key: bytes) -> str:
    """Return in hexadecimal what tells one key from another without telling it."""
    return digest(labels.TAG_KEY, key).hex()


def _canonical(pixels: npt.NDArray[Any]) -> Iterator[tuple[bytes, bytes]]:
    """Yield for each image what stands for it: shape and type, and its values.

    Values that are all whole numbers from 0 to 255 are one byte each, others are
    little-endian float64: each number has one form, whatever type it is kept in.
    """
    shape = np.array(pixels.shape[1:], dtype="<u8").tobytes()
    narrow = _prefix(labels.IMAGE_TAG) + b"\x01" + shape
    wide = _prefix(labels.IMAGE_TAG) + b"\x08" + shape
    size = max(1, BLOCK_BYTES // max(1, 8 * pixels[:1].size))
    axes = tuple(range(1, pixels.ndim))
    for start in range(0, len(pixels), size):
        block = pixels[start : start + size]
        if block.dtype == np.uint8:
            yield from ((narrow, image.tobytes()) for image in block)
            continue
        values = block.astype("<f8") + 0.0  # -0.0 becomes 0.0.
        small = np.clip(values, 0, 255).astype(np.uint8)
        fits = (small == values).all(axis=axes)
        for is_narrow, low, high in zip(fits, small, values, strict=True):
            yield (narrow, low.tobytes()) if is_narrow else (wide, high.tobytes())


def _prefix(label: bytes) -> bytes:
    """Return a label preceded by its length."""
    return bytes([len(label)]) + label
