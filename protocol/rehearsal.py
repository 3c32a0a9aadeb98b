"""What ``cloister rehearse`` found: how much an aggregator could see of public images.

Written by ``simulation``, shown by ``audits``; the images in it are public ones.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from protocol.encoding import decode, encode, from_table, to_table
from protocol.errors import EncodingError, ProtocolError
from protocol.files import save_bytes
from protocol.settings import require

FORMAT = 1
MAX_REHEARSAL_BYTES = 1 << 26
MAX_DECIBEL = 1e4
"""Of a PSNR; float64 has no larger ones."""

Held = Literal[
    "plain update", "masked update", "encrypted update", "mean", "mean under DP"
]
"""What an aggregator may hold."""

Tested = Literal["masked", "not masked", "encrypted", "not encrypted"]
"""Words that are tested: hidden, or as a control the same before they were hidden."""

Setting = Literal["worst case", "the plan's own"]
"""One example and one step in every silo; or as many as the plan says."""


class RehearsalRejected(ProtocolError):
    """The file is no rehearsal."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What one thing that an aggregator may hold gives away.

    ``psnr`` has a value in dB for each image that was looked for (at most 99),
    ``psnr_guess`` the same for the best guess without looking (the mean of public
    images that nobody trained on); ``picture`` is a PNG in base64, originals above,
    reconstructions below, in the order of ``psnr``. ``num_examples`` and ``num_steps``
    are those of one silo. ``known`` says what the attacker is granted, ``mismatch`` how
    far what it found is from explaining what it held: 1 - cosine, 0 if it is explained
    wholly.
    """

    name: Held
    explanation: str
    num_examples: int
    num_steps: int
    psnr: tuple[float, ...]
    psnr_guess: tuple[float, ...]
    picture: str
    setting: Setting = "worst case"
    known: str = ""
    mismatch: float = 1.0

    def __post_init__(self) -> None:
        """Check that the figures can be."""
        require(
            all(abs(value) <= MAX_DECIBEL for value in (*self.psnr, *self.psnr_guess)),
            f"psnr, psnr_guess: must be within {MAX_DECIBEL:g} dB",
        )
        require(abs(self.mismatch) <= 2, "mismatch: must be 1 - cosine, 0 to 2")


@dataclass(frozen=True, kw_only=True)
class Uniformity:
    """A statistical test of words against the uniform law.

    ``words`` says of which: those that were masked, or the bytes of ciphertexts, or as
    a control the same before the masks were added or they were encrypted, which must
    fail.
    """

    test: str
    num_values: int
    statistic: float
    p_value: float
    words: Tested = "masked"


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """One rehearsed round of one plan, on public images.

    ``plan`` is the plan's name, ``digest`` the digest of a signed plan ("" for a
    draft). ``warnings`` are for whoever reads the pictures.
    """

    format: int
    plan: str
    software: str
    images: str
    attack: str
    seed: int
    views: tuple[View, ...]
    uniformity: tuple[Uniformity, ...]
    digest: str = ""
    num_silos: int = 0
    is_quick: bool = False
    warnings: tuple[str, ...] = ()


def save_rehearsal(path: Path, rehearsal: Rehearsal) -> None:
    """Write a rehearsal as canonical JSON, whole or not at all."""
    save_bytes(path, encode(to_table(rehearsal)))


def load_rehearsal(path: Path) -> Rehearsal:
    """Return a rehearsal.

    Raises:
        RehearsalRejected: too large or malformed, or of another format.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_REHEARSAL_BYTES + 1)
    try:
        if len(data) > MAX_REHEARSAL_BYTES:
            raise EncodingError("too large")
        rehearsal: Rehearsal = from_table(Rehearsal, decode(data))
        if rehearsal.format != FORMAT:
            raise EncodingError(f"format {rehearsal.format}, this is for {FORMAT}")
    except (EncodingError, ValueError, json.JSONDecodeError) as error:
        raise RehearsalRejected(f"{path.name}: {error}") from None
    return rehearsal
