"""How fast a vector is quantised, masked and unmasked, beside the bare keystream.

The bare keystream of n streams: n AES-256 keys, each encrypting zeros of the vector's
length, in the segments and chunks of ``crypto.prg``, into one buffer that stays in the
cache; nothing is added to anything. That is the least that masking with n seeds can
cost, and it is measured in turn with masking.
"""

import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np
import numpy.typing as npt

from benchmarks.secagg_federation import Federation
from benchmarks.secagg_process import (
    Rows,
    Sizes,
    answer,
    clock,
    interleaved,
    num_cores,
    ratio,
)
from crypto import prg
from crypto.keys import AgreementKey
from crypto.ring import pack_blocks, words_needed
from crypto.secagg.masks import SlotSecrets, mask, unmask
from crypto.secagg.parts import whole
from crypto.secagg.upload import Upload
from privacy.grids import Grid, even_range
from privacy.quantization import Quantizer
from privacy.rotation import padded_length, rotate

FIELD_BITS = 16
VALUE_BITS = 12
NUM_TENSORS = 100
SLOT_DIGEST = bytes(32)

Words = npt.NDArray[np.uint64]
Vector = npt.NDArray[np.float32]


def keystream_seconds(num_streams: int, num_bytes: int) -> float:
    """Return the seconds of the bare keystream, on all cores of this process."""
    seeds = [secrets.token_bytes(prg.MASK_SEED_BYTES) for _ in range(num_streams)]
    segments = list(enumerate(range(0, num_bytes, prg.SEGMENT_BYTES)))
    began = clock()
    if num_cores() == 1:
        _encrypt(seeds, segments, num_bytes)
    else:
        shares = [segments[first :: num_cores()] for first in range(num_cores())]
        with ThreadPoolExecutor(num_cores()) as threads:
            list(threads.map(lambda share: _encrypt(seeds, share, num_bytes), shares))
    return clock() - began


def _encrypt(
    seeds: list[bytes], segments: list[tuple[int, int]], num_bytes: int
) -> None:
    """Encrypt zeros under every seed, segment by segment and chunk by chunk."""
    zeros = memoryview(bytes(prg.CHUNK_BYTES))
    buffer = memoryview(bytearray(prg.CHUNK_BYTES + 16))
    for number, start in segments:
        streams = [prg._open_segment(seed, number) for seed in seeds]
        stop = min(start + prg.SEGMENT_BYTES, num_bytes)
        for first in range(start, stop, prg.CHUNK_BYTES):
            chunk = zeros[: min(prg.CHUNK_BYTES, stop - first)]
            for stream in streams:
                stream.update_into(chunk, buffer)


def masking(sizes: Sizes, num_silos: int) -> Rows:
    """Measure masking, and all that a silo does to mask, beside the keystream."""
    words = random_words(sizes.num_values)
    keys = [AgreementKey.generate() for _ in range(num_silos)]
    publics = {index: key.public for index, key in enumerate(keys)}
    silo = num_silos // 2
    own = SlotSecrets(secrets.token_bytes(prg.MASK_SEED_BYTES), keys[silo])
    parts = whole(words.size, range(num_silos))
    federation = Federation(num_silos)
    federation.set_up()
    active = federation.activate(words.size)
    original = words.copy()

    def silo_side() -> float:
        upload = Upload.of(original)
        return _seconds(lambda: federation.silos[silo].mask(active, upload))

    bare, masks, sides = interleaved(
        sizes,
        (
            lambda: keystream_seconds(num_silos, words.nbytes),
            lambda: _seconds(
                lambda: mask(words, own, silo, publics, SLOT_DIGEST, parts)
            ),
            silo_side,
        ),
    )
    name = f"n = {num_silos}: "
    return [
        (f"{name}bare keystream, {num_silos} streams", median(bare), "s", ""),
        (f"{name}keystream rate", _rate(num_silos, words, bare), "GB/s", ""),
        (f"{name}masking, key exchange included", median(masks), "s", ""),
        (f"{name}masking / keystream", ratio(masks, bare), "ratio", "<= 1.6"),
        (f"{name}SiloSide.mask, two SHA-256 and signature", median(sides), "s", ""),
        (f"{name}SiloSide.mask / keystream", ratio(sides, bare), "ratio", ""),
    ]


