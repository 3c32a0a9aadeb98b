"""Rows: the aggregator lies to silo 0 while keys and shares are exchanged."""

from dataclasses import replace

from crypto.errors import (
    DecryptionFailed,
    InvalidSignature,
    MalformedMessage,
    ProtocolViolation,
)
from crypto.frame import NO_SLOT, Header, Kind, make_frame
from crypto.secagg.messages import Advertise, Keys, Signed
from tests.attacks.forging import (
    BODY,
    envelopes_of,
    keys_of,
    resign,
    sign_envelopes,
    sign_keys,
    signed,
    sizes,
)
from tests.attacks.table import AGGREGATOR, COALITION, FIVE, NETWORK, Row
from tests.crypto.secagg.federation import OTHER_RUN, Federation

# ------------------------------------------------------------------ KEYS


def substituted_key(f):
    body = Federation(FIVE).silos[1].advertise()[BODY]
    header = Header(Kind.ADVERTISE, f.run, f.setup, NO_SLOT, 1)
    forged = make_frame(f.aggregator_identity, header, body)
    return sign_keys(f, {1: signed(forged)})


def keys_of_another_run(f):
    other = Federation(FIVE, run=OTHER_RUN).silos[1].advertise()
    return sign_keys(f, {1: signed(other)})


def keys_of_another_setup(f):
    other = Federation(FIVE, setup=2).silos[1].advertise()
    return sign_keys(f, {1: signed(other)})


def one_silo_as_two(f):
    return sign_keys(f, {2: keys_of(f).advertisements[1]})


def copied_key(f):
    body = f.frames["advertise"][1][BODY]
    return sign_keys(f, {2: Signed(body, resign(f, 2, body, Kind.ADVERTISE, NO_SLOT))})


def another_spelling_of_a_key(f):
    """Silo 2's slot key with the bit set that X25519 leaves out: the same point."""
    message = Advertise.from_bytes(f.frames["advertise"][1][BODY], 3)
    theirs = Advertise.from_bytes(f.frames["advertise"][2][BODY], 3).slot_publics[0]
    spelt = theirs[:31] + bytes([theirs[31] | 0x80])
    body = replace(message, slot_publics=(spelt, *message.slot_publics[1:])).to_bytes()
    return sign_keys(f, {1: Signed(body, resign(f, 1, body, Kind.ADVERTISE, NO_SLOT))})


def one_key_for_two_slots(f):
    message = Advertise.from_bytes(f.frames["advertise"][1][BODY], 3)
    first = (message.slot_publics[0],) * 3
    body = replace(message, slot_publics=first).to_bytes()
    return sign_keys(f, {1: Signed(body, resign(f, 1, body, Kind.ADVERTISE, NO_SLOT))})


def channel_key_of_low_order(f):
    message = Advertise.from_bytes(f.frames["advertise"][1][BODY], 3)
    body = replace(message, channel_public=bytes(32)).to_bytes()
    return sign_keys(f, {1: Signed(body, resign(f, 1, body, Kind.ADVERTISE, NO_SLOT))})


def own_keys_changed(f):
    return sign_keys(f, {0: signed(Federation(FIVE).silos[0].advertise())})


def own_keys_omitted(f):
    return sign_keys(f, {}, without=0)


def too_few_keys(f):
    table = dict(list(keys_of(f).advertisements.items())[:3])
    return f.sign_as_aggregator(Kind.KEYS, Keys(table).to_bytes(*sizes(f)))


def keys_signed_by_a_silo(f):
    header = Header(Kind.KEYS, f.run, f.setup, NO_SLOT, 0xFFFF)
    return make_frame(f.identities[1], header, f.frames["keys"][0][BODY])


def keys_with_trailing_bytes(f):
    return f.sign_as_aggregator(Kind.KEYS, f.frames["keys"][0][BODY] + b"\x00")


def keys_cut_short(f):
    return f.sign_as_aggregator(Kind.KEYS, f.frames["keys"][0][BODY][:-1])


def keys_of_a_silo_beyond_the_roster(f):
    """The bitmap names silo 5 of five, whose entry is silo 4's."""
    body = f.frames["keys"][0][BODY]
    entries = body[1:] + b""
    forged = bytes([0b00111110]) + entries
    return f.sign_as_aggregator(Kind.KEYS, forged)


def whole_keys_of_another_run(f):
    return Federation(FIVE, run=OTHER_RUN).reach("keys").frames["keys"][0]


def keys_for_one_silo_alone(f):
    """KEYS are a broadcast: what is addressed to one silo was not sent to all."""
    return f.sign_as_aggregator(Kind.KEYS, f.frames["keys"][0][BODY], recipient=0)


# ------------------------------------------------------------------ ENVELOPES


def tampered_envelope(f):
    message = envelopes_of(f)
    first = bytes([message.sealed[0][0] ^ 1]) + message.sealed[0][1:]
    return sign_envelopes(f, replace(message, sealed=(first, *message.sealed[1:])))


def swapped_envelopes(f):
    message = envelopes_of(f)
    a, b, *rest = message.sealed
    return sign_envelopes(f, replace(message, sealed=(b, a, *rest)))


def duplicated_envelope(f):
    message = envelopes_of(f)
    a, _, *rest = message.sealed
    return sign_envelopes(f, replace(message, sealed=(a, a, *rest)))


def own_envelope_returned(f):
    """What silo 0 has sealed to silo 1, in place of what silo 1 sealed to it."""
    mine, message = envelopes_of(f, silo=1).sealed[0], envelopes_of(f)
    return sign_envelopes(f, replace(message, sealed=(mine, *message.sealed[1:])))


