"""Encrypted sums: the very integers, whoever is lost or lies."""

from dataclasses import replace

import pytest

from aggregator.errors import RoundAborted
from aggregator.exchanges import HANDED
from aggregator.measurement import MeasureTask
from aggregator.reference import ReferenceTask
from aggregator.sums import RoundTask, agreed_in
from crypto.frame import Kind
from crypto.secagg.parts import Part
from protocol import records
from protocol.envelope import Kind as Envelope
from protocol.stretches import Dealing
from protocol.sum_records import Decrypted, KeyShared
from tests.aggregator.encrypting import check, losing, make_round


def test_a_sum_is_the_plain_sum_and_two_silos_decrypt_it(made):
    check(made, made.sum(), (0, 1, 2, 3))
    assert made.who_was_asked(Kind.DECRYPT) == [1, 2]  # From place 1 mod 4 on.
    (shared,), (opened,) = made.records(KeyShared), made.records(records.SetupOpened)
    assert (shared.setup, shared.maker, opened.setup) == (1, "s0", 1)
    assert bytes.fromhex(shared.commitment) == made.silos[3].side._state.commitment
    (decrypted,), (summed,) = made.records(Decrypted), made.records(records.Summed)
    assert decrypted.silos == ("s1", "s2")
    assert decrypted.survivors == ("s0", "s1", "s2", "s3")
    assert decrypted.sum == summed.sum
    uploads = made.records(records.Masked)
    assert {upload.protection for upload in uploads} == {"bfv"}
    stages = [record.stage for record in made.records(records.Traffic)]
    assert list(dict.fromkeys(stages)) == [
        "setup", "key", "handed", "ready", "encrypted", "confirm", "decrypt"
    ]  # fmt: skip
    vectors = {r.stage: r.vector_bytes for r in made.records(records.Traffic)}
    assert vectors["encrypted"] == 30_784  # One ciphertext: 30,720 and 64 bytes.
    assert sum(vectors.values()) == 30_784
    for silo in made.silos:
        silo.side.close_slot(made.summation.sum_notice())


def test_slots_of_a_setup_follow_each_other_and_others_decrypt(made):
    for number in (1, 2, 3):
        task = make_round(made.plan, number)
        check(made, made.sum(task), (0, 1, 2, 3), task)
    assert made.who_was_asked(Kind.DECRYPT) == [1, 2, 2, 3, 3, 0]
    assert [record.setup for record in made.records(KeyShared)] == [1, 2]
    commitments = {record.commitment for record in made.records(KeyShared)}
    assert len(commitments) == 2


@pytest.mark.parametrize("number", ["reference", "measurement"])
def test_what_is_summed_around_the_rounds_are_whole_words(made, number):
    task = ReferenceTask(extractor_digest="00" * 32, num_words=5)
    if number == "measurement":
        task = MeasureTask(
            round_number=made.plan.num_rounds + 1, average=b"", statistics=b""
        )
    total = made.sum(task)
    check(made, total, (0, 1, 2, 3), task)
    words = [
        made.silos[silo].words(task, agreed_in(made.summation._side))
        for silo in (0, 1, 2, 3)
    ]
    assert any(sum(map(int, column)) >> 64 for column in zip(*words, strict=True))


class InParts(RoundTask):
    """A round whose vector has two parts, of other silos each."""

    def dealing(self, plan, agreed):
        return Dealing(agreed, (Part(4, (0, 1, 2)), Part(3, (1, 2, 3))))


def test_parts_are_summed_over_their_own_silos(made, monkeypatch):
    monkeypatch.setattr("aggregator.secure_sum.dealt_record", lambda *_: _lost())
    task = InParts(**vars(make_round(made.plan)))
    total = made.sum(task)
    check(made, total, (0, 1, 2, 3), task)
    assert total.parts == (Part(4, (0, 1, 2)), Part(3, (1, 2, 3)))


def _lost():
    return records.RoundLost(round_number=1, reason="a test")


# --------------------------------------------------------------------- silos are lost


def test_a_silo_that_is_lost_before_its_upload_is_not_in_the_sum(made):
    check(made, made.sum(fault=losing(Kind.ACTIVE, 1)), (0, 2, 3))
    assert made.who_was_asked(Kind.DECRYPT) == [2, 3]


