"""Silo 1 misbehaves towards the aggregator: what is raised, and what remains.

Each row plays honestly up to a stage, without silo 1 in the stage that follows, sends
one bad message of silo 1, and names the error. The aggregator's state must be the same
bytes as before, and the others finish without silo 1: the case that must succeed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from crypto.errors import (
    CryptoError,
    InvalidShare,
    InvalidSignature,
    MalformedMessage,
    ProtocolViolation,
)
from crypto.frame import AGGREGATOR, EVERYONE, NO_SLOT, Header, Kind, make_frame
from crypto.keys import AgreementKey
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.config import SecAggConfig
from crypto.secagg.messages import Advertise, Ready, Reveal, Shares, Survivors
from crypto.secagg.parts import whole
from crypto.secagg.upload import Upload
from tests.crypto.secagg.federation import (
    MODEL,
    NUM_WORDS,
    OTHER_MODEL,
    OTHER_RUN,
    Federation,
)

N, R = 6, 2
CONFIG = SecAggConfig(num_silos=N, threshold=4, slots_per_setup=R)
HONEST = [0, 2, 3, 4, 5]
BODY = slice(32, -64)
TO_ALL = (Kind.ADVERTISE, Kind.READY, Kind.CONFIRM)


def sign(f: Federation, kind: Kind, body: bytes, slot: int = 0, silo: int = 1) -> bytes:
    """Any body under silo 1's own key."""
    slot = NO_SLOT if kind in (Kind.ADVERTISE, Kind.SHARES) else slot
    recipient = EVERYONE if kind in TO_ALL else AGGREGATOR
    header = Header(kind, f.run, f.setup, slot, silo, recipient)
    return make_frame(f.identities[1], header, body)


def fresh(f: Federation) -> Advertise:
    return Advertise.from_bytes(Federation(CONFIG).silos[1].advertise()[BODY], R)


# ------------------------------------------------------------------ ADVERTISE


def impersonation(f):
    return sign(f, Kind.ADVERTISE, fresh(f).to_bytes(), silo=2)


def stranger(f):
    return sign(f, Kind.ADVERTISE, fresh(f).to_bytes(), silo=N)


def another_run(f):
    return Federation(CONFIG, run=OTHER_RUN).silos[1].advertise()


def another_kind(f):
    return sign(f, Kind.READY, Ready(bytes(32), 1, MODEL).to_bytes())


def copied_key(f):
    theirs = Advertise.from_bytes(f.silos[0].advertise()[BODY], R)
    message = replace(fresh(f), slot_publics=theirs.slot_publics)
    return sign(f, Kind.ADVERTISE, message.to_bytes())


def one_key_for_two_slots(f):
    message = fresh(f)
    message = replace(message, slot_publics=(message.slot_publics[0],) * R)
    return sign(f, Kind.ADVERTISE, message.to_bytes())


def key_of_low_order(f):
    message = replace(fresh(f), channel_public=bytes(32))
    return sign(f, Kind.ADVERTISE, message.to_bytes())


def too_many_slots(f):
    body = fresh(f).to_bytes()
    return sign(f, Kind.ADVERTISE, body + body[-64:])


def too_few_slots(f):
    return sign(f, Kind.ADVERTISE, fresh(f).to_bytes()[:-64])


def truncated(f):
    return f.silos[1].advertise()[:-1]


# ------------------------------------------------------------------ later stages


def shares_for_another_keys(f):
    honest = Shares.from_bytes(f.silos[1].share(f.frames["keys"][1])[BODY], N - 1, R)
    return sign(f, Kind.SHARES, replace(honest, keys_digest=bytes(32)).to_bytes(R))


def too_few_shares(f):
    return sign(f, Kind.SHARES, f.silos[1].share(f.frames["keys"][1])[BODY][:-148])


def ready_for_another_model(f):
    f.silos[1].receive_shares(f.frames["envelopes"][1])
    return f.silos[1].ready(0, 1, OTHER_MODEL)


def ready_for_another_round(f):
    f.silos[1].receive_shares(f.frames["envelopes"][1])
    return f.silos[1].ready(0, 2, MODEL)


def ready_for_another_slot(f):
    f.silos[1].receive_shares(f.frames["envelopes"][1])
    return f.silos[1].ready(1, 1, MODEL)


def masked(f, num_words=NUM_WORDS):
    upload, parts = Upload(num_words), whole(num_words, range(N))
    return bytes(f.silos[1].mask(f.frames["active"][1], upload, parts))


def masked_with_a_bit_changed(f):
    frame = masked(f)
    return frame[:100] + bytes([frame[100] ^ 1]) + frame[101:]


def masked_for_another_cohort(f):
    return sign(f, Kind.MASKED, bytes(32) + masked(f)[BODY][32:])


def masked_of_a_later_slot(f):
    return sign(f, Kind.MASKED, masked(f)[BODY], slot=1)


def confirm_of_other_survivors(f):
    message = Survivors.from_bytes(f.frames["survivors"][1][BODY], N)
    message = replace(message, survivors=(0, 1, 2, 3))
    return sign(f, Kind.CONFIRM, message.to_bytes(N))


