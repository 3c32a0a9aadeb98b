"""What it costs to be sent a large message that is refused: forty silos, many slots.

Unsigned damage is refused before the body is looked at. The fuzzer measures the same of
small messages, where Python's own objects are all that counts.
"""

from dataclasses import replace

import numpy as np
import pytest

from crypto.errors import CryptoError
from crypto.frame import Kind, make_frame
from crypto.secagg.config import SecAggConfig
from crypto.secagg.messages import Advertise, Signed
from crypto.secagg.parts import whole
from tests.attacks.forging import BODY, keys_of, resign, sign_keys
from tests.attacks.fuzzing import SLACK_BYTES, TO_SILO, Memory, measured
from tests.attacks.table import deliver, hand_over
from tests.crypto.secagg.federation import Federation

N, R, NUM_WORDS = 40, 16, 200_000
CONFIG = SecAggConfig(num_silos=N, threshold=27, slots_per_setup=R)


@pytest.fixture(scope="module")
def f() -> Federation:
    """Forty silos that have exchanged keys; silo 0 has one vector to send."""
    f = Federation(CONFIG)
    f.parts = whole(NUM_WORDS, range(N))
    f.words = [np.zeros(NUM_WORDS, np.uint64)] * N
    f.advertise()
    f.share()
    return f


def cost(call) -> int:
    """Return the memory that a refusal takes at its most."""
    memory = Memory()
    with pytest.raises(CryptoError), measured(memory):
        call()
    return memory.peak


@pytest.mark.parametrize("stage", ["keys", "envelopes"])
def test_forged_requests_are_not_copied_twice(f, stage):
    frame = f.frames[stage][0]
    assert len(frame) > 40_000
    forged = frame[:-1] + bytes([frame[-1] ^ 1])
    assert cost(lambda: deliver(f, TO_SILO[stage], forged)) <= 1.5 * len(frame)


def test_a_vector_for_another_cohort_is_not_copied():
    """1.6 MB, signed by its silo, whose T3 is not the slot's."""
    f = Federation(SecAggConfig(num_silos=4, threshold=3, slots_per_setup=1))
    f.parts = whole(NUM_WORDS, range(4))
    f.words = [np.zeros(NUM_WORDS, np.uint64)] * 4
    f.reach("active")
    frame = f.masked(1, f.frames["active"][1])
    wrong = bytes(32) + frame[BODY][32:]
    header = f.aggregator._setup.silo_header(Kind.MASKED, 1, 0)
    forged = make_frame(f.identities[1], header, wrong)
    assert cost(lambda: hand_over(f, "add_masked", forged)) <= SLACK_BYTES
    f.aggregator.slot.add_masked(frame)


def keys_that_fail_last(f: Federation) -> bytes:
    """Every entry is authentic; the last one holds one key twice."""
    body = keys_of(f).advertisements[N - 1].body
    message = Advertise.from_bytes(body, R)
    body = Advertise(
        message.slot_publics[0], message.slot_publics, message.commitments
    ).to_bytes()
    forged = Signed(body, resign(f, N - 1, body, Kind.ADVERTISE, 0xFFFFFFFF))
    return sign_keys(f, {N - 1: forged})


def envelopes_that_fail_last(f: Federation) -> bytes:
    """The last envelope of 39 does not open."""
    body = f.frames["envelopes"][0][BODY]
    forged = body[:-1] + bytes([body[-1] ^ 1])
    return f.sign_as_aggregator(Kind.ENVELOPES, forged, recipient=0)


SIGNED = {"share": keys_that_fail_last, "receive_shares": envelopes_that_fail_last}


@pytest.mark.parametrize("method", SIGNED)
def test_a_signed_message_costs_twice_its_size(f, method):
    side = f.silos[0]
    kept, side._state = side._state, _before(side._state, method)
    try:
        forged = SIGNED[method](f)
        peak = cost(lambda: deliver(f, method, forged))
        assert peak <= 2 * len(forged) + SLACK_BYTES
    finally:
        side._state = kept


def _before(state, method: str):
    """Return the state in which silo 0 awaits the message."""
    return replace(state, keys=b"", shares=b"") if method == "share" else state
