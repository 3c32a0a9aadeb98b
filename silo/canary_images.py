"""Images of noise as canaries: planted among a silo's own, found again by their loss.

Each is uniform noise in the range of the silo's images, with a label by lot where the
plan has classes; a coin decides whether it is trained on. They are the only canaries
without differential privacy. With it each is one more privacy unit, an image or a
patient of its own, drawn and clipped like any other.

They are weak, and they change what is trained: half of them are in the training set.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from diffusion.checkpoint import Checkpoint
from diffusion.loss import denoising_loss
from diffusion.model import make_model
from diffusion.parameters import load_parameters
from diffusion.schedule import make_schedule
from protocol.canaries import canary_stream, draw_included
from protocol.plan import PlanDraft
from silo.data import ImageSet

NUM_DRAWS = 16
"""Pairs of timestep and noise over which a loss is averaged; the same for all."""

MAX_LOSS = 1e6
"""Stands for a loss that is larger, or no number: a record holds finite ones."""

BLOCK = 64
PATIENT = "canary"


def canary_images(
    seed: bytes, num_canaries: int, images: ImageSet, num_classes: int
) -> ImageSet:
    """Return all canaries of a seed, included or not, in the form of a silo's images.

    Guarantees: a function of the seed, and of shape, type, range of the silo's images
    and the presence of labels and patients, not of any image.

    Args:
        num_classes: of the plan; labels are 0 where it has none.
    """
    stream = canary_stream(seed, "images")
    shape = (num_canaries, *images.pixels.shape[1:])
    size = int(np.prod(shape))
    words = np.frombuffer(stream.draw(4 * size), "<u4").reshape(shape)
    pixels = _in_range(words / 2.0**32, images)
    drawn = np.frombuffer(stream.draw(8 * num_canaries), "<u8")
    labels = (drawn % max(1, num_classes)).astype(np.int64)
    return ImageSet(
        pixels,
        images.value_range,
        labels if images.labels is not None else None,
        class_names=images.class_names,
    )


def with_canaries(
    images: ImageSet, seed: bytes, num_canaries: int, num_classes: int
) -> ImageSet:
    """Return a silo's images with the included canaries behind them."""
    made = canary_images(seed, num_canaries, images, num_classes)
    chosen = np.flatnonzero(draw_included(seed, num_canaries))
    labels = None
    if images.labels is not None and made.labels is not None:
        labels = np.concatenate((images.labels, made.labels[chosen]))
    both = replace(
        images,
        pixels=np.concatenate((images.pixels, made.pixels[chosen])),
        labels=labels,
    )
    if images.patients is None:
        return both
    first = len(images.patient_names)
    own = first + np.arange(len(chosen))
    return replace(
        both,
        patients=np.concatenate((images.patients, own)),
        patient_names=(
            *images.patient_names,
            *(f"{PATIENT} {seed.hex()} {number}" for number in chosen),
        ),
    )


def image_scores(
    checkpoint: Checkpoint,
    plan: PlanDraft,
    seed: bytes,
    canaries: ImageSet,
    device: torch.device,
) -> tuple[float, ...]:
    """Return minus each canary's mean loss under a model: the higher, the likelier in.

    All are compared over the same 16 timesteps and noises, which follow from the seed;
    the timesteps lie evenly between the least and the most noisy one.
    """
    network = make_model(checkpoint.model, 0)
    load_parameters(network, checkpoint.parameters)
    network.to(device).eval()
    schedule = make_schedule(checkpoint.schedule).to(device)
    first = int.from_bytes(seed[:7], "big")
    generator = torch.Generator().manual_seed(first)
    places = (torch.arange(NUM_DRAWS) + 0.5) / NUM_DRAWS
    timesteps = (places * schedule.num_timesteps).long().tolist()
    size, channels = plan.model.image_size, plan.model.channels
    noises = torch.randn((NUM_DRAWS, channels, size, size), generator=generator)
    scores: list[float] = []
    for start in range(0, len(canaries), BLOCK):
        indices = np.arange(start, min(start + BLOCK, len(canaries)))
        x_0 = canaries.batch(indices).to(device)
        labels = None
        if plan.model.num_classes:
            labels = canaries.labels_of(indices).to(device)
        total = torch.zeros(len(indices), dtype=torch.float64)
        for timestep, noise in zip(timesteps, noises, strict=True):
            with torch.no_grad():
                losses = denoising_loss(
                    network,
                    x_0,
                    torch.full((len(indices),), timestep, device=device),
                    noise.to(device).expand_as(x_0),
                    schedule,
                    plan.training.loss,
                    labels,
                )
            total += losses.double().cpu()
        means = (total / NUM_DRAWS).nan_to_num(nan=MAX_LOSS).clamp(max=MAX_LOSS)
        scores += (-means).tolist()
    return tuple(scores)


def _in_range(
    shares: npt.NDArray[np.float64], images: ImageSet
) -> npt.NDArray[np.generic]:
    """Return shares of 1 as values of the images' range and type."""
    low, high = images.value_range
    if images.pixels.dtype.kind in "ui":
        return (low + np.floor(shares * (high - low + 1))).astype(images.pixels.dtype)
    return (low + shares * (high - low)).astype(images.pixels.dtype)
