"""Tiny plans, tiny images, and three sessions driven by hand against a real centre."""

import contextlib
import functools
import hashlib
import io
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import silo.trainer
from crypto.bfv.aggregator_side import BfvAggregatorSide
from crypto.bfv.workers import Workers
from crypto.frame import AGGREGATOR, read_header
from crypto.keys import IdentityKey
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.parts import Parts, whole
from diffusion.config import ScheduleConfig, UNetConfig
from diffusion.model import make_model
from diffusion.parameters import (
    ParameterLayout,
    flatten,
    parameters_digest,
    parameters_of,
    selected_layout,
    unflatten,
)
from protocol import records
from protocol.bodies import floats_to_bytes
from protocol.envelope import (
    EndRequest,
    Kind,
    Refusal,
    RoundRequest,
    make_envelope,
    model_digest,
    open_envelope,
)
from protocol.grids import first_numbers
from protocol.heads import ShownHead
from protocol.packing import layouts
from protocol.plan import PlanDraft, RunPlan, SiloParty, make_plan
from protocol.settings import TrainingConfig
from protocol.stretches import Agreed, make_dealing
from protocol.transcript import TranscriptWriter, read_records
from protocol.update_settings import ProtectionConfig
from silo.data import ImageSet
from silo.policy import Policy
from silo.resources import LocalResources
from silo.session import SiloSession
from silo.store import RunStore

TINY_MODEL = UNetConfig(
    architecture="residual", dim=4, channels=1, dim_mults=(1,), image_size=8
)
CPU = torch.device("cpu")
STAGES = ("setup", "shares", "envelopes", "ready", "masked", "confirm", "reveal", "end")
ENCRYPTED_STAGES = (
    *("setup", "key", "handed", "ready", "encrypted", "confirm", "decrypt", "end"),
)
TAKEN_BY = {
    "setup": "add_advertisement",
    "shares": "add_shares",
    "key": "add_shares",
    "ready": "add_ready",
    "masked": "add_masked",
    "encrypted": "add_encrypted",
    "confirm": "add_confirm",
    "reveal": "add_reveal",
    "decrypt": "add_decrypted",
}
"""By stage, the method of the aggregator's side, or of its slot, for replies."""


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trainings(monkeypatch) -> list[tuple[int, int]]:
    """Silo and round of every training that a session began, in order."""
    begun = []
    real = silo.trainer.train

    def counted(*arguments, **options):
        begun.append((options["silo"], options["round_number"]))
        return real(*arguments, **options)

    monkeypatch.setattr(silo.trainer, "train", counted)
    return begun


def make_identities(num_silos: int) -> list[IdentityKey]:
    """Return the same keys in every test; the last one is the aggregator's."""
    return [
        IdentityKey.from_bytes(hashlib.sha256(b"silo %d" % number).digest())
        for number in range(num_silos + 1)
    ]


def tiny_draft(**changes: Any) -> PlanDraft:
    sections: dict[str, Any] = {
        "name": "tiny",
        "num_rounds": 3,
        "seed": 5,
        "model": TINY_MODEL,
        "schedule": ScheduleConfig(num_timesteps=10),
        "training": TrainingConfig(
            local_steps=1, examples_per_step=2, learning_rate=1e-3
        ),
        "protection": ProtectionConfig(slots_per_setup=2),
    }
    return PlanDraft(**(sections | changes))


def tiny_plan(num_silos: int = 3, **changes: Any) -> RunPlan:
    """Return a plan of silos ``silo-1``, ``silo-2``, … with their made-up keys."""
    *keys, aggregator = make_identities(num_silos)
    parties = [
        SiloParty(
            name=f"silo-{number}", identity_key=key.public.hex(), weight=float(number)
        )
        for number, key in enumerate(keys, start=1)
    ]
    return make_plan(tiny_draft(**changes), aggregator.public, parties)


def tiny_images(seed: int = 0, num_images: int = 4) -> ImageSet:
    pixels = np.random.default_rng(seed).integers(0, 256, (num_images, 8, 8, 1))
    return ImageSet(pixels.astype(np.uint8), (0.0, 255.0))


def shared_layout(plan: RunPlan) -> ParameterLayout:
    model = make_model(plan.model, 0)
    return selected_layout(model, plan.update.selection, plan.update.parts)


def stated_request(**fields: Any) -> RoundRequest:
    """Return a request that states the digest of its model, sent from round 2 on."""
    digest = model_digest(fields["parameters"], fields["ranges"]).hex()
    if fields["round_number"] == 1:
        fields = fields | {"parameters": b""}
    return RoundRequest(**({"model": digest} | fields))


class SharedWorkers(Workers):
    """Processes that a session cannot end, so that tests start them once."""

    def close(self) -> None:
        """Leave them to other tests."""

    def end(self) -> None:
        """End them."""
        super().close()


@pytest.fixture(scope="module")
def workers():
    made = SharedWorkers(1)
    yield made
    made.end()


