"""Lists, rounds and answers of encryption: who can lie, and what stops it.

Beside ``test_bfv_sums``, where the aggregator lies about the ciphertext. Stages that
masks have too are attacked in ``test_malicious_aggregator``: their code is the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from crypto.bfv.messages import decrypt_prefix
from crypto.bfv.parameters import SEALED_KEY_BYTES
from crypto.bfv.silo_side import BfvSiloSide
from crypto.bfv.workers import Workers
from crypto.errors import (
    CryptoError,
    InvalidSignature,
    MalformedMessage,
    ProtocolViolation,
)
from crypto.frame import AGGREGATOR, Header, Kind, make_frame
from crypto.secagg.digests import sum_digest
from crypto.secagg.journal import Stage
from crypto.secagg.messages import Confirms, Masked, Survivors
from tests.attacks.forging import (
    BODY,
    resign,
    sign_in_slot,
    survivors_of,
)
from tests.crypto.bfv.federation import BfvFederation
from tests.crypto.secagg.federation import MODEL


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(num=1) as made:
        yield made


# ------------------------------------------------------------------ one list in a round


def sum_in(f: BfvFederation, silo: int) -> np.ndarray:
    """Have one silo decrypt the open slot; what the aggregator then knows."""
    reply = f.silos[silo].decrypt(f.frames["confirms"][silo])
    return np.frombuffer(reply[BODY][40:], "<u8")


def next_slot(f: BfvFederation, silos) -> None:
    """Give the slot up and take another one for the same round, from these silos.

    A dishonest aggregator does so although its own code refuses.
    """
    f.aggregator._slot._state.survivors = f.aggregator._slot._state.confirms = b""
    f.slot += 1
    f.ready(silos)
    f.mask(silos)
    f.confirm(silos)


def test_two_slots_of_a_round_do_not_give_two_sums(workers):
    """All confirm in slot 0, silo 0 decrypts; then slot 1 of the round, without it."""
    f = BfvFederation(workers).reach("confirms")
    assert sum_in(f, 0).any()
    states = [f.silo_state(i) for i in f.everyone]
    with pytest.raises(ProtocolViolation, match="its only list of survivors confirmed"):
        next_slot(f, (1, 2, 3, 4))
    assert [f.silo_state(i) for i in f.everyone] == states
    assert (sum_in(f, 1) == f.plain_sum(f.everyone)).all()
    assert f.silos[1].ready(1, 2, MODEL)


def test_with_a_confirm_for_each_slot_they_would(workers, monkeypatch):
    """Why CONFIRM is one for the round: the difference is silo 0's own vector."""
    monkeypatch.setattr(BfvSiloSide, "confirm_stage", Stage.CONFIRM)
    f = BfvFederation(workers).reach("confirms")
    first = sum_in(f, 0)
    next_slot(f, (1, 2, 3, 4))
    assert (first - sum_in(f, 1) == f.words[0]).all()


def test_neither_do_two_slots_of_two_setups(workers):
    f = BfvFederation(workers).reach("confirms")
    again = BfvFederation(workers, setup=2, journals=f.journals)
    with pytest.raises(ProtocolViolation, match="its only list of survivors confirmed"):
        again.reach("confirms")
    again.slot, again.round_number = 1, 2
    again.ready()
    again.mask(again.everyone)


def test_an_attempt_that_was_not_confirmed_may_be_repeated(workers):
    """A slot given up before SURVIVORS costs nothing: the next one serves the round."""
    f = BfvFederation(workers).reach("active")
    f.aggregator.slot.add_encrypted(f.masked(0, f.frames["active"][0]))
    f.slot = 1
    f.ready()
    f.mask(f.everyone)
    f.confirm(f.everyone)
    assert (f.reveal() == f.plain_sum(f.everyone)).all()


def test_the_aggregator_gives_no_slot_up_that_may_be_confirmed(workers):
    f = BfvFederation(workers).reach("survivors")
    assert f.aggregator.slot.is_last and not f.aggregator.slot.is_revealing
    with pytest.raises(RuntimeError, match="no further slot serves it"):
        f.aggregator.open_slot(1, 1, MODEL, f.parts)
    f.confirm(f.everyone)
    assert (f.reveal() == f.plain_sum(f.everyone)).all()


