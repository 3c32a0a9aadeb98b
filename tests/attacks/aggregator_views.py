"""Rows: split views of the parts, replays over setups, messages of other stages."""

from dataclasses import replace

from crypto.errors import InvalidSignature, MalformedMessage, ProtocolViolation
from crypto.frame import AGGREGATOR as AGGREGATOR_INDEX
from crypto.frame import NO_SLOT, Header, Kind, make_frame
from crypto.secagg.digests import slot_digest
from crypto.secagg.messages import Advertise, Signed, Survivors
from crypto.secagg.parts import Part
from tests.attacks.forging import (
    BODY,
    active_of,
    confirms_by,
    resign,
    sign_active,
    sign_keys,
    sign_sum,
    sign_survivors,
    sum_of,
    survivors_of,
    without,
)
from tests.attacks.table import AGGREGATOR, COALITION, FIVE, NETWORK, Row, reach
from tests.crypto.secagg.federation import MODEL, Federation

FORGED, FORBIDDEN, MALFORMED = InvalidSignature, ProtocolViolation, MalformedMessage
METHODS = {
    "keys": "share",
    "envelopes": "receive_shares",
    "active": "mask",
    "survivors": "confirm",
    "confirms": "reveal",
    "sum": "close_slot",
}

# -------------------------------------------------------------- parts and dealing

DEALT = (Part(100, (0, 1, 2)), Part(157, (0, 1, 3, 4)))
OTHERWISE = (Part(100, (0, 2, 3)), Part(157, (0, 1, 3, 4)))


def dealt() -> Federation:
    """Silos 0 and 1 contribute to both parts, the others to one."""
    f = Federation(FIVE)
    f.parts = DEALT
    return f


def small_group(f):
    """Enough silos, but of part 0 only silos 0 and 1."""
    few = without(active_of(f).signatures, 2)
    return sign_active(f, replace(active_of(f), signatures=few))


def small_group_of_survivors(f):
    return sign_survivors(f, replace(survivors_of(f), survivors=(0, 1, 3, 4)))


def dealt_otherwise(f) -> Survivors:
    """The survivors, bound to the T3 of those who deal the second way."""
    agreed = active_of(f).ready.members_digest
    other = slot_digest(agreed, 0, 1, MODEL, range(5), OTHERWISE, 5)
    assert other != survivors_of(f).slot_digest
    return replace(survivors_of(f), slot_digest=other)


def survivors_of_another_dealing(f):
    return sign_survivors(f, dealt_otherwise(f))


def the_others_dealt_otherwise(f):
    return confirms_by(f, dealt_otherwise(f), range(1, 5))


def the_others_dealt_otherwise_under_my_digest(f):
    return confirms_by(f, dealt_otherwise(f), range(1, 5), claimed=survivors_of(f))


def sum_of_another_dealing(f):
    return sign_sum(f, replace(sum_of(f), survivors=dealt_otherwise(f)))


def of_parts(who, stage, message, forge, raises, match):
    method = METHODS[stage]
    return Row(who, stage, message, forge, method, raises, match, make=dealt)


PARTS_ROWS = [
    of_parts(
        AGGREGATOR,
        "active",
        "a cohort with a small group",
        small_group,
        FORBIDDEN,
        "part 0 has 2 contributors",
    ),
    of_parts(
        AGGREGATOR,
        "survivors",
        "survivors with a small group",
        small_group_of_survivors,
        FORBIDDEN,
        "part 0 has 2 contributors",
    ),
    of_parts(
        AGGREGATOR,
        "survivors",
        "SURVIVORS of another dealing",
        survivors_of_another_dealing,
        FORBIDDEN,
        "sent nothing",
    ),
    of_parts(
        AGGREGATOR,
        "confirms",
        "the others dealt otherwise",
        the_others_dealt_otherwise,
        FORBIDDEN,
        "did not confirm",
    ),
    of_parts(
        AGGREGATOR,
        "confirms",
        "the others dealt otherwise, under my digest",
        the_others_dealt_otherwise_under_my_digest,
        FORGED,
        "CONFIRM of silo 1",
    ),
    of_parts(
        AGGREGATOR,
        "sum",
        "SUM of another dealing",
        sum_of_another_dealing,
        FORBIDDEN,
        "not in",
    ),
]

# ------------------------------------------------------- a key that breaks the masks


def with_a_slot_key_of_low_order() -> Federation:
    """Silo 1 and the aggregator agree on a key that no honest aggregator passes on."""
    f = Federation(FIVE)
    f.advertise()
    message = Advertise.from_bytes(f.frames["advertise"][1][BODY], 3)
    publics = (bytes(32), *message.slot_publics[1:])
    body = replace(message, slot_publics=publics).to_bytes()
    forged = Signed(body, resign(f, 1, body, Kind.ADVERTISE, NO_SLOT))
    keys = sign_keys(f, {1: forged})
    f.aggregator._state.keys = keys[BODY]
    f.silos[1]._state = replace(
        f.silos[1]._state,
        advertisement=make_frame(
            f.identities[1], Header(Kind.ADVERTISE, f.run, f.setup, NO_SLOT, 1), body
        ),
    )
    f.advertise = lambda: f.frames.update(keys=dict.fromkeys(range(5), keys))
    return f


