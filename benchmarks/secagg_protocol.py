"""The whole protocol with many silos in one process: seconds by part, and bytes.

Everything but training, disk and network: each silo rotates, rounds, packs and masks an
update of its own and takes part in every stage; the aggregator adds, unmasks, unpacks
and rotates back. Both make the state that they would save. Seconds are those of
``benchmarks.secagg_parts``.
"""

import os

import numpy as np

from benchmarks.secagg_federation import Federation
from benchmarks.secagg_parts import KEYSTREAM, Timers, wrapped
from benchmarks.secagg_process import Rows, Sizes, answer
from benchmarks.secagg_speed import FIELD_BITS, quantise_and_pack
from crypto import prg
from crypto.frame import Kind
from crypto.ring import unpack_blocks, words_needed
from crypto.secagg.upload import Upload
from privacy.grids import Grid, even_range
from privacy.quantization import dequantize_sum
from privacy.rotation import padded_length, rotate, rotate_back

SIGN_SEED = bytes(prg.MASK_SEED_BYTES)
SILOS, AGGREGATOR = "silos", "aggregator"
ROTATE_AND_ROUND = "rotate, round, pack; and back"


def play(sizes: Sizes, timers: Timers) -> None:
    """Run one setup and one slot, with silos lost before they upload.

    Raises:
        ArithmeticError: the mean is not that of the survivors' updates.
    """
    num_silos, first = sizes.whole_silos, sizes.whole_lost
    federation, length = Federation(num_silos), padded_length(sizes.whole_values)
    federation.silo_calls = lambda: timers.side(SILOS)
    federation.aggregator_calls = lambda: timers.side(AGGREGATOR)
    federation.set_up()
    active = federation.activate(words_needed(length, FIELD_BITS))
    generator, wanted = np.random.default_rng(0), np.zeros(length)
    grid = Grid(9, np.array([even_range(1.0, length)]), (length,))
    for index in range(first, num_silos):
        update = generator.standard_normal(length, np.float32)
        update /= np.float32(np.sqrt(update @ update))
        wanted += update
        with timers.side(SILOS), timers.part(ROTATE_AND_ROUND):
            rotate(update, prg.SecretRandom(SIGN_SEED))
            upload = Upload.of(
                quantise_and_pack(update, grid, os.urandom(prg.MASK_SEED_BYTES))
            )
        federation.add_masked(federation.mask(index, active, upload))
    federation.finish(range(first, num_silos))
    num_survivors = num_silos - first
    with timers.side(AGGREGATOR), timers.part(ROTATE_AND_ROUND):
        mean = dequantize_sum(
            unpack_blocks(federation.slot.total, FIELD_BITS, length),
            grid,
            num_contributors=num_survivors,
            total_weight=num_survivors,
        )
        rotate_back(mean, prg.SecretRandom(SIGN_SEED))
    error = float(np.abs(mean - wanted / num_survivors).max())
    if error > float(grid.steps[0]):
        raise ArithmeticError("the mean is not that of the survivors' updates")


def whole_protocol(sizes: Sizes) -> Rows:
    """Return seconds and shares of the whole protocol."""
    timers = Timers()
    with wrapped(timers):
        play(sizes, timers)
    name = f"whole protocol, n = {sizes.whole_silos}, {sizes.whole_values:,} values"
    of_silos = sum(timers.seconds(SILOS).values())
    of_aggregator = sum(timers.seconds(AGGREGATOR).values())
    rows = [
        (f"{name}: one silo, mean of all", of_silos / sizes.whole_silos, "s", ""),
        (f"{name}: aggregator", of_aggregator, "s", ""),
    ]
    for label, sides in (
        ("whole", (SILOS, AGGREGATOR)),
        (SILOS, (SILOS,)),
        (AGGREGATOR, (AGGREGATOR,)),
    ):
        seconds = timers.seconds(*sides)
        total = sum(seconds.values())
        for part, spent in seconds.items():
            is_bound = label == "whole" and part != KEYSTREAM
            target = sizes.target("<= 25") if is_bound else ""
            rows.append((f"{label}: {part}", 100 * spent / total, "%", target))
    return rows


SETUP = (Kind.ADVERTISE, Kind.KEYS, Kind.SHARES, Kind.ENVELOPES)
UP = (Kind.ADVERTISE, Kind.SHARES, Kind.READY, Kind.MASKED, Kind.CONFIRM, Kind.REVEAL)
LIMITS = {(10, 1): "<= 8000", (100, 1): "<= 70000"}


def message_bytes(num_silos: int, num_slots: int) -> Rows:
    """Count what one silo sends and receives beside the vector, nobody being lost.

    The setup counts once for all its slots.
    """
    federation = Federation(num_silos, num_slots)
    federation.set_up()
    active = federation.activate(1)
    for index in federation.everyone:
        upload = Upload.of(np.array([index], np.uint64))
        federation.add_masked(federation.mask(index, active, upload))
    federation.finish(federation.everyone)
    directions = {"up": 0.0, "down": 0.0}
    for kind, sizes in federation.sent.items():
        share = 1 / num_slots if kind in SETUP else 1
        direction = "up" if kind in UP else "down"
        directions[direction] += share * max(sizes.values())
    name = f"bytes of a silo and round beside the vector, n = {num_silos}, "
    name += f"R = {num_slots}"
    both = sum(directions.values())
    return [
        *((f"{name}, {way}", size, "B", "") for way, size in directions.items()),
        (f"{name}, both", both, "B", LIMITS.get((num_silos, num_slots), "")),
    ]


def measure(sizes: Sizes) -> Rows:
    """Measure the whole protocol, then count bytes."""
    rows = whole_protocol(sizes)
    for num_silos in sizes.byte_silos:
        for num_slots in (1, 16):
            rows += message_bytes(num_silos, num_slots)
    return rows


def main() -> None:
    """Answer ``benchmarks.secagg``."""
    answer(measure)


if __name__ == "__main__":
    main()
