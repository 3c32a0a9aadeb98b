"""A mask seed expanded to a keystream of 64-bit words, added to a vector in place.

The keystream of a 32-byte seed is AES-256 under that key, in counter mode, over zeros:
segment s (4 MiB) starts from the counter block ``nonce || 00000002`` with nonce = s in
12 bytes, big-endian. AES-GCM encrypts from just that block, so GCM and CTR give the
same bits; which of them is faster depends on the processor, and is measured once at
import. Words are little-endian on the wire and on every machine.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, GCM

MASK_SEED_BYTES = 32
SEGMENT_BYTES = 1 << 22
CHUNK_BYTES = 1 << 18
_NONCE_BYTES = 12
_FIRST_COUNTER = (2).to_bytes(4, "big")
_BLOCK_SLACK = 16
"""Some versions of OpenSSL's bindings want a block more than they write."""
_ZEROS = memoryview(bytes(CHUNK_BYTES))

Words = npt.NDArray[np.uint64]


class _Stream(Protocol):
    """An AES stream in the middle of a segment."""

    def update_into(self, data: memoryview, buf: memoryview) -> int:
        """Encrypt ``data`` into ``buf``."""


_Opener = Callable[[bytes, int], _Stream]


def _open_gcm(mask_seed: bytes, segment: int) -> _Stream:
    """Start a segment with GCM, which has vectorised code on recent processors."""
    nonce = segment.to_bytes(_NONCE_BYTES, "big")
    return Cipher(AES256(mask_seed), GCM(nonce)).encryptor()


def _open_ctr(mask_seed: bytes, segment: int) -> _Stream:
    """Start a segment with plain counter mode."""
    nonce = segment.to_bytes(_NONCE_BYTES, "big")
    return Cipher(AES256(mask_seed), CTR(nonce + _FIRST_COUNTER)).encryptor()


def _seconds(opener: _Opener) -> float:
    """Return the best of four times for one chunk."""
    buffer = memoryview(bytearray(CHUNK_BYTES + _BLOCK_SLACK))
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        opener(bytes(MASK_SEED_BYTES), 0).update_into(_ZEROS, buffer)
        best = min(best, time.perf_counter() - start)
    return best


_open_segment: _Opener = min((_open_gcm, _open_ctr), key=_seconds)


def add_keystreams(
    words: Words, add: Sequence[bytes], subtract: Sequence[bytes]
) -> None:
    """Add and subtract the keystreams of mask seeds, modulo 2^64, in place.

    Segments are shared out over the processors that this process may use.

    Guarantees: the order of the seeds does not matter; a seed in both lists cancels; to
    whoever lacks one of the seeds, and has seen nothing else masked with it, the result
    is indistinguishable from uniform words (AES-256 as a pseudorandom function).

    Args:
        words: uint64 ``[w]``, contiguous and writeable.
        add, subtract: mask seeds of 32 bytes, each used for one vector only.

    Raises:
        ValueError: wrong type, layout or seed length.
    """
    _check_words(words)
    for mask_seed in (*add, *subtract):
        _check_seed(mask_seed)
    segments = [
        (number, words[start // 8 : (start + SEGMENT_BYTES) // 8])
        for number, start in enumerate(range(0, words.nbytes, SEGMENT_BYTES))
    ]
    num_threads = min(num_processors(), len(segments))
    if num_threads < 2 or not (add or subtract):
        _add_to_segments(segments, add, subtract)
        return
    shares = [segments[first::num_threads] for first in range(num_threads)]
    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(lambda share: _add_to_segments(share, add, subtract), shares))


def num_processors() -> int:
    """Return how many processors this process may use, or how many there are."""
    if hasattr(os, "sched_getaffinity"):  # Linux alone has it.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _add_to_segments(
    segments: Iterable[tuple[int, Words]],
    add: Sequence[bytes],
    subtract: Sequence[bytes],
) -> None:
    """Do the work of one thread; ciphers and ``numpy`` let the others run."""
    buffer = bytearray(CHUNK_BYTES + _BLOCK_SLACK)
    for number, segment in segments:
        plus = [_open_segment(mask_seed, number) for mask_seed in add]
        minus = [_open_segment(mask_seed, number) for mask_seed in subtract]
        for chunk in _chunks(segment):
            _combine(np.add, chunk, plus, buffer)
            _combine(np.subtract, chunk, minus, buffer)


def _chunks(words: Words) -> Iterable[Words]:
    """Cut a segment into chunks that stay in the processor's cache."""
    step = CHUNK_BYTES // 8
    return (words[start : start + step] for start in range(0, words.size, step))


def _combine(
    operation: np.ufunc, chunk: Words, streams: Iterable[_Stream], buffer: bytearray
) -> None:
    """Apply one operation to a chunk with the next bytes of every stream."""
    keystream = np.frombuffer(buffer, "<u8", chunk.size)
    target = memoryview(buffer)
    for stream in streams:
        stream.update_into(_ZEROS[: chunk.nbytes], target)
        operation(chunk, keystream, out=chunk)


def expand(mask_seed: bytes, num_words: int) -> Words:
    """Return the first words of a seed's keystream."""
    words = np.zeros(num_words, np.uint64)
    add_keystreams(words, [mask_seed], [])
    return words


class SecretRandom:
    """A stream of secret random words for one purpose: noise, rounding, dither.

    Guarantees: to whoever lacks the seed the words are indistinguishable from uniform;
    one object never repeats a word of its stream. Two objects with one seed give the
    same words: every object needs a fresh seed from the operating system, or one that
    was derived for it.
    """

    def __init__(self, mask_seed: bytes) -> None:
        _check_seed(mask_seed)
        self._mask_seed = mask_seed
        self._segment = 0
        self._left = SEGMENT_BYTES
        self._stream = _open_segment(mask_seed, 0)

    def __call__(self, words: Words) -> None:
        """Overwrite a contiguous uint64 array with the next words of the stream."""
        _check_words(words)
        done = 0
        while done < words.size:
            size = min(words.size - done, self._left // 8, CHUNK_BYTES // 8)
            self._fill(words[done : done + size])
            done += size

    def draw(self, num_bytes: int) -> bytes:
        """Return the next bytes of the stream; what is left of a word is skipped."""
        words = np.empty(-(-num_bytes // 8), np.uint64)
        self(words)
        return words.astype("<u8", copy=False).tobytes()[:num_bytes]

    def _fill(self, chunk: Words) -> None:
        """Fill a chunk that does not reach beyond the segment."""
        buffer = bytearray(chunk.nbytes + _BLOCK_SLACK)
        self._stream.update_into(_ZEROS[: chunk.nbytes], memoryview(buffer))
        chunk[:] = np.frombuffer(buffer, "<u8", chunk.size)
        self._left -= chunk.nbytes
        if not self._left:
            self._segment += 1
            self._left = SEGMENT_BYTES
            self._stream = _open_segment(self._mask_seed, self._segment)

    def __repr__(self) -> str:
        return "SecretRandom(…)"


def _check_words(words: Words) -> None:
    """Refuse arrays that cannot be changed in place as 64-bit words."""
    if words.dtype != np.uint64 or words.ndim != 1:
        raise ValueError(f"words: must be uint64 [w], is {words.dtype} {words.shape}")
    if not (words.flags.c_contiguous and words.flags.writeable):
        raise ValueError("words: must be contiguous and writeable")


def _check_seed(mask_seed: bytes) -> None:
    """Refuse seeds of another length."""
    if len(mask_seed) != MASK_SEED_BYTES:
        raise ValueError(f"a mask seed of {len(mask_seed)} bytes")