@pytest.mark.parametrize("kind", [Kind.SURVIVORS, Kind.DECRYPT])
def test_a_silo_that_is_lost_after_its_upload_is_in_the_sum(made, kind):
    check(made, made.sum(fault=losing(kind, 1)), (0, 1, 2, 3))
    assert made.who_was_asked(Kind.DECRYPT) == [2, 3]
    stage = {Kind.SURVIVORS: "confirm", Kind.DECRYPT: "decrypt"}[kind]
    (dropped,) = made.records(records.Dropped)
    assert (dropped.stage, dropped.silo) == (stage, "s1")
    (decrypted,) = made.records(Decrypted)
    assert decrypted.silos == ("s2", "s3")


def test_as_many_more_are_asked_as_still_miss(made):
    check(made, made.sum(fault=losing(Kind.DECRYPT, 1, 2)), (0, 1, 2, 3))
    assert made.records(Decrypted)[0].silos == ("s0", "s3")


def test_a_silo_that_refuses_has_not_answered(made):
    """It holds another sum than it has confirmed: here, because its state was lost."""

    def forget(moment, kind, silo):
        if (moment, kind, silo) == ("before", Kind.DECRYPT, 1):
            side = made.silos[1].side
            side._state = _with_other_key(side._state)

    check(made, made.sum(fault=forget), (0, 1, 2, 3))
    (dropped,) = made.records(records.Dropped)
    assert dropped.silo == "s1"
    assert dropped.reason == "refused: refused: not the sum that was confirmed"


def _with_other_key(state):
    other = bytes(256) + state.secret_key[256:]
    return replace(state, secret_key=other)


def test_too_few_uploads_are_no_sum_and_the_next_slot_is_tried(made):
    lost = []

    def once(moment, kind, silo):
        if (moment, kind) == ("before", Kind.ACTIVE) and silo in (1, 2):
            lost.append(silo)
            return len(lost) <= 2
        return None

    check(made, made.sum(fault=once), (0, 1, 2, 3))
    assert [r.attempt for r in made.records(records.RoundOpened)] == [1, 2]


def test_too_few_confirmations_lose_the_round_and_the_next_goes_on(made):
    """Silos confirm one list of survivors in a round: no further slot serves it."""
    with pytest.raises(RoundAborted, match="CONFIRM"):
        made.sum(fault=losing(Kind.SURVIVORS, 0, 3, moment="after"))
    assert not made.who_was_asked(Kind.DECRYPT)
    task = make_round(made.plan, 2)
    check(made, made.sum(task), (0, 1, 2, 3), task)


# ------------------------------------------------------------------------ silos lie


def lying(made, *silos, same=False):
    """Return a fault: these silos say that the sum is another one."""

    def fault(moment, kind, silo):
        if (moment, kind) != ("after", Kind.DECRYPT) or silo not in silos:
            return None

        def change(body):
            body[-1] ^= 1 if same else 1 + silo

        return made.silos[silo].signed(made.reply, change)

    return fault


@pytest.mark.parametrize(("liar", "agreeing"), [(1, ("s2", "s3")), (2, ("s1", "s3"))])
def test_a_silo_that_decrypts_another_sum_is_recorded_and_not_believed(
    made, liar, agreeing
):
    check(made, made.sum(fault=lying(made, liar)), (0, 1, 2, 3))
    (dropped,) = made.records(records.Dropped)
    assert (dropped.stage, dropped.silo) == ("decrypt", f"s{liar}")
    expected = f"s{liar} decrypted another sum than {', '.join(agreeing)}"
    assert dropped.reason == expected
    assert made.records(Decrypted)[0].silos == agreeing


