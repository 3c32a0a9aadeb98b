"""What a row of the attack tables says, and how rows are played.

A row plays honestly up to a stage, has somebody misbehave once, and names the error.
All that the victim remembers must be as before: its state, byte for byte, and for a
silo what it has promised in its journal. Then the honest message takes the place of
the forged one, the run goes on, and the sum must be exact: the case that must succeed
stands beside each that must fail.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from crypto.errors import CryptoError
from crypto.secagg.config import SecAggConfig
from crypto.secagg.silo_side import SiloSide
from tests.crypto.secagg.federation import STAGES, Federation

FIVE = SecAggConfig(num_silos=5, threshold=4, slots_per_setup=3)
"""Five silos, of whom silo 0 is the victim."""
SIX = SecAggConfig(num_silos=6, threshold=4, slots_per_setup=2)
"""Six silos, of whom silo 1 misbehaves."""
HONEST = [0, 2, 3, 4, 5]

AGGREGATOR, NETWORK, SILO = "the aggregator", "the network", "silo 1"
COALITION = "the aggregator and silo 1"


@dataclass(frozen=True)
class Row:
    """One attack.

    Attributes:
        who: misbehaves.
        stage: has been reached honestly.
        message: in words.
        forge: makes it.
        to: the method of the victim that takes it.
        raises, match: the error and a piece of its text.
        goes_on: whether the slot can still be summed with the honest message.
        make: the federation before the first message.
    """

    who: str
    stage: str
    message: str
    forge: Callable[[Federation], bytes]
    to: str
    raises: type[CryptoError]
    match: str
    goes_on: bool = True
    make: Callable[[], Federation] = lambda: Federation(FIVE)

    def __str__(self) -> str:
        return f"{self.stage}-{self.message}".replace(" ", "_")


# ------------------------------------------------------------------ against silo 0


def reach(f: Federation, stage: str) -> None:
    """Play honestly until silo 0 awaits the message of a stage, ``sum`` included."""
    f.reach("confirms" if stage == "sum" else stage)
    if stage == "sum":
        f.reveal(f.everyone)


def deliver(f: Federation, method: str, frame: bytes) -> object:
    """Hand a frame to silo 0."""
    if method == "mask":
        return f.masked(0, frame)
    return getattr(f.silos[0], method)(frame)


def finish_honestly(f: Federation, stage: str) -> None:
    """Go on from the honest messages of a stage; the sum is exact."""
    later = {
        "envelopes": f.share,
        "active": f.ready,
        "survivors": lambda: f.mask(f.everyone),
        "confirms": lambda: f.confirm(f.everyone),
    }
    if stage != "sum":
        for name in STAGES[STAGES.index(stage) + 1 :]:
            later[name]()
        f.reveal(f.everyone)
    assert (f.aggregator.slot.total == f.plain_sum(f.everyone)).all()
    for silo in f.everyone:
        digest = f.silos[silo].close_slot(f.frames["sum"][silo])
        assert digest == f.aggregator.slot.sum_digest


def play_against_silo(row: Row) -> None:
    """Play one row whose victim is silo 0."""
    f = row.make()
    reach(f, row.stage)
    forged = row.forge(f)
    state, promises = f.silo_state(0)
    with pytest.raises(row.raises, match=row.match):
        deliver(f, row.to, forged)
    state_after, promises_after = f.silo_state(0)
    assert state_after == state
    assert promises_after == promises
    if row.goes_on:
        finish_honestly(f, row.stage)


def restart_silo(f: Federation, silo: int, saved: bytes) -> SiloSide:
    """Load a state that was saved at some time, beside the journal of now."""
    f.silos[silo] = SiloSide.from_bytes(saved, *f.silo_arguments(silo))
    return f.silos[silo]


# ------------------------------------------------------------ against the aggregator


def advertise(f: Federation, silos: list[int]) -> None:
    for silo in silos:
        f.aggregator.add_advertisement(f.silos[silo].advertise())


def share(f: Federation, silos: list[int]) -> None:
    f.frames["keys"] = dict.fromkeys(f.everyone, f.aggregator.keys())
    for silo in silos:
        f.aggregator.add_shares(f.silos[silo].share(f.frames["keys"][silo]))


def send_envelopes(f: Federation) -> None:
    f.frames["envelopes"] = {
        i: f.aggregator.envelopes(i) for i in f.aggregator.close_members()
    }


def await_replies(f: Federation, stage: str) -> None:
    """Play honestly until the aggregator awaits the replies that follow a stage."""
    if stage == "start":
        advertise(f, [0])
        return
    f.reach(stage)
    if stage == "envelopes":
        f.aggregator.open_slot(0, 1, f.model, f.parts)


def hand_over(f: Federation, method: str, frame: bytes) -> None:
    """Hand a frame to the aggregator, or to its open slot."""
    in_setup = method in ("add_advertisement", "add_shares")
    getattr(f.aggregator if in_setup else f.aggregator.slot, method)(frame)


def finish_without_silo_1(f: Federation, stage: str) -> None:
    """The others go on; the sum is theirs, and silo 1's where it had sent a vector."""
    if stage == "start":
        advertise(f, HONEST)
    if stage in ("start", "keys"):
        share(f, HONEST)
        send_envelopes(f)
    if stage in ("start", "keys", "envelopes"):
        f.slot = 1
        f.ready(HONEST)
    if stage in ("start", "keys", "envelopes", "active"):
        f.mask(HONEST)
    if stage != "confirms":
        f.confirm(HONEST)
    total = f.reveal(HONEST)
    summed = f.everyone if stage in ("survivors", "confirms") else HONEST
    assert (total == f.plain_sum(summed)).all()


def play_against_aggregator(row: Row) -> None:
    """Play one row whose victim is the aggregator."""
    f = row.make()
    await_replies(f, row.stage)
    forged = row.forge(f)
    before = f.aggregator_state()
    with pytest.raises(row.raises, match=row.match):
        hand_over(f, row.to, forged)
    assert f.aggregator_state() == before
    finish_without_silo_1(f, row.stage)
