"""Whole slots by encryption: dropouts, parts, resends and restarts at every stage."""

from collections.abc import Iterator

import numpy as np
import pytest

from crypto.bfv.parameters import FRESH_BYTES, POLY_BYTES
from crypto.bfv.workers import Workers
from crypto.errors import CryptoError, MalformedMessage, ProtocolViolation, WorkerFailed
from crypto.frame import Kind, make_frame
from crypto.secagg.journal import Journal
from crypto.secagg.messages import SumNotice
from crypto.secagg.parts import Part
from tests.crypto.bfv.federation import (
    FIVE,
    TWO_CHUNKS,
    BfvFederation,
    whole_words,
)
from tests.crypto.secagg.federation import MODEL, OTHER_MODEL, STAGES

BODY = slice(32, -64)
DEALT = (Part(5, (0, 1, 2, 3)), Part(4, (0, 1, 2, 3)), Part(3, (1, 2, 3)))
"""Silo 4 contributes to no part, silo 0 to two."""


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(num=1) as made:
        yield made


def is_sum(f: BfvFederation, total: np.ndarray, silos) -> bool:
    return bool((total == f.plain_sum(silos)).all())


def test_a_slot_sums_as_masks_would(workers):
    f = BfvFederation(workers).reach("confirms")
    assert is_sum(f, f.reveal(), f.everyone)
    digests = {f.silos[i].close_slot(f.frames["sum"][i]) for i in f.everyone}
    assert digests == {f.aggregator.slot.sum_digest}


@pytest.mark.parametrize(
    ("before_upload", "after_upload"),
    [((3,), ()), ((), (4,))],
    ids=["before_upload", "after_upload"],
)
def test_lost_silos_cost_nothing(workers, before_upload, after_upload):
    f = BfvFederation(workers)
    f.reach(
        "confirms", lost_before_upload=before_upload, lost_after_upload=after_upload
    )
    survivors = set(f.everyone) - set(before_upload)
    assert is_sum(f, f.reveal((2, 1)), survivors)


def test_a_silo_lost_before_dealing_and_one_before_ready(workers):
    config = FIVE.__class__(
        num_silos=6, threshold=4, slots_per_setup=3, protection="bfv", key_maker=5
    )
    f = BfvFederation(workers, config)
    f.advertise(range(5))  # Silo 5, of the plan, is not there: silo 0 makes the key.
    assert f.aggregator.key_maker == 0
    f.share(range(5))
    f.ready(range(4))
    f.mask(range(4))
    f.confirm(range(4))
    assert is_sum(f, f.reveal((1, 3)), range(4))


def test_without_the_maker_there_is_no_setup(workers):
    f = BfvFederation(workers)
    f.advertise()
    for silo in (0, 1, 3, 4):
        f.aggregator.add_shares(f.silos[silo].share(f.frames["keys"][silo]))
    with pytest.raises(ProtocolViolation, match="silo 2, which makes the key"):
        f.aggregator.close_members()
    f.aggregator.add_shares(f.silos[2].share(f.frames["keys"][2]))
    assert f.aggregator.close_members() == (0, 1, 2, 3, 4)


def test_parts_are_summed_over_their_own_contributors(workers):
    f = BfvFederation(workers, parts=DEALT).reach("confirms")
    assert is_sum(f, f.reveal((4, 0)), f.everyone)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_part_may_not_lose_its_group(workers, lost):
    parts = (Part(5, (0, 1, 2, 3)), Part(3, (0, 2, 3, 4)))
    f = BfvFederation(workers, parts=parts).reach("active")
    f.mask(set(f.everyone) - {lost})
    f.confirm(set(f.everyone) - {lost})
    assert is_sum(f, f.reveal((2, 3)), set(f.everyone) - {lost})
    f = BfvFederation(workers, parts=DEALT).reach("active")
    with pytest.raises(ProtocolViolation, match="part 2 has 2 contributors"):
        f.mask({0, 1, 2, 4})


def test_two_ciphertexts_in_a_part(workers):
    f = BfvFederation(
        workers, parts=(Part(TWO_CHUNKS, (0, 1, 2, 3, 4)),), layouts=whole_words
    )
    f.reach("confirms")
    assert is_sum(f, f.reveal(), f.everyone)


