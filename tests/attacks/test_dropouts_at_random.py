"""Any silos are lost at any stage, in any configuration, with parts dealt to groups.

A play decides from its own small rules, stage by stage, whether enough silos are left.
Where they are, the sum over the survivors is exact in every part. Where they are not,
there is no sum, nobody has revealed anything, and the next slot gives one.
"""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.errors import ProtocolViolation
from crypto.secagg.config import SecAggConfig
from crypto.secagg.journal import NO_ROUND
from crypto.secagg.parts import Part, Parts, whole
from tests.crypto.secagg.federation import MODEL, Federation

STAGES = ("advertise", "shares", "ready", "masked", "confirm", "reveal")
SETUP = ("advertise", "shares")
NONE: dict[str, set[int]] = {stage: set() for stage in STAGES}


@st.composite
def configs(draw) -> SecAggConfig:
    """Any parameters that are accepted, of 2 to 12 silos."""
    n = draw(st.integers(2, 12))
    trust = draw(st.sampled_from(["malicious", "semi-honest"]))
    c = draw(st.integers(0, max(0, min(n - 2, 3))))
    lowest = (n + c) // 2 + 1 if trust == "malicious" else c + 1
    return SecAggConfig(
        num_silos=n,
        threshold=draw(st.integers(lowest, n)),
        min_cohort=draw(st.integers(c + 2, n)),
        max_colluding=c,
        trust=trust,
        slots_per_setup=draw(st.integers(2, 3)),
    )


@st.composite
def dealings(draw, config: SecAggConfig) -> Parts:
    """One part of everyone, or up to four, each of a group that is large enough."""
    everyone = range(config.num_silos)
    if draw(st.booleans()):
        return whole(draw(st.integers(1, 9)), everyone)
    groups = st.sets(st.sampled_from(everyone), min_size=config.min_cohort)
    part = st.builds(Part, st.integers(1, 5), groups.map(lambda g: tuple(sorted(g))))
    return tuple(draw(st.lists(part, min_size=1, max_size=4)))


@st.composite
def losses(draw, config: SecAggConfig) -> dict[str, set[int]]:
    """Up to n - t silos, and sometimes more, each lost before some stage."""
    n = config.num_silos
    most = n - config.threshold if draw(st.booleans()) else n
    lost = draw(st.lists(st.sampled_from(range(n)), max_size=most, unique=True))
    stages = [draw(st.sampled_from(STAGES)) for _ in lost]
    return {
        s: {i for i, at in zip(lost, stages, strict=True) if at == s} for s in STAGES
    }


class Play:
    """One slot with losses; ``reached`` is the last stage that was closed."""

    def __init__(self, f: Federation, lost: dict[str, set[int]]) -> None:
        self.f, self.lost, self.left = f, lost, set(f.everyone)
        self.reached = ""
        self.revealed: set[int] = set()

    def set_up(self) -> None:
        """Exchange keys and shares among those who are left."""
        f = self.f
        f.advertise(self.rest("advertise"))
        self.reached = "advertise"
        f.share(self.rest("shares"))
        f.aggregator.envelopes(min(self.left, default=0))  # Refuses if all are lost.
        self.reached = "shares"
        for i in self.left:
            f.silos[i].receive_shares(f.frames["envelopes"][i])

    def rest(self, stage: str) -> list[int]:
        self.left -= self.lost[stage]
        return sorted(self.left)

    def run(self, slot: int) -> np.ndarray:
        f, asked = self.f, (slot, 1, MODEL)
        a = f.aggregator.open_slot(*asked, f.parts)
        for i in self.rest("ready"):
            a.add_ready(f.silos[i].ready(*asked))
        active = a.active()
        self.reached = "ready"
        for i in self.rest("masked"):
            a.add_masked(f.masked(i, active))
        request = a.survivors()
        self.reached = "masked"
        rest = self.rest("confirm")
        if f.config.trust == "malicious":
            for i in rest:
                a.add_confirm(f.silos[i].confirm(request))
            request = a.confirms()
        self.reached = "confirm"
        for i in self.rest("reveal"):
            a.add_reveal(f.silos[i].reveal(request))
            self.revealed.add(i)
        return a.unmask()


def expected_stage(f: Federation, lost: dict[str, set[int]]) -> str:
    """The last stage that closes, by the rules of docs/protocol.md written out."""
    config, left, reached = f.config, set(f.everyone), ""
    for stage in STAGES:
        left -= lost[stage]
        needed = config.threshold
        if stage == "confirm" and config.trust == "semi-honest":
            needed = 0
        if stage in (*SETUP, "ready", "masked"):
            needed = max(needed, config.min_cohort)
        if stage in ("ready", "masked"):
            groups = [left & set(part.contributors) for part in f.parts]
            if min(map(len, groups)) < config.min_cohort:
                return reached
        if len(left) < needed:
            return reached
        reached = stage
    return reached


