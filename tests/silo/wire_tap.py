"""A tap on one silo's wire: it carries every byte on, and counts both directions."""

import contextlib
import socket
import threading
from pathlib import Path


class Tap:
    """Listens where the silo connects; carries everything to the aggregator's socket.

    ``sent`` and ``received`` are bytes as the silo sees them. :meth:`cut` ends the
    connections that stand.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self.path, self._target = path, target
        self.sent = self.received = self.connections = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._start(self._accept)

    def cut(self) -> None:
        """End all connections, in both directions."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything, and wait until every byte was counted."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10.0)
            assert not thread.is_alive()
        for pair in self._pairs:
            for end in pair:
                end.close()

    def _start(self, run, *arguments) -> None:
        thread = threading.Thread(target=run, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(str(self._target))
            except OSError:
                near.close()
                far.close()
                continue
            self.connections += 1
            self._pairs.append((near, far))
            self._start(self._pump, near, far, "sent")
            self._start(self._pump, far, near, "received")

    def _pump(self, source, target, counter) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                setattr(self, counter, getattr(self, counter) + len(data))
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