def test_an_upload_that_turns_out_damaged_is_taken_back(workers, monkeypatch):
    monkeypatch.setattr("crypto.bfv.aggregator_slot._BLOCK_POLYS", 1)
    parts = (Part(TWO_CHUNKS, (0, 1, 2, 3, 4)), Part(5, (1, 2, 3)))
    f = BfvFederation(workers, parts=parts, layouts=whole_words).reach("active")
    slot = f.aggregator.slot
    slot.add_encrypted(f.masked(0, f.frames["active"][0]))
    before, good = slot.total.copy(), f.masked(1, f.frames["active"][1])
    body = bytearray(good[BODY])
    for place in (36 + FRESH_BYTES, 36 + 2 * FRESH_BYTES):
        damaged = body[:place] + b"\xff" * POLY_BYTES + body[place + POLY_BYTES :]
        header = f.silos[1]._setup.silo_header(Kind.ENCRYPTED, 1, 0)
        with pytest.raises(MalformedMessage, match="q or more"):
            slot.add_encrypted(make_frame(f.identities[1], header, damaged))
        assert (slot.total == before).all()
    slot.add_encrypted(good)
    assert (slot.total != before).any()


def test_two_rounds_in_one_setup_and_the_next_setup(workers):
    f = BfvFederation(workers).reach("confirms")
    first = f.reveal()
    f.slot, f.round_number = 1, 2
    f.words = [f.draw_words(10 + silo) for silo in f.everyone]
    for step in (f.ready, lambda: f.mask(f.everyone), lambda: f.confirm(f.everyone)):
        step()
    second = f.reveal((3, 4))
    assert is_sum(f, second, f.everyone) and not is_sum(f, first, f.everyone)
    again = BfvFederation(workers, setup=2, journals=f.journals)
    again.round_number = 3
    again.reach("confirms")
    assert is_sum(again, again.reveal(), again.everyone)


# ------------------------------------------------------------------ resends, restarts


def give(f: BfvFederation, silo: int, stage: str) -> object:
    """Hand a silo the honest message of a stage."""
    frame, side = f.frames[stage][silo], f.silos[silo]
    if stage == "active":
        return f.masked(silo, frame)
    return {
        "keys": side.share,
        "envelopes": side.receive_shares,
        "survivors": side.confirm,
        "confirms": side.decrypt,
        "sum": side.close_slot,
    }[stage](frame)


@pytest.mark.parametrize("is_restarted", [False, True], ids=["", "restarted"])
def test_the_same_request_gets_the_same_answer(workers, is_restarted):
    """At every stage; ENCRYPTED is made anew, from the same words, and counts once."""
    f = BfvFederation(workers).reach("keys")
    later = {
        "keys": f.share,
        "envelopes": f.ready,
        "active": lambda: f.mask(f.everyone),
        "survivors": lambda: f.confirm(f.everyone),
        "confirms": f.reveal,
        "sum": lambda: None,
    }
    for stage, go_on in later.items():
        answers = []
        for _ in range(2):
            if is_restarted:
                f.restart_silo(0)
            before = f.silo_state(0)
            answers.append(give(f, 0, stage))
            if len(answers) == 2:
                assert f.silo_state(0) == before
        if stage != "active":
            assert answers[0] == answers[1]
        go_on()
    assert is_sum(f, f.aggregator.slot.decrypted_sum(), f.everyone)


def test_every_state_of_a_silo_can_be_the_last_one(workers):
    """A silo that goes back to any state goes on from there, as its journal allows."""
    saved = []
    f = BfvFederation(workers)
    for step in (
        f.advertise,
        f.share,
        f.ready,
        lambda: f.mask(f.everyone),
        lambda: f.confirm(f.everyone),
        f.reveal,
    ):
        step()
        saved.append(f.silos[0].to_bytes())
    for state in saved[3:]:
        f.restart_silo(0, state)
        f.silos[0].confirm(f.frames["survivors"][0])
        assert f.silos[0].decrypt(f.frames["confirms"][0]) == f.frames["reveal"][0]
        f.silos[0].close_slot(f.frames["sum"][0])
    f.restart_silo(0, saved[2])
    f.silos[0].ready(f.slot, f.round_number, MODEL)
    with pytest.raises(ProtocolViolation, match=r"MASKED in slot 0.*otherwise"):
        f.masked(0, f.frames["active"][0], f.words[1])
    again = f.masked(0, f.frames["active"][0])
    assert len(again) == len(f.frames["masked"][0])


