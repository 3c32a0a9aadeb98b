"""Rows: the aggregator lies to silo 0 in a slot, from ACTIVE to SUM."""

from dataclasses import replace

from crypto.errors import InvalidSignature, MalformedMessage, ProtocolViolation
from crypto.frame import Header, Kind, make_frame
from crypto.secagg.messages import Confirms, Survivors
from tests.attacks.forging import (
    BODY,
    active_of,
    confirms_by,
    confirms_of,
    resign,
    sign_active,
    sign_confirms,
    sign_sum,
    sign_survivors,
    sum_of,
    survivors_of,
    without,
)
from tests.attacks.table import AGGREGATOR, COALITION, FIVE, NETWORK, Row
from tests.crypto.secagg.federation import OTHER_MODEL, OTHER_RUN, Federation

FORGED, FORBIDDEN, MALFORMED = InvalidSignature, ProtocolViolation, MalformedMessage

# ------------------------------------------------------------------ ACTIVE


def another_model(f):
    """The others were given, and have signed, another model."""
    ready = replace(active_of(f).ready, model_digest=OTHER_MODEL)
    return sign_active(f, replace(active_of(f), ready=ready))


def another_model_under_my_digest(f):
    """They have signed another model; the aggregator claims they signed mine."""
    message = active_of(f)
    other = replace(message.ready, model_digest=OTHER_MODEL).to_bytes()
    signatures = {i: resign(f, i, other, Kind.READY) for i in (1, 2, 3, 4)}
    table = {**message.signatures, **signatures}
    return sign_active(f, replace(message, signatures=table))


def another_head(f):
    """The others were shown, and have signed, another transcript."""
    ready = replace(active_of(f).ready, head=bytes(range(104)))
    return sign_active(f, replace(active_of(f), ready=ready))


def another_head_under_mine(f):
    """They have signed another head; the aggregator claims they signed mine."""
    message = active_of(f)
    other = replace(message.ready, head=bytes(range(104))).to_bytes()
    signatures = {i: resign(f, i, other, Kind.READY) for i in (1, 2, 3, 4)}
    table = {**message.signatures, **signatures}
    return sign_active(f, replace(message, signatures=table))


def another_round(f):
    ready = replace(active_of(f).ready, round_number=2)
    return sign_active(f, replace(active_of(f), ready=ready))


def other_members(f):
    ready = replace(active_of(f).ready, members_digest=bytes(32))
    return sign_active(f, replace(active_of(f), ready=ready))


def small_cohort(f):
    few = without(active_of(f).signatures, 3, 4)
    return sign_active(f, replace(active_of(f), signatures=few))


def cohort_of_one(f):
    mine = {0: active_of(f).signatures[0]}
    return sign_active(f, replace(active_of(f), signatures=mine))


def cohort_without_me(f):
    others = without(active_of(f).signatures, 0)
    return sign_active(f, replace(active_of(f), signatures=others))


def ready_for_another_slot(f):
    """Silo 1 has said READY for slot 2, not for this one."""
    message, body = active_of(f), f.frames["ready"][1][BODY]
    table = {**message.signatures, 1: resign(f, 1, body, Kind.READY, slot=2)}
    return sign_active(f, replace(message, signatures=table))


def ready_of_another_run(f):
    other = Federation(FIVE, run=OTHER_RUN).reach("active").frames["ready"][1]
    message = active_of(f)
    table = {**message.signatures, 1: other[-64:]}
    return sign_active(f, replace(message, signatures=table))


def one_ready_as_two(f):
    message = active_of(f)
    table = {**message.signatures, 2: message.signatures[1]}
    return sign_active(f, replace(message, signatures=table))


def signatures_swapped(f):
    message = active_of(f)
    table = {**message.signatures}
    table[1], table[2] = table[2], table[1]
    return sign_active(f, replace(message, signatures=table))


def confirm_for_ready(f):
    """A signature of the right silo and slot, under a message of another stage."""
    message = active_of(f)
    body = message.ready.to_bytes()
    table = {**message.signatures, 1: resign(f, 1, body, Kind.CONFIRM)}
    return sign_active(f, replace(message, signatures=table))


def active_of_another_slot(f):
    return sign_active(f, active_of(f), slot=1)


def active_with_a_byte_left(f):
    body = f.frames["active"][0][BODY][:-1]
    return f.sign_as_aggregator(Kind.ACTIVE, body, slot=0)


# ------------------------------------------------------------------ SURVIVORS


