"""Private training: from a round's global parameters to this silo's own, by DP-SGD.

Number of steps, sample rate and divisor follow from the plan alone. What depends on
the data leaves in two ways only: through the noised steps, and through the losses that
the silo's own operator is shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from diffusion.class_embedding import drop_labels
from diffusion.parts import DenoisingNetwork
from diffusion.schedule import Schedule
from protocol.mechanism import steps_per_round
from protocol.plan import PlanDraft
from silo.data import ImageSet
from silo.dpsgd import (
    NoisedSteps,
    Planted,
    PrivateOptimizer,
    check_independence,
    validate,
)
from silo.errors import DataError
from silo.per_example import Draws, GradientEngine, Objective, default_engine
from silo.randomness import PrivateRandom
from silo.training import (
    Meter,
    Progress,
    TrainingDiverged,
    TrainingState,
    learning_rate,
    make_optimizer,
    moments_of,
    state_of,
)
from silo.units import PrivacyUnits

CPU_MULTIPLICITY = 8
GPU_MULTIPLICITY = 32


@dataclass(frozen=True)
class Kept:
    """A point from which a round may go on; what was released up to it is counted.

    Attributes:
        step: how many steps of the round are done.
        noised_steps: how many were noised since the last such point, as counted where
            the noise is added.
        state: Adam's moments, whether or not the plan keeps them over rounds.
    """

    step: int
    noised_steps: int
    state: TrainingState


def multiplicity_of(plan: PlanDraft, device: torch.device) -> int:
    """Return the number of draws per image: the plan's, or what suits the device."""
    if plan.privacy.multiplicity:
        return plan.privacy.multiplicity
    return CPU_MULTIPLICITY if device.type == "cpu" else GPU_MULTIPLICITY


def train_privately(
    model: DenoisingNetwork,
    images: ImageSet,
    units: PrivacyUnits,
    schedule: Schedule,
    plan: PlanDraft,
    state: TrainingState,
    *,
    round_number: int,
    first_step: int = 0,
    device: torch.device,
    random: PrivateRandom,
    observe: Callable[[Progress], None],
    keep: Callable[[Kept], None],
    checkpoint_steps: int,
    engine: GradientEngine | None = None,
    after_noise: Callable[[Sequence[nn.Parameter]], None] | None = None,
    canaries: Planted | None = None,
) -> TrainingState:
    """Train a model in place for one round of DP-SGD; return what the silo keeps.

    Guarantees:
        Every step releases a Gaussian mechanism on a Poisson sample of the units, at
        the plan's rate, clipping norm and noise multiplier, that of an empty sample,
        too. ``keep`` hears of every step before this function returns.

    Args:
        model: holds the parameters of ``first_step``, on ``device``.
        schedule: on ``device``.
        state: the moments that belong to ``first_step``; empty to begin afresh.
        first_step: steps of this round that were done before.
        random: sampling and noise; with a debugging seed the result can be repeated.
        observe: is told loss and speed a few times a second, in this process only.
        keep: is called whenever the number of steps done is a multiple of
            ``checkpoint_steps``, and after the last one.
        engine: how gradients are computed; the fastest for the device by default.
        after_noise, canaries: as in :class:`~silo.dpsgd.PrivateOptimizer`.

    Raises:
        DataError: there are no images.
        NotPrivate: the model mixes examples.
        ValueError: the plan has no noise multiplier.
        TrainingDiverged: a parameter is not finite; ``keep`` has not heard of the
            steps since its last call, which were noised all the same.
    """
    if not plan.privacy.noise_multiplier > 0:
        raise ValueError("privacy.noise_multiplier: was never calibrated")
    if not len(units):
        raise DataError("there are no images to train on")
    model.train()
    validate(model)
    num_pixels = images.pixels[0].size
    _, height, width, channels = images.pixels.shape
    check_independence(model, (channels, height, width))
    privacy, num_steps = plan.privacy, steps_per_round(plan)
    multiplicity = multiplicity_of(plan, device)
    engine = engine or default_engine(model, num_pixels, multiplicity)
    objective = Objective(model, schedule, plan.training.loss)
    draw = Drawing(images, units, plan, multiplicity, schedule, device, random)
    optimizer = PrivateOptimizer(
        make_optimizer(model, plan, state),
        noise_multiplier=privacy.noise_multiplier,
        clipping_norm=privacy.clipping_norm,
        expected_batch_size=plan.training.examples_per_step,
        random=random,
        after_noise=after_noise,
        canaries=canaries,
    )
    noised_steps = NoisedSteps()
    optimizer.attach_step_hook(noised_steps)
    meter = Meter(round_number, num_steps, observe, first_step, may_stop=False)
    loss = torch.zeros((), device=device)
    try:
        for step in range(first_step, num_steps):
            done = (round_number - 1 + step / num_steps) / plan.num_rounds
            rate = learning_rate(plan, done)
            optimizer.param_groups[0]["lr"] = rate
            drawn = random.poisson_sample(len(units), privacy.sample_rate)
            losses = []
            for start in range(0, len(drawn), engine.chunk_size):
                draws = draw(drawn[start : start + engine.chunk_size])
                for made in engine.gradients(objective, draws):
                    optimizer.accumulate(made)
                    losses.append(made.losses)
            optimizer.step()
            loss = _mean(losses, loss)
            _check_parameters(objective.parameters, round_number, step + 1, rate)
            meter.count(step + 1, loss, len(drawn), rate)
            if (step + 1) % checkpoint_steps == 0 or step + 1 == num_steps:
                kept = TrainingState(moments_of(model, optimizer))
                keep(Kept(step + 1, noised_steps.take(), kept))
        if first_step >= num_steps:
            return state if plan.training.optimizer_state == "kept" else TrainingState()
        return state_of(model, optimizer, plan, state)
    finally:
        optimizer.release()


