"""Which timesteps and noise an image was trained with: what an attacker may know.

Without a privacy mechanism they are no secret: they follow from the plan's seed, the
silo and the round (``silo.training``), so that whoever has the plan and knows how many
images a silo has can draw them again. DP-SGD draws in secret; there the attacker is
told all the same, of the first step.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from silo.per_example import Draws, default_engine
from silo.private_training import Drawing, multiplicity_of
from silo.training import batches, num_local_steps, told_labels
from simulation.inversion import Clues
from simulation.rehearsed_round import CPU, RehearsedRound
from simulation.rehearsed_sum import ROUND

MAX_DRAWS = 4
"""The most draws of one image that an attack reckons with."""


@dataclass(frozen=True)
class Sought:
    """Images of one silo ``[n, c, h, w]``, and their draws ``[n, k]``."""

    images: Tensor
    draws: Draws


def sought_of(part: RehearsedRound, silo: int, count: int) -> Sought:
    """Return the first images that a silo trained with, and their draws."""
    if part.plan.privacy.mechanism in ("dp-sgd", "record-distributed"):
        return _privately(part, silo, count)
    return _openly(part, silo, count)


def _openly(part: RehearsedRound, silo: int, count: int) -> Sought:
    """Draw again what :func:`silo.training.train` draws, from the plan's seed."""
    plan, images = part.plan, part.shares[silo]
    seed = plan.seed_for("training", silo, ROUND)
    generator = torch.Generator().manual_seed(seed)
    chosen = batches(
        len(images), plan.training.examples_per_step, np.random.default_rng(seed)
    )
    found: dict[int, list[tuple[Tensor, ...]]] = {}
    for _ in range(num_local_steps(plan, len(images))):
        indices = next(chosen)
        x_0 = images.batch(indices)
        t = torch.randint(part.schedule.num_timesteps, (len(x_0),), generator=generator)
        noise = torch.randn(x_0.shape, generator=generator)
        labels = told_labels(images, indices, plan, generator)
        for place, index in enumerate(indices.tolist()):
            if len(found) >= count and index not in found:
                continue
            tensors = (t, noise) if labels is None else (t, noise, labels)
            drawn = found.setdefault(index, [])
            if len(drawn) < MAX_DRAWS:
                drawn.append(tuple(values[place] for values in tensors))
    return _padded(images.batch(np.fromiter(found, np.int64)), list(found.values()))


def _padded(images: Tensor, drawn: list[list[tuple[Tensor, ...]]]) -> Sought:
    """Return draws of several images, filled up with copies of weight 0."""
    most = max(map(len, drawn))
    weights = torch.zeros(len(drawn), most)
    rows = []
    for index, mine in enumerate(drawn):
        weights[index, : len(mine)] = 1 / len(mine)
        rows.append(mine + [mine[-1]] * (most - len(mine)))
    t, noise, *labels = (
        torch.stack([torch.stack([draw[which] for draw in row]) for row in rows])
        for which in range(len(drawn[0][0]))
    )
    x_0 = images[:, None].expand_as(noise)
    return Sought(images, Draws(x_0, t, noise, weights, *labels))


def _privately(part: RehearsedRound, silo: int, count: int) -> Sought:
    """Draw again what the mechanism draws in its first step, from the debugging seed.

    Where that step has nobody in its sample, the silo's first image is sought.
    """
    plan, images, units = part.plan, part.shares[silo], part.units(silo)
    random, multiplicity = part.random(silo), multiplicity_of(plan, CPU)
    draw = Drawing(images, units, plan, multiplicity, part.schedule, CPU, random)
    drawn = random.poisson_sample(len(units), plan.privacy.sample_rate)
    drawn = drawn if drawn.size else np.arange(1)
    if plan.privacy.is_in_sum:
        each = [draw(unit[None]).tensors for unit in drawn[:count]]
        draws = Draws(*(torch.cat(values) for values in zip(*each, strict=True)))
    else:
        num_pixels = images.pixels[0].size
        engine = default_engine(part.model, num_pixels, multiplicity)
        draws = draw(drawn[: engine.chunk_size]).part(0, count)
    keep = min(MAX_DRAWS, multiplicity)
    cut = Draws(*(values[:, :keep] for values in draws.tensors))
    return Sought(cut.x_0[:, 0], cut)


def clues_of(sought: list[Sought]) -> Clues:
    """Return what the attacker is told of some silos' draws.

    Silos may differ in how many images of theirs are sought, and in how many draws each
    has: to as many as all have.
    """
    n = min(len(each.images) for each in sought)
    k = min(each.draws.t.shape[1] for each in sought)
    parts = [[values[:n, :k] for values in each.draws.tensors[1:]] for each in sought]
    t, noise, weights, *labels = (
        torch.stack(values) for values in zip(*parts, strict=True)
    )
    weights = weights / weights.sum(dim=2, keepdim=True)
    return Clues(t, weights, noise, *labels)


def images_of(sought: list[Sought]) -> Tensor:
    """Return the images that :func:`clues_of` is about, ``[m · n, c, h, w]``."""
    n = min(len(each.images) for each in sought)
    return torch.cat([each.images[:n] for each in sought])
