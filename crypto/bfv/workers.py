"""Homomorphic encryption in child processes: streaming, in order, memory bounded.

SEAL holds the interpreter's lock, and is native code that must not be trusted with a
peer's numbers in our own process. So nothing here imports it: blocks of ciphertexts are
dealt to child processes in turn, and their answers come back in order. Every child has
a *lane*: a thread of ours that asks it; two blocks for each are under way at most.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from crypto.bfv.parameters import (
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

BLOCK_CIPHERTEXTS = 32
"""A good size of a block: 1 MiB of slots."""
_IN_FLIGHT = 2
MEMORY_BYTES = 1 << 30
"""Of address space, for each child; it needs 0.1 GB and 32 KiB for each ciphertext that
was decrypted and is held."""
SECONDS = 60.0
"""For one block, or a child's start."""

_T = TypeVar("_T")
_Work = Callable[[Child], _T]


class _Lane:
    """One thread, and the child that it asks, started when there is work."""

    def __init__(self, memory_bytes: int, seconds: float) -> None:
        self._limits = (memory_bytes, seconds)
        self._thread = ThreadPoolExecutor(1, "homomorphic")
        self._is_closed = False
        self.child: Child | None = None

    def submit(self, work: _Work[_T]) -> Future[_T]:
        """Have a child, a fresh one if there is none or the last has failed, asked."""
        return self._thread.submit(lambda: work(self._living()))

    def submit_to(self, child: Child, work: _Work[_T]) -> Future[_T]:
        """Have this very child asked, which holds something."""

        def ask() -> _T:
            if child is not self.child or not child.is_alive:
                raise WorkerFailed("a child process is gone, and what it had decrypted")
            return work(child)

        return self._thread.submit(ask)

    def close(self) -> None:
        """Kill the child, whatever it does, and end the thread."""
        self._is_closed = True
        if self.child:
            self.child.kill()
        self._thread.shutdown(cancel_futures=True)
        if self.child:
            self.child.close()

    def _living(self) -> Child:
        """Return the child; runs in the thread."""
        if self.child and not self.child.is_alive:
            self.child.close()
            self.child = None
        if not self.child and not self._is_closed:
            self.child = Child(*self._limits)
        if not self.child or self._is_closed:
            raise WorkerFailed("closed while it worked")
        return self.child


_Jobs = Iterator[tuple[_Lane, Future[_T]]]