def honest_active(f):
    return f.frames["active"][0]


LOW_ORDER_ROWS = [
    Row(
        COALITION,
        "active",
        "a slot key of low order",
        honest_active,
        "mask",
        FORBIDDEN,
        "silo 1: .*low order",
        goes_on=False,
        make=with_a_slot_key_of_low_order,
    )
]

# ------------------------------------------------------------------ other setups


def after_setup_1() -> Federation:
    """Setup 2 of the same silos, which remember setup 1 in their journals."""
    played = Federation(FIVE)
    reach(played, "sum")
    f = Federation(FIVE, setup=2)
    f.journals, f.round_number, f.past = played.journals, 2, played.frames
    f.silos = [type(s)(*f.silo_arguments(i)) for i, s in enumerate(f.silos)]
    return f


def replayed(stage: str) -> Row:
    """The honest message of setup 1, once more in setup 2."""
    return Row(
        NETWORK,
        stage,
        f"{stage.upper()} of the last setup",
        lambda f: f.past[stage][0],
        METHODS[stage],
        FORBIDDEN,
        "another setup",
        make=after_setup_1,
    )


def replayed_body(stage: str, raises, match: str) -> Row:
    """Its body, signed anew by the aggregator for setup 2."""
    kind = Kind[stage.upper()]
    in_slot = {} if stage in ("keys", "envelopes") else {"slot": 0}
    addressed = {"recipient": 0} if stage == "envelopes" else {}
    return Row(
        AGGREGATOR,
        stage,
        f"body of {stage.upper()} of the last setup",
        lambda f: f.sign_as_aggregator(
            kind, f.past[stage][0][BODY], **in_slot, **addressed
        ),
        METHODS[stage],
        raises,
        match,
        make=after_setup_1,
    )


SETUP_ROWS = [
    *(replayed(stage) for stage in METHODS),
    replayed_body("keys", FORGED, "silo 0"),
    replayed_body("envelopes", FORBIDDEN, "another KEYS"),
    replayed_body("active", FORBIDDEN, "members_digest"),
    replayed_body("survivors", FORBIDDEN, "sent nothing"),
    replayed_body("confirms", FORBIDDEN, "did not confirm"),
    replayed_body("sum", FORBIDDEN, "not in"),
]

# ---------------------------------------------------------- messages of other stages


def relabelled(stage: str, other: str, raises, match: str) -> Row:
    """The frame of a stage where another is due, its kind unchanged."""
    return Row(
        NETWORK,
        stage,
        f"{other.upper()} where {stage.upper()} is due",
        lambda f: f.frames[other][0],
        METHODS[stage],
        raises,
        match,
    )


def renamed(stage: str, other: str, match: str) -> Row:
    """The body of another stage, signed by the aggregator as what is due."""
    slot = {} if stage in ("keys", "envelopes") else {"slot": 0}
    return Row(
        AGGREGATOR,
        stage,
        f"body of {other.upper()} as {stage.upper()}",
        lambda f: f.sign_as_aggregator(
            Kind[stage.upper()], f.frames[other][0][BODY], **slot
        ),
        METHODS[stage],
        MALFORMED,
        match,
    )


def reflected(stage: str, reply: str, raises, match: str) -> Row:
    """Silo 0's own message, sent back to it."""
    return Row(
        NETWORK,
        stage,
        f"own {reply.upper()} sent back",
        lambda f: f.frames[reply][0],
        METHODS[stage],
        raises,
        match,
    )


def silo_as_aggregator(stage: str) -> Row:
    """A silo signs the honest body as if it were the aggregator."""
    slot = NO_SLOT if stage in ("keys", "envelopes") else 0
    to = {"recipient": 0} if stage == "envelopes" else {}
    return Row(
        "silo 1",
        stage,
        f"{stage.upper()} of silo 1",
        lambda f: make_frame(
            f.identities[1],
            Header(Kind[stage.upper()], f.run, f.setup, slot, AGGREGATOR_INDEX, **to),
            f.frames[stage][0][BODY],
        ),
        METHODS[stage],
        FORGED,
        "the aggregator",
    )


LONG = "above the limit"
STAGE_ROWS = [
    relabelled("active", "keys", MALFORMED, LONG),
    relabelled("survivors", "active", MALFORMED, LONG),
    relabelled("confirms", "survivors", FORBIDDEN, "kind"),
    relabelled("sum", "survivors", FORBIDDEN, "kind"),
    relabelled("sum", "confirms", MALFORMED, LONG),
    renamed("active", "keys", LONG),
    renamed("survivors", "active", LONG),
    renamed("confirms", "active", LONG),
    renamed("confirms", "survivors", "a field of 1 bytes"),
    renamed("sum", "survivors", "a field of 32 bytes"),
    reflected("survivors", "ready", MALFORMED, LONG),
    reflected("confirms", "confirm", FORGED, "not the sender's"),
    reflected("sum", "reveal", MALFORMED, LONG),
    *(silo_as_aggregator(stage) for stage in METHODS if stage not in ("keys", "sum")),
]

ROWS = PARTS_ROWS + LOW_ORDER_ROWS + SETUP_ROWS + STAGE_ROWS