def reveal_with_a_share_missing(f):
    return sign(f, Kind.REVEAL, f.silos[1].reveal(f.frames["confirms"][1])[BODY][:-33])


def reveal_of_another_slot(f):
    honest = f.silos[1].reveal(f.frames["confirms"][1])[BODY]
    return sign(f, Kind.REVEAL, bytes(32) + honest[32:])


@dataclass(frozen=True)
class Misbehaviour:
    """After this stage silo 1 sends this message; the aggregator raises this."""

    stage: str
    send: Callable[[Federation], bytes]
    raises: type[CryptoError]
    match: str


ROWS = [
    Misbehaviour("start", impersonation, InvalidSignature, "silo 2"),
    Misbehaviour("start", stranger, ProtocolViolation, "roster"),
    Misbehaviour("start", another_run, ProtocolViolation, "run"),
    Misbehaviour("start", another_kind, ProtocolViolation, "kind"),
    Misbehaviour("start", copied_key, ProtocolViolation, "silo 1: .*twice"),
    Misbehaviour("start", one_key_for_two_slots, ProtocolViolation, "silo 1: .*twice"),
    Misbehaviour("start", key_of_low_order, ProtocolViolation, "silo 1: .*low order"),
    Misbehaviour("start", too_many_slots, MalformedMessage, "above the limit"),
    Misbehaviour("start", too_few_slots, MalformedMessage, "silo 1: "),
    Misbehaviour("start", truncated, InvalidSignature, "silo 1"),
    Misbehaviour("keys", shares_for_another_keys, ProtocolViolation, "silo 1: "),
    Misbehaviour("keys", too_few_shares, MalformedMessage, "silo 1: "),
    Misbehaviour("envelopes", ready_for_another_model, ProtocolViolation, "silo 1: "),
    Misbehaviour("envelopes", ready_for_another_round, ProtocolViolation, "silo 1: "),
    Misbehaviour("envelopes", ready_for_another_slot, ProtocolViolation, "slot"),
    Misbehaviour("active", masked_with_a_bit_changed, InvalidSignature, "silo 1"),
    Misbehaviour("active", masked_for_another_cohort, ProtocolViolation, "silo 1: "),
    Misbehaviour("active", masked_of_a_later_slot, ProtocolViolation, "slot"),
    Misbehaviour(
        "active", lambda f: masked(f, NUM_WORDS + 1), MalformedMessage, "limit"
    ),
    Misbehaviour(
        "active", lambda f: masked(f, NUM_WORDS - 1), MalformedMessage, "silo 1: "
    ),
    Misbehaviour("survivors", confirm_of_other_survivors, ProtocolViolation, "silo 1"),
    Misbehaviour("confirms", reveal_with_a_share_missing, MalformedMessage, "silo 1: "),
    Misbehaviour("confirms", reveal_of_another_slot, ProtocolViolation, "silo 1: "),
]


def slot_add(name: str):
    """Return the call that hands a frame to the open slot."""
    return lambda aggregator, frame: getattr(aggregator.slot, name)(frame)


ADD = {
    "start": AggregatorSide.add_advertisement,
    "keys": AggregatorSide.add_shares,
    "envelopes": slot_add("add_ready"),
    "active": slot_add("add_masked"),
    "survivors": slot_add("add_confirm"),
    "confirms": slot_add("add_reveal"),
}


def advertise(f: Federation, silos: list[int]) -> None:
    for silo in silos:
        f.aggregator.add_advertisement(f.silos[silo].advertise())


def share(f: Federation, silos: list[int]) -> None:
    f.frames["keys"] = dict.fromkeys(range(N), f.aggregator.keys())
    for silo in silos:
        f.aggregator.add_shares(f.silos[silo].share(f.frames["keys"][silo]))


def send_envelopes(f: Federation) -> None:
    f.frames["envelopes"] = {i: f.aggregator.envelopes(i) for i in f.aggregator.sharers}


def play(f: Federation, stage: str) -> None:
    """Everyone is honest until the aggregator awaits the replies that follow."""
    if stage == "start":
        advertise(f, [0])
        return
    f.reach(stage)
    if stage == "envelopes":
        f.aggregator.open_slot(0, 1, MODEL, f.parts)


def finish_without_silo_1(f: Federation, stage: str) -> None:
    everyone = list(range(N))
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
    summed = everyone if stage in ("survivors", "confirms") else HONEST
    assert (total == f.plain_sum(summed)).all()


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.stage}-{r.send.__name__}")
def test_aggregator_refuses_names_and_goes_on(row):
    f = Federation(CONFIG)
    play(f, row.stage)
    bad = row.send(f)
    before = f.aggregator_state()
    with pytest.raises(row.raises, match=row.match):
        ADD[row.stage](f.aggregator, bad)
    assert f.aggregator_state() == before
    finish_without_silo_1(f, row.stage)


