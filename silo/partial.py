"""The local checkpoint in the middle of a round, and how the round goes on from it.

The order of a private round, each arrow only when the disk has it::

    Reserved → some steps → Taken → checkpoint → some steps → … → Taken → Closed

A checkpoint names the head of the ledger at its saving, so that the two are told apart
from copies of another time:

* a ledger without that head is older than the checkpoint: it was cut off or restored;
* a ledger in which one attempt at the round wrote two or more ``Taken`` behind that
  head is newer than a checkpoint can be: the checkpoint was restored or lost.

Both are refused. Steps that are repeated draw fresh randomness and are charged again.
"""

from dataclasses import dataclass, field
from pathlib import Path

from diffusion.errors import DiffusionError
from diffusion.parameters import load_safetensors, save_safetensors
from protocol.encoding import check_hex, decode, encode, from_table, to_table
from protocol.errors import EncodingError
from protocol.files import SECRET_MODE, sync_folder
from silo.entries import LedgerHead, Reserved, most_taken_in_one_attempt
from silo.errors import SiloError, StateBroken
from silo.ledger import LedgerBroken, LedgerContent
from silo.training import Tensors

PARTIAL_FILE = "partial.safetensors"
_NOTE, _PARAMETER, _MOMENT = "partial", "parameter/", "moment/"


class CheckpointOutdated(SiloError):
    """A silo's saved state is older than its ledger; nothing is trained."""


@dataclass(frozen=True, kw_only=True)
class PartialRound:
    """How far a round was trained, for which model, and the ledger's head then.

    ``model`` is the digest (hexadecimal) of the round's request. Round 0 is what a silo
    trains for auxiliary images.
    """

    round_number: int
    model: str
    step: int
    ledger: LedgerHead

    def __post_init__(self) -> None:
        """Check the numbers and the digest."""
        if self.round_number < 0 or self.step < 1:
            raise ValueError("round_number, step: must be at least 0 and 1")
        check_hex("model", self.model, 32)


@dataclass(frozen=True)
class Checkpoint:
    """A :class:`PartialRound` with the model's parameters and Adam's moments."""

    partial: PartialRound
    parameters: Tensors = field(repr=False)
    moments: Tensors = field(repr=False)


def save_partial(
    folder: Path, partial: PartialRound, parameters: Tensors, moments: Tensors
) -> None:
    """Write the checkpoint of a round in place of the one before, whole or not at all.

    Call it only when the ledger's ``Taken`` for its steps is on disk.

    Raises:
        OSError: the file system refuses; the former checkpoint stays.
    """
    tensors = {_PARAMETER + name: value for name, value in parameters.items()}
    tensors |= {_MOMENT + name: value for name, value in moments.items()}
    note = encode(to_table(partial)).decode()
    save_safetensors(folder / PARTIAL_FILE, tensors, {_NOTE: note})
    (folder / PARTIAL_FILE).chmod(SECRET_MODE)


def load_partial(folder: Path) -> Checkpoint | None:
    """Return the checkpoint of a round, if there is one.

    Raises:
        StateBroken: the file is cut off or damaged.
    """
    path = folder / PARTIAL_FILE
    if not path.exists():
        return None
    try:
        tensors, notes = load_safetensors(path)
        partial = from_table(PartialRound, decode(notes.get(_NOTE, "").encode()))
    except (OSError, DiffusionError, EncodingError) as error:
        raise StateBroken(f"{path}: {error}") from None
    return Checkpoint(
        partial, _prefixed(tensors, _PARAMETER), _prefixed(tensors, _MOMENT)
    )


def forget_partial(folder: Path) -> None:
    """Remove the checkpoint, once the round's update is on disk, or is not wanted."""
    path = folder / PARTIAL_FILE
    if path.exists():
        path.unlink()
        sync_folder(folder)


def resume_point(
    partial: PartialRound | None, ledger: LedgerContent, round_number: int, model: str
) -> int:
    """Return how many steps of a round are done, and need not be taken again.

    Args:
        partial: what :func:`load_partial` found.
        ledger: as it is on disk, before anything of a new attempt is appended.
        model: digest of the model that the round is asked for; a checkpoint for
            another one is of no use.

    Raises:
        LedgerBroken: the ledger is older than the checkpoint.
        CheckpointOutdated: the checkpoint, or all of the silo's state, is older than
            the ledger.
    """
    spending = ledger.spending
    if partial is not None and not ledger.contains(partial.ledger):
        raise LedgerBroken(
            f"ledger {ledger.name} is older than the checkpoint of round "
            f"{partial.round_number}: it was cut off, or restored from a backup"
        )
    if round_number < spending.last_round:
        raise CheckpointOutdated(
            f"round {round_number} is to be trained, but the ledger knows round "
            f"{spending.last_round}: the silo's state was restored from a backup"
        )
    is_of_round = partial is not None and partial.round_number == round_number
    if partial is not None and is_of_round:
        first = partial.ledger.size
    elif spending.open_round and spending.open_round.round_number == round_number:
        first = _first_of_attempts(ledger)
    else:
        return 0
    if most_taken_in_one_attempt(ledger.entries[first:]) > 1:
        raise CheckpointOutdated(
            f"the checkpoint of round {round_number} is missing or older than the "
            "ledger; restore the newest one"
        )
    if partial is None or not is_of_round or partial.model != model:
        return 0
    return partial.step


def _first_of_attempts(ledger: LedgerContent) -> int:
    """Return the index of the entry that opened the round which is still open."""
    first = len(ledger.entries)
    for index in range(len(ledger.entries) - 1, -1, -1):
        entry = ledger.entries[index]
        if entry.kind == "closed":
            break
        if isinstance(entry, Reserved):
            first = index
    return first


def _prefixed(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose name has a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