class Drawing:
    """Draws what some units contribute to a step, always afresh, and in secret.

    Draws belong to a unit by its place in the batch, so that one unit more moves those
    of the units behind it. That a unit moves the clipped sum by at most C therefore
    means: with the same draws for every other unit, which are as likely as any, since
    nobody knows them (``docs/privacy.md``).
    """

    def __init__(
        self,
        images: ImageSet,
        units: PrivacyUnits,
        plan: PlanDraft,
        multiplicity: int,
        schedule: Schedule,
        device: torch.device,
        random: PrivateRandom,
    ) -> None:
        self._images, self._units = images, units
        self._max_images = plan.privacy.max_images_per_patient
        self._multiplicity, self._has_classes = multiplicity, plan.model.num_classes > 0
        self._label_dropout = plan.training.label_dropout
        self._num_timesteps, self._device = schedule.num_timesteps, device
        self._random = random

    def __call__(self, chosen: npt.NDArray[np.int64]) -> Draws:
        """Return the draws of the chosen units, K of each of their images."""
        picked = [self._pick(int(unit)) for unit in chosen]
        most = max(len(indices) for indices in picked)
        # What is padded repeats a draw of the same unit, with weight 0: nothing that
        # the unit does not have by itself, such as a loss that is not finite, enters.
        indices = np.stack([np.resize(mine, most) for mine in picked])  # [u, images]
        pixels = self._images.batch(indices.reshape(-1)).to(self._device)
        x_0 = pixels.reshape(*indices.shape, *pixels.shape[1:])
        x_0 = x_0.repeat_interleave(self._multiplicity, dim=1)  # [u, d, c, h, w]
        counts = torch.tensor([[len(mine)] for mine in picked])
        weights = (torch.arange(most) < counts) / (counts * self._multiplicity)
        weights = weights.repeat_interleave(self._multiplicity, dim=1)
        t = torch.from_numpy(self._random.integers(self._num_timesteps, weights.shape))
        noise = self._noise(x_0.shape)
        labels = self._labels(indices)
        if not weights.all():
            source = torch.arange(weights.shape[1]) % (counts * self._multiplicity)
            rows = torch.arange(len(source))[:, None]
            t, noise = t[rows, source], noise[rows, source]
            labels = None if labels is None else labels[rows, source]
        return Draws(
            x_0,
            t.to(self._device),
            noise,
            weights.to(self._device),
            None if labels is None else labels.to(self._device),
        )

    def _labels(self, indices: npt.NDArray[np.int64]) -> Tensor | None:
        """Return labels ``[u, d]`` of images ``[u, images]``, withheld by the draw.

        None, and nothing is drawn, without classes.
        """
        if not self._has_classes:
            return None
        labels = self._images.labels_of(indices).repeat_interleave(
            self._multiplicity, dim=1
        )
        drawn = self._random.poisson_sample(labels.numel(), self._label_dropout)
        is_dropped = torch.zeros(labels.numel(), dtype=torch.bool)
        is_dropped[torch.from_numpy(drawn)] = True
        return drop_labels(labels, is_dropped.view_as(labels))

    def _noise(self, shape: torch.Size) -> Tensor:
        """Return the noise of some draws.

        A GPU draws its own, from 63 fresh bits each time.
        """
        if self._device.type != "cpu":
            generator = torch.Generator(device=self._device)
            generator.manual_seed(self._random.torch_seed())
            return torch.randn(shape, generator=generator, device=self._device)
        return torch.from_numpy(self._random.normals(tuple(shape)))

    def _pick(self, unit: int) -> npt.NDArray[np.int64]:
        """Return the images that a unit contributes, as many as the plan permits."""
        own = self._units.images(unit)
        if len(own) <= self._max_images:
            return own
        return own[self._random.choose(len(own), self._max_images)]


def _mean(losses: list[Tensor], last: Tensor) -> Tensor:
    """Return the mean of the losses that are finite; the last one if none is."""
    finite = [loss[loss.isfinite()] for loss in losses]
    if not sum(len(loss) for loss in finite):
        return last
    return torch.cat(finite).mean()


def _check_parameters(
    parameters: Sequence[nn.Parameter], round_number: int, step: int, rate: float
) -> None:
    """Raise :class:`TrainingDiverged` unless all parameters are finite.

    They were released by the mechanism: to look at them costs nothing.
    """
    norms = torch.stack(torch._foreach_norm([p.detach() for p in parameters]))
    if not norms.isfinite().all():
        raise TrainingDiverged(
            f"the parameters are not finite in round {round_number}, step {step} "
            f"(learning rate {rate:g}); a smaller learning_rate may help"
        )