FOUR = (0, 1, 2, 3)
"""A list for silo 0; the others are told of all five. Silo 4 signs what is asked."""


def test_two_lists_to_two_silos_open_neither(workers):
    f = BfvFederation(workers).reach("survivors")
    slot_digest = survivors_of(f).slot_digest
    lists = {0: Survivors(slot_digest, FOUR), 1: Survivors(slot_digest, (*FOUR, 4))}
    told = {0: 0, 1: 1, 2: 1, 3: 1}
    signed: dict[int, dict[int, bytes]] = {0: {}, 1: {}}
    for silo, which in told.items():
        frame = sign_in_slot(f, Kind.SURVIVORS, lists[which])
        signed[which][silo] = f.silos[silo].confirm(frame)[-64:]
    for which, message in lists.items():
        body = message.to_bytes(5)
        signed[which][4] = resign(f, 4, body, Kind.CONFIRM)
    total = f.aggregator.slot.total
    packed = bytes(len(total) * 8 * 60 // 64)

    def request(which: int, signatures: dict[int, bytes]) -> bytes:
        confirms = Confirms(lists[which], signatures)
        prefix = decrypt_prefix(confirms, 5, f.aggregator.slot.num_ciphertexts)
        return f.sign_as_aggregator(Kind.DECRYPT, prefix + packed, slot=0)

    before = f.silo_state(0)
    for which, signatures, raises, match in (
        (0, signed[0], ProtocolViolation, "2 silos, 4 are needed"),
        (0, signed[0] | signed[1], InvalidSignature, "CONFIRM of silo"),
        (1, signed[1], ProtocolViolation, "did not confirm"),
    ):
        with pytest.raises(raises, match=match):
            f.silos[0].decrypt(request(which, signatures))
    with pytest.raises(ProtocolViolation, match="differ from those confirmed"):
        f.silos[0].confirm(sign_in_slot(f, Kind.SURVIVORS, lists[1]))
    assert f.silo_state(0) == before
    # The other three and the liar are enough for their list; silo 0's vector is in it.
    for silo in (1, 2, 3, 4):
        f.silos[silo].confirm(f.frames["survivors"][silo])
        f.aggregator.slot.add_confirm(
            f.silos[silo].confirm(f.frames["survivors"][silo])
        )
    f.aggregator.slot.confirms()
    frame = bytes(f.aggregator.slot.decrypt_request())
    f.frames["confirms"] = dict.fromkeys(f.everyone, frame)
    assert (f.reveal((1, 2)) == f.plain_sum(f.everyone)).all()


# ------------------------------------------------------------------ one dishonest silo


@dataclass(frozen=True)
class Lie:
    """What silo 1 answers in place of DECRYPTED, and what it raises."""

    words: Callable[[np.ndarray], np.ndarray]
    t3: bytes | None = None
    sender: int = 1
    raises: type[CryptoError] | None = None


LIES = {
    "another sum": Lie(lambda words: words + np.uint64(1)),
    "a word less": Lie(lambda words: words[:-1], raises=MalformedMessage),
    "another cohort": Lie(lambda words: words, bytes(32), raises=ProtocolViolation),
    "of one that is no survivor": Lie(
        lambda words: words, sender=4, raises=ProtocolViolation
    ),
}


@pytest.fixture(scope="module")
def confirmed(workers) -> tuple[BfvFederation, np.ndarray, dict[int, bytes]]:
    """Four survivors have confirmed; what all of them would decrypt."""
    f = BfvFederation(workers).reach("confirms", lost_before_upload=[4])
    replies = {i: f.silos[i].decrypt(f.frames["confirms"][i]) for i in (0, 2)}
    return f, f.plain_sum((0, 1, 2, 3)), replies


@pytest.mark.parametrize("name", LIES)
def test_a_lying_witness_changes_no_sum(confirmed, name):
    f, total, replies = confirmed
    f.restart_aggregator()
    slot, lie = f.aggregator.slot, LIES[name]
    slot.add_decrypted(replies[0])
    words = np.ascontiguousarray(lie.words(total))
    t3 = lie.t3 or survivors_of(f).slot_digest
    message = Masked(t3, words.data.cast("B"))
    header = Header(Kind.DECRYPTED, f.run, f.setup, 0, lie.sender, AGGREGATOR)
    frame = make_frame(f.identities[lie.sender], header, message.to_bytes())
    if lie.raises:
        before = f.aggregator_state()
        with pytest.raises(lie.raises):
            slot.add_decrypted(frame)
        assert f.aggregator_state() == before
    else:
        slot.add_decrypted(frame)
    with pytest.raises(ProtocolViolation, match="1 silos agree on the sum, 2 must"):
        slot.decrypted_sum()
    slot.add_decrypted(replies[2])
    assert slot.agreeing_silos == (0, 2)
    assert (slot.decrypted_sum() == total).all()
    assert slot.sum_digest == sum_digest(survivors_of(f).slot_digest, total.tobytes())


def test_a_sum_that_was_announced_is_not_replaced(confirmed):
    """Two silos that lie together, after a restart; more than may collude."""
    f, total, replies = confirmed
    f.restart_aggregator()
    for reply in replies.values():
        f.aggregator.slot.add_decrypted(reply)
    f.aggregator.slot.decrypted_sum()
    notice = f.aggregator.slot.sum_notice()
    f.restart_aggregator()
    slot, words = f.aggregator.slot, total + np.uint64(1)
    message = Masked(survivors_of(f).slot_digest, words.data.cast("B"))
    for silo in (1, 3):
        header = Header(Kind.DECRYPTED, f.run, f.setup, 0, silo, AGGREGATOR)
        frame = make_frame(f.identities[silo], header, message.to_bytes())
        slot.add_decrypted(frame)
    with pytest.raises(ProtocolViolation, match="another sum than the one announced"):
        slot.decrypted_sum()
    assert slot.sum_notice() == notice


def test_wrong_tags_of_one_silo_spoil_the_round_and_nothing_more(workers):
    """Denial of service by a member: no silo decrypts, nobody learns who it was."""
    f = BfvFederation(workers).reach("active")
    honest = f.silos[1]._state
    other = bytes(SEALED_KEY_BYTES - 28)
    f.silos[1]._state = replace(honest, secret_key=other)
    f.mask(f.everyone)
    f.silos[1]._state = replace(f.silos[1]._state, secret_key=honest.secret_key)
    f.confirm(f.everyone)
    for silo in (0, 3):
        with pytest.raises(CryptoError, match="refused: not the sum"):
            f.silos[silo].decrypt(f.frames["confirms"][silo])
    assert f.workers.num_let_out == 0
    f = BfvFederation(workers, setup=2, journals=f.journals)
    f.round_number = 2
    f.reach("confirms")
    assert (f.reveal() == f.plain_sum(f.everyone)).all()


def damaged_uploads(f: BfvFederation) -> dict[str, bytes]:
    """What silo 1 may send for ENCRYPTED."""
    body = f.masked(1, f.frames["active"][1])[BODY]
    place = 36
    bodies = {
        "a residue out of range": body[:place] + b"\xff" * 30720 + body[-64:],
        "a byte less": body[:-1],
        "a byte more": body + b"\0",
        "another number": body[:35] + b"\x02" + body[36:],
        "another cohort": bytes(32) + body[32:],
    }
    header = f.silos[1]._setup.silo_header(Kind.ENCRYPTED, 1, 0)
    return {k: make_frame(f.identities[1], header, b) for k, b in bodies.items()}


def test_uploads_that_are_none_change_no_sum(workers):
    f = BfvFederation(workers).reach("active")
    f.aggregator.slot.add_encrypted(f.masked(0, f.frames["active"][0]))
    before = f.aggregator_state()
    for frame in damaged_uploads(f).values():
        with pytest.raises((MalformedMessage, ProtocolViolation)):
            f.aggregator.slot.add_encrypted(frame)
        assert f.aggregator_state() == before
    f.aggregator.slot.add_encrypted(f.masked(1, f.frames["active"][1]))
    with pytest.raises(ProtocolViolation, match="second, different"):
        f.aggregator.slot.add_encrypted(f.masked(1, f.frames["active"][1]))
