"""An aggregator's process that sums large uploads and prints what memory it took.

Run by ``test_transport.py`` as ``python -m tests.protocol.upload_memory SOCKET SPOOL``.
"""

import sys
import threading
import time
from pathlib import Path

import numpy as np

from crypto.ring import add_into
from protocol.transport import LocalSockets
from tests.protocol.examples import AGGREGATOR_IDENTITY, make_example

NUM_UPLOADS = 8
UPLOAD_BYTES = 1 << 26


def anonymous_bytes() -> int:
    """Return the memory of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def main() -> None:
    """Hold all uploads at once, then sum them; print the highest growth of memory."""
    peak, is_over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.002):
            peak = max(peak, anonymous_bytes())

    path, spool = map(Path, sys.argv[1:])
    plan = make_example(num_silos=NUM_UPLOADS)
    with LocalSockets(path, plan, AGGREGATOR_IDENTITY, spool=spool) as transport:
        assert transport.wait_for_silos(30.0) == []
        total, before = np.zeros(UPLOAD_BYTES // 8, np.uint64), anonymous_bytes()
        watcher = threading.Thread(target=watch)
        watcher.start()
        replies = transport.exchange(
            dict.fromkeys(range(NUM_UPLOADS), b"request"),
            deadline_seconds=60.0,
            max_reply_bytes=UPLOAD_BYTES,
        )
        held = [next(replies)]
        while transport._outcomes.qsize() < NUM_UPLOADS - 1:
            time.sleep(0.01)
        held.extend(replies)
        assert len(held) == NUM_UPLOADS
        for _, reply in held:
            add_into(total, np.frombuffer(reply, "<u8"))
        assert (total == NUM_UPLOADS).all()
        is_over.set()
        watcher.join()
    print(max(peak, anonymous_bytes()) - before)


if __name__ == "__main__":
    main()
