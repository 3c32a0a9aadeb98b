"""What a silo keeps on disk in one run, so that a crash costs nothing twice.

::

    runs/<plan>/
      transcript/              evidence, without secrets
      secagg-000002.state      the state of secure aggregation; secret, mode 0600
      round-000007/            written whole (temporary folder, fsync, rename)
        update.words           the packed update, until its shares are revealed
        trained.safetensors    what it was made from, as long, where parts are dealt
        training.safetensors   Adam's moments, and the parts that stay local
        round.json             round number, model digest
      held.safetensors         the global model, where it comes as differences
      auxiliary                what was given before round 1; secret, mode 0600
      auxiliary-over           stands there from round 1 on (silo.auxiliary)
      residual                 what is added to the next update; secret, mode 0600
      reference.tags           the images in its exact sum of features, as keyed tags
      canaries-gradient, -input  their seeds and scores; secret, mode 0600, until opened
      finished                 the answer to END
      measuring                for which request it measures, once (silo.evaluation)
      evaluation.json          what this silo measured (silo.evaluation)
      model.safetensors        the finished model, this silo's own

A round's folder appears only when training has ended: a silo asked again for the same
round and model answers from it and does not train twice. ``update.words`` is removed
once its masks were revealed: the same update is never summed again. At the end of the
run nothing secret is left but what ``training.safetensors`` holds.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crypto.secagg.upload import Upload
from diffusion.errors import DiffusionError
from diffusion.parameters import load_safetensors, save_safetensors
from protocol.encoding import decode, encode, from_table, to_table
from protocol.errors import EncodingError
from protocol.files import (
    check_secret,
    load_secret,
    remove_leftovers,
    save_bytes,
    save_secret,
    sync_folder,
    whole_folder,
)
from protocol.stretches import EVERYTHING
from silo.entries import LedgerHead
from silo.errors import StateBroken
from silo.training import Tensors, TrainingState

STATE_PREFIX, STATE_SUFFIX = "secagg-", ".state"
UPDATE_FILE = "update.words"
TRAINING_FILE = "training.safetensors"
TRAINED_FILE = "trained.safetensors"
ROUND_FILE = "round.json"
FINISHED_FILE = "finished"
MODEL_FILE = "model.safetensors"
JOURNAL_FILE = "journal"
WORD_BYTES = 8
_MOMENT, _LOCAL = "moment/", "local/"


@dataclass(frozen=True, kw_only=True)
class TrainedRound:
    """A round that this silo has trained, and the digest of the model it was for.

    ``stretches`` are those of the vector that the stored update fills; ``ledger`` is
    the head of the privacy ledger then, where there is one.
    """

    round_number: int
    model: str
    stretches: tuple[int, ...] = EVERYTHING
    ledger: LedgerHead | None = None


class RunStore:
    """The folder of one silo's state in one run, and its journal.

    Args:
        folder: made where it is missing.
        journal: the file of the silo's promises; best outside the folder, so that one
            backup does not restore both. By default a file in it.
    """

    def __init__(self, folder: Path, journal: Path | None = None) -> None:
        self.folder = folder
        self.journal = journal or folder / JOURNAL_FILE
        for needed in (folder, self.journal.parent):
            needed.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def transcript(self) -> Path:
        """The folder of the transcript."""
        return self.folder / "transcript"

    @property
    def model(self) -> Path:
        """The file of the finished model."""
        return self.folder / MODEL_FILE

    def has_begun(self) -> bool:
        """Return whether anything of the run was ever saved here."""
        return bool(self._states() or self._rounds()) or self.transcript.exists()

    def remove_leftovers(self) -> None:
        """Remove what processes left that were killed while they saved something.

        Only one process at a time may have the folder open.
        """
        remove_leftovers(self.folder)
        for number in self._rounds():
            remove_leftovers(self.folder / _name(number))

    def is_finished(self) -> bool:
        """Return whether this silo has seen the end of the run."""
        return (self.folder / FINISHED_FILE).exists()

    def save_finished(self, last_reply: bytes) -> None:
        """Remove what only a running run needs; note that it has ended, and how."""
        self.remove_leftovers()
        for number in self._rounds():
            self.destroy_update(number)
        for _, path in self._states():
            path.unlink()
        save_bytes(self.folder / FINISHED_FILE, last_reply)

    def load_last_reply(self) -> bytes | None:
        """Return the answer to END, once it was given."""
        path = self.folder / FINISHED_FILE
        return path.read_bytes() if path.exists() else None

    def save_secagg(self, setup: int, state: bytes) -> None:
        """Write the state of a setup; it is on disk when this returns.

        The states of earlier setups are removed.
        """
        save_secret(self.folder / f"{STATE_PREFIX}{setup:06d}{STATE_SUFFIX}", state)
        for number, path in self._states():
            if number < setup:
                path.unlink()

    def load_secagg(self) -> tuple[int, bytes] | None:
        """Return number and state of the newest setup, if there is one."""
        states = self._states()
        if not states:
            return None
        number, path = max(states)
        return number, load_secret(path)

    def save_round(
        self,
        trained: TrainedRound,
        words: npt.NDArray[np.uint64],
        state: TrainingState,
        local: Tensors,
        shared: Tensors | None = None,
    ) -> None:
        """Write everything that a round's training gave, whole or not at all.

        Args:
            shared: the trained values of what is federated, where the update may have
                to be made anew; they go when the update goes.
        """
        tensors = {_MOMENT + name: value for name, value in state.moments.items()}
        tensors |= {_LOCAL + name: value for name, value in local.items()}
        content = words.astype("<u8", copy=False).data.cast("B")
        with whole_folder(self.folder / _name(trained.round_number)) as folder:
            save_safetensors(folder / TRAINING_FILE, tensors, {})
            if shared is not None:
                save_safetensors(folder / TRAINED_FILE, shared, {})
            save_secret(folder / UPDATE_FILE, content)
            save_bytes(folder / ROUND_FILE, encode(to_table(trained)))
        for number in self._rounds():
            if number < trained.round_number:
                shutil.rmtree(self.folder / _name(number))

    def replace_update(
        self, trained: TrainedRound, words: npt.NDArray[np.uint64]
    ) -> None:
        """Put another update of a trained round in the place of one that never left.

        The words come first: after a crash between the two they are made once more.
        """
        folder = self.folder / _name(trained.round_number)
        save_secret(
            folder / UPDATE_FILE, words.astype("<u8", copy=False).data.cast("B")
        )
        save_bytes(folder / ROUND_FILE, encode(to_table(trained)))

    def load_shared(self, round_number: int) -> Tensors:
        """Return the trained values that a round's update was made from.

        Raises:
            StateBroken: the file is missing, cut off or damaged.
        """
        return self._load_tensors(self.folder / _name(round_number) / TRAINED_FILE)

    def load_trained(self) -> TrainedRound | None:
        """Return the newest round that was trained.

        Raises:
            StateBroken: its description is damaged.
        """
        rounds = self._rounds()
        if not rounds:
            return None
        path = self.folder / _name(max(rounds)) / ROUND_FILE
        try:
            return from_table(TrainedRound, decode(path.read_bytes()))
        except (OSError, EncodingError) as error:
            raise StateBroken(f"{path}: {error}") from None

    def load_training(self) -> tuple[TrainingState, Tensors]:
        """Return what the newest trained round left for the next: moments, parts.

        Raises:
            StateBroken: the file is cut off or damaged.
        """
        rounds = self._rounds()
        if not rounds:
            return TrainingState(), {}
        path = self.folder / _name(max(rounds)) / TRAINING_FILE
        tensors = self._load_tensors(path)
        return (
            TrainingState(_prefixed(tensors, _MOMENT)),
            _prefixed(tensors, _LOCAL),
        )

    def load_update(self, round_number: int) -> Upload | None:
        """Return a round's packed update, ready to be masked, unless destroyed.

        Raises:
            StateBroken: the file is cut off.
            KeyFileRejected: other users may read it.
        """
        path = self.folder / _name(round_number) / UPDATE_FILE
        if not path.exists():
            return None
        check_secret(path)
        with path.open("rb") as file:
            num_bytes = path.stat().st_size
            if num_bytes % WORD_BYTES:
                raise StateBroken(f"{path}: {num_bytes:,} bytes are not whole words")
            upload = Upload(num_bytes // WORD_BYTES)
            if file.readinto(upload.words.data.cast("B")) != num_bytes:
                raise StateBroken(f"{path}: changed while it was read")
        return upload

    def has_update(self, round_number: int) -> bool:
        """Return whether a round's update is still there."""
        return (self.folder / _name(round_number) / UPDATE_FILE).exists()

    def destroy_update(self, round_number: int) -> None:
        """Remove a round's update: it was revealed, or its round is closed."""
        folder = self.folder / _name(round_number)
        if folder.exists():
            (folder / TRAINED_FILE).unlink(missing_ok=True)
            (folder / UPDATE_FILE).unlink(missing_ok=True)
            sync_folder(folder)

    def _load_tensors(self, path: Path) -> Tensors:
        """Return the tensors of a file.

        Raises:
            StateBroken: it is missing, cut off or damaged.
        """
        try:
            return load_safetensors(path)[0]
        except (OSError, DiffusionError) as error:
            raise StateBroken(f"{path}: {error}") from None

    def _states(self) -> list[tuple[int, Path]]:
        """Return the saved setups with their files."""
        return [
            (int(path.stem.removeprefix(STATE_PREFIX)), path)
            for path in self.folder.glob(f"{STATE_PREFIX}*{STATE_SUFFIX}")
            if path.stem.removeprefix(STATE_PREFIX).isdigit()
        ]

    def _rounds(self) -> list[int]:
        """Return the numbers of the rounds that were trained and are still kept."""
        return [
            int(path.name.removeprefix("round-"))
            for path in self.folder.glob("round-*")
            if path.name.removeprefix("round-").isdigit()
        ]


def _name(round_number: int) -> str:
    """Return the name of a round's folder."""
    return f"round-{round_number:06d}"


def _prefixed(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose name has a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
