"""The aggregator is killed at every point, restarted, and finishes the same slot.

It lives in a process of its own and keeps what ``aggregator.secure_sum`` keeps, in the
same order: the setup after KEYS and ENVELOPES, the slot after ACTIVE, its masked sum
and then the slot after SURVIVORS, the slot after CONFIRMS, after every REVEAL, and when
the sum is open. Four silos are in the test's process. Silo 3 is late: it answers no
ACTIVE before the aggregator has died once. For every point the sum of the survivors is
exact, and no silo was ever asked anything that it had to refuse.
"""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from aggregator.slot_store import SlotStore
from crypto.errors import ProtocolViolation
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.aggregator_slot import AggregatorSlot
from crypto.secagg.config import SecAggConfig
from crypto.secagg.parts import Part
from tests.attacks.killing import WAYS, Child, Disk, Line
from tests.crypto.secagg.federation import MODEL, Federation

CONFIG = SecAggConfig(num_silos=4, threshold=3, slots_per_setup=2)
LATE = 3
STAGES = (
    "advertise",
    "shares",
    "envelopes",
    "ready",
    "masked",
    "confirm",
    "reveal",
    "sum",
)


class AggregatorOnDisk:
    """The aggregator with its files; it asks the silos over the line."""

    def __init__(self, f: Federation, disk: Disk, line: Line) -> None:
        self.f, self.disk, self.line = f, disk, line
        self.store = SlotStore(disk.folder)
        saved = self.store.load_setup()
        arguments = f.aggregator_arguments()
        self.side = (
            AggregatorSide.from_bytes(saved[1], *arguments)
            if saved
            else AggregatorSide(*arguments)
        )

    def ask(self, stage: str, requests: dict[int, bytes], take) -> None:
        """Send each silo its request, and take what it answers, if anything."""
        self.disk.stage = stage
        for silo, request in requests.items():
            self.disk.point(f"before silo {silo} is asked")
            self.line.send(bytes([STAGES.index(stage), silo]) + request)
            reply = self.line.receive()
            self.disk.point(f"before silo {silo}'s reply is taken")
            if reply:
                take(reply)

    def run(self) -> None:
        """Go on from what is on disk, to the sum."""
        slot = self.open_slot(self.set_up())
        if not slot.cohort:
            everyone = dict.fromkeys(self.f.everyone, b"")
            self.ask("ready", everyone, slot.add_ready)
            slot.active()
            self.save(slot)
        if not slot.survivor_indices:
            asked = dict.fromkeys(slot.cohort, slot.active())
            self.ask("masked", asked, slot.add_masked)
            slot.survivors()
            self.store.save_sum(1, 0, slot.total)
            self.save(slot)
        if not slot.is_revealing:
            asked = dict.fromkeys(slot.survivor_indices, slot.survivors())
            self.ask("confirm", asked, slot.add_confirm)
            slot.confirms()
            self.save(slot)
        missing = sorted(set(slot.survivor_indices) - set(slot.revealed_silos))
        self.ask("reveal", dict.fromkeys(missing, slot.confirms()), self.take_reveal)
        total = slot.unmask()
        self.save(slot)
        survivors = bytes([len(slot.survivor_indices), *slot.survivor_indices])
        body = slot.sum_notice() + survivors + total.tobytes()
        self.ask("sum", {0: body}, lambda reply: None)

    def take_reveal(self, reply: bytes) -> None:
        self.side.slot.add_reveal(reply)
        self.save(self.side.slot)

    def set_up(self) -> AggregatorSide:
        side, everyone = self.side, self.f.everyone
        if not side.members:
            keys = self.keys()
            self.ask("shares", dict.fromkeys(everyone, keys), side.add_shares)
            side.envelopes(0)
            self.store.save_setup(1, side.to_bytes())
        envelopes = {silo: side.envelopes(silo) for silo in side.members}
        self.ask("envelopes", envelopes, lambda reply: None)
        return side

    def keys(self) -> bytes:
        """Return KEYS, of the setup on disk if it came so far."""
        try:
            return self.side.keys()
        except ProtocolViolation:  # Nobody has advertised yet.
            asked = dict.fromkeys(self.f.everyone, b"")
            self.ask("advertise", asked, self.side.add_advertisement)
            keys = self.side.keys()
            self.store.save_setup(1, self.side.to_bytes())
            return keys

    def open_slot(self, side: AggregatorSide) -> AggregatorSlot:
        saved = self.store.load_slot(1)
        if saved is not None:
            return side.resume_slot(*saved)
        return side.open_slot(0, 1, MODEL, self.f.parts)

    def save(self, slot: AggregatorSlot) -> None:
        self.store.save_slot(1, 0, slot.to_bytes())


