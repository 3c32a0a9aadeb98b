"""What the aggregator keeps on disk of secure aggregation.

::

    secagg-000002.setup       keys and sealed secrets of a setup, written once
    secagg-000002.opened      which slot was opened last, and the head shown in it
    secagg-000002-03.slot     who answered what in the latest slot; every REVEAL
    secagg-000002-03.sum      its hidden sum, written once, when the survivors stand

A hidden sum is masked words, or the residues of summed ciphertexts.

All of it may be known to whoever runs the aggregator, and to nobody else: mode 0600.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from aggregator.errors import StateBroken
from crypto.errors import MalformedMessage
from crypto.secagg.aggregator_base import AggregatorBase
from protocol.encoding import decode, encode, from_table, to_table
from protocol.errors import EncodingError
from protocol.files import save_secret
from protocol.heads import Head

WORD_BYTES = 8
_PREFIX = "secagg-"
Words = npt.NDArray[np.uint64]
SideT = TypeVar("SideT", bound=AggregatorBase[Any])


@dataclass(frozen=True, kw_only=True)
class OpenedSlot:
    """A slot in which READY was asked for: for which round and model, by which head."""

    slot: int
    round_number: int
    model: str
    head: Head


class SlotStore:
    """The files of secure aggregation in the folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save_setup(self, setup: int, state: bytes) -> None:
        """Write the state of a key exchange; it is on disk when this returns.

        What belongs to earlier setups is removed.
        """
        save_secret(self.folder / _setup_file(setup), state)
        self._remove_before(setup, 0)

    def save_opened(self, setup: int, opened: OpenedSlot) -> None:
        """Write what silos are asked in a new slot; it is on disk when this returns."""
        save_secret(self.folder / _opened_file(setup), encode(to_table(opened)))

    def load_opened(self, setup: int) -> OpenedSlot | None:
        """Return the slot of a setup that was opened last, if there is one.

        Raises:
            StateBroken: the file is damaged.
        """
        path = self.folder / _opened_file(setup)
        if not path.exists():
            return None
        try:
            return from_table(OpenedSlot, decode(path.read_bytes()))
        except EncodingError as error:
            raise StateBroken(f"{path}: {error}") from None

    def save_slot(self, setup: int, slot: int, state: bytes) -> None:
        """Write the state of the slot in work; it is on disk when this returns.

        What belongs to earlier slots is removed.
        """
        save_secret(self.folder / _slot_file(setup, slot), state)
        self._remove_before(setup, slot)

    def save_sum(self, setup: int, slot: int, words: Words) -> None:
        """Write the hidden sum of a slot, once; it is on disk when this returns."""
        save_secret(self.folder / _sum_file(setup, slot), words.data.cast("B"))

    def load_setup(self) -> tuple[int, bytes] | None:
        """Return number and state of the newest setup, if there is one."""
        setups = self._numbers(f"{_PREFIX}*.setup")
        if not setups:
            return None
        (setup,) = max(setups)
        return setup, (self.folder / _setup_file(setup)).read_bytes()

    def load_slot(self, setup: int) -> tuple[bytes, Words | None] | None:
        """Return state and hidden sum of the newest slot of a setup, if there is one.

        Raises:
            StateBroken: the file of the sum is cut off.
        """
        slots = self._numbers(f"{_PREFIX}{setup:06d}-*.slot")
        if not slots:
            return None
        _, slot = max(slots)
        path = self.folder / _sum_file(setup, slot)
        total = None
        if path.exists():
            if path.stat().st_size % WORD_BYTES:
                raise StateBroken(f"{path}: is cut off")
            total = np.fromfile(path, dtype="<u8")
        return (self.folder / _slot_file(setup, slot)).read_bytes(), total

    def clear(self) -> None:
        """Remove everything: the run is over."""
        for path in self.folder.glob(f"{_PREFIX}*"):
            path.unlink()

    def _numbers(self, pattern: str) -> list[tuple[int, ...]]:
        """Return setup, and slot where there is one, of the files of a pattern."""
        found = []
        for path in self.folder.glob(pattern):
            numbers = path.stem.removeprefix(_PREFIX).split("-")
            if all(number.isdigit() for number in numbers):
                found.append(tuple(int(number) for number in numbers))
        return found

    def _remove_before(self, setup: int, slot: int) -> None:
        """Remove the files of earlier setups, and of earlier slots of this one."""
        for kind, name in (("setup", _setup_file), ("opened", _opened_file)):
            for (number,) in self._numbers(f"{_PREFIX}*.{kind}"):
                if number < setup:
                    (self.folder / name(number)).unlink()
        for kind, path in (("slot", _slot_file), ("sum", _sum_file)):
            for numbers in self._numbers(f"{_PREFIX}*.{kind}"):
                if numbers < (setup, slot):
                    (self.folder / path(*numbers)).unlink()


def load_side(
    store: SlotStore, new_side: Callable[[int], SideT]
) -> tuple[int, SideT | None]:
    """Return the newest saved setup, its slot taken up again; 0 and None before any.

    Args:
        new_side: returns the aggregator's side of a setup by its number.

    Raises:
        StateBroken: the files are damaged.
    """
    saved = store.load_setup()
    if saved is None:
        return 0, None
    setup, state = saved
    try:
        side = new_side(setup).restore(state)
        if (slot := store.load_slot(setup)) is not None:
            side.resume_slot(*slot)
    except MalformedMessage as error:
        raise StateBroken(
            f"{store.folder}: the files of setup {setup}: {error}; put the newest ones "
            "back, or begin a new run with a new plan"
        ) from None
    return setup, side


def _setup_file(setup: int) -> str:
    """Return the name of the file of a key exchange."""
    return f"{_PREFIX}{setup:06d}.setup"


def _opened_file(setup: int) -> str:
    """Return the name of the file of the slot that was opened last."""
    return f"{_PREFIX}{setup:06d}.opened"


def _slot_file(setup: int, slot: int) -> str:
    """Return the name of the file of a slot."""
    return f"{_PREFIX}{setup:06d}-{slot:02d}.slot"


def _sum_file(setup: int, slot: int) -> str:
    """Return the name of the file of a slot's hidden sum."""
    return f"{_PREFIX}{setup:06d}-{slot:02d}.sum"
