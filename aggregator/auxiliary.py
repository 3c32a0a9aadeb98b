"""The one door through which images come to the aggregator: each with its label.

"public", "aggregate", "silo-samples" or "silo-models" (docs/calibration.md); nothing
else is taken in. They are made once, kept whole in the run's folder, and recorded there
by their digest; a run that is resumed uses those.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aggregator.errors import CohortTooSmall, ConfigRejected, StateBroken
from aggregator.exchanges import Exchanges, Stage
from aggregator.state import RoundState
from crypto.encoding import BytesLike
from crypto.errors import MalformedMessage
from crypto.frame import OVERHEAD_BYTES
from diffusion.checkpoint import Checkpoint
from diffusion.config import UNetConfig
from diffusion.errors import DiffusionError
from diffusion.images import to_8_bit
from diffusion.model import make_model
from diffusion.parameters import (
    load_safetensors,
    make_layout,
    save_safetensors,
    unflatten,
)
from diffusion.parts import SELECTIONS
from protocol.auxiliary import (
    MAX_TABLE_BYTES,
    STAGE,
    AuxiliaryReply,
    AuxiliaryRequest,
    content_bytes,
    samples_per_silo,
)
from protocol.bodies import floats_from_bytes
from protocol.calibration_settings import MAX_IMAGES, AuxiliaryLabel
from protocol.envelope import Kind, open_envelope
from protocol.model_records import AuxiliaryImages, AuxiliarySent
from protocol.plan import RunPlan

IMAGES_FILE = "auxiliary.safetensors"
_PIXELS, _ABOUT = "pixels", "about"
Pixels = npt.NDArray[np.uint8]
ARRAY_NAMES = ("images", "train", "train_images", "x_train")
BYTE_RANGE = (0.0, 255.0)


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Auxiliary images, 8-bit ``[n, h, w, c]``, with where they come from.

    The other fields are those of the record
    (:class:`protocol.model_records.AuxiliaryImages`).

    Raises:
        ValueError: the label is unknown, or there are no images.
    """

    label: str
    pixels: Pixels = field(repr=False)
    name: str = ""
    source: str = ""
    source_round: int = 0
    silos: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Take in nothing without a label."""
        if self.label not in get_args(AuxiliaryLabel):
            raise ValueError(f"label: {self.label!r} is not known")
        if (
            self.pixels.dtype != np.uint8
            or self.pixels.ndim != 4
            or not self.pixels.size
        ):
            raise ValueError("pixels: must be 8-bit [n, h, w, c], at least one image")

    def tensor(self) -> Tensor:
        """Return the images as float32 ``[n, c, h, w]`` in [-1, 1]."""
        pixels = torch.from_numpy(self.pixels).permute(0, 3, 1, 2).contiguous()
        return pixels.float() / 127.5 - 1.0

    def record(self) -> AuxiliaryImages:
        """Return what the transcript says of them."""
        digest = hashlib.sha256(struct.pack(">4Q", *self.pixels.shape))
        digest.update(np.ascontiguousarray(self.pixels).data)
        return AuxiliaryImages(
            label=self.label,
            num_images=len(self.pixels),
            digest=digest.hexdigest(),
            name=self.name,
            source=self.source,
            source_round=self.source_round,
            silos=self.silos,
        )


def save_images(folder: Path, images: LabelledImages) -> None:
    """Keep the images in a run's folder, whole or not at all."""
    record = images.record()
    about = {
        "digest": record.digest,
        "label": images.label,
        "name": images.name,
        "source": images.source,
        "source_round": images.source_round,
        "silos": images.silos,
    }
    pixels = {_PIXELS: torch.from_numpy(np.ascontiguousarray(images.pixels))}
    save_safetensors(folder / IMAGES_FILE, pixels, {_ABOUT: json.dumps(about)})


