"""Homomorphic encryption in child processes: streaming, in order, memory bounded.

SEAL holds the interpreter's lock, and is native code that must not be trusted with a
peer's numbers in our own process. So nothing here imports it: blocks of ciphertexts are
dealt to child processes in turn, and their answers come back in order. Every child has
a *lane*: a thread of ours that asks it; two blocks for each are under way at most.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from crypto.bfv.decrypted import Decrypted, polynomials
from crypto.bfv.lanes import IN_FLIGHT, Lane, Work, in_order
from crypto.bfv.parameters import (
    BLOCK_CHUNKS,
    FRESH_BYTES,
    PLAIN_MODULUS,
    POLY_DEGREE,
    SECRET_KEY_BYTES,
    SEED_BYTES,
    Residues,
    Slots,
)
from crypto.bfv.pipes import MAX_BLOCK_CIPHERTEXTS, MAX_BODY_BYTES, Code
from crypto.bfv.process import Answer, Child
from crypto.bfv.tags import TAG_SEED_BYTES
from crypto.errors import WorkerFailed
from crypto.prg import num_processors

MEMORY_BYTES = 1 << 30
"""Of address space, for each child; it needs 0.1 GB and 32 KiB for each ciphertext that
was decrypted and is held."""
SECONDS = 60.0
"""For one block, or a child's start."""

_T = TypeVar("_T")


