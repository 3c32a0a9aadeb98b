"""The aggregator and c silos together want both kinds of share of one honest silo.

They tell the honest silos two lists of survivors, one with the victim and one without
it. Every list needs t confirmations before anybody reveals. With 2t > n + c the honest
silos are too few to give both, however they are divided; with one colluder more than
the parameters allow, the same attack opens the victim's vector: the bound is tight, and
the attack is a real one.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from crypto.errors import CryptoError, ProtocolViolation
from crypto.frame import Kind
from crypto.keys import AgreementKey
from crypto.secagg.config import SecAggConfig
from crypto.secagg.masks import SlotSecrets, mask
from crypto.secagg.messages import Confirms, Reveal, Survivors
from crypto.shamir import combine
from tests.attacks.forging import BODY, resign
from tests.crypto.secagg.federation import Federation

VICTIM = 0


@dataclass(frozen=True)
class Coalition:
    """n silos, threshold t, of whom the last ``colluding`` ones collude."""

    num_silos: int
    threshold: int
    allowed: int
    colluding: int

    @property
    def honest(self) -> range:
        return range(self.num_silos - self.colluding)

    def federation(self) -> Federation:
        config = SecAggConfig(
            num_silos=self.num_silos,
            threshold=self.threshold,
            max_colluding=self.allowed,
            min_cohort=self.allowed + 2,
            slots_per_setup=1,
        )
        return Federation(config).reach("survivors")


TIGHT = [
    Coalition(4, 3, 1, 1),
    Coalition(5, 4, 2, 2),
    Coalition(6, 4, 1, 1),
    Coalition(7, 5, 2, 2),
    Coalition(10, 7, 3, 3),
]
"""2t = n + c + 1: no threshold below would be accepted."""


class Attack:
    """One attempt, with ``first`` honest silos on the victim's list."""

    def __init__(self, coalition: Coalition, first: int) -> None:
        self.f, self.coalition = coalition.federation(), coalition
        everyone = tuple(self.f.everyone)
        t3 = self.f.silos[VICTIM].latest_slot.slot_digest
        self.lists = (
            Survivors(t3, everyone),
            Survivors(t3, tuple(i for i in everyone if i != VICTIM)),
        )
        honest = list(coalition.honest)
        self.groups = (honest[:first], honest[first:])

    def confirmations(self, which: int) -> dict[int, bytes]:
        """The signatures under one list: its honest group's, and all colluders'."""
        f, message = self.f, self.lists[which]
        body = message.to_bytes(f.config.num_silos)
        frame = f.sign_as_aggregator(Kind.SURVIVORS, body, slot=0)
        table = {i: f.silos[i].confirm(frame)[-64:] for i in self.groups[which]}
        colluders = set(f.everyone) - set(self.coalition.honest)
        return table | {i: resign(f, i, body, Kind.CONFIRM) for i in colluders}

    def shares(self, which: int) -> dict[int, bytes]:
        """The shares of the victim's seed (0) or key (1) that the coalition gets."""
        f = self.f
        held = {
            i: f.silos[i]._state.held[VICTIM][33 * which : 33 * which + 33]
            for i in set(f.everyone) - set(self.coalition.honest)
        }
        message = Confirms(self.lists[which], self.confirmations(which))
        body = message.to_bytes(f.config.num_silos)
        frame = f.sign_as_aggregator(Kind.CONFIRMS, body, slot=0)
        for silo in self.groups[which]:
            try:
                reply = f.silos[silo].reveal(frame)
            except ProtocolViolation as error:
                assert "are needed" in str(error)
                continue
            shares = Reveal.from_bytes(bytes(reply[BODY]), f.config.num_silos).shares
            held[silo] = shares[VICTIM]
        return held


def open_both(attack: Attack) -> tuple[bytes | None, ...]:
    """Return the victim's mask seed and slot key, where there are enough shares."""
    threshold = attack.coalition.threshold
    opened = []
    for which in (0, 1):
        shares = attack.shares(which)
        enough = len(shares) >= threshold
        opened.append(combine(shares, threshold) if enough else None)
    return tuple(opened)


@pytest.mark.parametrize("coalition", TIGHT, ids=str)
def test_however_the_honest_are_divided_one_kind_of_share_is_missing(coalition):
    for first in range(1, len(coalition.honest) + 1):
        attack = Attack(coalition, first)
        own = attack.f.silos[VICTIM]._state.secrets[0]
        seed, key = open_both(attack)
        assert seed is None or key is None
        assert seed in (None, own.mask_seed)
        assert key in (None, own.agreement.to_bytes())