def test_the_aggregator_goes_on_from_every_stage(workers):
    f = BfvFederation(workers, parts=DEALT)
    for step in (
        f.advertise,
        f.share,
        f.ready,
        lambda: f.mask(f.everyone),
        lambda: f.confirm(f.everyone),
    ):
        step()
        f.restart_aggregator()
        if f.aggregator.has_slot and not f.aggregator.slot.survivor_indices:
            assert f.aggregator.slot.active() == f.frames["active"][0]
    assert bytes(f.aggregator.slot.decrypt_request()) == f.frames["confirms"][0]
    total = f.reveal((1, 4))
    notice = f.aggregator.slot.sum_notice()
    f.restart_aggregator()
    assert f.aggregator.slot.sum_notice() == notice
    f.reveal((0, 2))
    assert is_sum(f, total, f.everyone) and f.aggregator.slot.sum_notice() == notice


def test_uploads_that_were_not_closed_are_asked_for_again(workers):
    f = BfvFederation(workers).reach("active")
    f.aggregator.slot.add_encrypted(f.masked(0, f.frames["active"][0]))
    f.restart_aggregator()
    f.mask(f.everyone)
    f.confirm(f.everyone)
    assert is_sum(f, f.reveal(), f.everyone)


def test_a_damaged_sum_is_noticed(workers):
    f = BfvFederation(workers).reach("confirms")
    slot, side = f.aggregator.slot, f.aggregator
    other = slot.total.copy()
    other[0] ^= np.uint64(1)
    for total in (other, other[:-1], None):
        with pytest.raises(MalformedMessage, match="the saved sum"):
            side.resume_slot(slot.to_bytes(), total)


def test_workers_that_fail_cost_nothing(workers, monkeypatch):
    """Asked again, every stage succeeds; no promise is broken."""
    f = BfvFederation(workers).reach("active")

    def fail(*arguments, **fields):
        raise WorkerFailed("it was ended by SIGKILL")

    def fails_once(name, call):
        with monkeypatch.context() as patch:
            patch.setattr(f.workers, name, fail, raising=False)
            with pytest.raises(WorkerFailed):
                call()

    fails_once("encrypt", lambda: f.masked(0, f.frames["active"][0]))
    for silo in f.everyone:
        f.aggregator.slot.add_encrypted(f.masked(silo, f.frames["active"][silo]))
    fails_once("expand_sum", f.aggregator.slot.survivors)
    assert not f.aggregator.slot.survivor_indices
    survivors = f.aggregator.slot.survivors()
    f.frames["survivors"] = dict.fromkeys(f.everyone, survivors)
    f.confirm(f.everyone)
    fails_once("decrypt", lambda: f.silos[0].decrypt(f.frames["confirms"][0]))
    assert is_sum(f, f.reveal(), f.everyone)


# ------------------------------------------------------------------ second requests


def second(f: BfvFederation, workers: Workers, stage: str) -> bytes:
    """Return an honest-looking second message of a stage, not the one answered."""
    if stage in ("keys", "envelopes"):
        return BfvFederation(workers).reach(stage).frames[stage][0]
    if stage == "confirms":
        body = bytearray(f.frames[stage][0][BODY])
        body[-1] ^= 1
        return f.sign_as_aggregator(Kind.DECRYPT, bytes(body), slot=0)
    notice = SumNotice.from_bytes(f.frames["sum"][0][BODY], 5)
    body = SumNotice(notice.survivors, bytes(32)).to_bytes(5)
    return f.sign_as_aggregator(Kind.SUM, body, slot=0)


@pytest.mark.parametrize("stage", ["keys", "envelopes", "confirms", "sum"])
@pytest.mark.parametrize("is_restarted", [False, True], ids=["", "restarted"])
def test_a_second_different_request_is_refused(workers, stage, is_restarted):
    f = BfvFederation(workers).reach("confirms" if stage == "sum" else stage)
    if stage == "sum":
        f.reveal()
    give(f, 0, stage)
    frame = second(f, workers, stage)
    if is_restarted:
        f.restart_silo(0)
    before = f.silo_state(0)
    honest, f.frames[stage][0] = f.frames[stage][0], frame
    with pytest.raises(ProtocolViolation):
        give(f, 0, stage)
    assert f.silo_state(0) == before
    f.frames[stage][0] = honest
    give(f, 0, stage)


