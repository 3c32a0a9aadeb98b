"""Silos are lost at every stage: within the limits the sum is exact, beyond it fails.

A row says who is lost for good before which stage, and either the silos that are summed
or the call that refuses. Seven silos, threshold five.
"""

from dataclasses import dataclass, field

import pytest

from crypto.errors import ProtocolViolation
from crypto.secagg.config import SecAggConfig
from tests.crypto.secagg.federation import MODEL, Federation

CONFIG = SecAggConfig(num_silos=7, threshold=5, slots_per_setup=2)
EVERYONE = frozenset(range(7))
STAGES = ("advertise", "share", "ready", "mask", "confirm", "reveal")


@dataclass(frozen=True)
class Losses:
    """Who is lost before which stage; the sum, or the call that refuses."""

    lost: dict[str, set[int]] = field(default_factory=dict)
    summed: frozenset[int] = EVERYONE
    refused_by: str = ""


ROWS = [
    Losses(),
    *(Losses({stage: {0}}, EVERYONE - {0}) for stage in STAGES[:4]),
    *(Losses({stage: {0}}) for stage in STAGES[4:]),
    *(Losses({stage: {2, 6}}, EVERYONE - {2, 6}) for stage in STAGES[:4]),
    *(Losses({stage: {2, 6}}) for stage in STAGES[4:]),
    Losses({"share": {1}, "mask": {5}}, EVERYONE - {1, 5}),
    Losses({"mask": {1}, "reveal": {5}}, EVERYONE - {1}),
    Losses({"confirm": {1}, "reveal": {5}}),
    Losses({"advertise": {0, 1, 2}}, refused_by="keys"),
    Losses({"share": {0, 1, 2}}, refused_by="envelopes"),
    Losses({"ready": {0, 1, 2}}, refused_by="active"),
    Losses({"mask": {0, 1, 2}}, refused_by="survivors"),
    Losses({"confirm": {0, 1, 2}}, refused_by="confirms"),
    Losses({"reveal": {0, 1, 2}}, refused_by="unmask"),
    Losses({"ready": {0}, "mask": {1}, "confirm": {2}}, refused_by="confirms"),
]


class Fading:
    """Plays the stages with those who are left."""

    def __init__(self, lost: dict[str, set[int]]) -> None:
        self.f, self.lost, self.left = Federation(CONFIG), lost, set(EVERYONE)
        self.call = ""

    def at(self, stage: str) -> list[int]:
        self.left -= self.lost.get(stage, set())
        return sorted(self.left)

    def ask(self, name: str, *arguments):
        """Call the aggregator; if it refuses, remember which call it was."""
        self.call = name
        side = self.f.aggregator
        owner = side if name in ("keys", "envelopes") else side.slot
        reply = getattr(owner, name)(*arguments)
        self.call = "a silo"
        return reply

    def run_setup(self) -> None:
        f = self.f
        for i in self.at("advertise"):
            f.aggregator.add_advertisement(f.silos[i].advertise())
        keys = self.ask("keys")
        for i in self.at("share"):
            f.aggregator.add_shares(f.silos[i].share(keys))
        for i in sorted(self.left):
            f.silos[i].receive_shares(self.ask("envelopes", i))

    def run_slot(self, slot: int):
        f = self.f
        a = f.aggregator.open_slot(slot, 1, MODEL, f.parts)
        for i in self.at("ready"):
            a.add_ready(f.silos[i].ready(slot, 1, MODEL))
        active = self.ask("active")
        for i in self.at("mask"):
            a.add_masked(f.masked(i, active))
        survivors = self.ask("survivors")
        for i in self.at("confirm"):
            a.add_confirm(f.silos[i].confirm(survivors))
        confirms = self.ask("confirms")
        for i in self.at("reveal"):
            a.add_reveal(f.silos[i].reveal(confirms))
        return self.ask("unmask")


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.lost}{r.refused_by}")
def test_dropouts(row):
    play = Fading(row.lost)
    if row.refused_by:
        with pytest.raises(ProtocolViolation, match="needed"):
            play.run_setup() or play.run_slot(0)
        assert play.call == row.refused_by
    else:
        play.run_setup()
        total = play.run_slot(0)
        assert (total == play.f.plain_sum(sorted(row.summed))).all()


@pytest.mark.parametrize("stage", ["ready", "mask", "confirm"])
def test_a_slot_lost_before_reveal_is_repeated_when_the_silos_are_back(stage):
    play = Fading({stage: {0, 1, 2}})
    play.run_setup()
    with pytest.raises(ProtocolViolation):
        play.run_slot(0)
    play.lost, play.left = {}, set(EVERYONE)
    total = play.run_slot(1)
    assert (total == play.f.plain_sum(range(7))).all()


def test_a_slot_lost_in_reveal_waits_for_the_late():
    play = Fading({"reveal": {0, 1, 2}})
    play.run_setup()
    with pytest.raises(ProtocolViolation, match="4 silos, 5 are needed"):
        play.run_slot(0)
    f = play.f
    f.aggregator.slot.add_reveal(f.silos[1].reveal(f.aggregator.slot.confirms()))
    assert (f.aggregator.slot.unmask() == f.plain_sum(range(7))).all()