class Federation:
    """Sessions of all silos, and the aggregator's side of one setup.

    :meth:`play` carries out stages for everybody; the frames of each are kept, so that
    a test can send one again, or another one in its place.
    """

    shown_size = 0
    shown_in = 1

    def __init__(
        self,
        root: Path,
        plan: RunPlan | None = None,
        workers: Workers | None = None,
    ):
        self.plan, self.workers = plan or tiny_plan(), workers
        *self.keys, self.aggregator = make_identities(len(self.plan.silos))
        self.layout = shared_layout(self.plan)
        model = make_model(self.plan.model, self.plan.seed_for("model"))
        self.parameters = flatten(parameters_of(model), self.layout)
        self.root = root
        self.transcript = TranscriptWriter(
            root / "aggregator",
            party="aggregator",
            plan_digest=self.plan.digest,
            identity=self.aggregator,
        )
        self.transcript.append(
            records.Opened(
                plan=self.plan.digest.hex(), party="aggregator", software="test"
            )
        )
        self.sessions = [self.open(index) for index in self.everyone]
        self.round_number, self.slot, self.setup = 1, 0, 1
        self.side = self.new_side(1)
        self.requests: dict[str, dict[int, bytes]] = {}
        self.replies: dict[str, dict[int, bytes]] = {}

    @property
    def everyone(self) -> range:
        return range(len(self.plan.silos))

    @property
    def stages(self) -> tuple[str, ...]:
        is_encrypted = self.plan.protection.is_encrypted
        return ENCRYPTED_STAGES if is_encrypted else STAGES

    def new_side(self, setup: int) -> AggregatorSide | BfvAggregatorSide:
        plan = self.plan
        arguments = (
            *(plan.secagg_config(), plan.roster, self.aggregator, plan.run, setup),
        )
        if not plan.protection.is_encrypted:
            return AggregatorSide(*arguments)
        layouts_of = functools.partial(layouts, plan)
        return BfvAggregatorSide(
            *arguments, workers=self.workers, layouts_of=layouts_of
        )

    def store(self, index: int) -> RunStore:
        return RunStore(self.root / f"silo-{index + 1}")

    def open(self, index: int, **changes: Any) -> SiloSession:
        resources = {
            "identity": self.keys[index],
            "images": tiny_images(index),
            "policy": Policy(permitted_protections=("mask", "bfv", "none")),
            "device": CPU,
            "make_workers": lambda: self.workers,
        }
        return SiloSession(
            self.plan, self.store(index), LocalResources(**(resources | changes))
        )

    def restart(self, index: int) -> None:
        """Forget the session as a killed process does; make one from its files."""
        self.sessions[index].close()
        self.sessions[index] = self.open(index)

    def close(self) -> None:
        self.transcript.close()
        for session in self.sessions:
            session.close()

    def play(self, last: str, first: str = "setup") -> "Federation":
        """Carry out the stages from the first to the last, with all silos."""
        stages = self.stages
        for stage in stages[stages.index(first) : stages.index(last) + 1]:
            self.make_requests(stage)
            self.answer(stage)
        return self

    def answer(self, stage: str) -> None:
        """Have all silos answer the requests of a stage; hand the replies on."""
        self.replies[stage] = {
            index: self.ask(index, stage) for index in self.requests[stage]
        }
        self.take(stage, self.replies[stage].values())

    def play_rest(self, stage: str) -> None:
        """Carry out the stages after one."""
        if rest := self.stages[self.stages.index(stage) + 1 :]:
            self.play("end", first=rest[0])

    def next_round(self, parameters: np.ndarray | None = None) -> "Federation":
        """Go on with the next slot, in a new setup when this one is used up."""
        self.round_number += 1
        self.slot += 1
        if parameters is not None:
            self.parameters = parameters
        return self

    def ask(self, index: int, stage: str) -> bytes:
        return bytes(self.sessions[index].handle(self.requests[stage][index]))

    def make_requests(self, stage: str) -> None:
        frames = {
            "setup": lambda: self.envelope(Kind.OPEN_SETUP, b"", setup=self.setup),
            "shares": lambda: self.side.keys(),
            "key": lambda: self.side.keys(),
            "masked": lambda: self.side.slot.active(),
            "encrypted": lambda: self.side.slot.active(),
            "confirm": lambda: self.side.slot.survivors(),
            "reveal": lambda: self.side.slot.confirms(),
            "decrypt": lambda: self.side.slot.decrypt_request(),
            "end": lambda: self.envelope(Kind.END, self.end_request().to_body()),
        }
        if stage == "ready":
            self.requests[stage] = self.round_requests()
        elif stage in ("envelopes", "handed"):
            self.requests[stage] = {i: self.side.envelopes(i) for i in self.everyone}
        else:
            self.requests[stage] = dict.fromkeys(self.everyone, frames[stage]())

    def take(self, stage: str, replies: Iterable[bytes]) -> None:
        """Hand replies to the aggregator's side, which verifies them."""
        if stage not in TAKEN_BY:
            return
        is_setup = stage in ("setup", "shares", "key")
        for reply in replies:
            if read_header(reply).kind != Kind.PLAIN:
                taker = self.side if is_setup else self.side.slot
                getattr(taker, TAKEN_BY[stage])(reply)

    @property
    def num_words(self) -> int:
        return self.plan.num_words(self.round_number, self.layout.size)

    def round_request(self, **changes: Any) -> RoundRequest:
        ranges = first_numbers(self.plan, self.layout.segments, self.layout.counts)
        if self.round_number > 1 and not self.plan.update.rotation:
            norm = self.plan.update.clipping_norm
            ranges = np.full(len(self.layout.segments), norm, np.float32)
        fields = {
            "round_number": self.round_number,
            "attempt": 1,
            "shown": self.show(self.round_number),
            "parameters": floats_to_bytes(self.parameters),
            "ranges": floats_to_bytes(ranges),
        }
        return stated_request(**(fields | changes))

    def show(self, number: int) -> ShownHead:
        """Return the newest head, for silos that have seen all that was shown.

        It covers how the rounds before this one ended.
        """
        if number > self.shown_in:
            lost = records.RoundLost(round_number=number - 1, reason="a test")
            self.transcript.append(lost)
            self.shown_in = number
        head = self.transcript.sign_head()
        shown = self.transcript.show(head, self.shown_size)
        self.shown_size = head.size
        return shown

    def round_requests(self) -> dict[int, bytes]:
        """Open the slot, and return the request of its round to each silo."""
        if self.plan.protection.method == "none":
            body = self.round_request().to_body()
            return dict.fromkeys(self.everyone, self.envelope(Kind.ROUND, body))
        request, members = self.round_request(), self.everyone
        self.side.open_slot(
            self.slot,
            self.round_number,
            request.model_digest(),
            self.parts(),
            request.shown.head.to_bytes(),
        )
        frame = self.envelope(
            Kind.ROUND, request.to_body(), setup=self.setup, slot=self.slot
        )
        return dict.fromkeys(members, frame)

    def parts(self) -> Parts:
        """Return the stretches of the round's vector, with who contributes to each."""
        if not self.plan.update.is_dealt:
            return whole(self.num_words, self.everyone)
        agreed = Agreed(self.side.members_digest, self.side.members)
        number = self.round_number
        sizes = [
            self.plan.num_words(number, stretch.size)
            for stretch in self.layout.stretches
        ]
        return make_dealing(self.plan, agreed, number, sizes).parts

    def round_envelope(self, **changes: Any) -> bytes:
        return self.envelope(
            Kind.ROUND,
            self.round_request(**changes).to_body(),
            setup=self.setup,
            slot=self.slot,
        )

    def end_request(self) -> EndRequest:
        shared = unflatten(self.parameters, self.layout)
        return EndRequest(
            round_number=self.plan.num_rounds,
            shown=self.show(self.plan.num_rounds + 1),
            model=parameters_digest(shared, self.layout).hex(),
            parameters=floats_to_bytes(self.parameters),
        )

    def envelope(self, kind: int, body: bytes, **place: int) -> bytes:
        """Return what the aggregator would sign."""
        return make_envelope(
            self.plan, self.aggregator, kind, body, sender=AGGREGATOR, **place
        )

    def refusal(self, reply: bytes, index: int = 0) -> Refusal:
        """Return what a silo's signed refusal says; fail if it is none."""
        _, body = open_envelope(self.plan, reply, sender=index, kinds=(Kind.REFUSED,))
        return Refusal.from_body(body)

    def records(self, index: int, kind: type | None = None) -> list[records.Record]:
        """Return the records of a silo's transcript, of one kind if one is given."""
        found = [entry.record for entry in read_records(self.store(index).transcript)]
        return [r for r in found if kind is None or isinstance(r, kind)]


@pytest.fixture
def federation(tmp_path, trainings):
    made = Federation(tmp_path)
    yield made
    made.close()


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what is wrong; fail if there is not just one."""
        assert self.code != 0
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        found = [line for line in lines if line.lower().startswith("error: ")]
        assert len(found) == 1, self.err
        return found[0]


def run_command(main: Callable[[], None], *arguments: object) -> Ended:
    """Run a command in this process, as its user would from a shell."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
            if isinstance(error.code, str):
                err.write(error.code + "\n")
    return Ended(code, out.getvalue(), err.getvalue())


def listing(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its content, every folder without."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


DRAFT_TEXT = """\
name = "tiny"
num_rounds = 1
seed = 5

[model]
architecture = "residual"
dim = 4
channels = 1
dim_mults = [1]
image_size = 8

[schedule]
num_timesteps = 10

[training]
local_steps = 1
examples_per_step = 2

[evaluation.sampler]
num_steps = 2
"""
