"""The aggregator lies to silo 0: what it must raise, and that nothing else happens.

The rows stand in ``aggregator_in_setup``, ``aggregator_in_slot`` and
``aggregator_views``; here they are played, with the cases that are no single message.
"""

from dataclasses import replace

import pytest

from crypto.errors import CryptoError, ProtocolViolation
from crypto.frame import Kind
from crypto.secagg.config import SecAggConfig
from crypto.secagg.messages import (
    Confirms,
    Envelopes,
    Survivors,
)
from crypto.secagg.ready import Active
from tests.attacks import aggregator_in_setup, aggregator_in_slot, aggregator_views
from tests.attacks.aggregator_in_slot import other_survivors_after_confirm
from tests.attacks.aggregator_views import METHODS
from tests.attacks.forging import BODY, active_of, resign, sign_active, without
from tests.attacks.table import (
    FIVE,
    deliver,
    finish_honestly,
    play_against_silo,
    reach,
)
from tests.crypto.secagg.federation import MODEL, OTHER_MODEL, Federation

ROWS = aggregator_in_setup.ROWS + aggregator_in_slot.ROWS + aggregator_views.ROWS


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_silo_refuses_and_nothing_changes(row):
    play_against_silo(row)


@pytest.mark.parametrize(("stage", "method"), METHODS.items())
def test_any_damage_to_any_message_is_refused(stage, method):
    f = Federation(FIVE)
    reach(f, stage)
    frame, before = f.frames[stage][0], f.silo_state(0)
    places = {0, 2, 3, 8, 20, 25, 29, 31, 32, 40, len(frame) - 65, len(frame) - 1}
    damaged = [
        *(frame[:i] + bytes([frame[i] ^ 1]) + frame[i + 1 :] for i in places),
        *(frame[:length] for length in (0, 31, 95, 96, len(frame) - 1)),
        frame + b"\x00",
    ]
    for data in damaged:
        with pytest.raises(CryptoError):
            deliver(f, method, data)
    assert f.silo_state(0) == before
    finish_honestly(f, stage)


@pytest.mark.parametrize("stage", ["keys", "envelopes", "active"])
def test_a_stage_answers_one_request(stage):
    """A second, honest-looking request for a stage that silo 0 has answered."""
    f = Federation(FIVE).reach("survivors")
    again = Federation(FIVE).reach("survivors")
    second = {
        "keys": again.frames["keys"][0],
        "envelopes": again.frames["envelopes"][0],
        "active": sign_active(
            f, replace(active_of(f), signatures=without(active_of(f).signatures, 4))
        ),
    }[stage]
    before = f.silo_state(0)
    with pytest.raises(ProtocolViolation, match="another"):
        deliver(f, METHODS[stage], second)
    assert f.silo_state(0) == before
    finish_honestly(f, "survivors")


def test_a_slot_masks_one_vector():
    f = Federation(FIVE).reach("survivors")
    before = f.silo_state(0)
    with pytest.raises(ProtocolViolation, match="another ACTIVE or vector"):
        f.masked(0, f.frames["active"][0], f.words[1])
    assert f.silo_state(0) == before
    finish_honestly(f, "survivors")


# After REVEAL of round 1 in slot 0: (slot, round, model) that READY must refuse.
SPENT = [
    (0, 2, MODEL, "another request"),
    (0, 1, OTHER_MODEL, "another request"),
    (1, 1, MODEL, "revealed"),
    (1, 1, OTHER_MODEL, "revealed"),
    (1, 0, MODEL, "revealed"),
    (1, -1, MODEL, "does not exist"),
    (3, 2, MODEL, "with 3 slots"),
    (-1, 2, MODEL, "with 3 slots"),
]


@pytest.mark.parametrize("is_closed", [False, True], ids=["revealed", "closed"])
@pytest.mark.parametrize(("slot", "round_number", "model", "match"), SPENT)
def test_slots_and_rounds_are_spent_once(slot, round_number, model, match, is_closed):
    f = Federation(FIVE)
    reach(f, "sum")
    if is_closed:
        f.silos[0].close_slot(f.frames["sum"][0])
    before = f.silo_state(0)
    with pytest.raises(ProtocolViolation, match=match):
        f.silos[0].ready(slot, round_number, model)
    assert f.silo_state(0) == before
    assert f.silos[0].ready(1, 2, MODEL)


