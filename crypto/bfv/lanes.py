"""Threads that each ask one child process, and results in the order of the requests."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeAlias, TypeVar

from crypto.bfv.pipes import Code
from crypto.bfv.process import Child
from crypto.errors import WorkerFailed

IN_FLIGHT = 2
"""Requests that wait or are under way for each child."""

_T = TypeVar("_T")
Work: TypeAlias = Callable[[Child], _T]


class Lane:
    """One thread, and the child that it asks, started when there is work.

    What is submitted is done in order; ``child`` changes in the thread alone.
    """

    def __init__(self, memory_bytes: int, seconds: float) -> None:
        self._limits = (memory_bytes, seconds)
        self._thread = ThreadPoolExecutor(1, "homomorphic")
        self._is_closed = False
        self.child: Child | None = None

    def submit(self, work: Work[_T]) -> Future[_T]:
        """Have a child asked: a fresh one if there is none or the last has failed."""
        return self._thread.submit(lambda: work(self._living()))

    def submit_to_holder(self, number: int, work: Work[_T]) -> Future[_T]:
        """Have the child asked that knows a number, and no fresh one."""

        def ask() -> _T:
            child = self.child
            if not child or not child.is_alive or number not in child.known:
                raise WorkerFailed("a child process is gone, and what it had decrypted")
            return work(child)

        return self._thread.submit(ask)

    def tell(self, code: Code, number: int) -> None:
        """Have the child forget a number; one that is gone or fails has forgotten."""
        if not self._is_closed:
            self.submit_to_holder(number, lambda child: child.request(code, number))

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
            raise WorkerFailed("closed while there was work")
        return self.child


def _result(future: Future[_T]) -> _T:
    """Return a result; work that never began because its lane was closed is refused."""
    try:
        return future.result()
    except CancelledError:
        raise WorkerFailed("closed while there was work") from None


def in_order(
    jobs: Iterator[tuple[Lane, Future[_T]]], num_in_flight: int
) -> Iterator[tuple[Lane, _T]]:
    """Yield results in the order of the jobs, which start as they are drawn.

    Whoever stops early leaves nothing behind but what is under way already.
    """
    under_way: deque[tuple[Lane, Future[_T]]] = deque()
    try:
        for job in jobs:
            under_way.append(job)
            if len(under_way) >= num_in_flight:
                lane, future = under_way.popleft()
                yield lane, _result(future)
        while under_way:
            lane, future = under_way.popleft()
            yield lane, _result(future)
    finally:
        for _, future in under_way:
            future.cancel()
