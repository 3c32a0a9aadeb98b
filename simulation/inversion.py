"""Gradient inversion of a diffusion model: images from what training them changed.

The attacker knows the model that a round began with. It looks for images whose gradient
points where the update points (gradient matching with the cosine, Geiping et al. 2020;
for diffusion models GIDM, Huang et al. 2024, arXiv 2405.20380), with total variation as
its only idea of what images look like.

Adam's first step is -rate · g / (|g| + tiny): of each value of the gradient little but
the sign is left. It is matched by g / (|g| + s), with s a tenth of the median of |g|:
nearly the sign, but with a slope to follow.

Everything here favours the attacker: it is told which draws an image was trained with,
where that is public, and how many images there are.
"""

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from diffusion.config import LossKind
from diffusion.loss import denoising_loss
from diffusion.parameters import ParameterLayout, parameters_of
from diffusion.parts import DenoisingNetwork
from diffusion.schedule import Schedule
from diffusion.time_embedding import TimeEmbedding, sinusoidal_embedding

STEP = 0.1
SHARPNESS = 0.1
TOTAL_VARIATION = 1e-5
START_SPREAD = 0.3
TINY = 1e-20

Rule = Literal["adam", "gradient"]
"""What an update is: a step of Adam with fresh moments, or minus the gradient."""


@dataclass(frozen=True)
class Clues:
    """What the attacker knows of the draws that images were trained with.

    m silos, n images in each, k draws of timestep and noise for each. ``weights``
    ``[m, n, k]`` sum to 1 for every image; 0 marks padding. ``noise``
    ``[m, n, k, c, h, w]`` is None where it is looked for, too.
    """

    t: Tensor
    weights: Tensor
    noise: Tensor | None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Held:
    """What the attacker holds, and the model that the round began with.

    ``updates`` float32 ``[m, d]`` are those of m silos, each attacked by itself; or
    ``[1, d]``, one that holds what all silos of the clues have sent: a mean.
    """

    model: DenoisingNetwork
    layout: ParameterLayout
    schedule: Schedule
    loss: LossKind
    updates: Tensor
    rule: Rule = "adam"


@dataclass(frozen=True)
class Found:
    """Images ``[m, n, c, h, w]`` in [-1, 1], and 1 - cosine of what they explain.

    ``noise`` is that of the clues, or what was found; ``mismatch`` has a value for each
    update that was held.
    """

    images: Tensor
    noise: Tensor
    mismatch: Tensor


def invert(
    held: Held,
    clues: Clues,
    shape: tuple[int, ...],
    *,
    seed: int,
    iterations: int,
    restarts: int,
) -> Found:
    """Look for the images behind updates; return those that explain each best.

    Of several short attempts, the first from grey images, the others from random ones,
    the best is followed to its end; with ``restarts`` 1 it is the grey one. Every other
    one from random images lets the noise move at first, although it is known: that
    leads around local minima.

    Args:
        shape: of one image, ``[c, h, w]``.
        seed: where attempts begin follows from it.
    """
    generator = torch.Generator().manual_seed(seed)
    objective = _Objective(held, clues)
    best = _begun(clues, shape, generator, 0.0, len(held.updates))
    short = iterations // 3
    if restarts > 1:
        best = _descend(objective, clues, best, short)
    for number in range(restarts - 1):
        start = _begun(clues, shape, generator, START_SPREAD, len(held.updates))
        if clues.noise is not None and number % 2 == 0:
            freed = _descend(objective, replace(clues, noise=None), start, short)
            start = replace(freed, noise=clues.noise)
        best = _better(best, _descend(objective, clues, start, short))
    return _descend(objective, clues, best, iterations)


def _begun(
    clues: Clues,
    shape: tuple[int, ...],
    generator: torch.Generator,
    spread: float,
    num_updates: int,
) -> Found:
    """Return where an attempt begins."""
    m, n, k = clues.t.shape
    images = torch.randn((m, n, *shape), generator=generator).mul_(spread)
    noise = clues.noise
    if noise is None:
        noise = torch.randn((m, n, k, *shape), generator=generator).mul_(START_SPREAD)
    return Found(images.clamp_(-1.0, 1.0), noise, torch.full((num_updates,), 2.0))


def _better(one: Found, other: Found) -> Found:
    """Return of each update the images that explain it better."""
    is_better = other.mismatch < one.mismatch  # [updates]
    rows = is_better.expand(len(one.images))

    def chosen(of_one: Tensor, of_other: Tensor) -> Tensor:
        return torch.where(
            rows.reshape(-1, *[1] * (of_one.dim() - 1)), of_other, of_one
        )

    return Found(
        chosen(one.images, other.images),
        chosen(one.noise, other.noise),
        torch.where(is_better, other.mismatch, one.mismatch),
    )


