"""Victims at every stage, and one fuzzed message at a time.

Guarantees that are checked of every message, whatever it holds: a ``CryptoError`` and
an unchanged memory, or it was accepted; never another exception. Of those accepted, the
run is played on: the sum is exact, or a ``CryptoError`` says why there is none.
"""

import gc
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np

from crypto.errors import CryptoError
from crypto.frame import read_header
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.journal import Journal
from crypto.secagg.parts import Part
from crypto.secagg.silo_side import SiloSide
from tests.attacks.mutations import ON_THE_WAY, Sender
from tests.attacks.table import SIX, await_replies, deliver, hand_over, reach
from tests.crypto.secagg.federation import OTHER_RUN, Federation

CONFIG = replace(SIX, slots_per_setup=1)
PARTS = (Part(7, (0, 1, 2, 3, 4)), Part(5, (0, 1, 2, 5)))
HONEST = [0, 2, 3, 4, 5]
SLACK_BYTES = 64 << 10
"""Python's own objects, whatever the message."""
KEYSTREAM_BYTES = 1 << 18
"""The one piece of keystream that masking works with; ACTIVE alone may take it."""

TO_SILO = {
    "keys": "share",
    "envelopes": "receive_shares",
    "active": "mask",
    "survivors": "confirm",
    "confirms": "reveal",
    "sum": "close_slot",
}
TO_AGGREGATOR = {
    "start": ("advertise", "add_advertisement"),
    "keys": ("shares", "add_shares"),
    "envelopes": ("ready", "add_ready"),
    "active": ("masked", "add_masked"),
    "survivors": ("confirm", "add_confirm"),
    "confirms": ("reveal", "add_reveal"),
}


def small() -> Federation:
    """Six silos and twelve words in two parts."""
    f = Federation(CONFIG)
    f.parts = PARTS
    f.words = [words[:12] for words in f.words]
    return f


def all_frames(**arguments) -> dict[str, dict[int, bytes]]:
    """Every frame of one honest run."""
    f = Federation(CONFIG, **arguments)
    f.parts, f.words = PARTS, [words[:12] for words in f.words]
    reach(f, "sum")
    return f.frames


class Snapshot:
    """All that a federation remembers at one moment, to go back to."""

    def __init__(self, f: Federation) -> None:
        self.frames = {name: dict(frames) for name, frames in f.frames.items()}
        self.silos = [f.silo_state(silo) for silo in f.everyone]
        self.names = [journal._name for journal in f.journals]
        self.setup = f.aggregator.to_bytes()
        self.slot, self.total = None, None
        if f.aggregator.has_slot:
            slot = f.aggregator.slot
            self.slot = slot.to_bytes()
            is_masked = slot.survivor_indices and not slot.sum_digest
            self.total = slot.total.copy() if is_masked else None

    def silo(self, f: Federation, index: int) -> None:
        """Put a silo back."""
        state, promises = self.silos[index]
        journal = Journal(None, b"silo %d" % index)
        journal._begin(self.names[index])
        for promise in promises.values():
            journal.promise(promise)
        f.journals[index] = journal
        f.silos[index] = SiloSide.from_bytes(state, *f.silo_arguments(index))

    def aggregator(self, f: Federation) -> None:
        """Put the aggregator and its slot back."""
        arguments = f.aggregator_arguments()
        f.aggregator = AggregatorSide.from_bytes(self.setup, *arguments)
        if self.slot is not None:
            total = None if self.total is None else self.total.copy()
            f.aggregator.resume_slot(self.slot, total)

    def everything(self) -> Federation:
        """Return a federation as it was."""
        f = small()
        f.frames = {name: dict(frames) for name, frames in self.frames.items()}
        for index in f.everyone:
            self.silo(f, index)
        self.aggregator(f)
        return f


class WrongSum(AssertionError):
    """A run was played on to a sum that is not that of its survivors."""


