"""The key that silos share: who can lie about it, and what stops it."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from crypto.bfv.messages import Dealt, Handed
from crypto.bfv.parameters import SEALED_KEY_BYTES
from crypto.bfv.shared_key import commit_to_key, seal_key
from crypto.bfv.workers import Workers
from crypto.errors import (
    CryptoError,
    DecryptionFailed,
    InvalidSignature,
    MalformedMessage,
    ProtocolViolation,
)
from crypto.frame import Kind, make_frame
from tests.attacks.forging import (
    BODY,
    active_of,
    sign_active,
)
from tests.crypto.bfv.federation import FIVE, BfvFederation
from tests.crypto.secagg.federation import MODEL

MAKER = FIVE.key_maker


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(num=1) as made:
        yield made


# ------------------------------------------------------------------ the shared key


def dealt_of(f: BfvFederation) -> Dealt:
    return Dealt.from_bytes(f.frames["shares"][MAKER][BODY], 4, is_maker=True)


def handed_of(f: BfvFederation, silo: int = 0) -> Handed:
    return Handed.from_bytes(f.frames["envelopes"][silo][BODY], 5, is_maker=False)


def sign_handed(f: BfvFederation, message: Handed) -> bytes:
    return f.sign_as_aggregator(Kind.HANDED, message.to_bytes(5), recipient=0)


def sealed_by_maker(
    f: BfvFederation, key: bytes, t1: bytes = b"", to: int = 0
) -> bytes:
    """What the maker can seal to a silo: any bytes."""
    maker, own = f.silos[MAKER], handed_of(f)
    return seal_key(
        maker._state.channel,
        f.silos[to]._state.channel.public,
        t1 or own.keys_digest,
        maker._setup.share_header(MAKER, to),
        key,
    )


def other_key(f: BfvFederation) -> bytes:
    return bytes(SEALED_KEY_BYTES - 28)


def committed(f: BfvFederation, key: bytes) -> Handed:
    """A key, its commitment, sealed to silo 0: as from a setup with this key."""
    own = handed_of(f)
    return replace(
        own,
        commitment=commit_to_key(own.keys_digest, key),
        sealed=sealed_by_maker(f, key),
    )


def too_large(f: BfvFederation) -> Handed:
    return committed(f, b"\xff" * len(other_key(f)))


def damaged(f: BfvFederation) -> Handed:
    sealed = bytearray(handed_of(f).sealed)
    sealed[100] ^= 1
    return replace(handed_of(f), sealed=bytes(sealed))


HANDED: dict[str, tuple[Callable[[BfvFederation], Handed], type, str]] = {
    "a bit changed": (damaged, DecryptionFailed, "silo 2 sealed to silo 0"),
    "what was sealed to silo 1": (
        lambda f: replace(handed_of(f), sealed=handed_of(f, 1).sealed),
        DecryptionFailed,
        "does not open",
    ),
    "another commitment": (
        lambda f: replace(handed_of(f), commitment=bytes(32)),
        DecryptionFailed,
        "does not open",
    ),
    "another key than was committed to": (
        lambda f: replace(handed_of(f), sealed=sealed_by_maker(f, other_key(f))),
        DecryptionFailed,
        "does not open",
    ),
    "a key sealed for another setup": (
        lambda f: replace(
            handed_of(f), sealed=sealed_by_maker(f, other_key(f), bytes(32))
        ),
        DecryptionFailed,
        "does not open",
    ),
    "a key that is no key": (too_large, DecryptionFailed, "does not open"),
    "another KEYS": (
        lambda f: replace(handed_of(f), keys_digest=bytes(32)),
        ProtocolViolation,
        "another KEYS",
    ),
    "members without the maker": (
        lambda f: replace(handed_of(f), members=(0, 1, 3, 4)),
        ProtocolViolation,
        "lacks silo 2, which makes the key",
    ),
    "members without me": (
        lambda f: replace(handed_of(f), members=(1, 2, 3, 4)),
        ProtocolViolation,
        "this silo, 0, is not in it",
    ),
    "few members": (
        lambda f: replace(handed_of(f), members=(0, 1, 2)),
        ProtocolViolation,
        "at least 4",
    ),
    "nothing sealed": (
        lambda f: replace(handed_of(f), sealed=b""),
        MalformedMessage,
        "bytes are left",
    ),
}


@pytest.fixture(scope="module")
def dealt(workers) -> tuple[BfvFederation, list[bytes]]:
    """Everyone awaits HANDED; the states, to begin from there again."""
    f = BfvFederation(workers).reach("envelopes")
    return f, [silo.to_bytes() for silo in f.silos]


@pytest.mark.parametrize("name", HANDED)
def test_handed_that_is_not_the_makers_is_refused(dealt, name):
    f, saved = dealt
    forge, raises, match = HANDED[name]
    for i in f.everyone:
        f.restart_silo(i, saved[i])
    before = f.silo_state(0)
    with pytest.raises(raises, match=match):
        f.silos[0].receive_shares(sign_handed(f, forge(f)))
    assert f.silo_state(0) == before and not f.silos[0].has_joined
    f.silos[0].receive_shares(f.frames["envelopes"][0])
    assert f.silos[0].members_digest == f.aggregator.members_digest


def test_different_keys_to_different_silos_come_out_before_anything_is_encrypted(dealt):
    """Maker and aggregator together: silo 0 has another key, and says so in READY."""
    f, saved = dealt
    for i in f.everyone:
        f.restart_silo(i, saved[i])
    f.silos[0].receive_shares(sign_handed(f, committed(f, other_key(f))))
    assert f.silos[0].members_digest != f.aggregator.members_digest
    f.ready((1, 2, 3, 4))
    ready = f.silos[0].ready(0, 1, MODEL)
    with pytest.raises(ProtocolViolation, match="READY for another"):
        f.aggregator.slot.add_ready(ready)
    honest, message = f.silo_state(1), active_of_one(f, 1)
    table = {**message.signatures, 0: ready[-64:]}
    for silo, raises in ((1, InvalidSignature), (0, ProtocolViolation)):
        with pytest.raises(raises):
            f.masked(silo, sign_active(f, replace(message, signatures=table)))
    assert f.silo_state(1) == honest
    f.mask((1, 2, 3, 4))


def active_of_one(f: BfvFederation, silo: int):
    f.frames["active"].setdefault(0, f.frames["active"][silo])
    return active_of(f)


@pytest.mark.parametrize("silo", [0, MAKER])
def test_only_the_maker_deals(workers, silo):
    f = BfvFederation(workers).reach("keys")
    honest = f.silos[silo].share(f.frames["keys"][silo])
    own = Dealt.from_bytes(honest[BODY], 4, is_maker=silo == MAKER)
    if silo == MAKER:
        forged = Dealt(own.keys_digest)
    else:
        sealed = (bytes(SEALED_KEY_BYTES),) * 4
        forged = Dealt(own.keys_digest, bytes(32), sealed)
    header = f.silos[silo]._setup.silo_header(Kind.DEALT, silo)
    before = f.aggregator_state()
    for body in (forged.to_bytes(), bytes(32) + honest[BODY][32:]):
        with pytest.raises(CryptoError):
            f.aggregator.add_shares(make_frame(f.identities[silo], header, body))
        assert f.aggregator_state() == before
    f.share()
    assert f.aggregator.close_members() == tuple(f.everyone)


def test_a_maker_that_goes_back_in_time_is_noticed(workers):
    """It deals another key then; HANDED with the first one is refused, by it alone."""
    f = BfvFederation(workers).reach("keys")
    saved = f.silos[MAKER].to_bytes()
    f.share()
    f.restart_silo(MAKER, saved)
    again = f.silos[MAKER].share(f.frames["keys"][MAKER])
    assert again != f.frames["shares"][MAKER]
    with pytest.raises(ProtocolViolation, match="second, different"):
        f.aggregator.add_shares(again)
    with pytest.raises(ProtocolViolation, match="another key than ours"):
        f.silos[MAKER].receive_shares(f.frames["envelopes"][MAKER])
    f.ready((0, 1, 3, 4))
    f.mask((0, 1, 3, 4))
