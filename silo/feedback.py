"""Error feedback: what quantisation took from an update is added to a later one.

The residual of a round is the clipped update minus what its packed levels stand for.
It *pends* until the signed SUM of the slot names this silo among the survivors: only
then did the levels enter the model, and the residual becomes the *current* one, which
is added to the next update before its clip. Else the current one stays, as nothing of
the round's update was used.

Both are files of the run's folder that depend on this silo's images: readable by their
owner alone, written whole, and removed when the run ends.

Source: Seide et al. 2014, section 3.1; Karimireddy et al. 2019 (arXiv 1901.09847).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crypto.prg import SecretRandom
from crypto.ring import unpack_blocks
from crypto.secagg.silo_state import SlotProgress
from diffusion.parameters import ParameterLayout, Vector
from privacy.grids import Grid
from privacy.rotation import rotate_back
from protocol.bodies import floats_to_bytes
from protocol.encoding import decode, encode
from protocol.errors import EncodingError, KeyFileRejected
from protocol.files import load_secret, save_secret, sync_folder
from protocol.grids import RoundGrid, sign_seed
from protocol.plan import RunPlan
from silo.errors import StateBroken

CURRENT_FILE = "residual"
PENDING_FILE = "residual-pending"
_Words = npt.NDArray[np.uint64]


class Residual:
    """The residual of one silo in one run, on disk between any two rounds.

    All vectors are float32 ``[d]`` in the order of the layout; a stretch that the silo
    did not return (``protocol.stretches``) keeps its current residual.
    """

    def __init__(self, folder: Path, layout: ParameterLayout, silo: int) -> None:
        self._current, self._pending = folder / CURRENT_FILE, folder / PENDING_FILE
        self._layout, self._silo = layout, silo

    def current(self) -> Vector:
        """Return what is added to the next update; zeros before the first.

        Raises:
            StateBroken: the file is damaged.
        """
        if not self._current.exists():
            return np.zeros(self._layout.size, np.float32)
        return self._load(self._current)[1]

    def pend(self, round_number: int, residual: Vector) -> None:
        """Keep a round's residual until its sum is known, in place of any other's.

        It is on disk when this returns. Call it before the round's update is stored.
        """
        note = encode({"round_number": round_number})
        content = note + b"\n" + floats_to_bytes(residual)
        check = hashlib.sha256(content).hexdigest().encode()
        save_secret(self._pending, check + b"\n" + content)

    def settle(self, slot: SlotProgress | None) -> None:
        """Let the pending residual become the current one, if its update was summed.

        Does nothing while the slot has no sum, and when it was settled before.

        Args:
            slot: this silo's latest slot.

        Raises:
            StateBroken: the pending residual is damaged.
        """
        if slot is None or not slot.sum_digest or not self._pending.exists():
            return
        if self._load(self._pending)[0] != slot.round_number:
            return
        if self._silo in slot.survivors:
            self._pending.replace(self._current)
        else:
            self._pending.unlink()
        sync_folder(self._current.parent)

    def forget(self) -> None:
        """Remove everything: the run is over."""
        for path in (self._current, self._pending):
            path.unlink(missing_ok=True)
        sync_folder(self._current.parent)

    def _load(self, path: Path) -> tuple[int, Vector]:
        """Return the round and the values of a file.

        Raises:
            StateBroken: it is damaged, or others may read it.
        """
        try:
            check, _, content = load_secret(path).partition(b"\n")
            note, _, values = content.partition(b"\n")
            number = decode(note)["round_number"]
        except (KeyFileRejected, EncodingError) as error:
            raise StateBroken(f"{path}: {error}") from None
        found = hashlib.sha256(content).hexdigest().encode()
        if found != check or len(values) != 4 * self._layout.size:
            raise StateBroken(f"{path}: is damaged; remove it to go on without it")
        return number, np.frombuffer(values, "<f4").astype(np.float32)


class RoundResidual:
    """The residual of one round in the making: added, kept track of, and computed.

    Args:
        own: the stretches that the silo returns.
        weight: this silo's factor in the sum.
        current: :meth:`Residual.current`.
    """

    def __init__(
        self,
        plan: RunPlan,
        layout: ParameterLayout,
        numbers: RoundGrid,
        *,
        round_number: int,
        own: Sequence[int],
        weight: float,
        current: Vector,
    ) -> None:
        self._plan, self._round_number, self._weight = plan, round_number, weight
        self._residual = current.copy()
        sizes = [stretch.size for stretch in layout.stretches]
        parts = np.split(self._residual, np.cumsum(sizes)[:-1])
        self._own = [parts[index] for index in own]
        self._grids = [numbers.grids[index] for index in own]

    def add_to(self, rows: Sequence[Vector]) -> None:
        """Add the current residual to an update, in place, before its clip.

        Args:
            rows: the update of each stretch, with its padding behind.
        """
        for row, part in zip(rows, self._own, strict=True):
            row[: part.size] += part

    def keep(self, rows: Sequence[Vector]) -> None:
        """Remember the clipped update, before it is rotated."""
        for row, part in zip(rows, self._own, strict=True):
            part[:] = row[: part.size]

    def after(self, words: _Words) -> Vector:
        """Return what the packed words lack of the clipped update, float32 ``[d]``.

        A stretch that is not returned has its current residual.
        """
        first = 0
        for part, grid in zip(self._own, self._grids, strict=True):
            num_words = self._plan.num_words(self._round_number, part.size)
            part -= self._stands_for(words[first : first + num_words], grid)[
                : part.size
            ]
            first += num_words
        return self._residual

    def _stands_for(self, words: _Words, grid: Grid) -> Vector:
        """Return what the words of one stretch stand for: level · step / weight."""
        plan, number = self._plan, self._round_number
        values = words[:-1] if plan.update.weights == "secret" else words
        update = np.empty(grid.length, np.float32)
        factors = grid.steps / self._weight
        for start, fields in unpack_blocks(
            values, plan.field_bits(number), grid.length
        ):
            for part, segment in grid.parts(start, start + fields.size):
                sent = fields[part.start - start : part.stop - start]
                levels = sent.astype(np.float64) - grid.max_level
                update[part] = levels * factors[segment]
        if plan.update.rotation:
            rotate_back(update, SecretRandom(sign_seed(plan, number)))
        return update
