"""Rows: silo 1 lies to the aggregator in ADVERTISE and SHARES."""

from dataclasses import replace

from crypto.errors import InvalidSignature, MalformedMessage, ProtocolViolation
from crypto.frame import Kind
from crypto.secagg.messages import (
    Advertise,
    Shares,
)
from crypto.secagg.ready import Ready
from tests.attacks.forging import BODY, fresh, sign, six
from tests.attacks.table import NETWORK, SILO, SIX, Row
from tests.crypto.secagg.federation import MODEL, OTHER_RUN, Federation

FORGED, FORBIDDEN, MALFORMED = InvalidSignature, ProtocolViolation, MalformedMessage

# ------------------------------------------------------------------ ADVERTISE


def impersonation(f):
    return sign(f, Kind.ADVERTISE, fresh(f).to_bytes(), silo=2)


def stranger(f):
    return sign(f, Kind.ADVERTISE, fresh(f).to_bytes(), silo=6)


def another_run(f):
    return Federation(SIX, run=OTHER_RUN).silos[1].advertise()


def another_setup(f):
    return Federation(SIX, setup=2).silos[1].advertise()


def another_kind(f):
    """READY, cut to the length of an ADVERTISE: its kind is looked at first."""
    return sign(f, Kind.READY, Ready(bytes(32), 1, MODEL).to_bytes()[:68])


def copied_slot_keys(f):
    theirs = Advertise.from_bytes(f.silos[0].advertise()[BODY], 2)
    message = replace(fresh(f), slot_publics=theirs.slot_publics)
    return sign(f, Kind.ADVERTISE, message.to_bytes())


def copied_channel_key(f):
    theirs = Advertise.from_bytes(f.silos[0].advertise()[BODY], 2)
    message = replace(fresh(f), channel_public=theirs.channel_public)
    return sign(f, Kind.ADVERTISE, message.to_bytes())


def one_key_for_two_slots(f):
    message = fresh(f)
    message = replace(message, slot_publics=(message.slot_publics[0],) * 2)
    return sign(f, Kind.ADVERTISE, message.to_bytes())


def channel_key_of_low_order(f):
    message = replace(fresh(f), channel_public=bytes(32))
    return sign(f, Kind.ADVERTISE, message.to_bytes())


def slot_key_of_low_order(f):
    """The point of order two, u = 1."""
    low = b"\x01" + bytes(31)
    message = replace(fresh(f), slot_publics=(fresh(f).slot_publics[0], low))
    return sign(f, Kind.ADVERTISE, message.to_bytes())


def another_spelling_of_a_key(f):
    """Silo 0's slot key with the bit set that X25519 leaves out: the same point."""
    theirs = Advertise.from_bytes(f.silos[0].advertise()[BODY], 2).slot_publics[0]
    spelt = theirs[:31] + bytes([theirs[31] | 0x80])
    message = replace(fresh(f), slot_publics=(fresh(f).slot_publics[0], spelt))
    return sign(f, Kind.ADVERTISE, message.to_bytes())


def too_many_slots(f):
    body = fresh(f).to_bytes()
    return sign(f, Kind.ADVERTISE, body + body[-64:])


def too_few_slots(f):
    return sign(f, Kind.ADVERTISE, fresh(f).to_bytes()[:-64])


def truncated(f):
    return f.silos[1].advertise()[:-1]


def header_alone(f):
    return f.silos[1].advertise()[:32]


def nothing(f):
    return b""


# ------------------------------------------------------------------ SHARES


def honest_shares(f) -> Shares:
    return Shares.from_bytes(f.silos[1].share(f.frames["keys"][1])[BODY], 5, 2)


def shares_for_another_keys(f):
    message = replace(honest_shares(f), keys_digest=bytes(32))
    return sign(f, Kind.SHARES, message.to_bytes(2))


def too_few_shares(f):
    return sign(f, Kind.SHARES, honest_shares(f).to_bytes(2)[:-148])


def shares_of_one_slot(f):
    message = honest_shares(f)
    body = message.keys_digest + b"".join(sealed[:-66] for sealed in message.sealed)
    return sign(f, Kind.SHARES, body)


def too_many_shares(f):
    message = honest_shares(f)
    body = message.to_bytes(2) + message.sealed[0]
    return sign(f, Kind.SHARES, body)


def shares_of_silo_2(f):
    """What silo 2 has sealed, under the name and key of silo 1's neighbour."""
    theirs = f.silos[2].share(f.frames["keys"][2])
    return sign(f, Kind.SHARES, theirs[BODY], silo=2)


def in_advertise(who, message, forge, raises, match):
    return Row(
        who,
        "start",
        message,
        forge,
        "add_advertisement",
        raises,
        match,
        make=six,
    )


def in_shares(who, message, forge, raises, match):
    return Row(who, "keys", message, forge, "add_shares", raises, match, make=six)


ROWS = [
    in_advertise(SILO, "in silo 2's name", impersonation, FORGED, "silo 2"),
    in_advertise(SILO, "as a seventh silo", stranger, FORBIDDEN, "roster"),
    in_advertise(NETWORK, "keys of another run", another_run, FORBIDDEN, "run"),
    in_advertise(NETWORK, "keys of another setup", another_setup, FORBIDDEN, "setup"),
    in_advertise(SILO, "READY where keys are due", another_kind, FORBIDDEN, "kind"),
    in_advertise(SILO, "silo 0's slot keys", copied_slot_keys, FORBIDDEN, "twice"),
    in_advertise(SILO, "silo 0's channel key", copied_channel_key, FORBIDDEN, "twice"),
    in_advertise(
        SILO,
        "one key for two slots",
        one_key_for_two_slots,
        FORBIDDEN,
        "silo 1: .*twice",
    ),
    in_advertise(
        SILO,
        "a channel key of low order",
        channel_key_of_low_order,
        FORBIDDEN,
        "silo 1: .*low order",
    ),
    in_advertise(
        SILO,
        "another spelling of silo 0's slot key",
        another_spelling_of_a_key,
        FORBIDDEN,
        "silo 1: .*not canonical",
    ),
    in_advertise(
        SILO,
        "a slot key of low order",
        slot_key_of_low_order,
        FORBIDDEN,
        "silo 1: .*low order",
    ),
    in_advertise(SILO, "too many slots", too_many_slots, MALFORMED, "above the limit"),
    in_advertise(SILO, "too few slots", too_few_slots, MALFORMED, "silo 1: "),
    in_advertise(NETWORK, "cut short", truncated, FORGED, "silo 1"),
    in_advertise(NETWORK, "a header alone", header_alone, MALFORMED, "not a frame"),
    in_advertise(NETWORK, "nothing", nothing, MALFORMED, "not a frame"),
    in_shares(
        SILO, "an answer to other KEYS", shares_for_another_keys, FORBIDDEN, "silo 1: "
    ),
    in_shares(SILO, "an envelope too few", too_few_shares, MALFORMED, "silo 1: "),
    in_shares(SILO, "shares of one slot", shares_of_one_slot, MALFORMED, "silo 1: "),
    in_shares(SILO, "an envelope too many", too_many_shares, MALFORMED, "limit"),
    in_shares(SILO, "silo 2's shares in its name", shares_of_silo_2, FORGED, "silo 2"),
]
