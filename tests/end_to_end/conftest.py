"""A tiny federation on real digits, and a transport that can crash or lose silos."""

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import aggregator.serve
import silo.run_parts as silo_parts
from aggregator.serve import RunSettings, run_plan
from aggregator.state import RoundState
from crypto.bfv.workers import Workers
from crypto.encoding import BytesLike
from crypto.frame import Kind, read_header
from diffusion.config import UNetConfig
from protocol.files import load_identity
from protocol.plan import PlanDraft, RunPlan
from protocol.settings import TrainingConfig
from protocol.update_settings import ProtectionConfig, UpdateConfig
from silo.encrypted_upload import EncryptedUpload
from silo.session import SiloSession
from simulation.federation import Federation, make_federation
from simulation.settings import SimulationConfig
from simulation.transport import open_session


class Crash(BaseException):
    """Everything dies here; nothing may catch it."""


def tiny_draft(**changes: Any) -> PlanDraft:
    """Return a draft that trains in milliseconds, rounding to nearest."""
    sections: dict[str, Any] = {
        "name": "tiny",
        "num_rounds": 2,
        "seed": 5,
        "model": UNetConfig(
            architecture="residual", dim=4, channels=1, dim_mults=(1, 2), image_size=8
        ),
        "training": TrainingConfig(
            local_steps=1, examples_per_step=4, learning_rate=1e-2
        ),
        "update": UpdateConfig(rounding="nearest"),
        "protection": ProtectionConfig(slots_per_setup=2),
    }
    return PlanDraft(**(sections | changes))


@dataclass
class Recorder:
    """Carries requests to sessions in this process, and keeps what passed.

    ``fault`` is asked before and after each delivery, with the moment, the kind of
    request and the silo; it may raise :class:`Crash`, or return True to lose the reply.
    """

    sessions: Mapping[int, SiloSession]
    fault: Callable[[str, int, int], bool | None] = lambda moment, kind, silo: None
    masked: dict[tuple[int, int, int], set[bytes]] = field(default_factory=dict)
    wire: list[tuple[int, bytes, bytes]] = field(default_factory=list)

    def exchange(
        self,
        requests: Mapping[int, BytesLike],
        *,
        deadline_seconds: float,
        max_reply_bytes: int,
    ) -> Generator[tuple[int, bytes], BytesLike | None, None]:
        for silo, first in requests.items():
            request: BytesLike | None = first
            while request is not None:
                kind = read_header(request).kind
                if self.fault("before", kind, silo):
                    break
                reply = self.sessions[silo].handle(request)
                header = read_header(reply)
                if header.kind == Kind.MASKED:
                    slot = (silo, header.setup, header.slot)
                    self.masked.setdefault(slot, set()).add(bytes(reply))
                self.wire.append((silo, bytes(request), bytes(reply)))
                if self.fault("after", kind, silo):
                    break
                assert len(reply) <= max_reply_bytes
                request = yield silo, bytes(reply)


@dataclass
class Harness:
    """One federation that can be run, killed and run again."""

    federation: Federation
    plan: RunPlan
    masked: dict[tuple[int, int, int], set[bytes]] = field(default_factory=dict)
    wire: list[tuple[int, bytes, bytes]] = field(default_factory=list)

    def run(
        self,
        fault: Callable[[str, int, int], bool | None] = lambda moment, kind, silo: None,
    ) -> RoundState:
        """Open every silo from its disk, and run what is left of the plan."""
        sessions: dict[int, SiloSession] = {}
        try:
            for index, silo in enumerate(self.plan.silos):
                sessions[index] = open_session(
                    self.federation, self.plan, silo.name, lambda name, progress: None
                )
            transport = Recorder(sessions, fault, self.masked, self.wire)
            return run_plan(
                self.plan,
                load_identity(self.federation.aggregator.identity),
                self.federation.aggregator.run(self.plan),
                transport,
                RunSettings(
                    device=torch.device("cpu"),
                    initial=self.federation.aggregator.initial,
                    reference=self.federation.reference
                    if self.federation.reference.exists()
                    else None,
                    evaluate=self.federation.reference.exists()
                    or self.plan.evaluation.is_pooled,
                    auxiliary=self.federation.aggregator.auxiliary,
                ),
            )
        finally:
            for session in sessions.values():
                session.close()


@pytest.fixture(autouse=True)
def one_thread_and_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train with one thread, to compare bit for bit; do not wait for the disk.

    The crashes here are of processes, whose writes survive them without ``fsync``.
    """
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class LentWorkers(Workers):
    """Processes that many runs use one after the other: to start some takes 0.1 s."""

    def close(self) -> None:
        """Go on."""

    def end(self) -> None:
        """End the processes."""
        super().close()


@pytest.fixture(scope="session")
def one_child() -> Iterator[LentWorkers]:
    """Return one child process for all who encrypt and decrypt."""
    workers = LentWorkers(1)
    yield workers
    workers.end()


@pytest.fixture
def lent_workers(monkeypatch: pytest.MonkeyPatch, one_child: LentWorkers) -> None:
    """Have silos and aggregator of encrypted runs use one child process."""

    def lend(*arguments: Any) -> EncryptedUpload:
        return EncryptedUpload(*arguments[:-1], lambda: one_child)

    monkeypatch.setattr(silo_parts, "EncryptedUpload", lend)
    monkeypatch.setattr(aggregator.serve, "Workers", lambda: one_child)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RoundState:
    """Return the last state of a tiny run in which nothing went wrong."""
    torch.set_num_threads(1)
    return make_harness(tmp_path_factory.mktemp("undisturbed") / "run").run()


def make_harness(
    root: Path,
    draft: PlanDraft | None = None,
    num_silos: int = 3,
    **settings: Any,
) -> Harness:
    """Return a new federation in a folder."""
    config = SimulationConfig(
        num_silos=num_silos, num_images=30 * num_silos, **settings
    )
    federation = make_federation(root, draft or tiny_draft(), config)
    return Harness(federation, federation.load_plan())


@pytest.fixture
def harness(tmp_path: Path) -> Callable[..., Harness]:
    """Return a factory of federations below the test's folder."""
    made = 0

    def make(
        draft: PlanDraft | None = None, num_silos: int = 3, **settings: Any
    ) -> Harness:
        nonlocal made
        made += 1
        return make_harness(tmp_path / f"run-{made}", draft, num_silos, **settings)

    return make


def equal_parameters(left: RoundState, right: RoundState) -> bool:
    """Return whether two states hold the same parameters, bit for bit."""
    return left.parameters.keys() == right.parameters.keys() and all(
        torch.equal(left.parameters[name], right.parameters[name])
        for name in left.parameters
    )
