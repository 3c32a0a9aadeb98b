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


def masked(silo, words, slot_digest=T3):
    copy = words.copy()
    mask(copy, SECRETS[silo], silo, PUBLICS, slot_digest)
    return copy


def test_seeds_are_what_the_documentation_says():
    place = (3).to_bytes(2, "big")
    info = references.labelled(labels.SELF_MASK, T3 + place)
    expected = references.hkdf(SECRETS[3].mask_seed, info, 32)
    assert self_mask_seed(SECRETS[3].mask_seed, T3, 3) == expected
    shared = SECRETS[3].agreement.exchange(PUBLICS[1])
    pair = (1).to_bytes(2, "big") + place
    info = references.labelled(labels.PAIRWISE_MASK, T3 + pair)
    expected = references.hkdf(shared, info, 32)
    assert pairwise_mask_seed(SECRETS[3].agreement, PUBLICS[1], T3, {3, 1}) == expected


def test_masks_of_two_silos_by_hand():
    words = np.arange(4, dtype=np.uint64)
    mine = mask_of(0, {0: PUBLICS[0], 1: PUBLICS[1]}, words)
    seed = pairwise_mask_seed(SECRETS[0].agreement, PUBLICS[1], T3, {0, 1})
    own = self_mask_seed(SECRETS[0].mask_seed, T3, 0)
    keystreams = [references.keystream(s, 4) for s in (seed, own)]
    assert (mine == words + keystreams[0] + keystreams[1]).all()
    other = mask_of(1, {0: PUBLICS[0], 1: PUBLICS[1]}, words)
    own = self_mask_seed(SECRETS[1].mask_seed, T3, 1)
    assert (other == words - keystreams[0] + references.keystream(own, 4)).all()


def mask_of(silo, publics, words):
    copy = words.copy()
    mask(copy, SECRETS[silo], silo, publics, T3)
    return copy


@given(st.sets(st.integers(0, 4), min_size=1), st.integers(1, 9))
def test_unmasking_gives_the_sum_of_any_survivors(survivors, num_words):
    rng = np.random.default_rng(num_words)
    vectors = rng.integers(0, 1 << 63, (5, num_words), dtype=np.uint64)
    total = np.zeros(num_words, np.uint64)
    for silo in survivors:
        total += masked(silo, vectors[silo])
    unmask(
        total,
        {silo: SECRETS[silo].mask_seed for silo in survivors},
        {silo: SECRETS[silo].agreement for silo in set(range(5)) - survivors},
        PUBLICS,
        T3,
    )
    assert (total == vectors[sorted(survivors)].sum(axis=0, dtype=np.uint64)).all()


def test_one_other_slot_digest_and_masks_do_not_cancel():
    words = np.zeros(8, np.uint64)
    total = sum(masked(silo, words) for silo in range(4))
    split_view = total + masked(4, words, slot_digest=bytes(32))
    total = total + masked(4, words)
    seeds = {silo: own.mask_seed for silo, own in enumerate(SECRETS)}
    unmask(total, seeds, {}, PUBLICS, T3)
    unmask(split_view, seeds, {}, PUBLICS, T3)
    assert not total.any() and np.count_nonzero(split_view) == 8


def test_a_key_of_low_order_leaves_the_vector_as_it_was():
    words = np.arange(4, dtype=np.uint64)
    with pytest.raises(ProtocolViolation, match="silo 2"):
        mask(words, SECRETS[0], 0, {**PUBLICS, 2: bytes(32)}, T3)
    assert (words == np.arange(4)).all()


def test_secrets_stay_out_of_repr():
    assert repr(SECRETS[0].mask_seed) not in repr(SECRETS[0])