def federation(config: SecAggConfig, parts: Parts, setup: int = 1) -> Federation:
    """Silos with words for these parts, before their first message."""
    f = Federation(config, setup=setup)
    f.parts = parts
    f.words = [words[: sum(p.num_words for p in parts)] for words in f.words]
    return f


def nobody_has_revealed(f: Federation) -> bool:
    """Whether no silo has promised, let alone made, a REVEAL."""
    return all(journal.closed_round == NO_ROUND for journal in f.journals)


def play_and_check(f: Federation, lost: dict[str, set[int]]) -> str:
    """Play a slot with losses, and where that gives no sum the next one without."""
    play, expected = Play(f, lost), expected_stage(f, lost)
    if expected == "reveal":
        play.set_up()
        survivors = set(f.everyone).difference(*(lost[s] for s in STAGES[:4]))
        assert (play.run(0) == f.plain_sum(survivors)).all()
        return expected
    with pytest.raises(ProtocolViolation, match="needed"):
        play.set_up() or play.run(0)
    assert play.reached == expected
    if expected == "confirm":
        check_the_late_open_it(play)
        return expected
    assert nobody_has_revealed(f)
    if lost["advertise"] or lost["shares"]:  # Who is no member waits for a setup.
        f = federation(f.config, f.parts, setup=2)
        Play(f, NONE).set_up()
    assert (Play(f, NONE).run(1) == f.plain_sum(f.everyone)).all()
    return expected


def check_the_late_open_it(play: Play) -> None:
    """REVEALs were too few: the slot waits, and those who are late complete it."""
    f, slot = play.f, play.f.aggregator.slot
    assert len(play.revealed) < f.config.threshold
    malicious = f.config.trust == "malicious"
    request = slot.confirms() if malicious else slot.survivors()
    for i in set(slot.survivor_indices) - play.revealed:
        if malicious and i not in slot.confirmed_silos:
            f.silos[i].confirm(slot.survivors())
        slot.add_reveal(f.silos[i].reveal(request))
    assert (slot.unmask() == f.plain_sum(slot.survivor_indices)).all()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_losses_in_any_configuration(data):
    config = data.draw(configs())
    parts = data.draw(dealings(config))
    play_and_check(federation(config, parts), data.draw(losses(config)))


@pytest.mark.parametrize("trust", ["malicious", "semi-honest"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_limit_by_hand(stage, trust):
    """Seven silos, threshold five: two may go, three may not, before any stage."""
    config = SecAggConfig(num_silos=7, threshold=5, trust=trust, slots_per_setup=2)
    parts = whole(3, range(7))
    assert play_and_check(federation(config, parts), NONE | {stage: {1, 4}}) == "reveal"
    reached = dict(zip(STAGES, ("", *STAGES), strict=False))[stage]
    if stage == "confirm" and trust == "semi-honest":
        reached = "confirm"  # Nobody is asked before REVEAL.
    three = NONE | {stage: {1, 4, 6}}
    assert play_and_check(federation(config, parts), three) == reached


# ------------------------------------------------------------------ a hundred silos

HUNDRED = SecAggConfig(num_silos=100, threshold=67, max_colluding=1, slots_per_setup=2)


def spread(lost: int) -> dict[str, set[int]]:
    """Silos chosen by a fixed seed, lost over the stages of a slot in turn."""
    silos = random.Random(5).sample(range(100), lost)
    return NONE | {stage: set(silos[k::3]) for k, stage in enumerate(STAGES[2:5])}


def test_a_hundred_silos_of_whom_34_and_then_33_are_lost():
    """One setup. With 34 lost nothing is revealed; with 33 the sum is exact."""
    f = federation(HUNDRED, whole(3, range(100)))
    Play(f, NONE).set_up()
    assert [len(s) for s in spread(34).values()] == [0, 0, 12, 11, 11, 0]
    with pytest.raises(ProtocolViolation, match="CONFIRM: 66 silos, 67 are needed"):
        Play(f, spread(34)).run(0)
    assert nobody_has_revealed(f)
    lost = spread(33)
    lost["confirm"], lost["reveal"] = set(), lost["confirm"]
    assert [len(s) for s in lost.values()] == [0, 0, 11, 11, 0, 11]
    survivors = set(f.everyone) - lost["ready"] - lost["masked"]
    assert (Play(f, lost).run(1) == f.plain_sum(survivors)).all()
