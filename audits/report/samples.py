"""A grid of samples, shown in a report as it was given."""

import base64
import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from audits.errors import UnreadableSamples

MAX_SAMPLES_BYTES = 8 << 20
PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


@dataclass(frozen=True)
class Samples:
    """A PNG image of samples, its size in pixels with it."""

    data: bytes
    width: int
    height: int

    @property
    def digest(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.data).decode()

    def to_table(self) -> dict[str, object]:
        """Return what names the image, without its pixels."""
        return {"sha256": self.digest, "width": self.width, "height": self.height}


def load_samples(path: Path) -> Samples:
    """Return the image of a file.

    Raises:
        UnreadableSamples: unreadable, larger than 8 MiB, or no PNG image.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SAMPLES_BYTES + 1)
    except OSError as error:
        raise UnreadableSamples(f"{path}: {error.strerror}") from None
    return _checked(data, str(path))


def picture_of(text: str, where: str) -> Samples:
    """Return the PNG image that a file holds in base64.

    Raises:
        UnreadableSamples: no base64, larger than 8 MiB, or no PNG image.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise UnreadableSamples(f"{where}: the picture is not base64") from None
    return _checked(data, where)


def _checked(data: bytes, path: str) -> Samples:
    """Return a picture whose beginning is that of a PNG image of possible size."""
    if len(data) > MAX_SAMPLES_BYTES:
        raise UnreadableSamples(f"{path}: larger than {MAX_SAMPLES_BYTES:,} bytes")
    if not data.startswith(PNG_START) or len(data) < 24:
        raise UnreadableSamples(f"{path}: not a PNG image")
    width, height = struct.unpack(">II", data[16:24])
    if not (0 < width < 1 << 16 and 0 < height < 1 << 16):
        raise UnreadableSamples(f"{path}: {width} × {height} pixels cannot be shown")
    return Samples(data, width, height)
