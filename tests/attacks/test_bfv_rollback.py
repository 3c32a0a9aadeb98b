"""Whatever is asked of a silo, and however often it goes back: one list in a round.

Silo 0 is real; the other four sign what an aggregator at its worst would like them to,
at random: cohorts, lists and ciphertexts of several slots, rounds and setups, with the
silo's state put back to any earlier one in between.
"""

from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.bfv.digits import chunks_in
from crypto.bfv.messages import decrypt_prefix
from crypto.bfv.parameters import FRESH_BYTES, POLY_DEGREE, SUMMED_BYTES
from crypto.bfv.residues import pack_residues
from crypto.bfv.silo_side import BfvSiloSide
from crypto.bfv.workers import Workers
from crypto.errors import CryptoError, DecryptionRefused
from crypto.frame import Kind
from crypto.secagg.journal import Journal, Stage
from crypto.secagg.messages import Confirms, Survivors
from crypto.secagg.ready import Active, Ready
from tests.attacks.forging import resign
from tests.crypto.bfv.federation import BfvFederation
from tests.crypto.secagg.federation import MODEL

KEY = pack_residues(np.arange(POLY_DEGREE, dtype=np.uint64)[None]).tobytes()
LISTS = [(0, 1, 2, 3, 4), (0, 1, 2, 3), (0, 1, 2, 4), (0, 2, 3, 4)]


class NoWorkers(Workers):
    """An engine that encrypts to zeros and never decrypts a sum."""

    def make_key(self) -> bytes:
        return KEY

    def encrypt(self, key, blocks):
        for block in blocks:
            yield memoryview(bytes(len(block) * FRESH_BYTES))

    def decrypt(self, key, blocks, **fields):
        list(blocks)
        return SimpleNamespace(
            residuals=(1, 1),
            noise_budget_bits=10,
            slots=lambda: iter(()),
            discard=lambda: None,
        )


class Victim:
    """Silo 0, in one setup after another; what it has signed and opened."""

    def __init__(self) -> None:
        self.f = BfvFederation(NoWorkers(num=1))
        self.confirmed = defaultdict(set)
        self.opened = defaultdict(set)
        self.num_refused = 0
        self.join(self.f)

    def join(self, f: BfvFederation) -> None:
        f.reach("envelopes")
        for silo in f.everyone:
            f.silos[silo].receive_shares(f.frames["envelopes"][silo])
        self.f, self.saved = f, [f.silos[0].to_bytes()]

    def new_setup(self) -> None:
        f = self.f
        self.join(
            BfvFederation(NoWorkers(num=1), setup=f.setup + 1, journals=f.journals)
        )

    def roll_back(self, place: int) -> None:
        self.f.restart_silo(0, self.saved[place % len(self.saved)])

    def play(self, slot: int, round_number: int, cohort, survivors, number: int):
        """One slot, as far as the silo goes along."""
        f, silo = self.f, self.f.silos[0]
        silo.ready(slot, round_number, MODEL)
        self.saved.append(silo.to_bytes())
        ready = Ready(silo.members_digest, round_number, MODEL)
        body = ready.to_bytes()
        table = {i: resign(f, i, body, Kind.READY, slot) for i in cohort}
        active = Active(ready, table).to_bytes(5)
        silo.encrypt(
            f.sign_as_aggregator(Kind.ACTIVE, active, slot=slot), f.words[0], f.parts
        )
        self.saved.append(silo.to_bytes())
        t3 = silo.latest_slot.slot_digest
        message = Survivors(t3, survivors)
        body = message.to_bytes(5)
        silo.confirm(f.sign_as_aggregator(Kind.SURVIVORS, body, slot=slot))
        self.confirmed[round_number].add(body)
        self.saved.append(silo.to_bytes())
        table = {i: resign(f, i, body, Kind.CONFIRM, slot) for i in survivors}
        chunks = sum(map(chunks_in, f.layouts(round_number, f.parts)))
        prefix = decrypt_prefix(Confirms(message, table), 5, chunks)
        data = prefix + number.to_bytes(2, "little") + bytes(chunks * SUMMED_BYTES - 2)
        with pytest.raises(DecryptionRefused):
            silo.decrypt(f.sign_as_aggregator(Kind.DECRYPT, data, slot=slot))
        self.opened[round_number].add(data)
        self.saved.append(silo.to_bytes())


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(1, 2),
        st.sampled_from(LISTS),
        st.sampled_from(LISTS),
        st.integers(0, 1),
        st.sampled_from(["", "", "back", "back", "setup"]),
        st.integers(0, 9),
    ),
    min_size=2,
    max_size=8,
)


def play(steps) -> Victim:
    victim = Victim()
    for slot, number, cohort, survivors, which, change, place in steps:
        if change == "setup" and victim.f.setup < 3:
            victim.new_setup()
        if change == "back":
            victim.roll_back(place)
        try:
            victim.play(slot, number, cohort, survivors, which)
        except CryptoError:
            victim.num_refused += 1
    return victim


@settings(max_examples=40)
@given(STEPS)
def test_a_silo_confirms_and_decrypts_once_in_a_round(steps):
    with patch.object(Journal, "has_refused", return_value=False):  # More of them.
        victim = play(steps)
    assert all(len(lists) == 1 for lists in victim.confirmed.values())
    assert all(len(requests) == 1 for requests in victim.opened.values())


SAME = (0, 1, LISTS[0], LISTS[0], 0, "", 0)
TWICE = [
    [SAME, (1, 1, LISTS[1], LISTS[1], 0, "", 0)],
    [SAME, (0, 1, LISTS[0], LISTS[1], 0, "back", 2)],
    [SAME, (0, 1, LISTS[1], LISTS[1], 0, "back", 0)],
    [SAME, (0, 1, LISTS[0], LISTS[0], 1, "back", 3)],
    [SAME, (0, 1, LISTS[0], LISTS[0], 0, "setup", 0)],
    [SAME, (1, 2, LISTS[1], LISTS[1], 0, "", 0)],
    [SAME, (1, 2, LISTS[1], LISTS[1], 0, "back", 0)],
]
"""The last two are of another round, in a setup in which a ciphertext was refused."""


@pytest.mark.parametrize("steps", TWICE)
def test_each_of_these_is_refused(steps):
    victim = play(steps)
    assert victim.num_refused == 1 and len(victim.opened[1]) == 1


@pytest.mark.parametrize(
    "steps",
    [
        [SAME, SAME, SAME],
        [SAME, (0, 1, LISTS[0], LISTS[0], 0, "back", 0)],
        [SAME, (0, 1, LISTS[0], LISTS[0], 0, "back", 3)],
        [SAME, (0, 2, LISTS[1], LISTS[1], 0, "setup", 0)],
    ],
)
def test_and_each_of_these_is_not(steps):
    assert play(steps).num_refused == 0


def test_without_one_confirm_for_a_round_there_are_two_lists(monkeypatch):
    """The same steps when CONFIRM closes nothing, and DECRYPT goes to another silo."""
    monkeypatch.setattr(BfvSiloSide, "confirm_stage", Stage.CONFIRM)
    monkeypatch.setattr(BfvSiloSide, "decrypt", lambda self, request: refuse())
    assert len(play(TWICE[0]).confirmed[1]) == 2


def refuse():
    raise DecryptionRefused
