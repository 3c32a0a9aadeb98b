"""The aggregator lies to silo 0: what it must raise, and that nothing else happens.

Each row plays honestly up to a stage, forges one message, and names the error. Silo 0's
state must be the same bytes as before; then the honest message is delivered in place of
the forged one, the run goes on, and the sum must be exact: the case that must succeed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from crypto.errors import (
    CryptoError,
    DecryptionFailed,
    InvalidSignature,
    MalformedMessage,
    ProtocolViolation,
)
from crypto.frame import NO_SLOT, Header, Kind, make_frame
from crypto.secagg.config import SecAggConfig
from crypto.secagg.messages import (
    Active,
    Confirms,
    Envelopes,
    Keys,
    Signed,
    Survivors,
)
from crypto.secagg.silo_side import SiloSide
from tests.crypto.secagg.federation import (
    MODEL,
    OTHER_MODEL,
    OTHER_RUN,
    STAGES,
    Federation,
)

N, R = 5, 3
CONFIG = SecAggConfig(num_silos=N, threshold=4, slots_per_setup=R)
BODY = slice(32, -64)


def keys_of(f: Federation) -> Keys:
    return Keys.from_bytes(f.frames["keys"][0][BODY], N, R)


def envelopes_of(f: Federation, silo: int = 0) -> Envelopes:
    return Envelopes.from_bytes(f.frames["envelopes"][silo][BODY], N, R)


def active_of(f: Federation) -> Active:
    return Active.from_bytes(f.frames["active"][0][BODY], N)


def survivors_of(f: Federation) -> Survivors:
    return Survivors.from_bytes(f.frames["survivors"][0][BODY], N)


def confirms_of(f: Federation) -> Confirms:
    return Confirms.from_bytes(f.frames["confirms"][0][BODY], N)


def sign_keys(f: Federation, changes: dict[int, Signed], without: int = -1) -> bytes:
    table = {**keys_of(f).advertisements, **changes}
    table.pop(without, None)
    return f.sign_as_aggregator(Kind.KEYS, Keys(table).to_bytes(N, R))


def sign_envelopes(f: Federation, message: Envelopes) -> bytes:
    body = message.to_bytes(N, R)
    return f.sign_as_aggregator(Kind.ENVELOPES, body, recipient=0)


def sign_active(f: Federation, message: Active, slot: int = 0) -> bytes:
    return f.sign_as_aggregator(Kind.ACTIVE, message.to_bytes(N), slot=slot)


def sign_survivors(f: Federation, message: Survivors) -> bytes:
    return f.sign_as_aggregator(Kind.SURVIVORS, message.to_bytes(N), slot=0)


def sign_confirms(f: Federation, message: Confirms) -> bytes:
    return f.sign_as_aggregator(Kind.CONFIRMS, message.to_bytes(N), slot=0)


def without(signatures: dict[int, bytes], *silos: int) -> dict[int, bytes]:
    return {i: s for i, s in signatures.items() if i not in silos}


def signed(frame: bytes) -> Signed:
    return Signed(frame[BODY], frame[-64:])


def resign(f: Federation, silo: int, frame: bytes, kind: Kind, slot: int = 0) -> bytes:
    """The signature of a colluding silo under any body."""
    header = Header(kind, f.run, f.setup, slot, silo)
    return make_frame(f.identities[silo], header, frame[BODY])[-64:]


# ------------------------------------------------------------------ KEYS


def substituted_key(f):
    body = Federation(CONFIG).silos[1].advertise()[BODY]
    header = Header(Kind.ADVERTISE, f.run, f.setup, NO_SLOT, 1)
    forged = make_frame(f.aggregator_identity, header, body)
    return sign_keys(f, {1: signed(forged)})


def keys_of_another_run(f):
    other = Federation(CONFIG, run=OTHER_RUN).silos[1].advertise()
    return sign_keys(f, {1: signed(other)})


def keys_of_another_setup(f):
    other = Federation(CONFIG, setup=2).silos[1].advertise()
    return sign_keys(f, {1: signed(other)})


def one_silo_as_two(f):
    return sign_keys(f, {2: keys_of(f).advertisements[1]})


def copied_key(f):
    frame = f.frames["advertise"][1]
    copy = resign(f, 2, frame, Kind.ADVERTISE, NO_SLOT)
    return sign_keys(f, {2: Signed(frame[BODY], copy)})


def own_keys_changed(f):
    return sign_keys(f, {0: signed(Federation(CONFIG).silos[0].advertise())})


def too_few_keys(f):
    table = dict(list(keys_of(f).advertisements.items())[:3])
    return f.sign_as_aggregator(Kind.KEYS, Keys(table).to_bytes(N, R))


def keys_signed_by_a_silo(f):
    header = Header(Kind.KEYS, f.run, f.setup, NO_SLOT, 0xFFFF)
    return make_frame(f.identities[1], header, f.frames["keys"][0][BODY])


def keys_with_trailing_bytes(f):
    return f.sign_as_aggregator(Kind.KEYS, f.frames["keys"][0][BODY] + b"\x00")


def whole_keys_of_another_run(f):
    return Federation(CONFIG, run=OTHER_RUN).reach("keys").frames["keys"][0]


# ------------------------------------------------------------------ ENVELOPES


def tampered_envelope(f):
    message = envelopes_of(f)
    first = bytes([message.sealed[0][0] ^ 1]) + message.sealed[0][1:]
    return sign_envelopes(f, replace(message, sealed=(first, *message.sealed[1:])))


def swapped_envelopes(f):
    message = envelopes_of(f)
    a, b, *rest = message.sealed
    return sign_envelopes(f, replace(message, sealed=(b, a, *rest)))


def envelopes_of_another_silo(f):
    return f.frames["envelopes"][1]


def envelopes_of_another_silo_resigned(f):
    return sign_envelopes(f, envelopes_of(f, silo=1))


def envelopes_of_another_setup(f):
    other = Federation(CONFIG, setup=2).reach("envelopes")
    return sign_envelopes(f, envelopes_of(other))


def envelopes_of_another_setup_renamed(f):
    other = Federation(CONFIG, setup=2).reach("envelopes")
    sealed = envelopes_of(other).sealed
    return sign_envelopes(f, replace(envelopes_of(f), sealed=sealed))


def too_few_members(f):
    message = envelopes_of(f)
    fewer = replace(message, members=(0, 1, 2), sealed=message.sealed[:2])
    return sign_envelopes(f, fewer)


def members_without_me(f):
    message = envelopes_of(f)
    fewer = replace(message, members=(1, 2, 3, 4), sealed=message.sealed[:3])
    return sign_envelopes(f, fewer)


# ------------------------------------------------------------------ ACTIVE


def split_model(f):
    """Silos 1 to 4 were given, and have signed, another model."""
    ready = replace(active_of(f).ready, model_digest=OTHER_MODEL)
    return sign_active(f, replace(active_of(f), ready=ready))


def split_model_under_my_digest(f):
    """They have signed another model; the aggregator claims they signed mine."""
    message, ready = active_of(f), active_of(f).ready
    other = bytes(32) + replace(ready, model_digest=OTHER_MODEL).to_bytes() + bytes(64)
    signatures = {i: resign(f, i, other, Kind.READY) for i in (1, 2, 3, 4)}
    return sign_active(
        f, replace(message, signatures={**message.signatures, **signatures})
    )


def small_cohort(f):
    message = active_of(f)
    few = without(message.signatures, 3, 4)
    return sign_active(f, replace(message, signatures=few))


def cohort_without_me(f):
    message = active_of(f)
    others = without(message.signatures, 0)
    return sign_active(f, replace(message, signatures=others))


def replayed_ready(f):
    """The READY of silo 1 for a slot that was given up."""
    old = f.silos[1]._state.progress
    assert old is not None
    message = active_of(f)
    stale = resign(f, 1, f.frames["ready"][1], Kind.READY, slot=2)
    return sign_active(f, replace(message, signatures={**message.signatures, 1: stale}))


def ready_of_another_run(f):
    other = Federation(CONFIG, run=OTHER_RUN).reach("active").frames["ready"][1]
    message = active_of(f)
    table = {**message.signatures, 1: other[-64:]}
    return sign_active(f, replace(message, signatures=table))


def one_ready_as_two(f):
    message = active_of(f)
    table = {**message.signatures, 2: message.signatures[1]}
    return sign_active(f, replace(message, signatures=table))


def active_of_another_slot(f):
    return sign_active(f, active_of(f), slot=1)


def another_round(f):
    ready = replace(active_of(f).ready, round_number=2)
    return sign_active(f, replace(active_of(f), ready=ready))


# ------------------------------------------------------------------ SURVIVORS


def few_survivors(f):
    return sign_survivors(f, replace(survivors_of(f), survivors=(0, 1, 2)))


def survivors_without_me(f):
    return sign_survivors(f, replace(survivors_of(f), survivors=(1, 2, 3, 4)))


def survivors_of_another_cohort(f):
    return sign_survivors(f, replace(survivors_of(f), slot_digest=bytes(32)))


def confirms_before_confirm(f):
    message = survivors_of(f)
    body = message.to_bytes(N)
    frame = bytes(32) + body + bytes(64)
    table = {i: resign(f, i, frame, Kind.CONFIRM) for i in range(1, N)}
    return sign_confirms(f, Confirms(message, table))


# ------------------------------------------------------------------ CONFIRMS


def other_survivors_after_confirm(f):
    """The start of every attack that wants both kinds of share of silo 4."""
    return sign_survivors(f, replace(survivors_of(f), survivors=(0, 1, 2, 3)))


def few_confirmations(f):
    message = confirms_of(f)
    few = without(message.signatures, 3, 4)
    return sign_confirms(f, replace(message, signatures=few))


def one_confirmation_as_two(f):
    message = confirms_of(f)
    table = {**without(message.signatures, 3), 4: message.signatures[1]}
    return sign_confirms(f, replace(message, signatures=table))


def split_survivors(f):
    """The others have confirmed that silo 4 is lost."""
    other = replace(survivors_of(f), survivors=(0, 1, 2, 3))
    frame = bytes(32) + other.to_bytes(N) + bytes(64)
    table = {i: resign(f, i, frame, Kind.CONFIRM) for i in range(1, N)}
    return sign_confirms(f, Confirms(other, table))


def split_survivors_under_my_list(f):
    other = replace(survivors_of(f), survivors=(0, 1, 2, 3))
    frame = bytes(32) + other.to_bytes(N) + bytes(64)
    table = {i: resign(f, i, frame, Kind.CONFIRM) for i in range(1, N)}
    return sign_confirms(f, Confirms(survivors_of(f), table))


def survivors_instead_of_confirms(f):
    return f.frames["survivors"][0]


def forged_confirmation(f):
    header = Header(Kind.CONFIRM, f.run, f.setup, 0, 4)
    body = survivors_of(f).to_bytes(N)
    forged = make_frame(f.aggregator_identity, header, body)[-64:]
    message = confirms_of(f)
    table = {**message.signatures, 4: forged}
    return sign_confirms(f, replace(message, signatures=table))


@dataclass(frozen=True)
class Attack:
    """At this stage this forged message makes this method of silo 0 raise."""

    stage: str
    forge: Callable[[Federation], bytes]
    method: str
    raises: type[CryptoError]
    match: str


ATTACKS = [
    Attack("keys", substituted_key, "share", InvalidSignature, "silo 1"),
    Attack("keys", keys_of_another_run, "share", InvalidSignature, "silo 1"),
    Attack("keys", keys_of_another_setup, "share", InvalidSignature, "silo 1"),
    Attack("keys", one_silo_as_two, "share", InvalidSignature, "silo 2"),
    Attack("keys", copied_key, "share", ProtocolViolation, "twice"),
    Attack("keys", own_keys_changed, "share", ProtocolViolation, "own keys"),
    Attack(
        "keys",
        lambda f: sign_keys(f, {}, without=0),
        "share",
        ProtocolViolation,
        "own keys",
    ),
    Attack("keys", too_few_keys, "share", ProtocolViolation, "at least 4"),
    Attack("keys", keys_signed_by_a_silo, "share", InvalidSignature, "aggregator"),
    Attack("keys", keys_with_trailing_bytes, "share", MalformedMessage, "above"),
    Attack("keys", whole_keys_of_another_run, "share", ProtocolViolation, "run"),
    Attack("envelopes", tampered_envelope, "receive", DecryptionFailed, "silo 1"),
    Attack("envelopes", swapped_envelopes, "receive", DecryptionFailed, "silo 1"),
    Attack(
        "envelopes",
        envelopes_of_another_silo,
        "receive",
        ProtocolViolation,
        "recipient",
    ),
    Attack(
        "envelopes",
        envelopes_of_another_silo_resigned,
        "receive",
        DecryptionFailed,
        "silo 1",
    ),
    Attack(
        "envelopes",
        envelopes_of_another_setup,
        "receive",
        ProtocolViolation,
        "another KEYS",
    ),
    Attack(
        "envelopes",
        envelopes_of_another_setup_renamed,
        "receive",
        DecryptionFailed,
        "silo 1",
    ),
    Attack("envelopes", too_few_members, "receive", ProtocolViolation, "3 silos"),
    Attack("envelopes", members_without_me, "receive", ProtocolViolation, "not in"),
    Attack("active", split_model, "mask", ProtocolViolation, "model_digest"),
    Attack(
        "active", split_model_under_my_digest, "mask", InvalidSignature, "READY of silo"
    ),
    Attack("active", small_cohort, "mask", ProtocolViolation, "3 silos"),
    Attack("active", cohort_without_me, "mask", ProtocolViolation, "not in"),
    Attack("active", replayed_ready, "mask", InvalidSignature, "silo 1"),
    Attack("active", ready_of_another_run, "mask", InvalidSignature, "silo 1"),
    Attack("active", one_ready_as_two, "mask", InvalidSignature, "silo 2"),
    Attack("active", active_of_another_slot, "mask", ProtocolViolation, "slot"),
    Attack("active", another_round, "mask", ProtocolViolation, "round_number"),
    Attack("survivors", few_survivors, "confirm", ProtocolViolation, "3 silos"),
    Attack("survivors", survivors_without_me, "confirm", ProtocolViolation, "not in"),
    Attack(
        "survivors",
        survivors_of_another_cohort,
        "confirm",
        ProtocolViolation,
        "masked nothing",
    ),
    Attack(
        "survivors",
        confirms_before_confirm,
        "reveal",
        ProtocolViolation,
        "did not confirm",
    ),
    Attack(
        "confirms",
        other_survivors_after_confirm,
        "confirm",
        ProtocolViolation,
        "differ",
    ),
    Attack(
        "confirms",
        few_confirmations,
        "reveal",
        ProtocolViolation,
        "3 silos, 4 are needed",
    ),
    Attack("confirms", one_confirmation_as_two, "reveal", InvalidSignature, "silo 4"),
    Attack("confirms", split_survivors, "reveal", ProtocolViolation, "did not confirm"),
    Attack(
        "confirms",
        split_survivors_under_my_list,
        "reveal",
        InvalidSignature,
        "CONFIRM of silo",
    ),
    Attack(
        "confirms", survivors_instead_of_confirms, "reveal", ProtocolViolation, "kind"
    ),
    Attack("confirms", forged_confirmation, "reveal", InvalidSignature, "silo 4"),
]


def deliver(silo: SiloSide, method: str, frame: bytes, f: Federation) -> None:
    if method == "mask":
        f.masked(0, frame)
    elif method == "receive":
        silo.receive_shares(frame)
    else:
        getattr(silo, method)(frame)


def finish_honestly(f: Federation, stage: str) -> None:
    everyone = range(N)
    later = {
        "envelopes": f.share,
        "active": f.ready,
        "survivors": lambda: f.mask(everyone),
        "confirms": lambda: f.confirm(everyone),
    }
    for name in STAGES[STAGES.index(stage) + 1 :]:
        later[name]()
    assert (f.reveal(everyone) == f.plain_sum(everyone)).all()


@pytest.mark.parametrize(
    "attack", ATTACKS, ids=lambda a: f"{a.stage}-{a.forge.__name__}"
)
def test_silo_refuses_and_nothing_changes(attack):
    f = Federation(CONFIG).reach(attack.stage)
    before = f.silos[0].to_bytes()
    with pytest.raises(attack.raises, match=attack.match):
        deliver(f.silos[0], attack.method, attack.forge(f), f)
    assert f.silos[0].to_bytes() == before
    finish_honestly(f, attack.stage)


METHODS = {
    "keys": "share",
    "envelopes": "receive",
    "active": "mask",
    "survivors": "confirm",
    "confirms": "reveal",
}


@pytest.mark.parametrize(("stage", "method"), METHODS.items())
def test_any_damage_to_any_message_is_refused(stage, method):
    f = Federation(CONFIG).reach(stage)
    frame, before = f.frames[stage][0], f.silos[0].to_bytes()
    places = {0, 2, 3, 8, 20, 25, 29, 31, 32, 40, len(frame) - 65, len(frame) - 1}
    damaged = [
        *(frame[:i] + bytes([frame[i] ^ 1]) + frame[i + 1 :] for i in places),
        *(frame[:length] for length in (0, 31, 95, 96, len(frame) - 1)),
        frame + b"\x00",
    ]
    for data in damaged:
        with pytest.raises(CryptoError):
            deliver(f.silos[0], method, data, f)
    assert f.silos[0].to_bytes() == before
    finish_honestly(f, stage)


@pytest.mark.parametrize("stage", ["keys", "envelopes", "active"])
def test_a_stage_answers_one_request(stage):
    """A second, honest-looking request for a stage that silo 0 has answered."""
    f = Federation(CONFIG).reach("survivors")
    again = Federation(CONFIG).reach("survivors")
    second = {
        "keys": again.frames["keys"][0],
        "envelopes": again.frames["envelopes"][0],
        "active": sign_active(
            f, replace(active_of(f), signatures=without(active_of(f).signatures, 4))
        ),
    }[stage]
    before = f.silos[0].to_bytes()
    with pytest.raises(ProtocolViolation, match="another"):
        deliver(f.silos[0], METHODS[stage], second, f)
    assert f.silos[0].to_bytes() == before
    finish_honestly(f, "survivors")


def test_a_slot_masks_one_vector():
    f = Federation(CONFIG).reach("survivors")
    before = f.silos[0].to_bytes()
    with pytest.raises(ProtocolViolation, match="another ACTIVE or vector"):
        f.masked(0, f.frames["active"][0], f.words[1])
    assert f.silos[0].to_bytes() == before
    finish_honestly(f, "survivors")


# After REVEAL of round 1 in slot 0: (slot, round, model) that READY must refuse.
SPENT = [
    (0, 2, MODEL, "another request"),
    (0, 1, OTHER_MODEL, "another request"),
    (1, 1, MODEL, "revealed"),
    (1, 1, OTHER_MODEL, "revealed"),
    (1, 0, MODEL, "does not exist"),
    (R, 2, MODEL, "with 3 slots"),
    (-1, 2, MODEL, "with 3 slots"),
]


@pytest.mark.parametrize(("slot", "round_number", "model", "match"), SPENT)
def test_slots_and_rounds_are_spent_once(slot, round_number, model, match):
    f = Federation(CONFIG).reach("confirms")
    f.reveal(range(N))
    before = f.silos[0].to_bytes()
    with pytest.raises(ProtocolViolation, match=match):
        f.silos[0].ready(slot, round_number, model)
    assert f.silos[0].to_bytes() == before
    assert f.silos[0].ready(1, 2, MODEL)


def test_a_new_setup_does_not_bring_a_round_back():
    """The update of round 1 was summed; no other setup sums it once more."""
    f = Federation(CONFIG).reach("confirms")
    f.reveal(range(N))
    again = Federation(CONFIG, setup=2)
    again.journals[0] = f.journals[0]
    again.silos[0] = SiloSide(*again.silo_arguments(0))
    again.reach("envelopes")
    again.silos[0].receive_shares(again.frames["envelopes"][0])
    before = again.silos[0].to_bytes()
    with pytest.raises(ProtocolViolation, match="revealed"):
        again.silos[0].ready(0, 1, MODEL)
    assert again.silos[0].to_bytes() == before
    assert again.silos[0].ready(0, 2, MODEL)


def test_a_slot_passed_over_is_gone():
    """Given up before REVEAL, slot 0 can never be opened afterwards."""
    f = Federation(CONFIG).reach("confirms")
    silo = f.silos[0]
    silo.ready(1, 1, MODEL)
    before = silo.to_bytes()
    with pytest.raises(ProtocolViolation, match="slot"):
        silo.reveal(f.frames["confirms"][0])
    with pytest.raises(ProtocolViolation, match="slot"):
        f.masked(0, f.frames["active"][0])
    with pytest.raises(ProtocolViolation, match="spent"):
        silo.ready(0, 1, MODEL)
    assert silo.to_bytes() == before
    assert silo.ready(1, 1, MODEL)


def test_masking_again_after_reveal_is_refused():
    f = Federation(CONFIG).reach("confirms")
    f.reveal(range(N))
    with pytest.raises(ProtocolViolation, match="has been revealed"):
        f.masked(0, f.frames["active"][0])


def test_semi_honest_trust_still_binds_the_survivors():
    """Without CONFIRM, the first list that was revealed for is the only one."""
    config = replace(CONFIG, threshold=3, trust="semi-honest")
    f = Federation(config).reach("survivors")
    first = f.silos[0].reveal(f.frames["survivors"][0])
    before = f.silos[0].to_bytes()
    with pytest.raises(ProtocolViolation, match="differ"):
        f.silos[0].reveal(other_survivors_after_confirm(f))
    assert f.silos[0].to_bytes() == before
    assert f.silos[0].reveal(f.frames["survivors"][0]) == first


# ------------------------------------------------------------------ outsiders
# Six silos; silo 5 is in the roster, colludes, signs anything, and does not belong.

SIX = SecAggConfig(num_silos=6, threshold=4, slots_per_setup=R)
FIVE = range(5)


def outsider_in_envelopes():
    """Silo 5 has no keys in this setup, and is named as a member."""
    f = Federation(SIX)
    f.advertise(FIVE)
    f.share(FIVE)
    message = Envelopes.from_bytes(f.frames["envelopes"][0][BODY], 6, R)
    sealed = (*message.sealed, message.sealed[0])
    message = replace(message, members=tuple(range(6)), sealed=sealed)
    return f, f.sign_as_aggregator(Kind.ENVELOPES, message.to_bytes(6, R), recipient=0)


def outsider_in_cohort():
    """Silo 5 has keys but dealt no shares; it signs the READY of the others."""
    f = Federation(SIX)
    f.advertise()
    f.share(FIVE)
    f.ready(FIVE)
    message = Active.from_bytes(f.frames["active"][0][BODY], 6)
    extra = resign(f, 5, f.frames["ready"][0], Kind.READY)
    message = replace(message, signatures={**message.signatures, 5: extra})
    return f, f.sign_as_aggregator(Kind.ACTIVE, message.to_bytes(6), slot=0)


def outsider_among_survivors():
    """Silo 5 was not in the cohort."""
    f = Federation(SIX).reach("envelopes")
    f.ready(FIVE)
    f.mask(FIVE)
    message = Survivors.from_bytes(f.frames["survivors"][0][BODY], 6)
    message = replace(message, survivors=tuple(range(6)))
    return f, f.sign_as_aggregator(Kind.SURVIVORS, message.to_bytes(6), slot=0)


def outsider_confirms():
    """Silo 5 was not in the cohort; it stands in for a missing confirmation."""
    f = Federation(SIX).reach("envelopes")
    f.ready(FIVE)
    f.mask(FIVE)
    f.confirm(FIVE)
    message = Confirms.from_bytes(f.frames["confirms"][0][BODY], 6)
    extra = resign(f, 5, f.frames["confirm"][0], Kind.CONFIRM)
    table = {**without(message.signatures, 3, 4), 5: extra}
    message = replace(message, signatures=table)
    return f, f.sign_as_aggregator(Kind.CONFIRMS, message.to_bytes(6), slot=0)


OUTSIDERS = [
    (outsider_in_envelopes, "receive", "envelopes"),
    (outsider_in_cohort, "mask", "active"),
    (outsider_among_survivors, "confirm", "survivors"),
    (outsider_confirms, "reveal", "confirms"),
]


@pytest.mark.parametrize(("forge", "method", "stage"), OUTSIDERS)
def test_outsiders_do_not_count(forge, method, stage):
    f, frame = forge()
    before = f.silos[0].to_bytes()
    with pytest.raises(ProtocolViolation, match="silo 5 does not belong"):
        deliver(f.silos[0], method, frame, f)
    assert f.silos[0].to_bytes() == before
    deliver(f.silos[0], method, f.frames[stage][0], f)