def test_more_must_agree_where_more_may_lie(encrypting):
    made = encrypting(5, max_colluding=2, min_cohort=4)
    fault = lying(made, 1, 2, same=True)
    check(made, made.sum(fault=fault), (0, 1, 2, 3, 4))
    assert made.records(Decrypted)[0].silos == ("s0", "s3", "s4")
    assert {dropped.silo for dropped in made.records(records.Dropped)} == {"s1", "s2"}


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("lost", "1 silos agree on the sum, 2 must"),
        ("lying", "1 silos agree on the sum, 2 must; those of s0, s1, s2, s3 differ"),
    ],
)
def test_where_too_few_agree_the_round_is_lost_and_the_next_goes_on(made, way, reason):
    faults = {
        "lost": losing(Kind.DECRYPT, 0, 1, 3),
        "lying": lying(made, 0, 1, 2),
    }
    with pytest.raises(RoundAborted) as caught:
        made.sum(fault=faults[way])
    assert str(caught.value) == reason
    assert sorted(made.who_was_asked(Kind.DECRYPT)) == (
        [2] if way == "lost" else [0, 1, 2, 3]
    )
    assert not made.records(Decrypted) and not made.records(records.Summed)
    task = make_round(made.plan, 2)
    check(made, made.sum(task), (0, 1, 2, 3), task)


@pytest.mark.parametrize("is_restarted", [False, True])
def test_after_a_sum_that_silos_refuse_there_is_another_key(made, is_restarted):
    """One silo spoils the sum. Who has refused it does nothing more in the setup."""

    def spoiling(body):
        body[-1] ^= 1  # Of the last seed.

    def fault(moment, kind, silo):
        if (moment, kind, silo) != ("after", Kind.ACTIVE, 0):
            return None
        return made.silos[0].signed(made.reply, spoiling)

    with pytest.raises(RoundAborted, match="0 silos agree"):
        made.sum(fault=fault)
    if is_restarted:
        made.restart()
    task = make_round(made.plan, 2)
    check(made, made.sum(task), (0, 1, 2, 3), task)
    assert [record.setup for record in made.records(KeyShared)] == [1, 2]


# ------------------------------------------------------------------------ the maker


def test_another_silo_makes_the_key_where_the_maker_is_absent(made):
    check(made, made.sum(fault=losing(Envelope.OPEN_SETUP, 0)), (1, 2, 3))
    assert [record.maker for record in made.records(KeyShared)] == ["s1"]


def test_a_maker_that_deals_no_key_rests_for_this_round(made):
    check(made, made.sum(fault=losing(Kind.KEYS, 0)), (1, 2, 3))
    (shared,) = made.records(KeyShared)
    assert (shared.setup, shared.maker) == (2, "s1")
    task = make_round(made.plan, 2)
    check(made, made.sum(task), (0, 1, 2, 3), task)
    assert [record.maker for record in made.records(KeyShared)] == ["s1", "s0"]


def test_a_maker_that_never_deals_a_key_does_not_end_the_run(made):
    for number in range(1, 5):
        task = make_round(made.plan, number)
        check(made, made.sum(task, losing(Kind.KEYS, 0)), (1, 2, 3), task)


def sealing_wrongly(made, maker, num_peers):
    """Return a fault: the maker seals another key to the first ones of the others."""

    def change(body):
        for peer in range(num_peers):
            body[64 + 30_748 * peer] ^= 1

    def fault(moment, kind, silo):
        if (moment, kind, silo) != ("after", Kind.KEYS, maker):
            return None
        return made.silos[maker].signed(made.reply, change)

    return fault


def test_a_maker_that_seals_another_key_is_left_out(encrypting):
    """Three silos accuse it, more than may lie; the next one makes the key."""
    made = encrypting(4, key_maker="s2")
    check(made, made.sum(fault=sealing_wrongly(made, 2, 3)), (0, 1, 3))
    assert [record.maker for record in made.records(KeyShared)] == ["s2", "s3"]
    (excluded,) = made.records(records.SiloExcluded)
    assert excluded.silo == "s2" and "3 others" in excluded.reason
    stages = {dropped.stage for dropped in made.records(records.Dropped)}
    assert stages == {HANDED}


def test_a_maker_whose_key_too_few_can_open_rests_for_this_round(encrypting):
    """Two silos accuse it, who may lie: so it is not left out for good."""
    made = encrypting(5, max_colluding=2, min_cohort=4)
    check(made, made.sum(fault=sealing_wrongly(made, 0, 2)), (1, 2, 3, 4))
    assert [record.maker for record in made.records(KeyShared)] == ["s0", "s1"]
    assert made.records(records.SiloExcluded) == []
