"""A silo against whoever has all other keys, and its disk: any requests, in any order.

The adversary is the aggregator, has the keys of all other silos, and puts any earlier
state back whenever it likes; the journal alone it cannot touch. So no count of honest
signatures protects the silo: what is tested is what it keeps to itself. Whatever is
asked, in every slot there is at most one vector, one CONFIRM and one REVEAL; no slot
begins for a round of which a share was revealed; nothing new leaves a slot after a
later one has begun.
"""

from collections import defaultdict
from dataclasses import replace
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.errors import CryptoError
from crypto.frame import Kind
from crypto.secagg.config import SecAggConfig
from crypto.secagg.digests import keys_digest, members_digest, slot_digest
from crypto.secagg.messages import (
    Confirms,
    SumNotice,
    Survivors,
)
from crypto.secagg.parts import whole
from crypto.secagg.ready import Active, Ready
from crypto.secagg.upload import Upload
from tests.attacks.forging import BODY, resign, sign_in_slot
from tests.attacks.table import restart_silo
from tests.crypto.secagg.federation import MODEL, OTHER_MODEL, Federation

CONFIG = SecAggConfig(num_silos=4, threshold=3, slots_per_setup=3)
ROUNDS, SLOTS = (1, 2, 3), (0, 1, 2)
GROUPS = ((0, 1, 2, 3), (0, 1, 2), (0, 1, 3))
VECTORS = [np.full(2, value, np.uint64) for value in (7, 9)]
COUNTED = ("masked", "confirm", "reveal")
STEPS = (
    *("ready", "masked", "masked", "sum", "roll_back", "roll_back"),
    *("confirm", "confirm", "confirm", "reveal", "reveal", "reveal", "reveal"),
)


