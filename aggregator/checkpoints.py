"""What the aggregator keeps on disk in one run.

::

    DIR/
      identity.key, identity.pub     made by `aggregator init`
      runs/<plan>/
        transcript/                  evidence
        checkpoint-000007/           the state after a round, written whole
          global.safetensors         global parameters, and how to sample from them
          average.safetensors        their moving average
          moments.safetensors        those of the optimizer, where it has any
          broadcast                  rounding error and differences, where quantised
          state.json                 round number, grid ranges, number of EMA updates,
                                     the losses by which learning is found to be slow
        auxiliary.safetensors        auxiliary images (aggregator.auxiliary)
        calibrated.safetensors       a round trained on them, until its checkpoint
        secagg-000002-03.slot, …     the slot in work (aggregator.slot_store)
        model.safetensors            the last average, when the run is over
"""

import base64
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aggregator.down_link import DownLink
from aggregator.errors import StateBroken
from aggregator.optimizer import Moments
from aggregator.slot_store import SlotStore
from aggregator.slow_learning import SlowLearning
from aggregator.state import RoundState
from diffusion.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffusion.ema import ExponentialMovingAverage
from diffusion.errors import DiffusionError
from diffusion.parameters import load_safetensors, save_safetensors
from protocol.encoding import decode, encode, from_table, to_table
from protocol.errors import ProtocolError
from protocol.files import remove_leftovers, save_bytes, whole_folder
from protocol.plan import RunPlan

GLOBAL_FILE = "global.safetensors"
AVERAGE_FILE = "average.safetensors"
MOMENTS_FILE = "moments.safetensors"
DOWN_LINK_FILE = "broadcast"
STATE_FILE = "state.json"
MODEL_FILE = "model.safetensors"
_FOLDER = "checkpoint-"
_MOMENTS = {"sgd": (), "momentum": ("mean",), "adam": ("mean", "square")}
"""Which moments each of the aggregator's optimizers has."""


@dataclass(frozen=True, kw_only=True)
class _Numbers:
    """The content of ``state.json``; ``ranges`` is base64 of little-endian float32."""

    plan: str
    round_number: int
    num_updates: int
    ranges: str
    slow_learning: SlowLearning = SlowLearning()


class CheckpointStore:
    """The folder of one run at the aggregator."""

    def __init__(self, folder: Path, plan: RunPlan) -> None:
        self.folder, self._plan = folder, plan
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def transcript(self) -> Path:
        """The folder of the transcript."""
        return self.folder / "transcript"

    @property
    def _moments(self) -> tuple[str, ...]:
        """The names of the optimizer's moments."""
        return _MOMENTS[self._plan.aggregation.optimizer]

    @property
    def model(self) -> Path:
        """The file of the finished model."""
        return self.folder / MODEL_FILE

    def save(self, state: RoundState) -> None:
        """Write the state after a round, whole or not at all; older ones are removed.

        Raises:
            OSError: the file system refuses; the older checkpoint stays.
        """
        numbers = _Numbers(
            plan=self._plan.digest.hex(),
            round_number=state.round_number,
            num_updates=state.average.num_updates,
            ranges=base64.b64encode(state.ranges.astype("<f4").tobytes()).decode(),
            slow_learning=state.slow_learning,
        )
        target = self.folder / f"{_FOLDER}{state.round_number:06d}"
        with whole_folder(target) as folder:
            for name, parameters in (
                (GLOBAL_FILE, state.parameters),
                (AVERAGE_FILE, state.average.parameters),
            ):
                save_checkpoint(folder / name, self._checkpoint(parameters, state))
            if state.moments is not None:
                tensors = {
                    name: torch.from_numpy(getattr(state.moments, name))
                    for name in self._moments
                }
                save_safetensors(folder / MOMENTS_FILE, tensors, {})
            if state.down_link is not None:
                save_bytes(folder / DOWN_LINK_FILE, state.down_link.to_bytes())
            save_bytes(folder / STATE_FILE, encode(to_table(numbers)))
        for number in self._saved():
            if number < state.round_number:
                shutil.rmtree(self.folder / f"{_FOLDER}{number:06d}")

    def load(self) -> RoundState | None:
        """Return the newest saved state, or None before the first.

        Raises:
            StateBroken: cut off, damaged, or of another plan; names the file.
        """
        saved = self._saved()
        if not saved:
            return None
        folder = self.folder / f"{_FOLDER}{max(saved):06d}"
        try:
            numbers = from_table(_Numbers, decode((folder / STATE_FILE).read_bytes()))
            parameters = load_checkpoint(folder / GLOBAL_FILE).parameters
            average = load_checkpoint(folder / AVERAGE_FILE).parameters
            ranges = np.frombuffer(base64.b64decode(numbers.ranges), dtype="<f4")
            moments = self._load_moments(folder)
            down_link = self._load_down_link(folder)
        except (DiffusionError, ProtocolError, OSError, ValueError) as error:
            raise StateBroken(
                f"{folder}: {error}; the run cannot go on without it: restore this "
                "folder from a backup, or begin a new run with a new plan"
            ) from None
        if numbers.plan != self._plan.digest.hex():
            raise StateBroken(f"{folder}: belongs to another plan")
        return RoundState(
            round_number=numbers.round_number,
            parameters=parameters,
            average=ExponentialMovingAverage(
                decay=self._plan.aggregation.ema_decay,
                parameters=average,
                num_updates=numbers.num_updates,
            ),
            ranges=ranges.astype(np.float32),
            moments=moments,
            down_link=down_link,
            slow_learning=numbers.slow_learning,
        )

    def _load_moments(self, folder: Path) -> Moments | None:
        """Return the optimizer's moments, where the plan's optimizer has any."""
        if not self._moments:
            return None
        tensors, _ = load_safetensors(folder / MOMENTS_FILE)
        if set(tensors) != set(self._moments):
            raise ValueError(f"{MOMENTS_FILE} holds other tensors")
        return Moments(**{name: tensors[name].numpy() for name in self._moments})

    def _load_down_link(self, folder: Path) -> DownLink | None:
        """Return what a quantised down-link keeps, where the plan has one."""
        if not self._plan.update.broadcast_bits:
            return None
        return DownLink.from_bytes((folder / DOWN_LINK_FILE).read_bytes())

    def finish(self, state: RoundState) -> None:
        """Write the finished model, the moving average of the global parameters.

        What only a running run needs is removed before: where the model is, the run is
        not started again.
        """
        self.remove_leftovers()
        SlotStore(self.folder).clear()
        save_checkpoint(self.model, self._checkpoint(state.average.parameters, state))

    def remove_leftovers(self) -> None:
        """Remove what processes left that were killed while they saved something.

        Files of secure aggregation are among it (:mod:`aggregator.slot_store`). Only
        one process at a time may have the folder open.
        """
        remove_leftovers(self.folder)

    def _checkpoint(
        self, parameters: Mapping[str, Tensor], state: RoundState
    ) -> Checkpoint:
        """Return parameters as a checkpoint that can be sampled from."""
        return Checkpoint(
            model=self._plan.model,
            schedule=self._plan.schedule,
            sampler=self._plan.evaluation.sampler,
            parameters=parameters,
            notes={
                "plan": self._plan.digest.hex(),
                "round": f"{state.round_number} of {self._plan.num_rounds}",
            },
        )

    def _saved(self) -> list[int]:
        """Return the round numbers of the saved states."""
        return [
            int(path.name.removeprefix(_FOLDER))
            for path in self.folder.glob(f"{_FOLDER}*")
            if path.name.removeprefix(_FOLDER).isdigit()
        ]