REPLIES = {
    "keys": ("advertise", AggregatorSide.add_advertisement),
    "envelopes": ("shares", AggregatorSide.add_shares),
    "active": ("ready", slot_add("add_ready")),
    "survivors": ("masked", slot_add("add_masked")),
    "confirms": ("confirm", slot_add("add_confirm")),
}


@pytest.mark.parametrize("stage", REPLIES)
def test_the_same_answer_twice_counts_once(stage):
    """Also after its stage was closed: a resend is no offence, and adds nothing."""
    f = Federation(CONFIG).reach(stage)
    name, add = REPLIES[stage]
    before = f.aggregator_state()
    add(f.aggregator, f.frames[name][1])
    assert f.aggregator_state() == before


def test_a_second_advertisement_is_refused():
    f = Federation(CONFIG)
    advertise(f, list(range(N)))
    before = f.aggregator_state()
    with pytest.raises(ProtocolViolation, match="silo 1: a second"):
        f.aggregator.add_advertisement(sign(f, Kind.ADVERTISE, fresh(f).to_bytes()))
    assert f.aggregator_state() == before
    assert f.aggregator.keys()


def test_a_second_vector_is_refused():
    f = Federation(CONFIG).reach("active")
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
    f = Federation(CONFIG)
    play(
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
    return AggregatorSide.add_shares, sign(f, Kind.SHARES, theirs[BODY])


def outside_the_members(f):
    f.advertise()
    f.share(HONEST)
    f.ready(HONEST)
    return slot_add("add_ready"), sign(f, Kind.READY, f.frames["ready"][0][BODY])


def outside_the_cohort(f, stage):
    f.reach("envelopes")
    f.ready(HONEST)
    f.mask(HONEST)
    if stage == "masked":
        return slot_add("add_masked"), sign(f, Kind.MASKED, f.frames[stage][0][BODY])
    f.confirm(HONEST)
    if stage == "confirm":
        body = f.frames[stage][0][BODY]
        return slot_add("add_confirm"), sign(f, Kind.CONFIRM, body)
    body = f.silos[0].reveal(f.frames["confirms"][0])[BODY]
    return slot_add("add_reveal"), sign(f, Kind.REVEAL, body)


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
    f = Federation(CONFIG)
    add, frame = play(f)
    before = f.aggregator_state()
    with pytest.raises(ProtocolViolation, match="silo 1 does not belong"):
        add(f.aggregator, frame)
    assert f.aggregator_state() == before


def wrong_reveal(f: Federation, silo: int) -> bytes:
    """A REVEAL whose shares are all wrong, signed by its silo."""
    honest = Reveal.from_bytes(
        f.silos[silo].reveal(f.frames["confirms"][silo])[BODY], N
    )
    wrong = Reveal(honest.slot_digest, [bytes(32) + b"\x07"] * N)
    header = Header(Kind.REVEAL, f.run, f.setup, 0, silo, AGGREGATOR)
    return make_frame(f.identities[silo], header, wrong.to_bytes())


@pytest.mark.parametrize("liars", [[1], [0, 1], [4, 5]])
def test_wrong_shares_are_noticed_and_left_out(liars):
    f = Federation(CONFIG).reach("confirms", lost_before_upload=[3])
    honest = [silo for silo in (0, 1, 2, 4, 5) if silo not in liars]
    for silo in liars:
        f.aggregator.slot.add_reveal(wrong_reveal(f, silo))
    for silo in honest:
        f.aggregator.slot.add_reveal(f.silos[silo].reveal(f.frames["confirms"][silo]))
    if len(honest) < CONFIG.threshold:
        before = f.aggregator_state()
        with pytest.raises(InvalidShare, match="silo 0"):
            f.aggregator.slot.unmask()
        assert f.aggregator_state() == before
    else:
        total = f.aggregator.slot.unmask()
        assert (total == f.plain_sum([0, 1, 2, 4, 5])).all()


def spoil(f: Federation, **secrets: object) -> None:
    """Have silo 1 deal shares of other secrets than it advertised."""
    state = f.silos[1]._state
    spoiled = {slot: replace(own, **secrets) for slot, own in state.secrets.items()}
    f.silos[1]._state = replace(state, secrets=spoiled)


@pytest.mark.parametrize("lost", [[], [1]], ids=["survives", "is lost"])
def test_a_dealer_of_wrong_shares_is_named_and_the_next_setup_goes_without(lost):
    """The slot is lost, masked; no sum is ever wrong."""
    f = Federation(CONFIG).reach("keys")
    honest = f.silos[1]._state.secrets
    if lost:
        spoil(f, agreement=AgreementKey.generate())
    else:
        spoil(f, mask_seed=bytes(32))
    f.share()
    f.silos[1]._state = replace(f.silos[1]._state, secrets=honest)
    f.ready()
    left = [silo for silo in range(N) if silo not in lost]
    f.mask(left)
    f.confirm(left)
    with pytest.raises(InvalidShare, match="silo 1"):
        f.reveal(left)
    assert not f.aggregator.slot.sum_digest
    finish_without_silo_1(Federation(CONFIG, setup=2), "start")
