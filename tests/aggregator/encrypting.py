"""Silos that encrypt, answering a real ``EncryptedSum`` over a line that can fail."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from aggregator.encrypted_sum import EncryptedSum
from aggregator.exchanges import Exchanges
from aggregator.slot_store import SlotStore
from aggregator.sums import RoundTask, Sum, Task
from aggregator.witnessing import Witnesses
from crypto.bfv.silo_side import BfvSiloSide
from crypto.bfv.workers import Workers
from crypto.encoding import BytesLike
from crypto.errors import CryptoError
from crypto.frame import HEADER_BYTES, Kind, make_frame, read_header
from crypto.keys import IdentityKey
from crypto.secagg.journal import Journal
from crypto.secagg.parts import words_of
from crypto.signatures import SIGNATURE_BYTES
from protocol import records
from protocol.envelope import Kind as Envelope
from protocol.envelope import Refusal, RoundRequest, make_envelope, open_envelope
from protocol.measurement import MeasureRequest
from protocol.packing import layouts
from protocol.plan import RunPlan, SiloParty, make_plan
from protocol.reference import ReferenceRequest
from protocol.stretches import Agreed
from protocol.transcript import TranscriptWriter, read_records
from protocol.update_settings import ProtectionConfig
from tests.end_to_end.conftest import Crash, tiny_draft

REQUESTS = {
    Envelope.ROUND: RoundRequest,
    Envelope.MEASURE: MeasureRequest,
    Envelope.REFERENCE: ReferenceRequest,
}
NUM_WORDS = 9

Fault = Callable[[str, int, int], BytesLike | bool | None]
"""By "before" or "after", kind of request, and silo: True loses the request or its
reply, bytes take the reply's place; it may raise ``Crash``."""


def no_fault(moment: str, kind: int, silo: int) -> None:
    """Let everything pass."""


def make_round(plan: RunPlan, number: int = 1, *lengths: int) -> RoundTask:
    """Return the task of a round of a few words."""
    return RoundTask(
        round_number=number,
        parameters=b"the model of round %d" % number,
        ranges=b"",
        lengths=lengths or (NUM_WORDS,),
        field_bits=64,
        is_held=True,
    )