@dataclass
class Victim:
    """A side at a stage, the methods that may be called there, and honest frames."""

    is_silo: bool
    stage: str
    snapshot: Snapshot
    methods: dict[str, bytes]
    f: Federation = field(init=False)

    def __post_init__(self) -> None:
        self.f = self.snapshot.everything()

    def memory(self) -> object:
        return self.f.silo_state(0) if self.is_silo else self.f.aggregator_state()

    def put_back(self) -> None:
        if self.is_silo:
            self.snapshot.silo(self.f, 0)
        else:
            self.snapshot.aggregator(self.f)

    def hand(self, method: str, frame: bytes) -> None:
        if self.is_silo:
            deliver(self.f, method, frame)
        else:
            hand_over(self.f, method, frame)


def make_victims() -> list[Victim]:
    """Silo 0 and the aggregator before each message that they await."""
    frames, victims = all_frames(), []
    methods: dict[str, str] = {}
    for stage, method in TO_SILO.items():
        f = small()
        reach(f, stage)
        if stage == "active":  # From READY on every message of the slot may come.
            methods |= {name: TO_SILO[name] for name in TO_SILO}
        methods[stage] = method
        honest = {m: f.frames.get(s, frames[s])[0] for s, m in methods.items()}
        victims.append(Victim(True, stage, Snapshot(f), honest))
    names: dict[str, str] = {}
    for stage, (name, method) in TO_AGGREGATOR.items():
        f = small()
        await_replies(f, stage)
        snapshot = Snapshot(f)
        names[name] = method
        honest = {}
        for sent, add in names.items():
            known = f.frames.get(sent)
            honest[add] = known[1] if known else answer(f, sent)
        victims.append(Victim(False, stage, snapshot, honest))
    return victims


def answer(f: Federation, name: str) -> bytes:
    """What silo 1 honestly answers next."""
    silo, frames = f.silos[1], f.frames
    if name == "advertise":
        return silo.advertise()
    if name == "shares":
        return silo.share(frames["keys"][1])
    if name == "ready":
        silo.receive_shares(frames["envelopes"][1])
        return silo.ready(0, 1, f.model)
    if name == "masked":
        return f.masked(1, frames["active"][1])
    if name == "confirm":
        return silo.confirm(frames["survivors"][1])
    return silo.reveal(frames["confirms"][1])


class Fuzzer:
    """Sends mutated messages; ``counts`` tells what became of them."""

    def __init__(self) -> None:
        self.victims = make_victims()
        f = self.victims[0].f
        runs = [all_frames(), all_frames(setup=2), all_frames(run=OTHER_RUN)]
        self.pool = [
            frame for run in runs for table in run.values() for frame in table.values()
        ]
        colluder = f.identities[1]
        self.aggregator = Sender(CONFIG, f.aggregator_identity, colluder)
        self.silo = Sender(CONFIG, colluder, colluder)
        self.counts: Counter[str] = Counter()
        self.most_memory = 0.0

    def draw(self, random: Random) -> tuple[Victim, str, bytes, str]:
        """Return a victim, a method, a mutated frame, and who has mutated it."""
        victim = random.choice(self.victims)
        method = random.choice(list(victim.methods))
        honest = victim.methods[method]
        frame = honest if random.random() < 0.8 else random.choice(self.pool)
        is_signed = random.random() < 0.5
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            if is_signed:
                sender = self.aggregator if victim.is_silo else self.silo
                frame = sender.mutate(random, frame, self.pool)
            else:
                name = random.choice(sorted(ON_THE_WAY))
                frame = ON_THE_WAY[name](random, frame, self.pool)
        return victim, method, frame, "signed" if is_signed else "on the way"

    def send(self, random: Random, *, play_on: float, measure: bool = False) -> None:
        """Send one message and check what becomes of it.

        Whatever that is, the next message meets an honest victim.

        Args:
            play_on: the share of accepted messages after which the run is played on.
            measure: whether memory is measured.

        Raises:
            WrongSum: the run was played on to another sum.
            AssertionError: another guarantee is broken.
            Exception: whatever else comes out of a victim is against the rules, too.
        """
        victim, method, frame, who = self.draw(random)
        before = victim.memory()
        try:
            if measure:
                self._measured(victim, method, frame)
            else:
                victim.hand(method, frame)
        except CryptoError as error:
            if victim.memory() != before:
                victim.put_back()
                assert _burnt(victim, method, error), f"{method}: {error}"
            self.counts[f"{who}: {type(error).__name__}"] += 1
            return
        except BaseException:
            victim.put_back()
            raise
        if victim.memory() == before:
            self.counts[f"{who}: accepted, nothing new"] += 1
            return
        self.counts[f"{who}: accepted"] += 1
        if random.random() < play_on:
            try:
                self.counts[f"played on: {play_on_from(victim, method, frame)}"] += 1
            finally:
                victim.f = victim.snapshot.everything()
        else:
            victim.put_back()

    def _measured(self, victim: Victim, method: str, frame: bytes) -> None:
        """Hand over a frame; fail if that took more than twice its size."""
        allowed = 2 * len(frame) + SLACK_BYTES
        allowed += KEYSTREAM_BYTES if method == "mask" else 0
        memory = Memory()
        try:
            with measured(memory):
                victim.hand(method, frame)
        finally:
            self.most_memory = max(self.most_memory, memory.peak / allowed)
            assert memory.peak <= allowed, f"{memory.peak} bytes for {len(frame)}"


