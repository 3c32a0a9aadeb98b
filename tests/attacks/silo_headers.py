"""Rows: silo 1 signs its honest body under a header with one field changed."""

from dataclasses import replace

from crypto.errors import InvalidSignature, MalformedMessage, ProtocolViolation
from crypto.frame import AGGREGATOR, Kind, make_frame, read_header
from tests.attacks.forging import BODY, six
from tests.attacks.table import SILO, Row
from tests.crypto.secagg.federation import MODEL, OTHER_RUN

HONEST = {
    "start": lambda f: f.silos[1].advertise(),
    "keys": lambda f: f.silos[1].share(f.frames["keys"][1]),
    "envelopes": lambda f: (
        f.silos[1].receive_shares(f.frames["envelopes"][1])
        or f.silos[1].ready(0, 1, MODEL)
    ),
    "active": lambda f: f.masked(1, f.frames["active"][1]),
    "survivors": lambda f: f.silos[1].confirm(f.frames["survivors"][1]),
    "confirms": lambda f: f.silos[1].reveal(f.frames["confirms"][1]),
}
"""By the stage that was reached, what silo 1 honestly answers."""

METHODS = {
    "start": "add_advertisement",
    "keys": "add_shares",
    "envelopes": "add_ready",
    "active": "add_masked",
    "survivors": "add_confirm",
    "confirms": "add_reveal",
}

CHANGES = {
    "kind": (Kind.SUM, ProtocolViolation, "another kind"),
    "run": (OTHER_RUN, ProtocolViolation, "another run"),
    "setup": (2, ProtocolViolation, "another setup"),
    "slot": (7, ProtocolViolation, "another slot"),
    "sender": (2, InvalidSignature, "silo 2"),
    "recipient": (3, ProtocolViolation, "another recipient"),
}


def with_header(stage: str, field: str, value: object):
    """Return what forges the honest answer with one header field changed."""

    def forge(f) -> bytes:
        frame = HONEST[stage](f)
        header = replace(read_header(frame), **{field: value})
        return make_frame(f.identities[1], header, frame[BODY])

    return forge


def from_the_aggregator(stage: str) -> Row:
    """Silo 1 speaks as the aggregator."""
    forge = with_header(stage, "sender", AGGREGATOR)
    return Row(
        SILO,
        stage,
        "sender: the aggregator",
        forge,
        METHODS[stage],
        ProtocolViolation,
        "roster",
        make=six,
    )


def of_another_version(stage: str) -> Row:
    """A frame of protocol version 2: its signature is not looked at."""

    def forge(f) -> bytes:
        frame = HONEST[stage](f)
        return frame[:2] + b"\x02" + frame[3:]

    return Row(
        SILO,
        stage,
        "version: 2",
        forge,
        METHODS[stage],
        MalformedMessage,
        "version 2",
        make=six,
    )


ROWS = [
    Row(
        SILO,
        stage,
        f"{field}: another",
        with_header(stage, field, value),
        METHODS[stage],
        raises,
        match,
        make=six,
    )
    for stage in HONEST
    for field, (value, raises, match) in CHANGES.items()
]
ROWS += [from_the_aggregator(stage) for stage in HONEST]
ROWS += [of_another_version(stage) for stage in HONEST]