def load_images(folder: Path) -> LabelledImages | None:
    """Return the images that a run's folder keeps, if it does.

    Raises:
        StateBroken: the file is damaged.
    """
    path = folder / IMAGES_FILE
    if not path.exists():
        return None
    try:
        tensors, texts = load_safetensors(path)
        about = json.loads(texts[_ABOUT])
        digest, silos = about.pop("digest"), tuple(about.pop("silos"))
        pixels = tensors[_PIXELS].numpy()
        images = LabelledImages(pixels=pixels, silos=silos, **about)
    except (DiffusionError, KeyError, TypeError, ValueError, OSError) as error:
        raise StateBroken(f"{path}: is damaged: {error}") from None
    if images.record().digest != digest:
        raise StateBroken(f"{path}: is damaged; restore it from a backup")
    return images


def public_images(plan: RunPlan, path: Path | None) -> LabelledImages:
    """Return the public images of a plan, from the aggregator's file.

    The file is an .npz as :func:`labelled_file` reads it, of values from 0 to 255.

    Raises:
        ConfigRejected: missing, another file than the plan's, or of another shape.
    """
    wanted = plan.calibration.sha256
    if path is None or not path.is_file():
        raise ConfigRejected(
            f"the plan trains on {plan.calibration.name}, a file of SHA-256 {wanted}: "
            f"give it with --auxiliary{f' ({path} is no file)' if path else ''}"
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise ConfigRejected(f"{path}: has SHA-256 {found}, the plan says {wanted}")
    name = plan.calibration.name
    return labelled_file(path, plan.model, BYTE_RANGE, name=name, source=found)


def check_auxiliary(plan: RunPlan, path: Path | None) -> None:
    """Look at the file of public images, where a plan names one, before a run begins.

    Raises:
        ConfigRejected: see :func:`public_images`.
    """
    if plan.calibration.is_on and plan.calibration.images == "public":
        public_images(plan, path)


def labelled_file(
    path: Path,
    model: UNetConfig,
    value_range: tuple[float, float],
    *,
    name: str,
    source: str = "",
) -> LabelledImages:
    """Return the images of an .npz file that its operator says may be seen by all.

    Args:
        path: holds numbers ``[n, h, w]`` or ``[n, h, w, c]`` in one of
            :data:`ARRAY_NAMES`; the aggregator decodes no picture.
        model: what they are for: their channels and size must be its.
        value_range: what is black and white; kept are 8 bits of it.
        name: what the images are.
        source: the SHA-256 of the file, where a plan says it.

    Raises:
        ConfigRejected: unreadable, of another shape, too many, or values outside the
            range.
    """
    low, high = value_range
    if not -math.inf < low < high < math.inf:
        raise ConfigRejected("value range: must be two numbers, the smaller first")
    pixels, array = _read_npz(path)
    wanted = (model.image_size, model.image_size, model.channels)
    fits = pixels.ndim == 4 and pixels.shape[1:] == wanted
    if not fits or not 1 <= len(pixels) <= MAX_IMAGES:
        raise ConfigRejected(
            f"{path}: array {array} has shape {pixels.shape}, the plan's model takes "
            f"(n, {', '.join(map(str, wanted))}), n from 1 to {MAX_IMAGES:,}"
        )
    if pixels.dtype.kind not in "uif" or not (
        low <= float(pixels.min()) and float(pixels.max()) <= high
    ):
        raise ConfigRejected(
            f"{path}: array {array} holds values outside [{low:g}, {high:g}]"
        )
    if pixels.dtype != np.uint8 or value_range != BYTE_RANGE:
        shares = (pixels.astype(np.float32) - low) / (high - low)
        pixels = np.rint(255 * shares).astype(np.uint8)
    return LabelledImages(label="public", pixels=pixels, name=name, source=source)


def _read_npz(path: Path) -> tuple[npt.NDArray[Any], str]:
    """Return the images of an .npz file with a channel axis, and their array's name."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            name = next((each for each in ARRAY_NAMES if each in file), "")
            pixels = np.asarray(file[name]) if name else None
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise ConfigRejected(f"{path}: {reason}") from None
    except Exception:
        # A damaged archive raises whatever zipfile, zlib or numpy meet first.
        raise ConfigRejected(f"{path}: is not a readable .npz file") from None
    if pixels is None:
        raise ConfigRejected(
            f"{path}: holds none of the arrays {', '.join(ARRAY_NAMES)}"
        )
    return (pixels[..., np.newaxis] if pixels.ndim == 3 else pixels), name


def sampled_images(
    plan: RunPlan, state: RoundState, *, device: torch.device
) -> LabelledImages:
    """Return samples of the global model after a round, of its moving average.

    Whoever has the model can draw them: they reveal nothing new.
    """
    checkpoint = _checkpoint(plan, state.average.parameters)
    drawn = checkpoint.images(
        seed=plan.seed_for("auxiliary-images"),
        count=plan.calibration.num_images,
        device=device,
    )
    number = state.round_number
    return LabelledImages(
        label="aggregate", pixels=to_8_bit(drawn), source_round=number
    )


def images_of_silos(
    plan: RunPlan, exchanges: Exchanges, *, device: torch.device
) -> LabelledImages:
    """Ask each silo for its own model, or samples of it; return the images.

    A model is sampled when it arrives and is then let go; it is never stored. A silo
    that does not answer is left out and recorded as dropped.

    Raises:
        CohortTooSmall: fewer silos than the smallest cohort gave something.
    """
    layout = make_layout(make_model(plan.model, 0), SELECTIONS["full"])
    label, model = plan.calibration.images, plan.model
    counts, given = samples_per_silo(plan), {}

    def take(silo: int, reply: BytesLike) -> int:
        _, body = open_envelope(plan, reply, sender=silo, kinds=(Kind.AUXILIARY_SENT,))
        sent = AuxiliaryReply.from_body(body)
        expected = content_bytes(plan, silo, layout.size)
        if sent.label != label or len(sent.content) != expected:
            raise MalformedMessage(
                f"{sent.label} of {len(sent.content):,} bytes, not {label} of "
                f"{expected:,}"
            )
        if label == "silo-models":
            parameters = unflatten(floats_from_bytes(sent.content, layout.size), layout)
            drawn = _checkpoint(plan, parameters).images(
                seed=plan.seed_for("auxiliary-images", silo),
                count=counts[silo],
                device=device,
            )
            if not bool(drawn.isfinite().all()):
                raise MalformedMessage("a model whose samples are not finite")
            given[silo] = to_8_bit(drawn)
        else:
            shape = (counts[silo], model.image_size, model.image_size, model.channels)
            given[silo] = np.frombuffer(bytes(sent.content), np.uint8).reshape(shape)
        exchanges.transcript.append(
            AuxiliarySent(
                silo=plan.silos[silo].name,
                label=sent.label,
                upload=hashlib.sha256(reply).hexdigest(),
                size_bytes=len(reply),
            )
        )
        return 0

    everyone = range(len(plan.silos))
    most = max(content_bytes(plan, silo, layout.size) for silo in everyone)
    stage = Stage(
        name=STAGE,
        round_number=0,
        deadline_seconds=plan.deadlines.training_seconds,
        max_reply_bytes=most + OVERHEAD_BYTES + MAX_TABLE_BYTES,
    )
    body = AuxiliaryRequest(label=label).to_body()
    request = exchanges.envelope(Kind.AUXILIARY, body, setup=0, slot=0)
    answered = exchanges.ask(stage, dict.fromkeys(everyone, request), take)
    if len(answered) < plan.protection.min_cohort:
        raise CohortTooSmall(
            f"{len(answered)} silos gave auxiliary images, the smallest cohort is "
            f"{plan.protection.min_cohort}"
        )
    return LabelledImages(
        label=label,
        pixels=np.concatenate([given[silo] for silo in answered]),
        silos=exchanges.names(answered),
    )


def _checkpoint(plan: RunPlan, parameters: Mapping[str, Tensor]) -> Checkpoint:
    """Return parameters as a model that can be sampled from."""
    return Checkpoint(
        model=plan.model,
        schedule=plan.schedule,
        sampler=plan.evaluation.sampler,
        parameters=parameters,
    )
