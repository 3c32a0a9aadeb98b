"""The dealing of USplit: everything is covered, nobody is preferred, all agree."""

import hashlib
import itertools
import math
import struct
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.parts import Part
from protocol.dealing import (
    BOTTLENECK,
    DECODER,
    ENCODER,
    MAX_SILO,
    PARTS,
    deal,
    members_needed,
    smallest_group,
)
from tests.crypto.vectors import load

DIGEST = hashlib.sha256(b"some members").digest()
MEMBERS = st.lists(st.integers(0, MAX_SILO), min_size=1, max_size=40, unique=True)
DIGESTS = st.binary(min_size=32, max_size=32)


def slow_deal(digest: bytes, round_number: int, members: list[int]) -> dict:
    """The same from the description alone, without a line of ours."""
    label = b"cloister/1/dealing"
    draws = {}
    for silo in members:
        text = bytes([len(label)]) + label
        for field in (digest, struct.pack(">Q", round_number), struct.pack(">H", silo)):
            text += struct.pack(">Q", len(field)) + field
        draws[silo] = int.from_bytes(hashlib.sha256(text).digest(), "big")
    order = sorted(members, key=draws.__getitem__)
    parts: dict[int, set[str]] = {silo: set() for silo in members}
    while len(order) > 1:
        first, second = order.pop(0), order.pop(0)
        parts[first].add("decoder")
        parts[second].add("encoder")
        parts[first if draws[first] % 2 else second].add("bottleneck")
    for last in order:
        parts[last] = {"bottleneck", "decoder" if draws[last] % 2 else "encoder"}
    if len(members) == 1:
        parts[members[0]] = {"encoder", "bottleneck", "decoder"}
    return {
        part: sorted(silo for silo in members if part in parts[silo])
        for part in ("encoder", "bottleneck", "decoder")
    }


def parts_of(groups, silo):
    return {part for part in PARTS if silo in groups[part]}


def test_the_parts_are_those_of_the_model():
    assert set(PARTS) == {part.value for part in Part}


@pytest.mark.parametrize("case", load("dealing", "generate"), ids=lambda c: c["note"])
def test_known_answers(case):
    digest = bytes.fromhex(case["digest"])
    groups = deal(digest, case["round_number"], case["members"])
    assert {part: list(silos) for part, silos in groups.items()} == case["groups"]
    assert slow_deal(digest, case["round_number"], case["members"]) == case["groups"]


@pytest.mark.parametrize("case", load("dealing", "invalid"), ids=lambda c: c["why"])
def test_what_cannot_be_dealt_is_refused(case):
    with pytest.raises(ValueError, match=case["message"]):
        deal(bytes.fromhex(case["digest"]), case["round_number"], case["members"])


@given(DIGESTS, st.integers(1, 2**64 - 1), MEMBERS)
def test_agrees_with_the_description(digest, round_number, members):
    groups = deal(digest, round_number, members)
    expected = slow_deal(digest, round_number, members)
    assert {part: list(silos) for part, silos in groups.items()} == expected


