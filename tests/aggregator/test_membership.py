import pytest

from aggregator.membership import MAX_BACK_OFF_ROUNDS, Membership

FIVE = (0, 1, 2, 3, 4)


def test_everybody_is_invited_at_first():
    assert Membership(5, 1).invited == FIVE
    assert Membership(5, 1, excluded=[3]).invited == (0, 1, 2, 4)


@pytest.mark.parametrize(
    ("accusers", "is_out"),
    [({0}, False), ({0, 2}, True), ({0, 1}, False), (set(), False)],
    ids=["one may lie", "one of two is honest", "its own word", "nobody"],
)
def test_more_accusers_than_may_lie_leave_a_silo_out(accusers, is_out):
    members = Membership(5, 1)
    news = members.exclude_accused({1: accusers})
    assert [silo for silo, _ in news] == ([1] if is_out else [])
    assert (1 in members.invited) is not is_out


def test_nobody_is_left_out_twice():
    members = Membership(5, 0)
    assert members.exclude_accused({1: {0}}) == [
        (1, "dealt envelopes that do not open, say 1 others")
    ]
    assert members.exclude_accused({1: {0, 2}}) == []


def test_a_convicted_dealer_is_left_out_and_wants_a_setup():
    members = Membership(5, 1)
    members.note_setup(FIVE, 1)
    members.convict(2)
    members.convict(None)
    assert members.exclude_accused({}) == [(2, "dealt wrong shares")]
    assert members.wants_setup(FIVE, 2, 1)
    assert not members.wants_setup((0, 1, 3, 4), 2, 1)


def test_an_absent_silo_is_invited_again_after_1_2_4_rounds():
    members = Membership(5, 1)
    setups = []
    for round_number in range(1, 20):
        if round_number == 1 or members.wants_setup((0, 1, 2, 3), round_number, 1):
            setups.append(round_number)
            members.note_setup((0, 1, 2, 3), round_number)
    assert setups == [1, 2, 4, 8, 16]


def test_patience_ends_and_begins_anew():
    members = Membership(5, 1)
    for round_number in range(1, 500):
        if members.wants_setup((0, 1), round_number, 1):
            last = round_number
            members.note_setup((0, 1), round_number)
    assert members.wants_setup((0, 1), last + MAX_BACK_OFF_ROUNDS, 1)
    assert not members.wants_setup((0, 1), last + MAX_BACK_OFF_ROUNDS - 1, 1)
    members.note_setup(FIVE, 500)
    assert not members.wants_setup(FIVE, 501, 3)
    members.note_setup((0, 1, 2, 3), 502)
    assert members.wants_setup((0, 1, 2, 3), 503, 1)


def test_a_failed_attempt_invites_the_absent_at_once():
    members = Membership(5, 1)
    members.note_setup((0, 1, 2, 3), 1)
    members.note_setup((0, 1, 2, 3), 2)
    assert not members.wants_setup((0, 1, 2, 3), 3, 1)
    assert members.wants_setup((0, 1, 2, 3), 3, 2)


def test_who_rests_is_absent_for_one_round():
    members = Membership(5, 1)
    members.rest(2)
    assert members.invited == (0, 1, 3, 4)
    members.note_setup((0, 1, 3, 4), 1)
    members.wake()
    assert members.invited == FIVE
    assert not members.wants_setup((0, 1, 3, 4), 1, 1)
    assert members.wants_setup((0, 1, 3, 4), 2, 1)


def test_who_rests_is_not_waited_for():
    members = Membership(5, 1)
    members.rest(2)
    assert not members.wants_setup((0, 1, 3, 4), 1, 2)


def test_who_is_left_out_wants_a_setup_even_if_it_never_joined():
    members = Membership(5, 1)
    members.note_setup((0, 2, 3, 4), 1)
    members.note_setup((0, 2, 3, 4), 2)
    assert members.exclude_accused({1: {0, 2}})
    assert not members.wants_setup((0, 2, 3, 4), 3, 1)
    assert members.wants_setup((0, 2, 3, 4), 3, 1, members=FIVE)
