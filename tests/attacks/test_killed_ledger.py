"""A private round is killed at every point where its disk changes, and goes on.

The silo runs in a process of its own and keeps ledger and checkpoint on disk, in the
order of ``silo.private_round``; it "trains" by writing a byte for every step to a file
that no crash takes back. At every death and at the end: what is charged is at least
what was taken; at the end it is at most one checkpoint interval more for each death,
and no reservation ever passed the limit.
"""

import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import silo.account
from crypto.keys import IdentityKey
from privacy.accounting import Budget
from privacy.errors import BudgetExceeded
from privacy.events import SampledGaussian
from protocol.files import save_bytes
from silo.account import PrivacyAccount
from silo.data import ImageSet
from silo.ledger import load_ledger
from silo.partial import (
    CheckpointOutdated,
    PartialRound,
    forget_partial,
    load_partial,
    save_partial,
)
from silo.units import units_of
from tests.attacks import killing
from tests.attacks.killing import WAYS, Child, Disk, Line

KEY = IdentityKey.from_bytes(bytes(range(32)))
IMAGES = ImageSet(np.arange(16, dtype=np.uint8).reshape(4, 2, 2, 1), (0.0, 255.0))
MODEL = "ab" * 32
STEPS, INTERVAL = 5, 2
EVENT = SampledGaussian(
    sample_rate=0.5, noise_multiplier=1.5, clipping_norm=1.0, steps=STEPS
)
DONE, REFUSED = 0, 3


def steps_of(events) -> int:
    return sum(event.steps for event in events)


@pytest.fixture(autouse=True)
def a_step_costs_one(monkeypatch):
    monkeypatch.setattr(silo.account, "epsilon", lambda events, delta: steps_of(events))
    monkeypatch.setattr(
        silo.account,
        "would_exceed",
        lambda budget, spent, planned: (
            steps_of(spent) + steps_of(planned) > budget.epsilon
        ),
    )


class Silo:
    """One round of one silo, over as many processes as it takes."""

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit, self.deaths = root, limit, 0
        self.open().close()
        self.folder = (
            root / "ledgers" / "run"
        )  # The round's other files lie there, too.
        self.counter = root / "taken"
        self.counter.touch()

    def open(self) -> PrivacyAccount:
        return PrivacyAccount.open(
            self.root / "ledgers",
            "run",
            plan="ef" * 32,
            delta=1e-5,
            identity=KEY,
            images=IMAGES,
            units=units_of(IMAGES, "example"),
            run_budget=None,
            account_limit=Budget(self.limit, 1e-5),
        )

    @property
    def taken(self) -> int:
        return self.counter.stat().st_size

    @property
    def charged(self) -> int:
        return steps_of(load_ledger(self.folder, KEY.public).spending.events)

    @property
    def is_trained(self) -> bool:
        return (self.folder / "update").exists()

    def train(self, disk: Disk, line: Line) -> None:
        """Train the round as far as this process lives."""
        with self.open() as account:
            checkpoint = load_partial(self.folder)
            partial = checkpoint.partial if checkpoint else None
            disk.stage = "begin"
            try:
                first = account.begin(
                    1, EVENT, checkpoint_steps=INTERVAL, model=MODEL, partial=partial
                )
            except BudgetExceeded:
                os._exit(REFUSED)
            for step in range(first + 1, STEPS + 1):
                disk.stage = f"step {step}"
                self.take_one(disk)
                if (step - first) % INTERVAL == 0 or step == STEPS:
                    account.take((step - first - 1) % INTERVAL + 1)
                    self.save(account, step)
            disk.stage = "end"
            account.close_round(1)
            save_bytes(self.folder / "update", b"update")
            forget_partial(self.folder)
            (self.root / "points").write_text("\n".join(disk.points))

    def take_one(self, disk: Disk) -> None:
        disk.point("before the step")
        descriptor = os.open(self.counter, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, b"x")
        os.close(descriptor)
        disk.point("after the step")

    def save(self, account: PrivacyAccount, step: int) -> None:
        partial = PartialRound(
            round_number=1, model=MODEL, step=step, ledger=account.head
        )
        save_partial(self.folder, partial, {"w": torch.full((1,), float(step))}, {})

    def run(self, die_at: str = "", way: str = "killed") -> int:
        """Let one process train; return how it ended, and check what it left."""
        child = Child(self.train, self.folder, die_at, way)
        status = child.end()
        self.deaths += status == -9
        assert status in (DONE, REFUSED, -9)
        assert self.taken <= self.charged <= self.limit
        return status

    def finish(self) -> None:
        """Restart until the round is trained; check the price."""
        while not self.is_trained:
            assert self.run() == DONE
        assert STEPS <= self.taken <= self.charged
        assert self.charged <= self.taken + INTERVAL * self.deaths


