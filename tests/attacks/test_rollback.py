"""A silo's state goes back in time, its journal does not: backups, lost disks, crashes.

What was promised is answered with the identical bytes; anything else is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from crypto.errors import ProtocolViolation
from crypto.secagg.silo_side import SiloSide
from tests.attacks.aggregator_in_slot import without_silo_4
from tests.attacks.forging import (
    active_of,
    sign_active,
    sign_survivors,
    without,
)
from tests.attacks.remembering import Remembering, revealed
from tests.attacks.table import FIVE, deliver, finish_honestly, restart_silo
from tests.crypto.secagg.federation import MODEL, OTHER_MODEL, Federation

SEMI_HONEST = replace(FIVE, threshold=3, trust="semi-honest")


def answer_all(f: Federation) -> dict[str, bytes]:
    """Give silo 0 every honest request of slot 0 once more."""
    silo, frames = f.silos[0], f.frames
    silo.receive_shares(frames["envelopes"][0])
    return {
        "ready": silo.ready(0, 1, MODEL),
        "masked": f.masked(0, frames["active"][0]),
        "confirm": silo.confirm(frames["survivors"][0]),
        "reveal": silo.reveal(frames["confirms"][0]),
    }


@pytest.mark.parametrize("back_to", ["shares", "envelopes", "ready", "masked"])
def test_the_same_requests_get_the_same_bytes(back_to):
    """The case that must succeed: a backup is restored, and the run goes on."""
    f = revealed()
    restart_silo(f, 0, f.saved[back_to])
    assert answer_all(f) == {
        name: f.frames[name][0] for name in ("ready", "masked", "confirm", "reveal")
    }
    finish_honestly(f, "sum")


# ------------------------------------------------- an older state, another request


def other_cohort(f):
    few = without(active_of(f).signatures, 4)
    return sign_active(f, replace(active_of(f), signatures=few))


def other_survivors(f):
    return sign_survivors(f, without_silo_4(f))


def confirm_others(f):
    deliver(f, "confirm", other_survivors(f))


def pass_over_slot_0(f):
    """Slot 1 has begun, and the state goes back to slot 0."""
    state = f.silos[0].to_bytes()
    f.silos[0].ready(1, 2, MODEL)
    restart_silo(f, 0, state)


@dataclass(frozen=True)
class Rollback:
    """Back to a state, then one request that must be refused."""

    back_to: str
    request: str
    ask: Callable[[Federation], object]
    match: str
    before: Callable[[Federation], None] = lambda f: None


ROWS = [
    Rollback(
        "envelopes",
        "READY of slot 0 for another model",
        lambda f: f.silos[0].ready(0, 1, OTHER_MODEL),
        "READY in slot 0, setup 1: was promised otherwise",
    ),
    Rollback(
        "envelopes",
        "READY of slot 0 for another round",
        lambda f: f.silos[0].ready(0, 2, MODEL),
        "was promised otherwise",
    ),
    Rollback(
        "envelopes",
        "READY of slot 0 with another head",
        lambda f: f.silos[0].ready(0, 1, MODEL, bytes(range(104))),
        "was promised otherwise",
    ),
    Rollback(
        "envelopes",
        "READY of slot 1 for the revealed round",
        lambda f: f.silos[0].ready(1, 1, MODEL),
        "were revealed",
    ),
    Rollback(
        "ready",
        "ACTIVE of another cohort",
        lambda f: f.masked(0, other_cohort(f)),
        "MASKED in slot 0, setup 1: was promised otherwise",
    ),
    Rollback(
        "ready",
        "another vector",
        lambda f: f.masked(0, f.frames["active"][0], f.words[1]),
        "was promised otherwise",
    ),
    Rollback(
        "ready",
        "READY of slot 1 for the revealed round",
        lambda f: f.silos[0].ready(1, 1, MODEL),
        "were revealed",
    ),
    Rollback(
        "masked",
        "SURVIVORS of others",
        confirm_others,
        "CONFIRM in slot 0, setup 1: was promised otherwise",
    ),
    Rollback(
        "confirm",
        "SURVIVORS of others",
        confirm_others,
        "differ from those confirmed",
    ),
    Rollback(
        "confirm",
        "ACTIVE of another cohort",
        lambda f: f.masked(0, other_cohort(f)),
        "another ACTIVE or vector",
    ),
    Rollback(
        "envelopes",
        "READY of slot 0, after slot 1 has begun",
        lambda f: f.silos[0].ready(0, 3, MODEL),
        "was promised otherwise",
        before=pass_over_slot_0,
    ),
    Rollback(
        "ready",
        "a first vector in slot 0, after slot 1 has begun",
        lambda f: f.masked(0, other_cohort(f)),
        "was promised otherwise",
        before=pass_over_slot_0,
    ),
    Rollback(
        "envelopes",
        "READY of slot 2 for round 1, after slot 1 has begun round 2",
        lambda f: f.silos[0].ready(2, 1, MODEL),
        "were revealed",
        before=pass_over_slot_0,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.back_to}-{r.request}")
def test_an_older_state_gives_no_second_answer(row):
    f = revealed()
    row.before(f)
    restart_silo(f, 0, f.saved[row.back_to])
    before = f.silo_state(0)
    with pytest.raises(ProtocolViolation, match=row.match):
        row.ask(f)
    assert f.silo_state(0) == before
    restart_silo(f, 0, f.saved["reveal"])
    if row.before is not pass_over_slot_0:  # A slot that is spent takes no SUM.
        finish_honestly(f, "sum")


def test_a_slot_given_up_cannot_be_revealed_from_an_older_state():
    """Slot 0 was confirmed, slot 1 has begun the same round; the state goes back."""
    f = Remembering().reach("confirms")
    f.silos[0].ready(1, 1, MODEL)
    restart_silo(f, 0, f.saved["confirm"])
    before = f.silo_state(0)
    with pytest.raises(ProtocolViolation, match="REVEAL in slot 0, setup 1: is spent"):
        f.silos[0].reveal(f.frames["confirms"][0])
    assert f.silo_state(0) == before


def test_semi_honest_an_older_state_gives_no_second_reveal():
    f = Remembering(SEMI_HONEST).reach("survivors")
    silo, asked = f.silos[0], f.frames["survivors"][0]
    first = silo.reveal(asked)
    silo = restart_silo(f, 0, f.saved["masked"])
    before = f.silo_state(0)
    with pytest.raises(ProtocolViolation, match="REVEAL in slot 0, setup 1: was"):
        silo.reveal(other_survivors(f))
    assert f.silo_state(0) == before
    assert silo.reveal(asked) == first


def test_the_state_of_an_older_setup_is_spent():
    f = revealed()
    old = f.silos[0].to_bytes()
    later = Federation(FIVE, setup=2)
    later.journals[0], later.round_number = f.journals[0], 2
    later.silos[0] = SiloSide(*later.silo_arguments(0))
    later.reach("active")
    restart_silo(f, 0, old)
    before = f.silo_state(0)
    with pytest.raises(ProtocolViolation, match="slot 0 of setup 2 has begun"):
        f.silos[0].ready(1, 3, MODEL)
    assert f.silo_state(0) == before


# ------------------------------------------------------------- no state at all


@pytest.mark.parametrize("setup", [1, 2], ids=["same setup", "new setup"])
def test_a_lost_state_does_not_bring_a_round_back(setup):
    """Silo 0 begins anew, with fresh keys; round 1 had its sum."""
    f = revealed()
    again = Federation(FIVE, setup=setup)
    again.journals[0] = f.journals[0]
    again.silos[0] = SiloSide(*again.silo_arguments(0))
    again.reach("envelopes")
    again.silos[0].receive_shares(again.frames["envelopes"][0])
    before = again.silo_state(0)
    for slot in range(3):
        with pytest.raises(ProtocolViolation, match=r"revealed|promised otherwise"):
            again.silos[0].ready(slot, 1, MODEL)
    assert again.silo_state(0) == before
    again.slot, again.round_number = 1, 2
    again.ready()
    again.mask(again.everyone)
    again.confirm(again.everyone)
    assert (again.reveal(again.everyone) == again.plain_sum(range(5))).all()


def test_a_lost_state_masks_no_second_vector_in_its_slot():
    """READY of slot 0 is promised for other keys: the fresh ones cannot serve it."""
    f = Remembering().reach("survivors")
    again = Federation(FIVE)
    again.journals[0] = f.journals[0]
    again.silos[0] = SiloSide(*again.silo_arguments(0))
    again.reach("envelopes")
    again.silos[0].receive_shares(again.frames["envelopes"][0])
    before = again.silo_state(0)
    with pytest.raises(ProtocolViolation, match=r"READY in slot 0.* otherwise"):
        again.silos[0].ready(0, 1, MODEL)
    assert again.silo_state(0) == before
    assert again.silos[0].ready(1, 1, MODEL)


def test_shares_are_dealt_once_whatever_the_state():
    """The state goes back to ADVERTISE, and the same KEYS come again."""
    f = Remembering().reach("keys")
    first = f.silos[0].share(f.frames["keys"][0])
    restart_silo(f, 0, f.saved["advertise"])
    assert f.silos[0].share(f.frames["keys"][0]) == first


def test_a_silo_that_did_not_reveal_is_restarted_after_the_sum():
    f = Remembering().reach("confirms")
    f.reveal([1, 2, 3, 4])
    digest = f.silos[0].close_slot(f.frames["sum"][0])
    silo = restart_silo(f, 0, f.silos[0].to_bytes())
    assert silo.close_slot(f.frames["sum"][0]) == digest