class Play:
    """Four silos that answer an aggregator which dies once."""

    def __init__(self, folder: Path, die_at: str = "", way: str = "killed") -> None:
        self.f, self.folder = Federation(CONFIG), folder
        self.f.words = [words[:9] for words in self.f.words]
        self.f.parts = (Part(5, (0, 1, 2, 3)), Part(4, (0, 1, 2)))
        self.lives, self.finished = 1, b""
        self.asked: Counter[str] = Counter()
        self.asked_again: set[str] = set()
        self.child = Child(self.work, folder, die_at, way)

    def work(self, disk: Disk, line: Line) -> None:
        AggregatorOnDisk(self.f, disk, line).run()
        (self.folder.parent / "points").write_text("\n".join(disk.points))

    def answer(self, stage: str, silo: int, request: bytes) -> bytes:
        """Return what an honest silo answers; an error would be the aggregator's."""
        side = self.f.silos[silo]
        if stage == "advertise":
            return side.advertise()
        if stage == "shares":
            return side.share(request)
        if stage == "envelopes":
            return bytes(side.receive_shares(request) or b"")
        if stage == "ready":
            return side.ready(0, 1, MODEL)
        if stage == "masked":
            is_late = silo == LATE and self.lives == 1
            return b"" if is_late else self.f.masked(silo, request)
        return side.confirm(request) if stage == "confirm" else side.reveal(request)

    def run(self) -> None:
        """Serve the aggregator until it has told its sum, through one death."""
        while True:
            asked = self.child.line.receive()
            if asked is None:
                if (status := self.child.end()) == 0:
                    return
                assert status == -9
                self.lives += 1
                self.child = Child(self.work, self.folder)
                continue
            stage, silo, request = STAGES[asked[0]], asked[1], asked[2:]
            if stage == "sum":
                self.finished, reply = request, b"seen"
            else:
                self.asked[stage] += 1
                self.asked_again |= {stage} if self.lives == 2 else set()
                reply = self.answer(stage, silo, request)
            self.child.line.send(reply)

    def check(self) -> tuple[int, ...]:
        """Check the sum and what SUM says; return the survivors."""
        notice, rest = self.finished[:161], self.finished[161:]
        survivors = tuple(rest[1 : 1 + rest[0]])
        total = np.frombuffer(rest[1 + rest[0] :], np.uint64)
        assert (total == self.f.plain_sum(survivors)).all()
        for silo in survivors:
            self.f.silos[silo].close_slot(notice)
        return survivors


def list_points() -> list[str]:
    """Return every point of one whole run, by a dry run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "aggregator"
        folder.mkdir()
        play = Play(folder)
        play.run()
        assert play.check() == (0, 1, 2)
        return (Path(name) / "points").read_text().splitlines()


POINTS = list_points()


def test_every_stage_has_its_points():
    for stage in STAGES:
        assert f"{stage}: before silo 0 is asked" in POINTS
    saves = Counter(point.partition(" (")[0] for point in POINTS)
    assert saves["advertise: after rename of setup"] == 1
    assert saves["shares: after rename of setup"] == 1
    assert saves["ready: after rename of slot"] == 1
    assert saves["masked: after rename of sum"] == 1
    assert saves["masked: after rename of slot"] == 1
    assert saves["confirm: after rename of slot"] == 1
    assert saves["reveal: after rename of slot"] == 4  # Three REVEALs, and the end.
    assert len(set(POINTS)) == len(POINTS) >= 80


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("point", POINTS)
def test_killed_restarted_and_finished(tmp_path, point, way):
    folder = tmp_path / "aggregator"
    folder.mkdir(mode=0o700)
    play = Play(folder, point, way)
    play.run()
    assert play.lives == 2
    survivors = play.check()
    assert survivors in ((0, 1, 2), (0, 1, 2, 3))
    died_at = STAGES.index(point.partition(":")[0])
    assert play.asked_again <= {*STAGES[died_at:], "envelopes"}
    assert play.asked["reveal"] <= len(survivors) + 1  # What was saved is not asked.