def _descend(
    objective: "_Objective", clues: Clues, start: Found, iterations: int
) -> Found:
    """Descend, by Adam on the images, and on the noise where it is unknown."""
    images, noise = start.images.clone().requires_grad_(), start.noise.clone()
    unknowns = [images]
    if clues.noise is None:
        unknowns.append(noise.requires_grad_())
    optimizer = torch.optim.Adam(unknowns, lr=STEP)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, iterations))
    for _ in range(iterations):
        variation = TOTAL_VARIATION * total_variation(images)
        loss = objective(images, noise).sum() + variation
        gradients = torch.autograd.grad(loss, unknowns)
        for unknown, gradient in zip(unknowns, gradients, strict=True):
            unknown.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
        falling.step()
        with torch.no_grad():
            images.clamp_(-1.0, 1.0)
    mismatch = objective(images, noise).detach()
    return Found(images.detach(), noise.detach(), mismatch)


class _Objective:
    """1 - cosine between an update and what candidate images would have changed."""

    def __init__(self, held: Held, clues: Clues) -> None:
        self._held, self._clues = held, clues
        parameters = parameters_of(held.model)
        self._frozen = {
            name: value
            for name, value in parameters.items()
            if name not in held.layout.names
        }
        self._shared = {name: parameters[name] for name in held.layout.names}
        wanted = held.updates if held.rule == "adam" else softened(held.updates)
        self._wanted = -wanted

    def __call__(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return it, a value for each update, for images and noise as in ``Clues``."""
        clues, labels = self._clues, self._clues.labels
        inputs = (images, noise, clues.t, clues.weights, labels)
        dims = (None, 0, 0, 0, 0, None if labels is None else 0)
        gradients = vmap(grad(self._loss), in_dims=dims)(self._shared, *inputs)
        flat = [gradients[name].flatten(start_dim=1) for name in self._shared]
        rows = torch.cat(flat, dim=1)  # [m, d]
        is_adam, is_mean = self._held.rule == "adam", len(self._wanted) == 1
        expected = softened(rows) if is_adam else rows
        expected = expected.mean(dim=0, keepdim=True) if is_mean else expected
        expected = expected if is_adam else softened(expected)
        cosine = torch.nn.functional.cosine_similarity(expected, self._wanted, dim=1)
        return 1.0 - cosine

    def _loss(
        self,
        shared: dict[str, Tensor],
        images: Tensor,
        noise: Tensor,
        t: Tensor,
        weights: Tensor,
        labels: Tensor | None,
    ) -> Tensor:
        """Return one silo's loss: the mean over its images, weighted over draws."""

        def network(*arguments: Tensor) -> Tensor:
            parameters = {**self._frozen, **shared}
            predicted: Tensor = functional_call(self._held.model, parameters, arguments)
            return predicted

        x_0 = images[:, None].expand_as(noise)
        losses = denoising_loss(
            cast("nn.Module", network),
            x_0.flatten(0, 1),
            t.flatten(),
            noise.flatten(0, 1),
            self._held.schedule,
            self._held.loss,
            None if labels is None else labels.flatten(),
        )
        return (losses * weights.flatten()).sum() / len(images)


def softened(values: Tensor) -> Tensor:
    """Return v / (|v| + s) of rows, s a tenth of the row's median: nearly the signs."""
    size = values.abs()
    s = SHARPNESS * size.detach().median(dim=1, keepdim=True).values + TINY
    return values / (size + s)


def total_variation(images: Tensor) -> Tensor:
    """Return the mean distance of neighbouring pixels of ``[…, h, w]``."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    right = (images[..., :, 1:] - images[..., :, :-1]).abs().mean()
    return down + right


def likely_timesteps(held: Held, which: int) -> Tensor | None:
    """Return the timesteps of a single example that an update shows; None: it does not.

    The gradient of the time embedding's first layer is δ e(t)ᵀ: every row is a multiple
    of the embedding of the timestep. Of a step of Adam the signs remain, which some
    timesteps share.

    Args:
        which: of the updates that are held.
    """
    name = next(
        f"{name}.layers.0.weight"
        for name, module in held.model.named_modules()
        if isinstance(module, TimeEmbedding)
    )
    places = {n: (shape, where) for n, shape, where in held.layout.slices()}
    if name not in places:
        return None
    shape, where = places[name]
    rows = held.updates[which, where].reshape(shape)
    embeddings = sinusoidal_embedding(
        torch.arange(held.schedule.num_timesteps), shape[1]
    )
    if held.rule == "adam":
        rows, embeddings = rows.sign(), embeddings.sign()
    rows = torch.nn.functional.normalize(rows, dim=1)
    embeddings = torch.nn.functional.normalize(embeddings, dim=1)
    scores = (embeddings @ rows.T).abs().sum(dim=1)  # [T]
    if not bool(scores.max() > 0):
        return None
    return (scores >= scores.max() - 1e-4 * len(rows)).nonzero().flatten()