class Workers:
    """The child processes of one silo or aggregator; a context manager.

    A method that raises :class:`crypto.errors.WorkerFailed` leaves these workers fit
    for use: the next call starts fresh children where some have died. What a child had
    decrypted is gone with it.
    """

    def __init__(
        self,
        num: int | None = None,
        *,
        memory_bytes: int = MEMORY_BYTES,
        seconds: float = SECONDS,
    ) -> None:
        """Start nothing yet.

        Args:
            num: how many processes at most; by default one for each processor.
            memory_bytes: address space of each.
            seconds: how long each may take for one block, or for its start.
        """
        if num is not None and num < 1:
            raise ValueError(f"num: must be at least 1, is {num}")
        count = num_processors() if num is None else num
        self._lanes = [Lane(memory_bytes, seconds) for _ in range(count)]
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the children, whatever they do; generators that still run will fail."""
        for lane in self._lanes:
            lane.close()

    @property
    def process_ids(self) -> list[int]:
        """The children that live now."""
        children = [lane.child for lane in self._lanes]
        return [child.process_id for child in children if child and child.is_alive]

    def make_key(self) -> bytes:
        """Return a new secret key: ``SECRET_KEY_BYTES``, to be sealed to the others."""
        work = self._lanes[0].submit(lambda child: child.request(Code.MAKE_KEY))
        key = work.result().body.tobytes()
        if len(key) != SECRET_KEY_BYTES:
            raise WorkerFailed("a child process made a key of another length")
        return key

    def encrypt(self, key: bytes, blocks: Iterable[Slots]) -> Iterator[memoryview]:
        """Encrypt a vector, block by block.

        Args:
            key: the silos' secret key.
            blocks: uint64 ``[c, N]``, each slot below t; c from 1 to
                ``MAX_BLOCK_CIPHERTEXTS``, best ``BLOCK_CHUNKS``.

        Yields:
            For each block, ``c * FRESH_BYTES`` bytes of fresh ciphertexts.

        Raises:
            ValueError: a key or block of another shape, or a slot of t or more.
            WorkerFailed: a child crashed or went beyond its limits.
        """
        _check_key(key)
        return self._encrypt(key, blocks)

    def _encrypt(self, key: bytes, blocks: Iterable[Slots]) -> Iterator[memoryview]:
        """Encrypt, under a key that the children know by a number of this call."""
        number = next(self._numbers)

        def work_on(slots: Slots) -> Work[Answer]:
            block = _copy(slots, (POLY_DEGREE,), PLAIN_MODULUS)

            def work(child: Child) -> Answer:
                _give_key(child, number, key)
                return child.request(
                    Code.ENCRYPT, number, len(block), body=[block.data]
                )

            return work

        sizes: deque[int] = deque()
        try:
            for _, answer in self._map(map(work_on, _sized(blocks, sizes))):
                if answer.body.size != sizes.popleft() * FRESH_BYTES:
                    raise WorkerFailed("a child process gave ciphertexts of no length")
                yield answer.body.data
        finally:
            self._forget_key(number)

    def expand_sum(
        self, seeds: npt.NDArray[np.uint8]
    ) -> Iterator[tuple[int, Residues]]:
        """Expand the seeds of fresh ciphertexts, and add over the silos modulo q.

        Args:
            seeds: uint8 ``[num_silos, num_chunks, SEED_BYTES]``.

        Yields:
            The number of a first chunk; the sums of c1 of some chunks from there on,
            uint64 ``[c, N]``, each below q.

        Raises:
            ValueError: seeds of another shape.
            WorkerFailed: a child crashed or went beyond its limits.
        """
        if seeds.dtype != np.uint8 or seeds.ndim != 3 or seeds.shape[2] != SEED_BYTES:
            raise ValueError(f"seeds: {seeds.dtype} {seeds.shape}")
        num_silos = len(seeds)
        most = MAX_BODY_BYTES // SEED_BYTES
        if not 1 <= num_silos <= most:
            raise ValueError(f"seeds of {num_silos} silos")
        return self._expand_sum(seeds, min(BLOCK_CHUNKS, most // num_silos))

    def _expand_sum(
        self, seeds: npt.NDArray[np.uint8], step: int
    ) -> Iterator[tuple[int, Residues]]:
        """Expand ``step`` chunks at a time."""
        num_silos, num_chunks = seeds.shape[:2]
        starts = range(0, num_chunks, step)

        def work_on(start: int) -> Work[Answer]:
            part = np.ascontiguousarray(seeds[:, start : start + step])
            return lambda child: child.request(
                Code.EXPAND, num_silos, part.shape[1], body=[part.data]
            )

        for start, (_, answer) in zip(
            starts, self._map(map(work_on, starts)), strict=True
        ):
            yield start, polynomials(answer, min(step, num_chunks - start))

    def decrypt(
        self,
        key: bytes,
        blocks: Iterable[Residues],
        *,
        tag_seed: bytes,
        num_values: int,
    ) -> Decrypted:
        """Decrypt a vector; its slots stay in the children until they are asked for.

        Args:
            key: the silos' secret key.
            blocks: uint64 ``[c, 2, N]``, c0 and c1, below q, of the vector's chunks in
                order; c as in :meth:`encrypt`.
            tag_seed, num_values: as in :func:`crypto.bfv.tags.residuals`.

        Raises:
            ValueError: a key, seed or block of another shape, or none.
            WorkerFailed: a child crashed or went beyond its limits; nothing is held.
        """
        _check_key(key)
        if len(tag_seed) != TAG_SEED_BYTES:
            raise ValueError(f"a tag seed of {len(tag_seed)} bytes")
        number = next(self._numbers)
        first_chunk = 0

        def work_on(residues: Residues) -> Work[Answer]:
            nonlocal first_chunk
            block, chunk = _copy(residues, (2, POLY_DEGREE)), first_chunk
            first_chunk += len(block)

            def work(child: Child) -> Answer:
                if _give_key(child, number, key):
                    child.request(
                        Code.OPEN, number, number, num_values, body=[tag_seed]
                    )
                return child.request(
                    Code.DECRYPT, number, chunk, len(block), body=[block.data]
                )

            return work

        sizes: deque[int] = deque()
        try:
            results = list(self._map(map(work_on, _sized(blocks, sizes))))
            if not results:
                raise ValueError("blocks: none to decrypt")
            lanes, answers = zip(*results, strict=True)
            return Decrypted(number, list(lanes), list(answers), list(sizes))
        except BaseException:
            for lane in self._lanes:
                lane.tell(Code.DISCARD, number)
            raise
        finally:
            self._forget_key(number)

    def _map(self, works: Iterable[Work[_T]]) -> Iterator[tuple[Lane, _T]]:
        """Deal work to the lanes in turn; yield lanes and answers in order."""
        lanes = itertools.cycle(self._lanes)
        jobs = ((lane, lane.submit(work)) for lane, work in zip(lanes, works))  # noqa: B905
        return in_order(jobs, IN_FLIGHT * len(self._lanes))

    def _forget_key(self, number: int) -> None:
        """Have the children forget a key, after what they still do."""
        for lane in self._lanes:
            lane.tell(Code.FORGET_KEY, number)


def _sized(blocks: Iterable[Slots], sizes: deque[int]) -> Iterator[Slots]:
    """Note the lengths of blocks that pass."""
    for block in blocks:
        sizes.append(len(block))
        yield block


def _give_key(child: Child, number: int, key: bytes) -> bool:
    """Give a child the key of a call, if it lacks it; return whether it did."""
    if number in child.known:
        return False
    child.request(Code.SET_KEY, number, body=[key])
    child.known.add(number)
    return True


def _copy(
    block: npt.NDArray[np.uint64], shape: tuple[int, ...], bound: int = 0
) -> npt.NDArray[np.uint64]:
    """Return a copy of a block that nobody changes while it waits."""
    if block.dtype != np.uint64 or block.shape[1:] != shape:
        raise ValueError(f"a block of {block.dtype} {block.shape}")
    if not 1 <= len(block) <= MAX_BLOCK_CIPHERTEXTS:
        raise ValueError(f"a block of {len(block)} ciphertexts")
    if bound and int(block.max()) >= bound:
        raise ValueError("a slot of t or more")
    return np.array(block, order="C")


def _check_key(key: bytes) -> None:
    """Refuse keys of another length."""
    if len(key) != SECRET_KEY_BYTES:
        raise ValueError(f"a secret key of {len(key)} bytes")