class Adversary:
    """Asks silo 0 for anything and keeps every frame that leaves it."""

    def __init__(self, seed: int, trust: str = "malicious") -> None:
        self.random = Random(seed)
        self.f = Federation(replace(CONFIG, trust=trust))
        self.f.parts = whole(2, range(4))
        self.f.reach("envelopes")
        self.f.silos[0].receive_shares(self.f.frames["envelopes"][0])
        keys = keys_digest(
            self.f.aggregator._setup.digest, self.f.frames["keys"][0][BODY]
        )
        self.members = members_digest(keys, range(4), 4)
        self.states = [self.f.silos[0].to_bytes()]
        self.left: dict[str, dict[int, set[bytes]]] = defaultdict(
            lambda: defaultdict(set)
        )
        self.latest_slot, self.closed_round = -1, -1
        self.rounds: dict[int, int] = {}

    # -------------------------------------------------------------- requests

    def place(self) -> tuple[int, int, bytes, tuple[int, ...]]:
        """Any slot, round, model and cohort; mostly the silo's own latest ones."""
        random, side = self.random, self.f.silos[0]
        if side.has_slot and random.random() < 0.85:
            latest = side.latest_slot
            cohort = latest.cohort or random.choice(GROUPS)
            if random.random() < 0.3:
                cohort = random.choice(GROUPS)
            return latest.slot, latest.round_number, latest.model_digest, cohort
        return (
            random.choice(SLOTS),
            random.choice(ROUNDS),
            random.choice((MODEL, OTHER_MODEL)),
            random.choice(GROUPS),
        )

    def ready(self) -> tuple[int, bytes]:
        slot, round_number, model, _ = self.place()
        if self.random.random() < 0.4:
            slot = min(slot + 1, 2)
        if self.random.random() < 0.4:
            round_number = self.random.choice(ROUNDS)
        frame = self.f.silos[0].ready(slot, round_number, model)
        is_new = frame not in self.left["ready"][slot]
        assert not is_new or round_number > self.closed_round
        self.rounds[slot] = round_number
        return slot, frame

    def masked(self) -> tuple[int, bytes]:
        slot, round_number, model, cohort = self.place()
        said = Ready(self.members, round_number, model)
        table = {
            i: resign(self.f, i, said.to_bytes(), Kind.READY, slot) for i in cohort
        }
        active = sign_in_slot(self.f, Kind.ACTIVE, Active(said, table), slot)
        upload = Upload.of(self.random.choice(VECTORS))
        return slot, bytes(self.f.silos[0].mask(active, upload, self.f.parts))

    def survivors(self) -> tuple[int, Survivors]:
        """Any list; mostly the one that the silo has confirmed, if there is one."""
        side = self.f.silos[0]
        if side.has_slot and self.random.random() < 0.6:
            latest = side.latest_slot
            if latest.survivors:
                return latest.slot, Survivors(latest.slot_digest, latest.survivors)
        slot, round_number, model, cohort = self.place()
        place = (slot, round_number, model, cohort, self.f.parts, 4)
        groups = [group for group in GROUPS if set(group) <= set(cohort)]
        t3 = slot_digest(self.members, *place)
        return slot, Survivors(t3, self.random.choice(groups))

    def confirm(self) -> tuple[int, bytes]:
        slot, message = self.survivors()
        frame = sign_in_slot(self.f, Kind.SURVIVORS, message, slot)
        return slot, self.f.silos[0].confirm(frame)

    def reveal(self) -> tuple[int, bytes]:
        slot, message = self.survivors()
        if self.f.config.trust == "semi-honest" and self.random.random() < 0.5:
            frame = sign_in_slot(self.f, Kind.SURVIVORS, message, slot)
            return slot, self.f.silos[0].reveal(frame)
        body = message.to_bytes(4)
        signers = message.survivors  # With silo 0's own CONFIRM, if it has sent one.
        table = {i: resign(self.f, i, body, Kind.CONFIRM, slot) for i in signers}
        frame = sign_in_slot(self.f, Kind.CONFIRMS, Confirms(message, table), slot)
        return slot, self.f.silos[0].reveal(frame)

    def sum(self) -> tuple[int, bytes]:
        slot, message = self.survivors()
        notice = SumNotice(message, self.random.choice((bytes(32), MODEL)))
        frame = sign_in_slot(self.f, Kind.SUM, notice, slot)
        return slot, self.f.silos[0].close_slot(frame)

    def roll_back(self) -> tuple[int, bytes]:
        restart_silo(self.f, 0, self.random.choice(self.states))
        return -1, b""

    # ------------------------------------------------------------------ playing

    def step(self) -> None:
        """Ask one thing; nothing that leaves may break a rule."""
        name = self.random.choice(STEPS)
        try:
            slot, frame = getattr(self, name)()
        except (CryptoError, RuntimeError):
            return
        self.states.append(self.f.silos[0].to_bytes())
        if name in ("sum", "roll_back"):
            return
        if frame not in self.left[name][slot]:
            assert slot >= self.latest_slot
        self.left[name][slot].add(frame)
        self.latest_slot = max(self.latest_slot, slot)
        if name == "reveal":
            self.closed_round = max(self.closed_round, self.rounds[slot])

    def check(self) -> None:
        """One answer for each slot and stage, one round for each slot."""
        for name in ("ready", *COUNTED):
            for frames in self.left[name].values():
                assert len(frames) == 1


@settings(max_examples=150, deadline=None, database=None)
@given(st.integers(0, 2**64 - 1), st.sampled_from(["malicious", "semi-honest"]))
def test_whatever_is_asked_and_put_back_every_slot_gives_one_answer(seed, trust):
    adversary = Adversary(seed, trust)
    for _ in range(60):
        adversary.step()
    adversary.check()


def test_the_adversary_reaches_every_stage():
    """Otherwise the test above would say nothing."""
    seen: dict[str, int] = defaultdict(int)
    for seed in range(40):
        adversary = Adversary(seed)
        for _ in range(60):
            adversary.step()
        for name in ("ready", *COUNTED):
            seen[name] += len(adversary.left[name])
    assert min(seen[name] for name in ("ready", *COUNTED)) >= 10, dict(seen)