@pytest.mark.parametrize("coalition", TIGHT, ids=str)
def test_for_the_second_list_just_one_confirmation_is_missing(coalition):
    """t - c honest silos make the first list valid; t - 1 sign the second."""
    t, c = coalition.threshold, coalition.colluding
    attack = Attack(coalition, t - c)
    assert len(attack.confirmations(0)) == t
    assert len(attack.confirmations(1)) == t - 1
    second = Confirms(attack.lists[1], attack.confirmations(1))
    f = attack.f
    body = second.to_bytes(f.config.num_silos)
    frame = f.sign_as_aggregator(Kind.CONFIRMS, body, slot=0)
    for silo in attack.groups[1]:
        before = f.silo_state(silo)
        with pytest.raises(ProtocolViolation, match=f"{t - 1} silos, {t} are needed"):
            f.silos[silo].reveal(frame)
        assert f.silo_state(silo) == before


@pytest.mark.parametrize("coalition", TIGHT, ids=str)
def test_nobody_confirms_both_lists(coalition):
    attack = Attack(coalition, len(coalition.honest))
    attack.confirmations(0)
    attack.groups = ([], attack.groups[0])
    f = attack.f
    body = attack.lists[1].to_bytes(f.config.num_silos)
    frame = f.sign_as_aggregator(Kind.SURVIVORS, body, slot=0)
    for silo in coalition.honest:
        before = f.silo_state(silo)
        with pytest.raises(CryptoError):
            f.silos[silo].confirm(frame)
        assert f.silo_state(silo) == before


def unmasked(attack: Attack, seed: bytes, key: bytes) -> np.ndarray:
    """The victim's vector, from what it sent and both of its secrets."""
    f = attack.f
    progress = f.silos[VICTIM].latest_slot
    publics = f.silos[1]._setup.slot_publics(f.silos[1]._state.keys, 0, f.everyone)
    masks = np.zeros(f.words[VICTIM].size, np.uint64)
    own = SlotSecrets(seed, AgreementKey.from_bytes(key))
    mask(masks, own, VICTIM, publics, progress.slot_digest, progress.parts)
    sent = np.frombuffer(f.frames["masked"][VICTIM][72:-64], "<u8")
    return sent - masks


@pytest.mark.parametrize(("n", "t", "c"), [(4, 3, 1), (6, 4, 1), (7, 5, 2)])
def test_one_colluder_more_than_allowed_opens_the_victim(n, t, c):
    """The bound is tight: the same attack succeeds against c + 1 colluders."""
    attack = Attack(Coalition(n, t, c, c + 1), t - c - 1)
    seed, key = open_both(attack)
    assert seed is not None and key is not None
    words = unmasked(attack, seed, key)
    assert (words == attack.f.words[VICTIM]).all()


@pytest.mark.parametrize("coalition", TIGHT, ids=str)
def test_after_an_honest_run_the_coalition_has_one_kind_of_share(coalition):
    """All answers of an honest slot, and all that colluders hold."""
    attack = Attack(coalition, len(coalition.honest))
    assert len(attack.shares(0)) == coalition.num_silos
    attack.groups = ([], [])
    assert len(attack.shares(1)) == coalition.colluding < coalition.threshold


def test_one_slots_secrets_open_no_other():
    """A dropout's key of slot 0 is revealed; slot 1 has another key and seed."""
    config = SecAggConfig(num_silos=5, threshold=4, slots_per_setup=2)
    f = Federation(config)
    f.advertise()
    f.share()
    own = dict(f.silos[VICTIM]._state.secrets)
    f.ready()
    left = [1, 2, 3, 4]
    f.mask(left)
    f.confirm(left)
    f.reveal(left)
    slot = f.aggregator.slot
    revealed = {
        i: Reveal.from_bytes(f.frames["reveal"][i][BODY], 5).shares[VICTIM]
        for i in left
    }
    assert combine(revealed, 4) == own[0].agreement.to_bytes()
    assert own[0].agreement.public != own[1].agreement.public
    assert own[0].mask_seed != own[1].mask_seed
    assert (slot.total == f.plain_sum(left)).all()
    f.slot, f.round_number = 1, 2
    f.ready()
    f.mask(f.everyone)
    f.confirm(f.everyone)
    assert (f.reveal(f.everyone) == f.plain_sum(f.everyone)).all()
