"""One silo is killed at every point of the protocol, restarted, and asked again.

The silo lives in a process of its own and keeps journal, state and vector on disk, as
``silo.secure_upload`` does: what a reply depends on is saved before it leaves. The
aggregator and three other silos are in the test's process. For every point: no stage
was ever answered with two different frames, another request than the one promised is
refused, and the sum is exact.
"""

import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest

from crypto.errors import CryptoError
from crypto.secagg.config import SecAggConfig
from crypto.secagg.journal import Journal, Stage
from crypto.secagg.messages import Survivors
from crypto.secagg.silo_side import SiloSide
from crypto.secagg.upload import Upload
from protocol.errors import KeyFileRejected
from protocol.files import load_secret, save_secret
from tests.attacks.forging import (
    active_of,
    confirms_by,
    sign_active,
    sign_survivors,
    survivors_of,
    without,
)
from tests.attacks.killing import WAYS, Child, Disk, Line
from tests.crypto.secagg.federation import MODEL, OTHER_MODEL, Federation

CONFIG = SecAggConfig(num_silos=4, threshold=3, slots_per_setup=2)
OWNER = b"silo 0"
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
PROMISES = {
    "ready": Stage.READY,
    "masked": Stage.MASKED,
    "confirm": Stage.CONFIRM,
    "reveal": Stage.REVEAL,
}
REFUSED = b"refused"


class SiloOnDisk:
    """Silo 0 with its three files; a request in, a reply out."""

    def __init__(self, f: Federation, disk: Disk) -> None:
        self.f, self.disk, folder = f, disk, disk.folder
        self.state, self.words = folder / "state", folder / "words"
        arguments = (*f.silo_arguments(0)[:-1], Journal(folder / "journal", OWNER))
        if self.state.exists():
            self.side = SiloSide.from_bytes(load_secret(self.state), *arguments)
        else:
            self.side = SiloSide(*arguments)

    def serve(self, line: Line) -> None:
        while (request := line.receive()) is not None:
            stage = STAGES[request[0]]
            self.disk.stage = stage
            try:
                reply = getattr(self, stage)(request[1:])
            except (CryptoError, KeyFileRejected):
                reply = REFUSED
            self.disk.point("before the reply leaves")
            line.send(reply)
            self.disk.point("after the reply left")

    def saved(self, reply: bytes) -> bytes:
        save_secret(self.state, self.side.to_bytes())
        return reply

    def advertise(self, request: bytes) -> bytes:
        return self.saved(self.side.advertise())

    def shares(self, request: bytes) -> bytes:
        return self.saved(self.side.share(request))

    def envelopes(self, request: bytes) -> bytes:
        self.side.receive_shares(request)
        return self.saved(b"")

    def ready(self, request: bytes) -> bytes:
        slot, round_number = struct.unpack(">2I", request[:8])
        if not self.words.exists():
            save_secret(self.words, self.f.words[0].tobytes())
        return self.saved(self.side.ready(slot, round_number, request[8:]))

    def masked(self, request: bytes) -> bytes:
        words = np.frombuffer(load_secret(self.words), np.uint64)
        frame = self.side.mask(request, Upload.of(words), self.f.parts)
        return self.saved(bytes(frame))

    def confirm(self, request: bytes) -> bytes:
        return self.saved(self.side.confirm(request))

    def reveal(self, request: bytes) -> bytes:
        reply = self.saved(self.side.reveal(request))
        self.words.unlink(missing_ok=True)
        return reply

    def sum(self, request: bytes) -> bytes:
        return self.saved(self.side.close_slot(request))


def ready_request(slot: int, round_number: int, model: bytes) -> bytes:
    return struct.pack(">2I", slot, round_number) + model


