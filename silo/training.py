"""Local training: from the global parameters of a round to this silo's own.

The order of the examples, the timesteps and the noise come from generators that follow
from the plan's seed, the silo and the round, so that a run can be repeated.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from diffusion.class_embedding import drop_labels
from diffusion.loss import denoising_loss
from diffusion.parts import DenoisingNetwork
from diffusion.schedule import Schedule
from protocol.plan import PlanDraft
from silo.data import ImageSet
from silo.errors import DataError, SiloError
from silo.proximal import ProximalTerm

REPORT_SECONDS = 0.25
ADAM_MOMENTS = ("step", "exp_avg", "exp_avg_sq")

Tensors: TypeAlias = dict[str, Tensor]
Indices: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]


class TrainingDiverged(SiloError):
    """The loss is no longer finite; round, step and learning rate are named."""


@dataclass(frozen=True)
class Progress:
    """What a silo shows its own operator while it trains; it is never sent."""

    round_number: int
    step: int
    num_steps: int
    loss: float
    images_per_second: float


@dataclass(frozen=True)
class TrainingState:
    """What a silo keeps from one round to the next: Adam's moments, by name.

    Names are ``<moment>.<parameter>``. Empty before the first round.
    """

    moments: Tensors = field(default_factory=dict, repr=False)


def num_local_steps(plan: PlanDraft, num_examples: int) -> int:
    """Return how many optimizer steps a silo takes in a round."""
    training = plan.training
    if training.local_steps:
        return training.local_steps
    return training.local_epochs * -(-num_examples // training.examples_per_step)


def learning_rate(plan: PlanDraft, progress: float) -> float:
    """Return the learning rate after a share of the run, 0 … 1.

    A straight line from ``learning_rate`` down to ``final_learning_rate_fraction`` of
    it, times a ramp from 0 to 1 during the warm-up.
    """
    training = plan.training
    fall = 1.0 - (1.0 - training.final_learning_rate_fraction) * progress
    ramp = 1.0
    if progress < training.warm_up_fraction:
        ramp = progress / training.warm_up_fraction
    return training.learning_rate * fall * ramp


def batches(
    num_examples: int, examples_per_step: int, generator: np.random.Generator
) -> Iterator[Indices]:
    """Yield batches of indices for ever: one permutation after the other.

    The last batch of a permutation holds what is left.
    """
    while True:
        order = generator.permutation(num_examples)
        for start in range(0, num_examples, examples_per_step):
            yield order[start : start + examples_per_step]


def train(
    model: DenoisingNetwork,
    images: ImageSet,
    schedule: Schedule,
    plan: PlanDraft,
    state: TrainingState,
    *,
    silo: int,
    round_number: int,
    device: torch.device,
    observe: Callable[[Progress], None],
    proximal: ProximalTerm | None = None,
) -> TrainingState:
    """Train a model in place for one round; return what the silo keeps.

    Args:
        model: holds the round's starting parameters, on ``device``.
        observe: is told loss and speed a few times a second, in this process only.
        proximal: draws the parameters to where the round began.

    Raises:
        DataError: there are no images.
        TrainingDiverged: the loss is not finite; the model is spoilt then.
    """
    if not len(images):
        raise DataError("there are no images to train on")
    seed = plan.seed_for("training", silo, round_number)
    order = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    num_steps = num_local_steps(plan, len(images))
    optimizer = make_optimizer(model, plan, state)
    chosen = batches(len(images), plan.training.examples_per_step, order)
    meter = Meter(round_number, num_steps, observe)
    model.train()
    for step in range(num_steps):
        done = (round_number - 1 + step / num_steps) / plan.num_rounds
        optimizer.param_groups[0]["lr"] = learning_rate(plan, done)
        indices = next(chosen)
        x_0 = images.batch(indices)
        t = torch.randint(schedule.num_timesteps, (len(x_0),), generator=generator)
        noise = torch.randn(x_0.shape, generator=generator)
        labels = told_labels(images, indices, plan, generator)
        losses = denoising_loss(
            model,
            x_0.to(device),
            t.to(device),
            noise.to(device),
            schedule,
            plan.training.loss,
            None if labels is None else labels.to(device),
        )
        loss = losses.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if proximal is not None:
            proximal.add_gradients()
        optimizer.step()
        meter.count(step + 1, loss.detach(), len(x_0), learning_rate(plan, done))
    return state_of(model, optimizer, plan, state)


def told_labels(
    images: ImageSet, indices: Indices, plan: PlanDraft, generator: torch.Generator
) -> Tensor | None:
    """Return the labels of a batch, some withheld; None, and no draw, without classes.

    Source: Ho & Salimans, 2022, algorithm 1, line 3.
    """
    if not plan.model.num_classes:
        return None
    labels = images.labels_of(indices)
    withheld = torch.rand(len(labels), generator=generator)
    return drop_labels(labels, withheld < plan.training.label_dropout)


def make_optimizer(
    model: DenoisingNetwork, plan: PlanDraft, state: TrainingState
) -> torch.optim.Adam:
    """Return Adam with the moments that the silo kept, if it keeps any."""
    optimizer = torch.optim.Adam(
        model.parameters(), lr=plan.training.learning_rate, fused=True
    )
    for name, parameter in model.named_parameters():
        is_known = f"{ADAM_MOMENTS[0]}.{name}" in state.moments
        if not (is_known and parameter.requires_grad):
            continue
        optimizer.state[parameter] = {
            moment: state.moments[f"{moment}.{name}"].to(parameter.device, copy=True)
            for moment in ADAM_MOMENTS
        }
    return optimizer


def moments_of(model: DenoisingNetwork, optimizer: torch.optim.Optimizer) -> Tensors:
    """Return copies of Adam's moments, on the CPU; frozen parameters have none."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment].to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        for moment in ADAM_MOMENTS
        if parameter.requires_grad
    }