def test_a_slot_passed_over_is_gone():
    """Given up before REVEAL, slot 0 can never be opened afterwards."""
    f = Federation(FIVE).reach("confirms")
    f.silos[0].ready(1, 1, MODEL)
    before = f.silo_state(0)
    with pytest.raises(ProtocolViolation, match="slot"):
        f.silos[0].reveal(f.frames["confirms"][0])
    with pytest.raises(ProtocolViolation, match="slot"):
        f.masked(0, f.frames["active"][0])
    with pytest.raises(ProtocolViolation, match="spent"):
        f.silos[0].ready(0, 1, MODEL)
    assert f.silo_state(0) == before
    assert f.silos[0].ready(1, 1, MODEL)


def test_masking_again_after_reveal_is_refused():
    f = Federation(FIVE).reach("confirms")
    f.reveal(f.everyone)
    before = f.silo_state(0)
    with pytest.raises(ProtocolViolation, match="has been revealed"):
        f.masked(0, f.frames["active"][0])
    assert f.silo_state(0) == before


def test_semi_honest_trust_still_binds_the_survivors():
    """Without CONFIRM, the first list that was revealed for is the only one."""
    config = replace(FIVE, threshold=3, trust="semi-honest")
    f = Federation(config).reach("survivors")
    first = f.silos[0].reveal(f.frames["survivors"][0])
    before = f.silo_state(0)
    with pytest.raises(ProtocolViolation, match="differ"):
        f.silos[0].reveal(other_survivors_after_confirm(f))
    assert f.silo_state(0) == before
    assert f.silos[0].reveal(f.frames["survivors"][0]) == first


# ------------------------------------------------------------------ outsiders
# Six silos; silo 5 is in the roster, colludes, signs anything, and does not belong.

SIX = SecAggConfig(num_silos=6, threshold=4, slots_per_setup=3)
INSIDE = range(5)


def outsider_in_envelopes():
    """Silo 5 has no keys in this setup, and is named as a member."""
    f = Federation(SIX)
    f.advertise(INSIDE)
    f.share(INSIDE)
    message = Envelopes.from_bytes(f.frames["envelopes"][0][BODY], 6, 3)
    sealed = (*message.sealed, message.sealed[0])
    message = replace(message, members=tuple(range(6)), sealed=sealed)
    return f, f.sign_as_aggregator(Kind.ENVELOPES, message.to_bytes(6, 3), recipient=0)


def outsider_in_cohort():
    """Silo 5 has keys but dealt no shares; it signs the READY of the others."""
    f = Federation(SIX)
    f.advertise()
    f.share(INSIDE)
    f.ready(INSIDE)
    message = Active.from_bytes(f.frames["active"][0][BODY], 6)
    extra = resign(f, 5, f.frames["ready"][0][BODY], Kind.READY)
    message = replace(message, signatures={**message.signatures, 5: extra})
    return f, f.sign_as_aggregator(Kind.ACTIVE, message.to_bytes(6), slot=0)


def outsider_among_survivors():
    """Silo 5 was not in the cohort."""
    f = Federation(SIX).reach("envelopes")
    f.ready(INSIDE)
    f.mask(INSIDE)
    message = Survivors.from_bytes(f.frames["survivors"][0][BODY], 6)
    message = replace(message, survivors=tuple(range(6)))
    return f, f.sign_as_aggregator(Kind.SURVIVORS, message.to_bytes(6), slot=0)


def outsider_confirms():
    """Silo 5 was not in the cohort; it stands in for a missing confirmation."""
    f = Federation(SIX).reach("envelopes")
    f.ready(INSIDE)
    f.mask(INSIDE)
    f.confirm(INSIDE)
    message = Confirms.from_bytes(f.frames["confirms"][0][BODY], 6)
    extra = resign(f, 5, f.frames["confirm"][0][BODY], Kind.CONFIRM)
    table = {**without(message.signatures, 3, 4), 5: extra}
    message = replace(message, signatures=table)
    return f, f.sign_as_aggregator(Kind.CONFIRMS, message.to_bytes(6), slot=0)


OUTSIDERS = [
    (outsider_in_envelopes, "receive_shares", "envelopes"),
    (outsider_in_cohort, "mask", "active"),
    (outsider_among_survivors, "confirm", "survivors"),
    (outsider_confirms, "reveal", "confirms"),
]


@pytest.mark.parametrize(("forge", "method", "stage"), OUTSIDERS)
def test_outsiders_do_not_count(forge, method, stage):
    f, frame = forge()
    before = f.silo_state(0)
    with pytest.raises(ProtocolViolation, match="silo 5 does not belong"):
        deliver(f, method, frame)
    assert f.silo_state(0) == before
    deliver(f, method, f.frames[stage][0])