def points() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        silo_, root = Silo(Path(folder), 100), Path(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(silo.account, "would_exceed", lambda *_: False)
            assert silo_.run() == DONE
        return (root / "points").read_text().splitlines()


POINTS = points()


def test_the_points_are_those_of_the_order():
    assert "begin: halfway through write of ledger" in POINTS
    assert "begin: before fsync of ledger" in POINTS
    assert "step 2: after fsync of ledger" in POINTS
    assert "step 2: before rename of partial" in POINTS
    assert "step 3: after the step" in POINTS
    assert "end: after fsync of ledger" in POINTS
    assert "end: before rename of update" in POINTS
    assert "end: before unlink of partial" in POINTS
    assert len(POINTS) > 60


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("point", POINTS)
def test_killed_once(tmp_path, point, way):
    """An interval is repeated at most, and as much is charged beyond what was taken.

    Both only between ``Taken`` and its checkpoint: that nothing was trained since is
    known to the dead process alone; a checkpoint restored from a backup looks the same.
    """
    round_ = Silo(tmp_path, STEPS + 2 * INTERVAL)
    assert round_.run(point, way) == -9
    round_.finish()
    assert round_.deaths == 1


def test_never_killed_costs_just_the_steps(tmp_path):
    round_ = Silo(tmp_path, STEPS)
    round_.finish()
    assert round_.charged == round_.taken == STEPS


@pytest.mark.parametrize("seed", range(15))
def test_killed_again_and_again(tmp_path, seed):
    """Where the limit is reached first, nothing more is trained, ever."""
    draw = random.Random(seed)
    round_ = Silo(tmp_path, draw.choice([STEPS, STEPS + 3, STEPS + 6, 100]))
    for _ in range(8):
        if round_.is_trained:
            break
        if round_.run(draw.choice(POINTS), draw.choice(WAYS)) == REFUSED:
            before = Counter(taken=round_.taken, charged=round_.charged)
            assert round_.run() == REFUSED
            assert before == Counter(taken=round_.taken, charged=round_.charged)
            return
    round_.limit = 100
    round_.finish()


class AnyFolder(Disk):
    """A disk with folders in it; only for processes that are killed."""

    def _sync(self, descriptor: int) -> None:
        """Nothing is taken back when a process is killed."""


def test_killed_while_a_ledger_is_made(tmp_path, monkeypatch):
    """It is there whole, or not at all; the key of the tags is made once."""
    monkeypatch.setattr(killing, "Disk", AnyFolder)

    def make(root: Path) -> Callable[[Disk, Line], None]:
        def work(disk: Disk, line: Line) -> None:
            Silo(root, 100)
            (root / "points").write_text("\n".join(disk.points))

        return work

    def child(name: str, die_at: str = "") -> tuple[Path, int]:
        root = tmp_path / name
        (root / "ledgers").mkdir(parents=True)
        return root, Child(make(root), root / "ledgers", die_at).end()

    root, status = child("dry")
    assert status == 0
    names = (root / "points").read_text().splitlines()
    assert "start: before rename of run" in names
    assert len(names) > 20
    for number, point in enumerate(names):
        root, status = child(f"dies-{number}", point)
        assert status == -9
        key = root / "ledgers" / "tags.key"
        before = key.read_bytes() if key.exists() else None
        with Silo(root, 100).open() as account:
            assert account.head.size == 1
        assert before in (None, key.read_bytes())
        left = sorted(path.name for path in (root / "ledgers").iterdir())
        assert left == ["run", "tags.key"]


@pytest.mark.parametrize("step", [2, 4])
def test_a_checkpoint_from_an_old_backup_trains_nothing(tmp_path, step):
    round_ = Silo(tmp_path, 100)
    assert round_.run(f"step {step + 1}: before the step") == -9
    backup = (round_.folder / "partial.safetensors").read_bytes()
    assert round_.run("step 5: before rename of partial") == -9
    if step == 4:  # One interval older: as if the newer one was never saved.
        (round_.folder / "partial.safetensors").write_bytes(backup)
        round_.finish()
        return
    (round_.folder / "partial.safetensors").write_bytes(backup)
    taken = round_.taken
    with round_.open() as account, pytest.raises(CheckpointOutdated):
        account.begin(
            1,
            EVENT,
            checkpoint_steps=INTERVAL,
            model=MODEL,
            partial=load_partial(round_.folder).partial,
        )
    assert round_.taken == taken
