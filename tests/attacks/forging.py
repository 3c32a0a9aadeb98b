"""What a dishonest aggregator and dishonest silos can make: any body, signed."""

from crypto.frame import AGGREGATOR as AGGREGATOR_INDEX
from crypto.frame import EVERYONE, NO_SLOT, Header, Kind, make_frame
from crypto.secagg.messages import (
    Advertise,
    Confirms,
    Envelopes,
    Keys,
    Signed,
    SumNotice,
    Survivors,
)
from crypto.secagg.ready import Active
from crypto.secagg.setup import PASSED_ON
from tests.attacks.table import SIX
from tests.crypto.secagg.federation import Federation

BODY = slice(32, -64)


def sizes(f: Federation) -> tuple[int, int]:
    return f.config.num_silos, f.config.slots_per_setup


# ------------------------------------------------------------ the aggregator's messages


def keys_of(f: Federation) -> Keys:
    return Keys.from_bytes(f.frames["keys"][0][BODY], *sizes(f))


def envelopes_of(f: Federation, silo: int = 0) -> Envelopes:
    return Envelopes.from_bytes(f.frames["envelopes"][silo][BODY], *sizes(f))


def active_of(f: Federation) -> Active:
    return Active.from_bytes(f.frames["active"][0][BODY], f.config.num_silos)


def survivors_of(f: Federation) -> Survivors:
    return Survivors.from_bytes(f.frames["survivors"][0][BODY], f.config.num_silos)


def confirms_of(f: Federation) -> Confirms:
    return Confirms.from_bytes(f.frames["confirms"][0][BODY], f.config.num_silos)


def sum_of(f: Federation) -> SumNotice:
    return SumNotice.from_bytes(f.frames["sum"][0][BODY], f.config.num_silos)


def sign_keys(f: Federation, changes: dict[int, Signed], without: int = -1) -> bytes:
    table = {**keys_of(f).advertisements, **changes}
    table.pop(without, None)
    return f.sign_as_aggregator(Kind.KEYS, Keys(table).to_bytes(*sizes(f)))


def sign_envelopes(f: Federation, message: Envelopes) -> bytes:
    body = message.to_bytes(*sizes(f))
    return f.sign_as_aggregator(Kind.ENVELOPES, body, recipient=0)


def sign_in_slot(f: Federation, kind: Kind, message, slot: int = 0) -> bytes:
    """Sign ACTIVE, SURVIVORS, CONFIRMS or SUM."""
    return f.sign_as_aggregator(kind, message.to_bytes(f.config.num_silos), slot=slot)


def sign_active(f: Federation, message: Active, slot: int = 0) -> bytes:
    return sign_in_slot(f, Kind.ACTIVE, message, slot)


def sign_survivors(f: Federation, message: Survivors, slot: int = 0) -> bytes:
    return sign_in_slot(f, Kind.SURVIVORS, message, slot)


def sign_confirms(f: Federation, message: Confirms, slot: int = 0) -> bytes:
    return sign_in_slot(f, Kind.CONFIRMS, message, slot)


def sign_sum(f: Federation, message: SumNotice, slot: int = 0) -> bytes:
    return sign_in_slot(f, Kind.SUM, message, slot)


def without(signatures: dict[int, bytes], *silos: int) -> dict[int, bytes]:
    return {i: s for i, s in signatures.items() if i not in silos}


def signed(frame: bytes) -> Signed:
    return Signed(frame[BODY], frame[-64:])


def resign(f: Federation, silo: int, body: bytes, kind: Kind, slot: int = 0) -> bytes:
    """The signature of a colluding silo under any body."""
    header = Header(kind, f.run, f.setup, slot, silo)
    return make_frame(f.identities[silo], header, body)[-64:]


def confirms_by(f: Federation, message: Survivors, silos, claimed=None) -> bytes:
    """CONFIRMS with the signatures of silos under one list, claimed for another."""
    body = message.to_bytes(f.config.num_silos)
    table = {i: resign(f, i, body, Kind.CONFIRM) for i in silos}
    return sign_confirms(f, Confirms(claimed or message, table))


# ------------------------------------------------------------------ silo 1's messages


def sign(f: Federation, kind: Kind, body: bytes, slot: int = 0, silo: int = 1) -> bytes:
    """Any body under silo 1's own key."""
    slot = NO_SLOT if kind in (Kind.ADVERTISE, Kind.SHARES) else slot
    recipient = EVERYONE if kind in PASSED_ON else AGGREGATOR_INDEX
    header = Header(kind, f.run, f.setup, slot, silo, recipient)
    return make_frame(f.identities[1], header, body)


def fresh(f: Federation) -> Advertise:
    """Other keys of silo 1, drawn like its own."""
    frame = Federation(f.config).silos[1].advertise()
    return Advertise.from_bytes(frame[BODY], f.config.slots_per_setup)


def six() -> Federation:
    return Federation(SIX)