def unmasking(sizes: Sizes, num_silos: int, num_lost: int) -> Rows:
    """Measure taking the masks away, key exchange included, beside the keystream."""
    total = random_words(sizes.num_values)
    keys = [AgreementKey.generate() for _ in range(num_silos)]
    publics = {index: key.public for index, key in enumerate(keys)}
    lost = dict(list(enumerate(keys))[:: num_silos // num_lost][:num_lost])
    seeds = {
        index: secrets.token_bytes(prg.MASK_SEED_BYTES)
        for index in range(num_silos)
        if index not in lost
    }
    parts = whole(total.size, range(num_silos))
    num_streams = len(seeds) * (1 + len(lost))
    bare, taken = interleaved(
        sizes,
        (
            lambda: keystream_seconds(num_streams, total.nbytes),
            lambda: _seconds(
                lambda: unmask(total, seeds, lost, publics, SLOT_DIGEST, parts)
            ),
        ),
    )
    name = f"n = {num_silos}, d = {num_lost}: "
    return [
        (f"{name}bare keystream, {num_streams} streams", median(bare), "s", ""),
        (f"{name}unmasking, key exchange included", median(taken), "s", ""),
        (f"{name}unmasking / keystream", ratio(taken, bare), "ratio", "<= 1.7"),
    ]


def quantising(sizes: Sizes) -> Rows:
    """Measure rounding with dither and packing, without and with the rotation."""
    plain = _vector(sizes.num_values)
    rotated = _vector(padded_length(sizes.num_values))
    own_seed = os.urandom(prg.MASK_SEED_BYTES)
    lengths = [part.size for part in np.array_split(plain, NUM_TENSORS)]
    ranges = np.full(NUM_TENSORS, even_range(1.0, plain.size), np.float32)
    tensors = Grid(VALUE_BITS, ranges, tuple(lengths))
    even = Grid(VALUE_BITS, ranges[:1], (rotated.size,))

    def rotate_and_pack() -> None:
        rotate(rotated, prg.SecretRandom(own_seed))
        quantise_and_pack(rotated, even, own_seed)

    without, with_rotation = interleaved(
        sizes,
        (
            lambda: _seconds(lambda: quantise_and_pack(plain, tensors, own_seed)),
            lambda: _seconds(rotate_and_pack),
        ),
    )
    name = "quantise and pack, "
    limits = sizes.target("<= 0.15"), sizes.target("<= 0.3")
    return [
        (f"{name}{NUM_TENSORS} tensors", median(without), "s", limits[0]),
        (f"{name}with rotation", median(with_rotation), "s", limits[1]),
    ]


def quantise_and_pack(vector: Vector, grid: Grid, dither_seed: bytes) -> Words:
    """Round an update at random and pack it, as ``silo/update.py`` does."""
    quantizer = Quantizer(vector, grid, prg.SecretRandom(dither_seed))
    return pack_blocks(quantizer.fill, vector.size, FIELD_BITS)


def random_words(num_values: int) -> Words:
    """Return the words of so many random fields of 16 bits."""
    num_words = words_needed(num_values, FIELD_BITS)
    return prg.expand(os.urandom(prg.MASK_SEED_BYTES), num_words)


def _vector(length: int) -> Vector:
    """Return an update of norm 1, its values about normal."""
    values = np.random.default_rng(0).standard_normal(length, np.float32)
    values /= np.float32(length**0.5)
    return values


def _seconds(step: Callable[[], object]) -> float:
    """Return how long a step takes."""
    began = clock()
    step()
    return clock() - began


def _rate(num_streams: int, words: Words, seconds: list[float]) -> float:
    """Return gigabytes of keystream per second."""
    return num_streams * words.nbytes / median(seconds) / 1e9


def measure(sizes: Sizes) -> Rows:
    """Measure everything, named after the number of cores."""
    rows = quantising(sizes)
    for num_silos, num_lost in sizes.cohorts:
        rows += masking(sizes, num_silos)
        rows += unmasking(sizes, num_silos, num_lost)
    if num_cores() == 1:
        return [(f"one core: {n}", v, unit, target) for n, v, unit, target in rows]
    return [(f"{num_cores()} cores: {n}", v, unit, "") for n, v, unit, _ in rows]


def main() -> None:
    """Answer ``benchmarks.secagg``."""
    answer(measure)


if __name__ == "__main__":
    main()
