"""One child process of homomorphic encryption, seen from its parent.

Requests go one at a time. A child that dies, says something else than an answer, or
takes too long is killed, and the request ends in :class:`crypto.errors.WorkerFailed`.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crypto.bfv import pipes
from crypto.bfv.pipes import Code
from crypto.errors import WorkerFailed

_START = (
    "import sys; memory, *sys.path = sys.argv[1:];"
    "from crypto.bfv.child import serve; serve(int(memory))"
)
_LAST_WORDS_SECONDS = 5.0
_PIPE_BYTES = 1 << 20

Body = npt.NDArray[np.uint8]
Part = bytes | memoryview


@dataclass(frozen=True)
class Answer:
    """Three numbers and a body that belongs to whoever asked."""

    numbers: tuple[int, int, int]
    body: Body = field(repr=False)


class Child:
    """A process that has started; :meth:`request` is for one thread at a time.

    ``known`` is for whoever asks: the numbers of the keys that the child was given.
    """

    def __init__(self, memory_bytes: int, seconds: float) -> None:
        """Start the process and wait until it has imported what it needs.

        Raises:
            WorkerFailed: it does not start.
        """
        self._seconds = seconds
        self.known: set[int] = set()
        try:
            self._process = subprocess.Popen(  # noqa: S603
                _command(memory_bytes),
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise WorkerFailed(f"a child process does not start: {error}") from error
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("a child process without pipes")
        self._requests = self._process.stdin.fileno()
        self._answers = self._process.stdout.fileno()
        for pipe in (self._requests, self._answers):
            os.set_blocking(pipe, False)
            _widen(pipe)
        try:
            self._receive(time.monotonic() + seconds, Code.READY)
        except WorkerFailed:
            self.close()
            raise

    @property
    def process_id(self) -> int:
        """The operating system's number of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def request(
        self, code: Code, x: int = 0, y: int = 0, z: int = 0, body: Iterable[Part] = ()
    ) -> Answer:
        """Ask, and wait for the answer.

        Raises:
            WorkerFailed: the child died, took too long, or answered something else.
        """
        deadline = time.monotonic() + self._seconds
        parts = [memoryview(part).cast("B") for part in body]
        size = sum(part.nbytes for part in parts)
        if size > pipes.MAX_BODY_BYTES:
            raise ValueError(f"a request of {size} bytes")
        header = pipes.HEADER.pack(code, x, y, z, size)
        # A child that is gone may have left its last words in the other pipe.
        with contextlib.suppress(BrokenPipeError):
            for part in (memoryview(header), *parts):
                self._send(part, deadline)
        return self._receive(deadline, Code.DONE)

    def kill(self) -> None:
        """End the process, whatever it does; what it held is gone."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process and close its pipes: no request may be under way."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _send(self, part: memoryview, deadline: float) -> None:
        """Write to the child."""
        while part:
            try:
                part = part[os.write(self._requests, part) :]
            except BlockingIOError:
                self._wait(self._requests, select.POLLOUT, deadline)

    def _receive(self, deadline: float, expected: Code) -> Answer:
        """Read one answer."""
        header = self._read(pipes.HEADER.size, deadline)
        code, x, y, z, size = pipes.HEADER.unpack(header.data)
        is_answer = code in (expected, Code.FAILED)
        if not is_answer or size > pipes.MAX_BODY_BYTES:
            self._fail("it answered something else than an answer")
        body = self._read(size, deadline)
        if code == Code.FAILED:
            line = bytes(body[: pipes.MAX_ERROR_BYTES]).decode(errors="replace")
            self._fail("".join(sign for sign in line if sign.isprintable()))
        return Answer((x, y, z), body)

    def _read(self, size: int, deadline: float) -> Body:
        """Read so many bytes from the child."""
        data = np.empty(size, np.uint8)
        rest = memoryview(data.data)
        while rest:
            try:
                got = os.readv(self._answers, [rest])
            except BlockingIOError:
                self._wait(self._answers, select.POLLIN, deadline)
                continue
            if not got:
                self._fail(self._last_words())
            rest = rest[got:]
        return data

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        """Wait until the pipe can be used."""
        poll = select.poll()
        poll.register(pipe, event)
        seconds = deadline - time.monotonic()
        if seconds <= 0 or not poll.poll(seconds * 1000):
            self._fail(f"it took longer than {self._seconds:g} s")

    def _last_words(self) -> str:
        """Say how a process ended that closed its pipe."""
        try:
            status = self._process.wait(_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        if status >= 0:
            return f"it ended with exit code {status}"
        try:
            return f"it was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"it was ended by signal {-status}"

    def _fail(self, reason: str) -> None:
        """Kill the child, and say why."""
        self.kill()
        raise WorkerFailed(f"a child process of homomorphic encryption: {reason}")


def _command(memory_bytes: int) -> list[str]:
    """Return the command line: isolated, but with the parent's import path.

    The folder that holds this package comes first where the path lacks it, as in an
    editable installation.
    """
    ours = str(Path(__file__).resolve().parent.parent.parent)
    path = [folder for folder in sys.path if folder]
    if ours not in path:
        path.insert(0, ours)
    return [sys.executable or "python3", "-I", "-c", _START, str(memory_bytes), *path]


def _widen(pipe: int) -> None:
    """Let a pipe hold a block, where the system can and allows it."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