def few_survivors(f):
    return sign_survivors(f, replace(survivors_of(f), survivors=(0, 1, 2)))


def no_survivors(f):
    return sign_survivors(f, replace(survivors_of(f), survivors=()))


def survivors_without_me(f):
    return sign_survivors(f, replace(survivors_of(f), survivors=(1, 2, 3, 4)))


def survivors_of_another_cohort(f):
    return sign_survivors(f, replace(survivors_of(f), slot_digest=bytes(32)))


def survivors_of_another_slot(f):
    return sign_survivors(f, survivors_of(f), slot=1)


def survivors_beyond_the_roster(f):
    body = survivors_of(f).slot_digest + bytes([0b00111111])
    return f.sign_as_aggregator(Kind.SURVIVORS, body, slot=0)


def confirms_before_confirm(f):
    return confirms_by(f, survivors_of(f), range(1, 5))


# ------------------------------------------------------------------ CONFIRMS


def without_silo_4(f) -> Survivors:
    return replace(survivors_of(f), survivors=(0, 1, 2, 3))


def other_survivors_after_confirm(f):
    """The start of every attack that wants both kinds of share of silo 4."""
    return sign_survivors(f, without_silo_4(f))


def few_confirmations(f):
    few = without(confirms_of(f).signatures, 3, 4)
    return sign_confirms(f, replace(confirms_of(f), signatures=few))


def one_confirmation_as_two(f):
    message = confirms_of(f)
    table = {**without(message.signatures, 3), 4: message.signatures[1]}
    return sign_confirms(f, replace(message, signatures=table))


def split_survivors(f):
    """The others have confirmed that silo 4 is lost."""
    return confirms_by(f, without_silo_4(f), range(1, 5))


def split_survivors_under_my_list(f):
    return confirms_by(f, without_silo_4(f), range(1, 5), claimed=survivors_of(f))


def survivors_instead_of_confirms(f):
    return f.frames["survivors"][0]


def forged_confirmation(f):
    header = Header(Kind.CONFIRM, f.run, f.setup, 0, 4)
    body = survivors_of(f).to_bytes(5)
    forged = make_frame(f.aggregator_identity, header, body)[-64:]
    table = {**confirms_of(f).signatures, 4: forged}
    return sign_confirms(f, replace(confirms_of(f), signatures=table))


def confirmations_of_another_slot(f):
    body = survivors_of(f).to_bytes(5)
    table = {i: resign(f, i, body, Kind.CONFIRM, slot=1) for i in range(5)}
    return sign_confirms(f, Confirms(survivors_of(f), table))


# ------------------------------------------------------------------ SUM


def other_summed(f):
    other = replace(sum_of(f).survivors, survivors=(0, 1, 2, 3))
    return sign_sum(f, replace(sum_of(f), survivors=other))


def sum_of_another_slot(f):
    return sign_sum(f, sum_of(f), slot=1)


def sum_of_another_cohort(f):
    other = replace(sum_of(f).survivors, slot_digest=bytes(32))
    return sign_sum(f, replace(sum_of(f), survivors=other))


def second_sum(f):
    f.silos[0].close_slot(f.frames["sum"][0])
    return sign_sum(f, replace(sum_of(f), sum_digest=bytes(32)))


def sum_signed_by_a_silo(f):
    header = Header(Kind.SUM, f.run, f.setup, 0, 0xFFFF)
    return make_frame(f.identities[1], header, f.frames["sum"][0][BODY])


def sum_of_another_run(f):
    other = Federation(FIVE, run=OTHER_RUN).reach("confirms")
    other.reveal(other.everyone)
    return other.frames["sum"][0]


def sum_before_mask(f):
    """The SUM of a slot that this silo never sent a vector for."""
    played = Federation(FIVE).reach("confirms")
    played.reveal(played.everyone)
    return sign_sum(f, sum_of(played))


def sum_of_the_others(f):
    """Silo 0 confirmed a list with itself; the sum is said to be without it."""
    other = replace(sum_of(f).survivors, survivors=(1, 2, 3, 4))
    return sign_sum(f, replace(sum_of(f), survivors=other))


def row(who, stage, message, forge, to, raises, match):
    return Row(who, stage, message, forge, to, raises, match)


def active(who, message, forge, raises, match):
    return row(who, "active", message, forge, "mask", raises, match)


def survivors(who, message, forge, raises, match):
    return row(who, "survivors", message, forge, "confirm", raises, match)


def confirms(who, message, forge, raises, match):
    return row(who, "confirms", message, forge, "reveal", raises, match)


