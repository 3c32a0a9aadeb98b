"""Transports of one machine: in this process, and as one process a silo."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from crypto.encoding import BytesLike
from protocol.files import load_identity
from protocol.plan import RunPlan
from protocol.transport import LocalSockets
from silo.config import load_config
from silo.join import resources_of
from silo.session import SiloSession
from silo.store import RunStore
from silo.training import Progress
from simulation.errors import SiloFailed
from simulation.federation import Federation

START_SECONDS = 300.0
PATIENCE_SECONDS = 60.0
END_SECONDS = 5.0
CHECK_SECONDS = 0.5
LOG_FILE = "log.txt"

Observe = Callable[[str, Progress], None]
"""Is told a silo's name and how its training goes."""


class InMemory:
    """All silos in this process, one after the other.

    The requests pass as the same bytes as over any engine.
    """

    def __init__(self, sessions: Mapping[int, SiloSession]) -> None:
        self._sessions = sessions

    def exchange(
        self,
        requests: Mapping[int, BytesLike],
        *,
        deadline_seconds: float,
        max_reply_bytes: int,
    ) -> Generator[tuple[int, BytesLike], BytesLike | None, None]:
        """Hand each silo its request; yield the replies that are not too long."""
        for silo, request in requests.items():
            asked: BytesLike | None = request
            while asked is not None:
                reply = self._sessions[silo].handle(asked)
                is_short = len(reply) <= max_reply_bytes
                asked = (yield silo, reply) if is_short else None


def open_session(
    federation: Federation,
    plan: RunPlan,
    name: str,
    observe: Observe,
    device: str = "auto",
) -> SiloSession:
    """Return the session of one silo of a federation, in this process."""
    folder = federation.silo(name)
    config = load_config(folder)
    compute = replace(config.compute, device=device)  # type: ignore[arg-type]
    resources = resources_of(
        folder,
        replace(config, compute=compute),
        lambda progress: observe(name, progress),
    )
    return SiloSession(
        plan, RunStore(folder.run(plan), folder.journal(plan)), resources
    )


@contextmanager
def in_memory(
    federation: Federation, plan: RunPlan, observe: Observe, device: str
) -> Iterator[InMemory]:
    """Lend a transport to silos in this process; they share its threads."""
    sessions = {
        index: open_session(federation, plan, silo.name, observe, device)
        for index, silo in enumerate(plan.silos)
    }
    try:
        yield InMemory(sessions)
    finally:
        for session in sessions.values():
            session.close()


@contextmanager
def silo_processes(
    federation: Federation, plan: RunPlan, observe: Observe, device: str
) -> Iterator[LocalSockets]:
    """Lend a transport to one ``silo train`` process a silo, over a local socket.

    The processes end with this one, however it ends.

    Raises:
        SiloFailed: a process ended before it was connected.
    """
    folder = Path(tempfile.mkdtemp(prefix="cloister-"))
    path = folder / "socket"
    identity = load_identity(federation.aggregator.identity)
    spool = federation.aggregator.run(plan)
    spool.mkdir(parents=True, exist_ok=True, mode=0o700)
    transport = LocalSockets(path, plan, identity, spool=spool)
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for silo in plan.silos:
            processes[silo.name] = _start(federation, silo.name, path, device)
            reader = threading.Thread(
                target=_read_lines,
                args=(silo.name, processes[silo.name], observe),
                daemon=True,
            )
            reader.start()
        _wait_for_all(federation, plan, transport, processes)
        yield transport
        transport.close()
        for process in processes.values():
            _wait(process)
    finally:
        transport.close()
        for process in processes.values():
            _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_all(
    federation: Federation,
    plan: RunPlan,
    transport: LocalSockets,
    processes: Mapping[str, "subprocess.Popen[str]"],
) -> None:
    """Wait until every silo is connected, or has seen the end of the run before.

    Raises:
        SiloFailed: a process ended with an error, or takes too long to start.
    """
    deadline = time.monotonic() + START_SECONDS
    while missing := transport.wait_for_silos(CHECK_SECONDS):
        _check_alive(federation, processes)
        names = [plan.silos[silo].name for silo in missing]
        if all(processes[name].poll() == 0 for name in names):
            return
        if time.monotonic() > deadline:
            raise SiloFailed(f"{', '.join(names)} did not start in time")


def _start(
    federation: Federation, name: str, path: Path, device: str
) -> "subprocess.Popen[str]":
    """Start one silo's process; it watches its standard input for our end."""
    folder = federation.silo(name)
    command = [
        sys.executable,
        "-m",
        "silo",
        "train",
        f"--plan={federation.plan_path}",
        f"--dir={folder.root}",
        f"--connect={path}",
        f"--device={device}",
        f"--patience={PATIENCE_SECONDS}",
        "--progress-lines",
    ]
    with (folder.root / LOG_FILE).open("ab") as log:
        return subprocess.Popen(  # noqa: S603 (our own interpreter and module)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )


def _read_lines(name: str, process: "subprocess.Popen[str]", observe: Observe) -> None:
    """Pass on what a silo's process shows of its training."""
    for line in process.stdout or ():
        try:
            table = json.loads(line)
        except ValueError:
            continue
        if isinstance(table, dict) and "training" in table:
            observe(name, Progress(**table["training"]))


def _check_alive(
    federation: Federation, processes: Mapping[str, "subprocess.Popen[str]"]
) -> None:
    """Raise :class:`SiloFailed` if a silo's process has ended with an error."""
    for name, process in processes.items():
        if process.poll():
            log = (federation.silo(name).root / LOG_FILE).read_text(errors="replace")
            last = log.strip().splitlines()[-1:] or ["it printed nothing"]
            raise SiloFailed(f"{name} ended with code {process.returncode}: {last[0]}")


def _wait(process: "subprocess.Popen[str]") -> None:
    """Give a silo that has seen the end a moment to finish."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=END_SECONDS)


def _end(process: "subprocess.Popen[str]") -> None:
    """End a process; its state is on disk, so that it loses nothing."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