class Play:
    """The aggregator and silos 1 to 3; silo 0 is a process that dies once."""

    def __init__(self, folder: Path, die_at: str = "", way: str = "killed") -> None:
        self.f, self.folder = Federation(CONFIG), folder
        self.f.words = [words[:5] for words in self.f.words]
        self.f.parts = (type(self.f.parts[0])(5, (0, 1, 2, 3)),)
        self.replies: dict[str, list[bytes]] = {stage: [] for stage in STAGES}
        self.deaths = 0
        self.last: tuple[str, bytes] | None = None
        self.child = Child(self.work, folder, die_at, way)

    def work(self, disk: Disk, line: Line) -> None:
        """Run silo 0 in the child; a dry run ends with the list of its points."""
        disk.stage = "start"
        SiloOnDisk(self.f, disk).serve(line)
        (self.folder.parent / "points").write_text("\n".join(disk.points))

    def send(self, stage: str, request: bytes) -> bytes | None:
        """Ask the process; None if it is dead."""
        is_sent = self.child.line.send(bytes([STAGES.index(stage)]) + request)
        return self.child.line.receive() if is_sent else None

    def ask(self, stage: str, request: bytes) -> bytes:
        """Ask silo 0; if it dies, start it from its disk and ask again."""
        reply = self.send(stage, request)
        if reply is None:
            assert self.child.end() == -9
            self.deaths += 1
            self.child = Child(self.work, self.folder)
            self.ask_the_last_again(stage)
            if self.is_promised(stage):
                assert self.send(stage, self.other(stage)) == REFUSED
            reply = self.send(stage, request)
        assert reply not in (None, REFUSED)
        self.replies[stage].append(reply)
        self.last = (stage, request)
        return reply

    def ask_the_last_again(self, stage: str) -> None:
        """The reply before may have been lost on its way: it is the same again."""
        if self.last is None:
            return
        before, request = self.last
        again = self.send(before, request)
        if stage != "sum" or again != REFUSED:  # A slot that is closed is over.
            self.replies[before].append(again)

    def is_promised(self, stage: str) -> bool:
        """Whether the journal on disk binds silo 0 in this stage."""
        path = self.folder / "journal"
        if stage not in PROMISES or not path.exists():
            return False
        copied = shutil.copy(path, self.folder / "copy of journal")
        with Journal(Path(copied), OWNER) as journal:
            return journal.has(PROMISES[stage], 1, 0)

    def other(self, stage: str) -> bytes:
        """A request that an honest aggregator could make, but is another one."""
        f = self.f
        others = Survivors(b"", (0, 1, 2))
        if stage == "ready":
            return ready_request(0, 1, OTHER_MODEL)
        if stage == "masked":
            few = without(active_of(f).signatures, 3)
            return sign_active(f, type(active_of(f))(active_of(f).ready, few))
        others = Survivors(survivors_of(f).slot_digest, others.survivors)
        if stage == "confirm":
            return sign_survivors(f, others)
        return confirms_by(f, others, (1, 2, 3))

    def run(self) -> np.ndarray:
        """Play one slot, its sum, and ask for everything once more."""
        f, side, rest = self.f, self.f.aggregator, (1, 2, 3)
        side.add_advertisement(self.ask("advertise", b""))
        for i in rest:
            side.add_advertisement(f.silos[i].advertise())
        keys = side.keys()
        side.add_shares(self.ask("shares", keys))
        for i in rest:
            side.add_shares(f.silos[i].share(keys))
        self.ask("envelopes", side.envelopes(0))
        for i in rest:
            f.silos[i].receive_shares(side.envelopes(i))
        slot = side.open_slot(0, 1, MODEL, f.parts)
        slot.add_ready(self.ask("ready", ready_request(0, 1, MODEL)))
        for i in rest:
            slot.add_ready(f.silos[i].ready(0, 1, MODEL))
        f.frames["active"] = {i: slot.active() for i in f.everyone}
        slot.add_masked(self.ask("masked", f.frames["active"][0]))
        for i in rest:
            slot.add_masked(f.masked(i, f.frames["active"][i]))
        f.frames["survivors"] = {i: slot.survivors() for i in f.everyone}
        slot.add_confirm(self.ask("confirm", f.frames["survivors"][0]))
        for i in rest:
            slot.add_confirm(f.silos[i].confirm(f.frames["survivors"][i]))
        f.frames["confirms"] = {i: slot.confirms() for i in f.everyone}
        slot.add_reveal(self.ask("reveal", f.frames["confirms"][0]))
        for i in rest:
            slot.add_reveal(f.silos[i].reveal(f.frames["confirms"][i]))
        total = slot.unmask()
        assert self.ask("sum", slot.sum_notice()) == slot.sum_digest
        return total

    def ask_all_again(self) -> None:
        """Every other request is refused, and so is a further slot of the round."""
        for stage in PROMISES:
            assert self.send(stage, self.other(stage)) == REFUSED
        assert self.send("ready", ready_request(1, 1, MODEL)) == REFUSED
        assert self.send("ready", ready_request(0, 2, MODEL)) == REFUSED
        assert self.send("ready", ready_request(1, 2, MODEL)) != REFUSED


def list_points() -> list[str]:
    """Return every point of one whole run, by a dry run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "silo"
        folder.mkdir()
        play = Play(folder)
        play.run()
        assert play.child.end() == 0
        return (Path(name) / "points").read_text().splitlines()


POINTS = list_points()


def test_every_stage_has_its_points():
    for stage in STAGES:
        found = [point for point in POINTS if point.startswith(f"{stage}: ")]
        assert f"{stage}: before the reply leaves" in found
        assert f"{stage}: after the reply left" in found
        assert f"{stage}: before rename of state" in found
    for stage in PROMISES:
        assert f"{stage}: before fsync of journal" in POINTS
        assert f"{stage}: halfway through write of journal" in POINTS
    assert len(set(POINTS)) == len(POINTS) >= 80


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("point", POINTS)
def test_killed_restarted_and_asked_again(tmp_path, point, way):
    folder = tmp_path / "silo"
    folder.mkdir(mode=0o700)
    play = Play(folder, point, way)
    total = play.run()
    if play.deaths == 0:  # It died after its last reply.
        assert play.send("sum", b"") is None and play.child.end() == -9
        play.deaths, play.child = 1, Child(play.work, folder)
    assert play.deaths == 1
    assert (total == play.f.plain_sum(range(4))).all()
    for stage in STAGES:
        assert len(set(play.replies[stage])) == 1
    play.ask_all_again()
    assert play.child.end() == 0