def test_another_vector_or_model_is_refused(workers):
    f = BfvFederation(workers).reach("survivors")
    before = f.silo_state(0)
    with pytest.raises(ProtocolViolation, match="another ACTIVE or vector"):
        f.masked(0, f.frames["active"][0], f.words[1])
    with pytest.raises(ProtocolViolation, match="another request for READY"):
        f.silos[0].ready(0, 1, OTHER_MODEL)
    assert f.silo_state(0) == before


@pytest.mark.parametrize("stage", STAGES)
def test_messages_out_of_order(workers, stage):
    """No later message is taken while a silo awaits that of a stage."""
    done = BfvFederation(workers).reach("confirms")
    done.reveal()
    f = BfvFederation(workers).reach(stage)
    f.frames = done.frames | {s: f.frames[s] for s in STAGES if s in f.frames}
    before = f.silo_state(0)
    for later in [*STAGES, "sum"][STAGES.index(stage) + 1 :]:
        with pytest.raises((CryptoError, RuntimeError)):
            give(f, 0, later)
    assert f.silo_state(0) == before
    give(f, 0, stage)


def test_decrypt_after_sum_and_after_a_later_ready(workers):
    f = BfvFederation(workers).reach("confirms")
    f.reveal((0, 1))
    f.silos[0].close_slot(f.frames["sum"][0])
    with pytest.raises(ProtocolViolation, match="slot 0 is closed"):
        f.silos[0].decrypt(f.frames["confirms"][0])
    with pytest.raises(ProtocolViolation, match="slot 0 has been decrypted"):
        f.masked(0, f.frames["active"][0])
    f.silos[2].ready(1, 2, MODEL)
    with pytest.raises(CryptoError):  # For a slot that has sent nothing it is too long.
        f.silos[2].decrypt(f.frames["confirms"][2])


def test_the_sum_that_was_decrypted_is_the_only_one(workers):
    """Also for a silo whose state is older than what it has decrypted."""
    f = BfvFederation(workers).reach("confirms")
    old = f.silos[0].to_bytes()
    f.reveal()
    other = second(f, workers, "sum")
    with pytest.raises(ProtocolViolation, match="not the sum that this silo decrypted"):
        f.silos[0].close_slot(other)
    f.restart_silo(0)
    with pytest.raises(ProtocolViolation, match="not the sum that this silo decrypted"):
        f.silos[0].close_slot(other)
    f.restart_silo(0, old)
    with pytest.raises(ProtocolViolation, match=r"SUM in slot 0.*otherwise"):
        f.silos[0].close_slot(other)
    f.silos[0].close_slot(f.frames["sum"][0])


def test_a_layout_that_does_not_fit_burns_no_slot(workers):
    f = BfvFederation(workers).reach("active")
    f.silos[0]._layouts_of = lambda number, parts: whole_words(number, (Part(3, ()),))
    before = f.silo_state(0)
    with pytest.raises(ValueError, match="layouts"):
        f.masked(0, f.frames["active"][0])
    assert f.silo_state(0) == before


def test_a_journal_that_is_older_is_noticed(workers):
    f = BfvFederation(workers).reach("confirms")
    saved = f.silos[0].to_bytes()
    f.journals[0] = Journal(None, b"silo 0")
    with pytest.raises(MalformedMessage, match="journal is older"):
        f.restart_silo(0, saved)


# ------------------------------------------------------------------ the aggregator


def test_it_wants_two_silos_and_believes_no_single_one(workers):
    f = BfvFederation(workers).reach("confirms")
    slot = f.aggregator.slot
    assert slot.num_witnesses == 2
    slot.add_decrypted(f.silos[0].decrypt(f.frames["confirms"][0]))
    with pytest.raises(ProtocolViolation, match="1 silos agree on the sum, 2 must"):
        slot.decrypted_sum()
    assert not slot.sum_digest
    slot.add_decrypted(f.silos[3].decrypt(f.frames["confirms"][3]))
    assert slot.agreeing_silos == (0, 3)
    assert is_sum(f, slot.decrypted_sum(), f.everyone)