@given(DIGESTS, st.integers(1, 1000), MEMBERS)
def test_every_part_is_covered_and_every_silo_has_its_share(digest, number, members):
    groups = deal(digest, number, members)
    m = len(members)
    assert tuple(groups) == PARTS
    assert set().union(*groups.values()) == set(members)
    for silos in groups.values():
        assert list(silos) == sorted(set(silos))
        assert len(silos) >= smallest_group(m)
    if m == 1:
        assert parts_of(groups, members[0]) == set(PARTS)
        return
    assert len(groups[BOTTLENECK]) == math.ceil(m / 2)
    assert sorted(len(groups[part]) for part in (ENCODER, DECODER)) == [
        m // 2,
        m - m // 2,
    ]
    counts = Counter(len(parts_of(groups, silo)) for silo in members)
    assert counts == {1: m // 2, 2: m - m // 2}
    for silo in members:
        assert parts_of(groups, silo) not in ({ENCODER, DECODER}, {BOTTLENECK})


@given(DIGESTS, st.integers(1, 1000), MEMBERS, st.randoms())
def test_the_order_of_the_members_does_not_matter(digest, number, members, random):
    shuffled = list(members)
    random.shuffle(shuffled)
    assert deal(digest, number, members) == deal(digest, number, tuple(shuffled))


@given(DIGESTS, DIGESTS, st.integers(1, 2**63))
def test_rounds_and_digests_deal_differently(one, other, number):
    members = range(100)
    dealt = deal(one, number, members)
    assert deal(one, number + 1, members) != dealt
    assert (deal(other, number, members) == dealt) == (one == other)


def test_nothing_dealt_can_be_changed():
    with pytest.raises(TypeError):
        deal(DIGEST, 1, range(4))[ENCODER] = ()


# Fairness. A count of n fair coins is off by 6 standard deviations once in 5 * 10^8.

ROUNDS = 4000
SIGMAS = 6.0


def is_fair(count, probability, num_trials=ROUNDS):
    deviation = math.sqrt(num_trials * probability * (1 - probability))
    return abs(count - num_trials * probability) <= SIGMAS * deviation


def dealings(members, num_rounds=ROUNDS):
    return [deal(DIGEST, number, members) for number in range(1, num_rounds + 1)]


@pytest.mark.parametrize("m", [2, 3, 4, 5, 10])
def test_every_silo_has_every_part_equally_often(m):
    members = list(range(7, 7 + m))
    rounds = dealings(members)
    expected = {ENCODER: 0.5, DECODER: 0.5, BOTTLENECK: math.ceil(m / 2) / m}
    for part, silo in itertools.product(PARTS, members):
        count = sum(silo in groups[part] for groups in rounds)
        assert is_fair(count, expected[part]), (part, silo, count)


@pytest.mark.parametrize("m", [2, 3, 5])
def test_the_coins_are_fair_and_independent_of_the_order(m):
    members = list(range(m))
    whole = Counter()
    for groups in dealings(members):
        both = [silo for silo in members if len(parts_of(groups, silo)) == 2]
        whole.update(DECODER in parts_of(groups, silo) for silo in both)
    assert is_fair(whole[True], 0.5, whole.total())


def test_every_dealing_of_four_is_equally_likely():
    """Chi-square over all outcomes that the description permits, each as likely."""
    members, possible = [3, 1, 4, 15], Counter()
    for order in itertools.permutations(members):
        for coins in itertools.product([0, 1], repeat=2):
            bottleneck = [order[coins[0]], order[2 + coins[1]]]
            decoder, encoder = [order[0], order[2]], [order[1], order[3]]
            possible[
                tuple(sorted(encoder)),
                tuple(sorted(bottleneck)),
                tuple(sorted(decoder)),
            ] += 1
    found = Counter(tuple(groups.values()) for groups in dealings(members))
    assert set(found) == set(possible)
    expected = {
        outcome: ROUNDS * count / possible.total()
        for outcome, count in possible.items()
    }
    chi_square = sum(
        (found[outcome] - mean) ** 2 / mean for outcome, mean in expected.items()
    )
    freedom = len(possible) - 1
    assert abs(chi_square - freedom) < SIGMAS * math.sqrt(2 * freedom)


def test_successive_rounds_are_independent():
    has = [0 in groups[DECODER] for groups in dealings(range(6))]
    same = sum(a == b for a, b in itertools.pairwise(has))
    assert is_fair(same, 0.5, ROUNDS - 1)


# How many silos it takes.


@pytest.mark.parametrize(
    ("num_members", "smallest"),
    [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3)],
)
def test_the_smallest_group_by_hand(num_members, smallest):
    assert smallest_group(num_members) == smallest


@pytest.mark.parametrize("m", range(1, 12))
def test_the_smallest_group_is_reached(m):
    rounds = dealings(range(m), 50)
    sizes = [len(silos) for groups in rounds for silos in groups.values()]
    assert min(sizes) == smallest_group(m)


@pytest.mark.parametrize(
    ("min_cohort", "needed"), [(1, 1), (2, 4), (3, 6), (4, 8), (10, 20)]
)
def test_the_members_needed_by_hand(min_cohort, needed):
    assert members_needed(min_cohort) == needed


@given(st.integers(1, 10_000))
def test_the_members_needed_are_the_fewest(min_cohort):
    needed = members_needed(min_cohort)
    assert smallest_group(needed) >= min_cohort
    assert needed == 1 or smallest_group(needed - 1) < min_cohort


@pytest.mark.parametrize("function", [smallest_group, members_needed])
@pytest.mark.parametrize("number", [0, -1])
def test_no_members_have_no_groups(function, number):
    with pytest.raises(ValueError, match=f"at least 1, is {number}"):
        function(number)


@pytest.mark.parametrize("num_silos", [6, 7, 10])
def test_the_sums_of_a_few_rounds_give_every_weight(num_silos):
    """What docs/methods.md warns of: weights that stay alike are no secret."""
    rounds = []
    for start in range(20):
        digest, known = hashlib.sha256(b"%d" % start).digest(), []
        for number in range(1, 20):
            groups = deal(digest, number, range(num_silos))
            known += [np.isin(range(num_silos), groups[part]) for part in PARTS]
            if np.linalg.matrix_rank(np.array(known, float)) == num_silos:
                rounds.append(number)
                break
    assert len(rounds) == 20
    assert 3 <= np.median(rounds) <= 6