def state_of(
    model: DenoisingNetwork,
    optimizer: torch.optim.Optimizer,
    plan: PlanDraft,
    before: TrainingState,
) -> TrainingState:
    """Return Adam's moments, or nothing when each round begins afresh.

    What was frozen in this round keeps the moments that it had ``before``.
    """
    if plan.training.optimizer_state == "fresh":
        return TrainingState()
    return TrainingState(before.moments | moments_of(model, optimizer))


class Meter:
    """Counts examples and losses, and tells the observer now and then.

    Args:
        may_stop: whether a loss that is not finite ends the training. With a privacy
            mechanism it must not: others would see that somebody's loss is not finite.
    """

    def __init__(
        self,
        round_number: int,
        num_steps: int,
        observe: Callable[[Progress], None],
        first_step: int = 0,
        *,
        may_stop: bool = True,
    ) -> None:
        self._may_stop = may_stop
        self._round_number, self._num_steps = round_number, num_steps
        self._observe = observe
        self._start(first_step)

    def _start(self, step: int) -> None:
        """Begin a new interval."""
        self._began, self._first = time.monotonic(), step
        self._examples, self._total = 0, torch.zeros((), dtype=torch.float64)

    def count(self, step: int, loss: Tensor, examples: int, rate: float) -> None:
        """Count one step; report when the interval is over, or at the last step."""
        self._total = self._total.to(loss.device) + loss
        self._examples += examples
        elapsed = time.monotonic() - self._began
        if elapsed < REPORT_SECONDS and step < self._num_steps:
            return
        mean = float(self._total) / (step - self._first)
        if self._may_stop and not np.isfinite(mean):
            raise TrainingDiverged(
                f"the loss is not finite in round {self._round_number}, step {step} "
                f"(learning rate {rate:g}); a smaller learning_rate may help"
            )
        speed = self._examples / max(elapsed, 1e-9)
        progress = Progress(self._round_number, step, self._num_steps, mean, speed)
        self._observe(progress)
        self._start(step)