class Decrypted:
    """A vector whose slots lie in the children until they are asked for.

    ``residuals`` are those of :mod:`crypto.bfv.tags`, over all blocks; the numbers of
    ``noise_budget_bits`` is the smallest of all its ciphertexts. Neither says anything
    about the slots to whoever lacks the tag seed's pads.
    """

    def __init__(
        self, handle: int, answers: list[tuple[_Lane, Child, Answer, int]]
    ) -> None:
        numbers = [answer.numbers for _, _, answer, _ in answers]
        self.residuals = (
            sum(first for first, _, _ in numbers) % PLAIN_MODULUS,
            sum(second for _, second, _ in numbers) % PLAIN_MODULUS,
        )
        self.noise_budget_bits = min(bits for _, _, bits in numbers)
        self._handle = handle
        self._blocks = [(lane, child, num) for lane, child, _, num in answers]
        self._is_held = True

    def slots(self) -> Iterator[Slots]:
        """Have the children give the slots out, block for block, once.

        Yields:
            uint64 ``[c, N]``, each below t, in the order of the blocks.

        Raises:
            RuntimeError: they were given out or discarded before.
            WorkerFailed: a child has died since.
        """
        if not self._is_held:
            raise RuntimeError("these slots were given out or discarded")
        self._is_held = False
        return self._release()

    def discard(self) -> None:
        """Have the children forget the slots, if they still hold them."""
        self._is_held = False
        self._forget()

    def _release(self) -> Iterator[Slots]:
        """Yield the blocks; forget what is left if nobody wants the rest."""

        def start(lane: _Lane, child: Child) -> tuple[_Lane, Future[Answer]]:
            work = lambda child: child.request(Code.RELEASE, self._handle)  # noqa: E731
            return lane, lane.submit_to(child, work)

        jobs = (start(lane, child) for lane, child, _ in self._blocks)
        lanes = {id(lane) for lane, _, _ in self._blocks}
        sizes = iter([num for _, _, num in self._blocks])
        try:
            for _, answer in _in_order(jobs, _IN_FLIGHT * len(lanes)):
                yield _slots(answer, next(sizes))
        finally:
            self._forget()

    def _forget(self) -> None:
        """Tell every child once; one that is gone has forgotten."""
        for lane, child in {(lane, child) for lane, child, _ in self._blocks}:
            _tell(lane, child, Code.DISCARD, self._handle)


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
        self._lanes = [_Lane(memory_bytes, seconds) for _ in range(count)]
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
        """Return a new secret key: ``SECRET_KEY_BYTES``, to be sealed, never stored."""
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
                ``MAX_BLOCK_CIPHERTEXTS``, best ``BLOCK_CIPHERTEXTS``.

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

        def work_on(slots: Slots) -> _Work[Answer]:
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
        num_silos, num_chunks = seeds.shape[:2]
        most = MAX_BODY_BYTES // SEED_BYTES
        if not 1 <= num_silos <= most:
            raise ValueError(f"seeds of {num_silos} silos")
        return self._expand_sum(seeds, min(BLOCK_CIPHERTEXTS, most // num_silos))

    def _expand_sum(
        self, seeds: npt.NDArray[np.uint8], step: int
    ) -> Iterator[tuple[int, Residues]]:
        """Expand ``step`` chunks at a time."""
        num_silos, num_chunks = seeds.shape[:2]
        starts = range(0, num_chunks, step)

        def work_on(start: int) -> _Work[Answer]:
            part = np.ascontiguousarray(seeds[:, start : start + step])
            return lambda child: child.request(
                Code.EXPAND, num_silos, part.shape[1], body=[part.data]
            )

        for start, (_, answer) in zip(
            starts, self._map(map(work_on, starts)), strict=True
        ):
            yield start, _slots(answer, min(step, num_chunks - start))

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

        def work_on(residues: Residues) -> _Work[tuple[Child, Answer, int]]:
            nonlocal first_chunk
            block, chunk = _copy(residues, (2, POLY_DEGREE)), first_chunk
            first_chunk += len(block)

            def work(child: Child) -> tuple[Child, Answer, int]:
                if _give_key(child, number, key):
                    child.request(
                        Code.OPEN, number, number, num_values, body=[tag_seed]
                    )
                answer = child.request(
                    Code.DECRYPT, number, chunk, len(block), body=[block.data]
                )
                return child, answer, len(block)

            return work

        answers = []
        try:
            for lane, (child, answer, num) in self._map(map(work_on, blocks)):
                answers.append((lane, child, answer, num))
            if not answers:
                raise ValueError("blocks: none to decrypt")
            return Decrypted(number, answers)
        except BaseException:
            for lane in self._lanes:
                _tell(lane, lane.child, Code.DISCARD, number)
            raise
        finally:
            self._forget_key(number)

    def _map(self, works: Iterable[_Work[_T]]) -> Iterator[tuple[_Lane, _T]]:
        """Deal work to the lanes in turn; yield lanes and answers in order."""
        lanes = itertools.cycle(self._lanes)
        jobs = ((lane, lane.submit(work)) for lane, work in zip(lanes, works))  # noqa: B905
        return _in_order(jobs, _IN_FLIGHT * len(self._lanes))

    def _forget_key(self, number: int) -> None:
        """Have the children forget a key, after what they still do."""
        for lane in self._lanes:
            _tell(lane, lane.child, Code.FORGET_KEY, number)


def _in_order(jobs: _Jobs[_T], num_in_flight: int) -> Iterator[tuple[_Lane, _T]]:
    """Yield results in the order of the jobs, which start as they are drawn."""
    under_way: deque[tuple[_Lane, Future[_T]]] = deque()
    try:
        for job in jobs:
            under_way.append(job)
            if len(under_way) >= num_in_flight:
                lane, future = under_way.popleft()
                yield lane, future.result()
        while under_way:
            lane, future = under_way.popleft()
            yield lane, future.result()
    finally:
        for _, future in under_way:
            future.cancel()


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


def _tell(lane: _Lane, child: Child | None, code: Code, number: int) -> None:
    """Have a child forget something: one that fails or is gone has forgotten it."""

    def work(child: Child) -> None:
        child.request(code, number)

    if child and number in child.known:
        with contextlib.suppress(RuntimeError):  # The lane was closed.
            lane.submit_to(child, work)


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


def _slots(answer: Answer, num: int) -> npt.NDArray[np.uint64]:
    """Return the polynomials or slots of an answer."""
    if answer.body.size != num * POLY_DEGREE * 8:
        raise WorkerFailed("a child process gave an answer of another length")
    return answer.body.view("<u8").reshape(num, POLY_DEGREE)


def _check_key(key: bytes) -> None:
    """Refuse keys of another length."""
    if len(key) != SECRET_KEY_BYTES:
        raise ValueError(f"a secret key of {len(key)} bytes")
