"""When the aggregator trains after the mean, and what it keeps and records of it.

Order in a round: mean → applied → auxiliary loss → training → saved → recorded → round
closed, so that the digest which everybody signs is that of the trained model. What was
trained is kept until the round's checkpoint is: a crash in between repeats nothing.
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from aggregator.auxiliary import (
    IMAGES_FILE,
    LabelledImages,
    images_of_silos,
    load_images,
    public_images,
    sampled_images,
    save_images,
)
from aggregator.calibration import auxiliary_loss, calibrate, with_parameters
from aggregator.errors import StateBroken
from aggregator.exchanges import Exchanges
from aggregator.state import RoundState, shared_layout
from diffusion.errors import CorruptFile
from diffusion.parameters import load_safetensors, parameters_digest, save_safetensors
from protocol.model_records import Calibrated

logger = logging.getLogger(__name__)

TRAINED_FILE = "calibrated.safetensors"
_BEGAN_WITH = "began_with"


class Calibrator:
    """Trains on auxiliary images after the mean, where the plan says so.

    Args:
        folder: of the run.
        public: the file of public images, where the plan names one.
        recorded_images: whether the transcript names the images already.
        recorded_rounds: the rounds whose training it names already.
        on_calibrated: is told of every training.
    """

    def __init__(
        self,
        exchanges: Exchanges,
        folder: Path,
        *,
        device: torch.device,
        public: Path | None,
        recorded_images: bool,
        recorded_rounds: frozenset[int],
        on_calibrated: Callable[[Calibrated], None],
    ) -> None:
        self._exchanges, self._folder, self._device = exchanges, folder, device
        self._plan, self._transcript = exchanges.plan, exchanges.transcript
        self._public, self._on_calibrated = public, on_calibrated
        self._config = self._plan.calibration
        self._images: Tensor | None = None
        self._layout = shared_layout(self._plan)
        self._recorded_images = recorded_images
        self._recorded_rounds = recorded_rounds

    def prepare(self, state: RoundState) -> None:
        """Make the auxiliary images, or load them, if it is time for them.

        Raises:
            CohortTooSmall: too few silos gave some.
            ConfigRejected: the file of public images is not the plan's.
            StateBroken: they were made, and are lost or damaged.
        """
        if not self._config.is_on or self._images is not None:
            return
        if state.round_number < self._config.source_round:
            return
        images = load_images(self._folder)
        if images is None:
            images = self._make(state)
            save_images(self._folder, images)
        if not self._recorded_images:
            self._transcript.append(images.record())
            self._recorded_images = True
        self._images = images.tensor()

    def correct(self, before: RoundState, state: RoundState) -> RoundState:
        """Return the state after a round's mean, trained further if that is due.

        Args:
            before: the state that the round began with.
            state: the one after the mean.

        Raises:
            CalibrationFailed: the loss is not finite.
        """
        if (images := self._images) is None:
            return state
        config, number = self._config, state.round_number
        if config.when == "slow-learning" and state.slow_learning.fired_in:
            return state
        loss = self._loss(state, images)
        if config.when == "slow-learning":
            watched = state.slow_learning.after(
                number,
                loss,
                window=config.window,
                min_improvement=config.min_improvement,
            )
            state = dataclasses.replace(state, slow_learning=watched)
            if not watched.fired_in:
                return state
            logger.info("round %d: learning is slow; the one correction", number)
        trained = self._trained(before, state, images)
        self._record(number, loss, self._loss(trained, images))
        return trained

    def is_saved(self, state: RoundState) -> None:
        """Take note that the checkpoint of a round is on disk."""
        (self._folder / TRAINED_FILE).unlink(missing_ok=True)
        self.prepare(state)

    def _make(self, state: RoundState) -> LabelledImages:
        """Return new auxiliary images, of the source that the plan names."""
        if self._config.images == "public":
            return public_images(self._plan, self._public)
        if self._recorded_images or state.round_number > self._config.source_round:
            raise StateBroken(
                f"{self._folder / IMAGES_FILE}: is missing; restore it from a backup, "
                "or begin a new run with a new plan"
            )
        if self._config.images == "aggregate":
            return sampled_images(self._plan, state, device=self._device)
        return images_of_silos(self._plan, self._exchanges, device=self._device)

    def _loss(self, state: RoundState, images: Tensor) -> float:
        """Return the auxiliary loss of a state."""
        return auxiliary_loss(self._plan, state.parameters, images, device=self._device)

    def _trained(
        self, before: RoundState, state: RoundState, images: Tensor
    ) -> RoundState:
        """Return the trained state: the one on disk, where it began with this one."""
        path = self._folder / TRAINED_FILE
        began_with = parameters_digest(state.parameters, self._layout).hex()
        try:
            parameters, notes = load_safetensors(path)
        except FileNotFoundError:
            notes = {}
        except CorruptFile as error:
            raise StateBroken(f"{path}: {error}") from None
        if notes.get(_BEGAN_WITH) == began_with:
            return with_parameters(state, before.average, parameters)
        trained = calibrate(
            self._plan, state, before.average, images, device=self._device
        )
        save_safetensors(path, trained.parameters, {_BEGAN_WITH: began_with})
        return trained

    def _record(self, number: int, loss_before: float, loss_after: float) -> None:
        """Record a training, once, and tell who wants to know."""
        record = Calibrated(
            round_number=number,
            steps=self._config.steps,
            examples=self._config.steps * self._config.examples_per_step,
            loss_before=loss_before,
            loss_after=loss_after,
            triggered=self._config.when == "slow-learning",
        )
        if number not in self._recorded_rounds:
            self._transcript.append(record)
        self._on_calibrated(record)