class Memory:
    """The most memory that was in use at once inside :func:`measured`."""

    peak = 0


@contextmanager
def measured(memory: Memory) -> Iterator[None]:
    """Measure the block, also when it raises."""
    gc.collect(0)
    gc.disable()
    tracemalloc.start()
    try:
        yield
    finally:
        memory.peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        gc.enable()


def _burnt(victim: Victim, method: str, error: CryptoError) -> bool:
    """A slot may be burnt for a vector that a peer's key of low order then prevents."""
    return victim.is_silo and method == "mask" and "low order" in str(error)


def play_on_from(victim: Victim, method: str, frame: bytes) -> str:
    """Finish the run with the others; the sum is exact, or an error says why not.

    What silo 1 says spoils no sum of the others; its shares, which only those can open
    who receive them, are refused by them.
    """
    f, stage = victim.f, victim.stage
    if stage == "sum":
        return "nothing is left to do"
    if method == "add_masked":
        honest = np.frombuffer(victim.methods[method][72:-64], "<u8")
        lie = np.frombuffer(frame[72:-64], "<u8")
        f.words[1] = f.words[1] + lie - honest  # Silo 1 is in both parts.
    senders = list(f.everyone) if victim.is_silo else HONEST
    try:
        finish(f, stage, senders)
    except CryptoError as error:
        is_of_silo_1 = not victim.is_silo and read_header(frame).sender == 1
        assert not is_of_silo_1 or method == "add_shares", f"{method}: {error}"
        return type(error).__name__
    summed = f.aggregator.slot.survivor_indices
    if (f.aggregator.slot.total != f.plain_sum(summed)).any():
        raise WrongSum(f"{method}: of {summed}")
    return "the sum is exact"


def finish(f: Federation, stage: str, senders: list[int]) -> None:
    """Go on from a stage with those who still send."""
    side, order = f.aggregator, ["start", *TO_SILO]
    at = order.index(stage)
    if at <= 0:
        for i in senders:
            side.add_advertisement(f.silos[i].advertise())
    if at <= 1:
        keys = side.keys() if at == 0 or not f.frames else f.frames["keys"][0]
        f.frames["keys"] = dict.fromkeys(f.everyone, keys)
        for i in senders:
            side.add_shares(f.silos[i].share(keys))
    if at <= 2:
        f.frames["envelopes"] = {i: side.envelopes(i) for i in side.close_members()}
        slot = side.slot if side.has_slot else side.open_slot(0, 1, f.model, f.parts)
        for i in senders:
            f.silos[i].receive_shares(f.frames["envelopes"][i])
            slot.add_ready(f.silos[i].ready(0, 1, f.model))
    slot = side.slot
    if at <= 3:
        for i in senders:
            slot.add_masked(f.masked(i, slot.active()))
    if at <= 4:
        for i in senders:
            slot.add_confirm(f.silos[i].confirm(slot.survivors()))
    if at <= 5:
        for i in senders:
            slot.add_reveal(f.silos[i].reveal(slot.confirms()))
    slot.unmask()
