"""Lies of silo 1 that the aggregator cannot refuse when they come.

They are well formed, signed and in time. A row says where the lie shows: an error that
names silo 1, no sum, and the next setup without it gives the exact sum; or, where the
lie is about its own vector only, the sum of what it really sent.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from crypto.errors import CryptoError, DecryptionFailed, InvalidShare
from crypto.frame import Kind
from crypto.keys import AgreementKey
from crypto.secagg.messages import Advertise, Reveal, Shares
from tests.attacks.forging import BODY, sign, six
from tests.attacks.table import SIX, finish_without_silo_1
from tests.crypto.secagg.federation import Federation

N, R = SIX.num_silos, SIX.slots_per_setup
EVERYONE = range(N)


def advertise_otherwise(f: Federation, **fields: object) -> None:
    """Have silo 1 advertise other fields than its secrets give."""
    honest = Advertise.from_bytes(f.silos[1].advertise()[BODY], R)
    frame = sign(f, Kind.ADVERTISE, replace(honest, **fields).to_bytes())
    f.silos[1]._state = replace(f.silos[1]._state, advertisement=frame)


def deal_otherwise(f: Federation, **secrets: object) -> None:
    """Have silo 1 deal shares of other secrets than it advertised and masks with."""
    f.advertise()
    honest = f.silos[1]._state.secrets
    spoiled = {slot: replace(own, **secrets) for slot, own in honest.items()}
    f.silos[1]._state = replace(f.silos[1]._state, secrets=spoiled)
    f.share()
    f.silos[1]._state = replace(f.silos[1]._state, secrets=honest)


def seal_otherwise(f: Federation, change: Callable[[tuple], tuple]) -> None:
    """Have silo 1 send other envelopes than it has sealed."""
    f.advertise()
    honest = Shares.from_bytes(f.silos[1].share(f.frames["keys"][1])[BODY], N - 1, R)
    changed = replace(honest, sealed=change(honest.sealed)).to_bytes(R)
    f.silos[1]._state = replace(f.silos[1]._state, shares=sign(f, Kind.SHARES, changed))
    f.share()


def other_publics() -> tuple[bytes, ...]:
    return tuple(AgreementKey.generate().public for _ in range(R))


@dataclass(frozen=True)
class Lie:
    """A field, the lie, who notices by which error, and who is lost before it."""

    message: str
    field: str
    tell: Callable[[Federation], None]
    raises: type[CryptoError]
    by: str
    lost: tuple[int, ...] = ()


LIES = [
    Lie(
        "ADVERTISE",
        "channel key of another secret",
        lambda f: advertise_otherwise(f, channel_public=other_publics()[0]),
        DecryptionFailed,
        "silo 0",
    ),
    Lie(
        "ADVERTISE",
        "slot keys of other secrets; it is lost",
        lambda f: advertise_otherwise(f, slot_publics=other_publics()),
        InvalidShare,
        "the aggregator",
        lost=(1,),
    ),
    Lie(
        "ADVERTISE",
        "commitments to other seeds",
        lambda f: advertise_otherwise(f, commitments=(bytes(32),) * R),
        InvalidShare,
        "the aggregator",
    ),
    Lie(
        "SHARES",
        "envelopes of noise",
        lambda f: seal_otherwise(f, lambda sealed: (bytes(148),) * len(sealed)),
        DecryptionFailed,
        "silo 0",
    ),
    Lie(
        "SHARES",
        "envelopes in another order",
        lambda f: seal_otherwise(f, lambda sealed: sealed[::-1]),
        DecryptionFailed,
        "silo 0",
    ),
    Lie(
        "SHARES",
        "shares of another mask seed",
        lambda f: deal_otherwise(f, mask_seed=bytes(32)),
        InvalidShare,
        "the aggregator",
    ),
    Lie(
        "SHARES",
        "shares of another slot key; it is lost",
        lambda f: deal_otherwise(f, agreement=AgreementKey.generate()),
        InvalidShare,
        "the aggregator",
        lost=(1,),
    ),
]


def play(f: Federation, lie: Lie) -> None:
    """Go through the stages until somebody notices."""
    lie.tell(f)
    if "keys" not in f.frames:
        f.advertise()
    if "envelopes" not in f.frames:
        f.share()
    before = f.silo_state(0)
    if lie.by == "silo 0":
        with pytest.raises(lie.raises, match="silo 1"):
            f.silos[0].receive_shares(f.frames["envelopes"][0])
        assert f.silo_state(0) == before
        return
    f.ready()
    left = [silo for silo in EVERYONE if silo not in lie.lost]
    f.mask(left)
    f.confirm(left)
    for silo in left:
        reply = f.silos[silo].reveal(f.frames["confirms"][silo])
        f.aggregator.slot.add_reveal(reply)
    state = f.aggregator_state()
    with pytest.raises(lie.raises, match="silo 1"):
        f.aggregator.slot.unmask()
    assert f.aggregator_state() == state
    assert not f.aggregator.slot.sum_digest


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: f"{lie.message}-{lie.field}")
def test_the_lie_is_noticed_named_and_gives_no_sum(lie):
    play(six(), lie)
    finish_without_silo_1(Federation(SIX, setup=2), "start")


def test_a_key_that_it_does_not_mask_with_spoils_its_own_vector_only():
    """Surviving, silo 1 could as well have sent the difference as its vector."""
    f = six()
    advertise_otherwise(f, slot_publics=other_publics())
    f.reach("confirms")
    total = f.reveal(EVERYONE)
    others = f.plain_sum([0, 2, 3, 4, 5])
    assert np.count_nonzero(total - others - f.words[1]) == total.size


def test_any_words_are_summed():
    """A silo chooses its vector: masks hide it, and do not judge it."""
    f = six().reach("active")
    lie = np.full(f.words[1].size, 2**64 - 1, np.uint64)
    f.words[1] = lie
    f.mask(EVERYONE)
    f.confirm(EVERYONE)
    assert (f.reveal(EVERYONE) == f.plain_sum(EVERYONE)).all()


# ------------------------------------------------------------------ wrong shares

WRONG = {
    "another element": lambda share: bytes(32) + b"\x07",
    "no field element": lambda share: b"\xff" * 33,
    "a bit changed": lambda share: share[:-1] + bytes([share[-1] ^ 1]),
}


def wrong_reveal(f: Federation, silo: int, lie, places=EVERYONE) -> bytes:
    """A REVEAL with wrong shares of some secrets, signed by its silo."""
    frame = f.silos[silo].reveal(f.frames["confirms"][silo])
    honest = Reveal.from_bytes(frame[BODY], N)
    shares = [
        lie(share) if place in places else share
        for place, share in enumerate(honest.shares)
    ]
    body = Reveal(honest.slot_digest, shares).to_bytes()
    f.identities[1], kept = f.identities[silo], f.identities[1]
    frame = sign(f, Kind.REVEAL, body, silo=silo)
    f.identities[1] = kept
    return frame


@pytest.mark.parametrize("lie", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("places", [(0,), (3,), tuple(EVERYONE)], ids=str)
@pytest.mark.parametrize("liar", [0, 1, 5])
def test_wrong_shares_of_one_silo_are_left_out(liar, places, lie):
    """Silo 3 is lost: place 3 is a share of its key, the others are of seeds."""
    f = six().reach("confirms", lost_before_upload=[3])
    f.aggregator.slot.add_reveal(wrong_reveal(f, liar, lie, places))
    for silo in {0, 1, 2, 4, 5} - {liar}:
        f.aggregator.slot.add_reveal(f.silos[silo].reveal(f.frames["confirms"][silo]))
    total = f.aggregator.slot.unmask()
    assert (total == f.plain_sum([0, 1, 2, 4, 5])).all()


@pytest.mark.parametrize("liars", [(0, 1), (4, 5)], ids=str)
@pytest.mark.parametrize("name", ["another element", "no field element"])
def test_a_coalition_of_liars_stalls_the_slot_and_changes_no_sum(liars, name):
    """Five answer, two lie, four are needed: no sum. A sixth honest answer opens it."""
    f = six().reach("confirms")
    slot, asked = f.aggregator.slot, f.frames["confirms"]
    honest = [silo for silo in EVERYONE if silo not in liars]
    for silo in liars:
        slot.add_reveal(wrong_reveal(f, silo, WRONG[name]))
    for silo in honest[:3]:
        slot.add_reveal(f.silos[silo].reveal(asked[silo]))
    before = f.aggregator_state()
    with pytest.raises(InvalidShare, match="silo 0"):
        slot.unmask()
    assert f.aggregator_state() == before
    slot.add_reveal(f.silos[honest[3]].reveal(asked[honest[3]]))
    assert (slot.unmask() == f.plain_sum(EVERYONE)).all()


def test_liars_that_share_their_polynomial_are_noticed_too():
    """Wrong shares that fit each other: a secret comes out, but not the committed."""
    f = six().reach("confirms")
    for silo in (0, 1, 2, 3):
        f.aggregator.slot.add_reveal(wrong_reveal(f, silo, lambda share: bytes(33)))
    with pytest.raises(InvalidShare, match="silo 0"):
        f.aggregator.slot.unmask()
