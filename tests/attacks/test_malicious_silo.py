"""Silo 1 misbehaves towards the aggregator: what is raised, and what remains.

The rows stand in ``silo_in_setup``, ``silo_in_slot`` and ``silo_headers``: one for each
field of each message that a silo sends. Here they are played, and beside them answers
that are repeated, late, or of a silo that does not belong.
"""

import pytest

from crypto.errors import ProtocolViolation
from crypto.frame import Kind
from tests.attacks import silo_headers, silo_in_setup, silo_in_slot
from tests.attacks.forging import BODY, fresh, sign, six
from tests.attacks.silo_in_slot import masked
from tests.attacks.table import (
    HONEST,
    SIX,
    advertise,
    await_replies,
    hand_over,
    play_against_aggregator,
    share,
)
from tests.crypto.secagg.federation import MODEL

N = SIX.num_silos
ROWS = silo_in_setup.ROWS + silo_in_slot.ROWS + silo_headers.ROWS


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_aggregator_refuses_names_and_goes_on(row):
    play_against_aggregator(row)


REPLIES = {
    "keys": ("advertise", "add_advertisement"),
    "envelopes": ("shares", "add_shares"),
    "active": ("ready", "add_ready"),
    "survivors": ("masked", "add_masked"),
    "confirms": ("confirm", "add_confirm"),
}


@pytest.mark.parametrize("stage", REPLIES)
def test_the_same_answer_twice_counts_once(stage):
    """Also after its stage was closed: a resend is no offence, and adds nothing."""
    f = six().reach(stage)
    name, add = REPLIES[stage]
    before = f.aggregator_state()
    hand_over(f, add, f.frames[name][1])
    assert f.aggregator_state() == before


def test_a_second_advertisement_is_refused():
    f = six()
    advertise(f, list(range(N)))
    before = f.aggregator_state()
    with pytest.raises(ProtocolViolation, match="silo 1: a second"):
        f.aggregator.add_advertisement(sign(f, Kind.ADVERTISE, fresh(f).to_bytes()))
    assert f.aggregator_state() == before
    assert f.aggregator.keys()


def test_a_second_vector_is_refused():
    f = six().reach("active")
    frame = f.masked(1, f.frames["active"][1])
    f.aggregator.slot.add_masked(frame)
    before = f.aggregator_state()
    with pytest.raises(ProtocolViolation, match="silo 1: a second"):
        changed = frame[72:-64][::-1]
        body = frame[BODY][:40] + changed
        f.aggregator.slot.add_masked(sign(f, Kind.MASKED, body))
    assert f.aggregator_state() == before
    f.mask(HONEST)
    f.confirm(range(N))
    assert (f.reveal(HONEST) == f.plain_sum(range(N))).all()


@pytest.mark.parametrize("stage", ["active", "survivors", "confirms"])
def test_answers_that_come_too_late_are_refused(stage):
    f = six()
    await_replies(
        f,
        {"active": "envelopes", "survivors": "active", "confirms": "survivors"}[stage],
    )
    if stage == "active":
        f.silos[1].receive_shares(f.frames["envelopes"][1])
        late = f.silos[1].ready(1, 1, MODEL)
        f.slot = 1
        f.ready(HONEST)
    elif stage == "survivors":
        late = masked(f)
        f.mask(HONEST)
    else:
        late = f.silos[1].confirm(f.frames["survivors"][1])
        f.confirm(HONEST)
    before = f.aggregator_state()
    with pytest.raises(ProtocolViolation, match=r"silo 1: .*closed"):
        {
            "active": f.aggregator.slot.add_ready,
            "survivors": f.aggregator.slot.add_masked,
            "confirms": f.aggregator.slot.add_confirm,
        }[stage](late)
    assert f.aggregator_state() == before


def outside_the_keys(f):
    advertise(f, HONEST)
    share(f, HONEST)
    f.silos[1].advertise()
    theirs = f.silos[0].share(f.frames["keys"][0])
    return "add_shares", sign(f, Kind.SHARES, theirs[BODY])


def outside_the_members(f):
    f.advertise()
    f.share(HONEST)
    f.ready(HONEST)
    return "add_ready", sign(f, Kind.READY, f.frames["ready"][0][BODY])


def outside_the_cohort(f, stage):
    f.reach("envelopes")
    f.ready(HONEST)
    f.mask(HONEST)
    if stage == "masked":
        return "add_masked", sign(f, Kind.MASKED, f.frames[stage][0][BODY])
    f.confirm(HONEST)
    if stage == "confirm":
        body = f.frames[stage][0][BODY]
        return "add_confirm", sign(f, Kind.CONFIRM, body)
    body = f.silos[0].reveal(f.frames["confirms"][0])[BODY]
    return "add_reveal", sign(f, Kind.REVEAL, body)


@pytest.mark.parametrize(
    "play",
    [
        outside_the_keys,
        outside_the_members,
        *(
            lambda f, stage=stage: outside_the_cohort(f, stage)
            for stage in ("masked", "confirm", "reveal")
        ),
    ],
)
def test_a_silo_that_does_not_belong_is_not_counted(play):
    """Silo 1 says what an honest silo said, where it is in no list."""
    f = six()
    add, frame = play(f)
    before = f.aggregator_state()
    with pytest.raises(ProtocolViolation, match="silo 1 does not belong"):
        hand_over(f, add, frame)
    assert f.aggregator_state() == before
