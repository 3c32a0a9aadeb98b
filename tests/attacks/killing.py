"""Kill a process at every point where its disk changes, or just around a reply.

A point is named by the stage in work and the operation, e.g. ``masked: before fsync of
journal``. A dry run lists them, so that the table of points is complete whatever the
code does. A process dies in one of two ways:

* ``killed``: what it has written stays, synced or not, as after SIGKILL;
* ``power lost``: the disk holds only what was synced, content by ``fsync`` of a file
  and names by ``fsync`` of the folder.
"""

import os
import signal
import struct
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

WAYS = ("killed", "power lost")
ENDINGS = ("setup", "slot", "sum")


class Disk:
    """One folder as a child process changes it; dies at the chosen point.

    Args:
        folder: the only folder that the process writes to.
        die_at: name of a point, empty for a dry run.
        way: one of ``WAYS``.
    """

    def __init__(self, folder: Path, die_at: str, way: str) -> None:
        self.folder, self.die_at, self.way = folder, die_at, way
        self.stage, self.points = "start", []
        self._times: Counter[str] = Counter()
        self._pinned: list[int] = []
        self._synced: dict[int, bytes] = {}
        for path in folder.iterdir():
            self._note(path)
        self._names = self._listing()

    def install(self) -> None:
        """Put a point before and after every call that changes the disk for good."""
        os.pwrite = self._torn_or(self._around("write", os.pwrite, self._of_file))
        os.fsync = self._around("fsync", os.fsync, self._of_file, self._sync)
        os.ftruncate = self._around("truncate", os.ftruncate, self._of_file)
        for name in ("replace", "rename"):
            wrapped = self._around("rename", getattr(os, name), self._of_target)
            setattr(os, name, wrapped)
        os.unlink = self._around("unlink", os.unlink, lambda path, **_: _plain(path))

    def point(self, where: str) -> None:
        """Die here if this is the chosen point."""
        name = f"{self.stage}: {where}"
        self._times[name] += 1
        if (times := self._times[name]) > 1:
            name += f" ({times})"
        self.points.append(name)
        if name == self.die_at:
            self.die()

    def die(self) -> NoReturn:
        """End this process without any clean-up."""
        if self.way == "power lost":
            self._lose_power()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def _around(
        self,
        verb: str,
        call: Callable,
        describe: Callable[..., str],
        done: Callable[[int], None] = lambda argument: None,
    ) -> Callable:
        """Return the call with a point on either side."""

        def wrapped(*arguments, **options):
            what = describe(*arguments, **options)
            self.point(f"before {verb} of {what}")
            result = call(*arguments, **options)
            done(arguments[0])
            self.point(f"after {verb} of {what}")
            return result

        return wrapped

    def _torn_or(self, write: Callable) -> Callable:
        """Return a write that may be cut off in its middle."""

        def wrapped(descriptor, data, offset):
            name = f"{self.stage}: halfway through write of {self._of_file(descriptor)}"
            self.points.append(name)
            if name == self.die_at:
                os.lseek(descriptor, offset, os.SEEK_SET)
                os.write(descriptor, data[: len(data) // 2])
                self.die()
            return write(descriptor, data, offset)

        return wrapped

    def _of_file(self, descriptor: int, *_: object) -> str:
        path = _path_of(descriptor)
        return "folder" if path == self.folder else _plain(path)

    def _of_target(self, _: object, target: object, **options: object) -> str:
        return _plain(target)

    def _sync(self, descriptor: int) -> None:
        """Note what is on disk for good from now on."""
        path = _path_of(descriptor)
        if path == self.folder:
            self._names = self._listing()
        else:
            self._note(path)

    def _note(self, path: Path) -> None:
        """Note a file's content; its inode is held, so that none other gets it."""
        self._pinned.append(os.open(path, os.O_RDONLY))
        self._synced[path.stat().st_ino] = path.read_bytes()

    def _listing(self) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in self.folder.iterdir()}

    def _lose_power(self) -> None:
        """Leave in the folder only what was synced."""
        left = {
            name: self._synced.get(inode, b"") for name, inode in self._names.items()
        }
        for path in list(self.folder.iterdir()):
            _remove(path)
        for name, content in left.items():
            (self.folder / name).write_bytes(content)
            (self.folder / name).chmod(0o600)


_remove = os.unlink  # As it is before any process installs its points.


def _path_of(descriptor: int) -> Path:
    """Return the path of an open file."""
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _plain(path: object) -> str:
    """Return what a file is, e.g. ``slot`` of ``.secagg-000001-00.slot.x3_k``."""
    words = Path(str(path)).name.lstrip(".").split(".")
    return next((word for word in words if word in ENDINGS), words[0])


class Line:
    """Messages over a pair of pipes; ``receive`` is None when the other end is gone."""

    def __init__(self, reads: int, writes: int) -> None:
        self.reads, self.writes = reads, writes

    def send(self, data: bytes) -> bool:
        """Send one message; False if nobody is there."""
        try:
            os.write(self.writes, struct.pack(">Q", len(data)))
            view = memoryview(data)
            while view:
                view = view[os.write(self.writes, view) :]
        except BrokenPipeError:
            return False
        return True

    def receive(self) -> bytes | None:
        """Return the next message."""
        head = self._exactly(8)
        return None if head is None else self._exactly(struct.unpack(">Q", head)[0])

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            piece = os.read(self.reads, size - len(data))
            if not piece:
                return None
            data += piece
        return data

    def close(self) -> None:
        """Hang up."""
        os.close(self.reads)
        os.close(self.writes)


class Child:
    """A forked process that works on a folder and talks over a line.

    Args:
        work: runs in the child, with its disk and its end of the line.
    """

    def __init__(
        self,
        work: Callable[[Disk, Line], None],
        folder: Path,
        die_at: str = "",
        way: str = "killed",
    ) -> None:
        (our_reads, their_writes), (their_reads, our_writes) = os.pipe(), os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Threads of xdist.
            self.pid = os.fork()
        if self.pid == 0:
            os.close(our_reads)
            os.close(our_writes)
            status = 1
            try:
                disk = Disk(folder, die_at, way)
                disk.install()
                work(disk, Line(their_reads, their_writes))
                status = 0
            finally:
                os._exit(status)
        os.close(their_reads)
        os.close(their_writes)
        self.line = Line(our_reads, our_writes)

    def end(self) -> int:
        """Hang up, wait, and return the exit status; -9 for a process that died."""
        self.line.close()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)