def envelopes_of_another_silo(f):
    return f.frames["envelopes"][1]


def envelopes_of_another_silo_resigned(f):
    return sign_envelopes(f, envelopes_of(f, silo=1))


def envelopes_of_another_setup(f):
    other = Federation(FIVE, setup=2).reach("envelopes")
    return sign_envelopes(f, envelopes_of(other))


def envelopes_of_another_setup_renamed(f):
    other = Federation(FIVE, setup=2).reach("envelopes")
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


def an_envelope_missing(f):
    message = envelopes_of(f)
    body = message.to_bytes(*sizes(f))[: -len(message.sealed[0])]
    return f.sign_as_aggregator(Kind.ENVELOPES, body, recipient=0)


def envelopes_for_everyone(f):
    body = f.frames["envelopes"][0][BODY]
    return f.sign_as_aggregator(Kind.ENVELOPES, body)


def keys_again(f):
    return f.frames["keys"][0]


def in_keys(who, message, forge, raises, match):
    return Row(who, "keys", message, forge, "share", raises, match)


def in_envelopes(who, message, forge, raises, match):
    return Row(who, "envelopes", message, forge, "receive_shares", raises, match)


FORGED, FORBIDDEN, MALFORMED = InvalidSignature, ProtocolViolation, MalformedMessage
SEALED = DecryptionFailed

KEYS_ROWS = [
    in_keys(AGGREGATOR, "its own key for silo 1", substituted_key, FORGED, "silo 1"),
    in_keys(AGGREGATOR, "a key of another run", keys_of_another_run, FORGED, "silo 1"),
    in_keys(
        AGGREGATOR, "a key of another setup", keys_of_another_setup, FORGED, "silo 1"
    ),
    in_keys(AGGREGATOR, "one silo as two", one_silo_as_two, FORGED, "silo 2"),
    in_keys(COALITION, "a copied key", copied_key, FORBIDDEN, "twice"),
    in_keys(
        COALITION,
        "another spelling of a key",
        another_spelling_of_a_key,
        FORBIDDEN,
        "silo 1 are not canonical",
    ),
    in_keys(
        COALITION, "one key for two slots", one_key_for_two_slots, FORBIDDEN, "twice"
    ),
    in_keys(
        COALITION,
        "a channel key of low order",
        channel_key_of_low_order,
        FORBIDDEN,
        "low order",
    ),
    in_keys(AGGREGATOR, "own keys changed", own_keys_changed, FORBIDDEN, "own keys"),
    in_keys(AGGREGATOR, "own keys omitted", own_keys_omitted, FORBIDDEN, "own keys"),
    in_keys(AGGREGATOR, "too few keys", too_few_keys, FORBIDDEN, "at least 4"),
    in_keys(
        COALITION, "KEYS signed by a silo", keys_signed_by_a_silo, FORGED, "aggregator"
    ),
    in_keys(AGGREGATOR, "bytes too many", keys_with_trailing_bytes, MALFORMED, "above"),
    in_keys(AGGREGATOR, "a byte too few", keys_cut_short, MALFORMED, "bytes are left"),
    in_keys(
        AGGREGATOR,
        "a silo beyond the roster",
        keys_of_a_silo_beyond_the_roster,
        MALFORMED,
        "above index 4",
    ),
    in_keys(
        NETWORK, "KEYS of another run", whole_keys_of_another_run, FORBIDDEN, "run"
    ),
    in_keys(
        AGGREGATOR,
        "KEYS for one silo alone",
        keys_for_one_silo_alone,
        FORBIDDEN,
        "recipient",
    ),
]

ENVELOPES_ROWS = [
    in_envelopes(AGGREGATOR, "a bit changed", tampered_envelope, SEALED, "silo 1"),
    in_envelopes(AGGREGATOR, "envelopes swapped", swapped_envelopes, SEALED, "silo 1"),
    in_envelopes(
        AGGREGATOR, "an envelope twice", duplicated_envelope, SEALED, "silo 2"
    ),
    in_envelopes(
        AGGREGATOR, "own envelope returned", own_envelope_returned, SEALED, "silo 1"
    ),
    in_envelopes(
        NETWORK,
        "ENVELOPES of another silo",
        envelopes_of_another_silo,
        FORBIDDEN,
        "recipient",
    ),
    in_envelopes(
        AGGREGATOR,
        "ENVELOPES of another silo, signed anew",
        envelopes_of_another_silo_resigned,
        SEALED,
        "silo 1",
    ),
    in_envelopes(
        AGGREGATOR,
        "ENVELOPES of another setup",
        envelopes_of_another_setup,
        FORBIDDEN,
        "another KEYS",
    ),
    in_envelopes(
        AGGREGATOR,
        "envelopes of another setup under our KEYS",
        envelopes_of_another_setup_renamed,
        SEALED,
        "silo 1",
    ),
    in_envelopes(AGGREGATOR, "too few members", too_few_members, FORBIDDEN, "3 silos"),
    in_envelopes(
        AGGREGATOR, "members without me", members_without_me, FORBIDDEN, "not in"
    ),
    in_envelopes(
        AGGREGATOR, "an envelope missing", an_envelope_missing, MALFORMED, "left"
    ),
    in_envelopes(
        AGGREGATOR,
        "ENVELOPES for everyone",
        envelopes_for_everyone,
        FORBIDDEN,
        "recipient",
    ),
    in_envelopes(NETWORK, "KEYS once more", keys_again, MALFORMED, "above the limit"),
]

ROWS = KEYS_ROWS + ENVELOPES_ROWS
