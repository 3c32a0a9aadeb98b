"""What a silo and the aggregator have in memory at most, beside what they are given.

The figure is the peak of the process's resident memory (``VmHWM``, which is set back
before the step by writing 5 to ``/proc/self/clear_refs``) less the resident memory
before the step. It counts every page that is touched, whoever allocates it; the peak of
``getrusage`` cannot be set back, and a process starts with its parent's.

The silo: from a float32 update in memory through rotation, rounding and packing to the
disk, and from there into the frame that is masked and signed, as ``silo/update.py``,
``silo/store.py`` and ``SiloSide.mask`` do it. The aggregator: an ``AggregatorSlot``
from its opening to its sum; all silos live in a second process, which hands over each
frame as a file.
"""

import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.secagg_federation import MODEL, ROUND, Federation
from benchmarks.secagg_process import Rows, Sizes, answer
from benchmarks.secagg_speed import FIELD_BITS, VALUE_BITS, quantise_and_pack
from crypto import prg
from crypto.ring import words_needed
from crypto.secagg.parts import whole
from crypto.secagg.upload import Upload
from privacy.grids import Grid, even_range
from privacy.rotation import padded_length, rotate
from silo.store import RunStore, TrainedRound
from silo.training import TrainingState

Words = npt.NDArray[np.uint64]


class Peak:
    """The most memory that was resident since this object was made, less the start."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    def num_bytes(self) -> int:
        """Return the bytes beyond the start."""
        return _status("VmHWM") - self._before


def _status(name: str) -> int:
    """Return one of the kernel's figures for this process, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"the kernel does not tell {name}")
    return 1024 * int(found[1])


def silo(sizes: Sizes, num_silos: int, folder: Path) -> Rows:
    """Measure a silo from its float32 update to the signed frame."""
    federation, store = Federation(num_silos), RunStore(folder / f"silo-{num_silos}")
    federation.set_up()
    length = padded_length(sizes.num_values)
    num_words = words_needed(length, FIELD_BITS)
    active = federation.activate(num_words)
    update = np.random.default_rng(0).standard_normal(length, np.float32)
    norm = float(np.sqrt(update @ update))
    grid = Grid(VALUE_BITS, np.array([even_range(norm, length)]), (length,))
    peak = Peak()
    _pack_and_save(update, grid, store)
    packed = peak.num_bytes()
    upload = store.load_update(1)
    if upload is None:
        raise FileNotFoundError("the update that was just saved")
    federation.silos[0].mask(active, upload)
    masked, vector = peak.num_bytes(), 8 * num_words
    name = f"memory, silo, n = {num_silos}"
    return [
        (f"{name}: packed and saved", packed / vector, "vectors", ""),
        (f"{name}: masked and framed too", masked / vector, "vectors", "<= 1.25"),
    ]


def _pack_and_save(
    update: npt.NDArray[np.float32], grid: Grid, store: RunStore
) -> None:
    """Rotate, round, pack and save; nothing of it is in memory afterwards."""
    rotate(update, prg.SecretRandom(bytes(prg.MASK_SEED_BYTES)))
    words = quantise_and_pack(update, grid, os.urandom(prg.MASK_SEED_BYTES))
    trained = TrainedRound(round_number=1, model=MODEL.hex())
    store.save_round(trained, words, TrainingState(), {})


class Silos:
    """All silos of a federation in a process of their own, called over a pipe."""

    def __init__(self, federation: Federation, words_seed: bytes, folder: Path) -> None:
        # A fork has the silos that were set up here, and no memory of ours.
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        arguments = (federation, words_seed, folder / "frame", theirs)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()

    def __call__(self, silo: int, method: str, *arguments: object) -> bytes:
        """Return a silo's reply."""
        self._pipe.send((silo, method, arguments))
        reply: bytes = self._pipe.recv()
        return reply

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def _serve(
    federation: Federation, words_seed: bytes, path: Path, pipe: Connection
) -> None:
    """Answer for the silos. MASKED goes to the file; its reply is empty."""
    words: Words | None = None
    while (call := pipe.recv()) is not None:
        silo, method, arguments = call
        side = federation.silos[silo]
        if method == "ready":
            pipe.send(side.ready(*arguments))
        elif method == "mask":
            active, num_words = arguments
            if words is None:
                words = prg.expand(words_seed, num_words)
            path.write_bytes(side.mask(active, Upload.of(words)))
            pipe.send(b"")
        elif method == "confirm":
            pipe.send(side.confirm(*arguments))
        elif method == "reveal":
            pipe.send(side.reveal(*arguments))


def aggregator(sizes: Sizes, num_silos: int, num_lost: int, folder: Path) -> Rows:
    """Measure the aggregator over a slot in which some silos are lost."""
    federation, words_seed = Federation(num_silos), os.urandom(prg.MASK_SEED_BYTES)
    federation.set_up()
    silos = Silos(federation, words_seed, folder)
    num_words = words_needed(sizes.num_values, FIELD_BITS)
    everyone, survivors = range(num_silos), range(num_lost, num_silos)
    peak = Peak()
    slot = federation.aggregator.open_slot(*ROUND, whole(num_words, everyone))
    for index in everyone:
        slot.add_ready(silos(index, "ready", *ROUND))
    active = slot.active()
    for index in survivors:
        silos(index, "mask", active, num_words)
        slot.add_masked((folder / "frame").read_bytes())
    _collect(silos, survivors, "confirm", slot.survivors(), slot.add_confirm)
    _collect(silos, survivors, "reveal", slot.confirms(), slot.add_reveal)
    total = slot.unmask()
    highest = peak.num_bytes() / total.nbytes
    silos.close()
    _check_sum(total, words_seed, len(survivors))
    name = f"memory, aggregator, n = {num_silos}, d = {num_lost}"
    return [(name, highest, "vectors", "<= 2.5")]


def _collect(
    silos: Silos,
    survivors: range,
    method: str,
    request: bytes,
    take: Callable[[bytes], None],
) -> None:
    """Let every survivor answer a request."""
    for index in survivors:
        take(silos(index, method, request))


def _check_sum(total: Words, words_seed: bytes, num_survivors: int) -> None:
    """Check that the sum is that of what the silos masked: all the same words."""
    expected = prg.expand(words_seed, total.size) * np.uint64(num_survivors)
    if not np.array_equal(total, expected):
        raise ArithmeticError("the unmasked sum is not the sum of the vectors")


def measure(sizes: Sizes) -> Rows:
    """Measure silo and aggregator for every cohort."""
    rows: Rows = []
    with tempfile.TemporaryDirectory() as name:
        for num_silos, num_lost in sizes.cohorts:
            rows += silo(sizes, num_silos, Path(name))
            rows += aggregator(sizes, num_silos, num_lost, Path(name))
    return rows


def main() -> None:
    """Answer ``benchmarks.secagg``."""
    answer(measure)


if __name__ == "__main__":
    main()
