import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import labels
from crypto.errors import ProtocolViolation
from crypto.keys import AgreementKey
from crypto.secagg.masks import (
    SlotSecrets,
    mask,
    pairwise_mask_seed,
    self_mask_seed,
    unmask,
)
from crypto.secagg.parts import (
    Part,
    contributors_of,
    own_places,
    total_words,
    whole,
)
from tests.crypto import references

T3 = hashlib.sha256(b"slot").digest()
SECRETS = [
    SlotSecrets(
        hashlib.sha256(b"seed %d" % i).digest(),
        AgreementKey.from_bytes(hashlib.sha256(b"key %d" % i).digest()),
    )
    for i in range(5)
]
PUBLICS = {i: own.agreement.public for i, own in enumerate(SECRETS)}


ALL = range(5)


def masked(silo, words, parts, slot_digest=T3):
    copy = words.copy()
    mask(copy, SECRETS[silo], silo, PUBLICS, slot_digest, parts)
    return copy


def shared_secret(one, other):
    return SECRETS[one].agreement.exchange(PUBLICS[other])


def test_seeds_are_what_the_documentation_says():
    """Part 7 in two bytes, then the silos in two bytes each, the lower one first."""
    part, one, three = (n.to_bytes(2, "big") for n in (7, 1, 3))
    info = references.labelled(labels.SELF_MASK, T3 + part + three)
    expected = references.hkdf(SECRETS[3].mask_seed, info, 32)
    assert self_mask_seed(SECRETS[3].mask_seed, T3, 7, 3) == expected
    info = references.labelled(labels.PAIRWISE_MASK, T3 + part + one + three)
    expected = references.hkdf(shared_secret(3, 1), info, 32)
    assert pairwise_mask_seed(shared_secret(3, 1), T3, 7, {3, 1}) == expected
    assert pairwise_mask_seed(shared_secret(1, 3), T3, 7, {1, 3}) == expected


def test_masks_of_two_silos_by_hand():
    words, parts = np.arange(4, dtype=np.uint64), whole(4, (0, 1))
    pair = pairwise_mask_seed(shared_secret(0, 1), T3, 0, {0, 1})
    both = references.keystream(pair, 4)
    own = [
        references.keystream(self_mask_seed(SECRETS[silo].mask_seed, T3, 0, silo), 4)
        for silo in (0, 1)
    ]
    assert (masked(0, words, parts) == words + own[0] + both).all()
    assert (masked(1, words, parts) == words + own[1] - both).all()


def test_masks_of_three_parts_by_hand():
    """Silo 1 is in parts 0 and 2; its two words there have masks of their own."""
    parts = (Part(1, (0, 1)), Part(5, (0, 2)), Part(1, (1, 2)))
    words = np.array([10, 20], np.uint64)
    seed, first = SECRETS[1].mask_seed, lambda s: references.keystream(s, 1)
    with_0 = pairwise_mask_seed(shared_secret(1, 0), T3, 0, {0, 1})
    with_2 = pairwise_mask_seed(shared_secret(1, 2), T3, 2, {1, 2})
    expected = [
        words[:1] + first(self_mask_seed(seed, T3, 0, 1)) - first(with_0),
        words[1:] + first(self_mask_seed(seed, T3, 2, 1)) + first(with_2),
    ]
    assert (masked(1, words, parts) == np.concatenate(expected)).all()


@st.composite
def dealings(draw):
    group = st.sets(st.integers(0, 4), min_size=1).map(lambda s: tuple(sorted(s)))
    part = st.builds(Part, st.integers(1, 5), group)
    return tuple(draw(st.lists(part, min_size=1, max_size=4)))


@given(st.sets(st.integers(0, 4)), dealings())
def test_unmasking_gives_the_sum_of_any_survivors_in_every_part(survivors, parts):
    rng = np.random.default_rng(total_words(parts))
    vectors = rng.integers(0, 1 << 63, (5, total_words(parts)), dtype=np.uint64)
    total, expected = np.zeros((2, total_words(parts)), np.uint64)
    for silo in survivors:
        places = list(own_places(parts, silo))
        own = [vectors[silo, place] for _, _, place in places]
        sent = masked(silo, np.concatenate([vectors[silo, :0], *own]), parts)
        for _, mine, place in places:
            total[place] += sent[mine]
            expected[place] += vectors[silo, place]
    contributors = set(contributors_of(parts, ALL))
    unmask(
        total,
        {silo: SECRETS[silo].mask_seed for silo in survivors & contributors},
        {silo: SECRETS[silo].agreement for silo in contributors - survivors},
        PUBLICS,
        T3,
        parts,
    )
    assert (total == expected).all()


def test_one_other_slot_digest_and_masks_do_not_cancel():
    words, parts = np.zeros(8, np.uint64), whole(8, ALL)
    total = sum(masked(silo, words, parts) for silo in range(4))
    split_view = total + masked(4, words, parts, slot_digest=bytes(32))
    total = total + masked(4, words, parts)
    seeds = {silo: own.mask_seed for silo, own in enumerate(SECRETS)}
    unmask(total, seeds, {}, PUBLICS, T3, parts)
    unmask(split_view, seeds, {}, PUBLICS, T3, parts)
    assert not total.any() and np.count_nonzero(split_view) == 8


def test_a_key_of_low_order_leaves_the_vector_as_it_was():
    words = np.arange(4, dtype=np.uint64)
    with pytest.raises(ProtocolViolation, match="silo 2"):
        publics = {**PUBLICS, 2: bytes(32)}
        mask(words, SECRETS[0], 0, publics, T3, whole(4, ALL))
    assert (words == np.arange(4)).all()


def test_keys_of_silos_in_other_parts_do_not_matter():
    words, publics = np.arange(2, dtype=np.uint64), {**PUBLICS, 2: bytes(32)}
    mask(words, SECRETS[0], 0, publics, T3, (Part(2, (0, 1)), Part(2, (1, 2))))


def test_secrets_stay_out_of_repr():
    assert repr(SECRETS[0].mask_seed) not in repr(SECRETS[0])