def at_sum(who, message, forge, raises, match):
    return row(who, "sum", message, forge, "close_slot", raises, match)


A, C = AGGREGATOR, COALITION
ROWS = [
    active(A, "another model", another_model, FORBIDDEN, "model_digest"),
    active(
        A,
        "another model under my digest",
        another_model_under_my_digest,
        FORGED,
        "READY of silo",
    ),
    active(A, "another head", another_head, FORBIDDEN, "another head"),
    active(
        A,
        "another head under mine",
        another_head_under_mine,
        FORGED,
        "READY of silo",
    ),
    active(A, "another round", another_round, FORBIDDEN, "round_number"),
    active(A, "other members", other_members, FORBIDDEN, "members_digest"),
    active(A, "a small cohort", small_cohort, FORBIDDEN, "3 silos"),
    active(A, "a cohort of one", cohort_of_one, FORBIDDEN, "1 silos"),
    active(A, "a cohort without me", cohort_without_me, FORBIDDEN, "not in"),
    active(A, "READY of another slot", ready_for_another_slot, FORGED, "silo 1"),
    active(A, "READY of another run", ready_of_another_run, FORGED, "silo 1"),
    active(A, "one READY as two", one_ready_as_two, FORGED, "silo 2"),
    active(A, "signatures swapped", signatures_swapped, FORGED, "silo 1"),
    active(C, "CONFIRM's signature for READY", confirm_for_ready, FORGED, "silo 1"),
    active(A, "ACTIVE of another slot", active_of_another_slot, FORBIDDEN, "slot"),
    active(A, "a byte too few", active_with_a_byte_left, MALFORMED, "left"),
    survivors(A, "few survivors", few_survivors, FORBIDDEN, "3 silos"),
    survivors(A, "no survivors", no_survivors, FORBIDDEN, "0 silos"),
    survivors(A, "survivors without me", survivors_without_me, FORBIDDEN, "not in"),
    survivors(
        A,
        "survivors of another cohort",
        survivors_of_another_cohort,
        FORBIDDEN,
        "sent nothing",
    ),
    survivors(
        A, "SURVIVORS of another slot", survivors_of_another_slot, FORBIDDEN, "slot"
    ),
    survivors(
        A,
        "a survivor beyond the roster",
        survivors_beyond_the_roster,
        MALFORMED,
        "above index 4",
    ),
    row(
        C,
        "survivors",
        "CONFIRMS before CONFIRM",
        confirms_before_confirm,
        "reveal",
        FORBIDDEN,
        "did not confirm",
    ),
    row(
        A,
        "confirms",
        "other survivors after CONFIRM",
        other_survivors_after_confirm,
        "confirm",
        FORBIDDEN,
        "differ",
    ),
    confirms(A, "few confirmations", few_confirmations, FORBIDDEN, "3 silos, 4 are"),
    confirms(A, "one confirmation as two", one_confirmation_as_two, FORGED, "silo 4"),
    confirms(
        A, "the others confirmed others", split_survivors, FORBIDDEN, "did not confirm"
    ),
    confirms(
        A,
        "the others confirmed others, under my list",
        split_survivors_under_my_list,
        FORGED,
        "CONFIRM of silo",
    ),
    confirms(
        NETWORK,
        "SURVIVORS instead of CONFIRMS",
        survivors_instead_of_confirms,
        FORBIDDEN,
        "kind",
    ),
    confirms(A, "a forged confirmation", forged_confirmation, FORGED, "silo 4"),
    confirms(
        C,
        "confirmations of another slot",
        confirmations_of_another_slot,
        FORGED,
        "silo 0",
    ),
    at_sum(A, "SUM over other survivors", other_summed, FORBIDDEN, "other survivors"),
    at_sum(A, "SUM without me", sum_of_the_others, FORBIDDEN, "other survivors"),
    at_sum(A, "SUM of another slot", sum_of_another_slot, FORBIDDEN, "slot"),
    at_sum(A, "SUM of another cohort", sum_of_another_cohort, FORBIDDEN, "not in"),
    at_sum(A, "a second SUM", second_sum, FORBIDDEN, "second, different SUM"),
    at_sum(C, "SUM signed by a silo", sum_signed_by_a_silo, FORGED, "aggregator"),
    at_sum(NETWORK, "SUM of another run", sum_of_another_run, FORBIDDEN, "run"),
    row(
        A,
        "active",
        "SUM before my vector",
        sum_before_mask,
        "close_slot",
        FORBIDDEN,
        "not in",
    ),
]