@dataclass
class Silo:
    """One silo: its words follow from the round; it refuses what it must."""

    plan: RunPlan
    identity: IdentityKey
    index: int
    workers: Workers
    task: Task | None = None
    side: BfvSiloSide | None = None

    def __post_init__(self) -> None:
        self.journal = Journal(None, b"silo %d" % self.index)

    def words(self, task: Task, agreed: Agreed) -> np.ndarray:
        """Return the vector of a task, the same whenever it is asked for."""
        size = words_of(task.dealing(self.plan, agreed).parts, self.index)
        rng = np.random.default_rng([self.index, task.round_number])
        if not 1 <= task.round_number <= self.plan.num_rounds:
            return rng.integers(0, 1 << 64, size, dtype=np.uint64)
        bits = self.plan.field_bits(task.round_number)
        values = self.plan.sum_bits(task.round_number) - 2  # Four silos fit.
        fields = rng.integers(0, 1 << values, (64 // bits, size), dtype=np.uint64)
        shifts = bits * np.arange(64 // bits, dtype=np.uint64)[:, None]
        return np.bitwise_or.reduce(fields << shifts, axis=0)

    def answer(self, request: BytesLike) -> bytes:
        """Return the reply, or a refusal that names who is at fault."""
        header = read_header(request)
        try:
            return bytes(self._answer(header, request))
        except CryptoError as error:
            accused = -1 if error.silo is None else error.silo
            body = Refusal(stage="-", check=str(error), accused=accused).to_body()
            return self._envelope(Envelope.REFUSED, body, header)

    def _answer(self, header, request: BytesLike) -> BytesLike:
        if header.kind == Envelope.OPEN_SETUP:
            self.side = self._new_side(header.setup)
            return self.side.advertise()
        assert self.side is not None
        if header.kind in REQUESTS:
            return self._ready(header, request)
        if header.kind == Kind.HANDED:
            self.side.receive_shares(request)
            return self._envelope(Envelope.JOINED, b"", header)
        if header.kind == Kind.ACTIVE:
            agreed = Agreed(self.side.members_digest, self.side.members)
            parts = self.task.dealing(self.plan, agreed).parts
            return self.side.encrypt(request, self.words(self.task, agreed), parts)
        return {
            Kind.KEYS: self.side.share,
            Kind.SURVIVORS: self.side.confirm,
            Kind.DECRYPT: self.side.decrypt,
        }[header.kind](request)

    def _ready(self, header, request: BytesLike) -> bytes:
        _, body = open_envelope(
            self.plan, request, sender=header.sender, kinds=tuple(REQUESTS)
        )
        asked = REQUESTS[header.kind].from_body(body)
        head = asked.shown.head.to_bytes()
        task = self.task
        return self.side.ready(
            header.slot, task.round_number, task.model_digest(), head
        )

    def _new_side(self, setup: int) -> BfvSiloSide:
        if self.side is not None and self.side.setup_number == setup:
            return self.side
        plan = self.plan
        return BfvSiloSide(
            plan.secagg_config(),
            plan.roster,
            plan.aggregator_key,
            self.identity,
            self.index,
            plan.run,
            setup,
            self.journal,
            workers=self.workers,
            layouts_of=partial(layouts, plan),
        )

    def _envelope(self, kind: int, body: bytes, header) -> bytes:
        place = {"setup": header.setup, "slot": header.slot}
        return make_envelope(
            self.plan, self.identity, kind, body, sender=self.index, **place
        )

    def signed(self, reply: BytesLike, change: Callable[[bytearray], None]) -> bytes:
        """Return a reply with another body, rightly signed: this silo lies."""
        body = bytearray(reply[HEADER_BYTES:-SIGNATURE_BYTES])
        change(body)
        return make_frame(self.identity, read_header(reply), bytes(body))


class Encrypting:
    """An aggregator and its silos; it may die, and comes back from its files."""

    def __init__(
        self, folder: Path, workers: Workers, num_silos: int = 4, **protection
    ) -> None:
        *keys, self.key = [
            IdentityKey.from_bytes(bytes([n]) * 32) for n in range(num_silos + 1)
        ]
        parties = [
            SiloParty(name=f"s{n}", identity_key=key.public.hex())
            for n, key in enumerate(keys)
        ]
        settings = {"method": "bfv", "slots_per_setup": 2} | protection
        draft = tiny_draft(protection=ProtectionConfig(**settings))
        self.plan = make_plan(draft, self.key.public, parties)
        self.folder, self.workers = folder, workers
        self.silos = [Silo(self.plan, key, n, workers) for n, key in enumerate(keys)]
        self.fault: Fault = no_fault
        self.asked: list[tuple[int, int]] = []
        self.restart()
        self.transcript.append(
            records.Opened(plan=self.plan.digest.hex(), party="aggregator", software="")
        )

    def restart(self) -> None:
        """Begin as a new process does: with what is on disk."""
        if hasattr(self, "transcript"):
            self.transcript.close()
        self.transcript = TranscriptWriter(
            self.folder / "transcript",
            party="aggregator",
            plan_digest=self.plan.digest,
            identity=self.key,
        )
        exchanges = Exchanges(self.plan, self.key, self, self.transcript)
        self.store = SlotStore(self.folder)
        witnesses = Witnesses(exchanges, {})
        self.summation = EncryptedSum(
            exchanges, self.store, witnesses, workers=self.workers
        )

    def exchange(
        self,
        requests: Mapping[int, BytesLike],
        *,
        deadline_seconds: float,
        max_reply_bytes: int,
    ) -> Generator[tuple[int, BytesLike], BytesLike | None, None]:
        """Ask one silo after the other."""
        for silo, request in requests.items():
            kind = read_header(request).kind
            if self.fault("before", kind, silo):
                continue
            self.asked.append((kind, silo))
            self.reply = self.silos[silo].answer(request)
            found = self.fault("after", kind, silo)
            if found is True:
                continue
            reply = found or self.reply
            assert len(reply) <= max_reply_bytes
            yield silo, reply

    def sum(self, task: Task | None = None, fault: Fault = no_fault) -> Sum:
        """Have a round summed."""
        self.fault = fault
        for silo in self.silos:
            silo.task = task = task or make_round(self.plan)
        return self.summation.sum_round(task)

    def sum_after_crash(self, fault: Fault) -> Sum:
        """Have a round summed by an aggregator that dies, and by the next one."""
        try:
            self.sum(fault=fault)
        except Crash:
            self.restart()
            return self.sum()
        raise AssertionError("nobody died")

    def plain(self, total: Sum, task: Task | None = None) -> np.ndarray:
        """Return the sum of the survivors' words, modulo 2^64."""
        task, side = task or make_round(self.plan), self.summation._side
        agreed = Agreed(side.members_digest, side.members)
        parts = task.dealing(self.plan, agreed).parts
        words = np.zeros(sum(part.num_words for part in parts), np.uint64)
        for silo in total.survivors:
            own, at, begin = self.silos[silo].words(task, agreed), 0, 0
            for part in parts:
                if silo in part.contributors:
                    stop = at + part.num_words
                    words[begin : begin + part.num_words] += own[at:stop]
                    at = stop
                begin += part.num_words
        return words

    def records(self, kind: type) -> list:
        """Return the aggregator's records of one kind."""
        found = read_records(self.folder / "transcript")
        return [entry.record for entry in found if isinstance(entry.record, kind)]

    def who_was_asked(self, kind: int) -> list[int]:
        """Return the silos that were asked something, in order."""
        return [silo for asked, silo in self.asked if asked == kind]


def losing(kind, *silos, moment="before"):
    """Return a fault: what goes to these silos, or comes back, is lost."""
    return lambda when, at, silo: when == moment and at == kind and silo in silos


def check(made, total, survivors, task=None):
    """Compare a sum with that of the survivors' words, bit for bit."""
    assert total.survivors == survivors
    assert total.words.dtype == np.uint64
    assert (total.words == made.plain(total, task)).all()
