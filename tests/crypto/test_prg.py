import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import prg
from tests.crypto import references
from tests.crypto.vectors import load

SEEDS = [hashlib.sha256(b"%d" % i).digest() for i in range(4)]
SEGMENT_WORDS = prg.SEGMENT_BYTES // 8
OPENERS = [prg._open_gcm, prg._open_ctr]


@pytest.fixture(params=OPENERS, ids=["gcm", "ctr"])
def implementation(request, monkeypatch):
    monkeypatch.setattr(prg, "_open_segment", request.param)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("case", load("prg", "generate"), ids=lambda c: c["note"])
def test_known_answers_of_both_implementations(case):
    first, wanted = case["first_word"], bytes.fromhex(case["keystream"])
    num_words = first + len(wanted) // 8
    words = prg.expand(bytes.fromhex(case["mask_seed"]), num_words)
    assert words[first:].astype("<u8").tobytes() == wanted


@pytest.mark.parametrize("case", load("prg", "verify"))
def test_known_masked_vector(case):
    add, subtract = (
        [bytes.fromhex(seed) for seed in case[name]] for name in ("add", "subtract")
    )
    words = np.array(list(map(int, case["words"])), np.uint64)
    prg.add_keystreams(words, add, subtract)
    assert list(map(str, words.tolist())) == case["masked"]


@pytest.mark.parametrize("case", load("prg", "invalid"), ids=lambda c: c["why"])
def test_seeds_of_another_length_are_refused(case):
    mask_seed = bytes.fromhex(case["mask_seed"])
    words = np.zeros(3, np.uint64)
    for call in (
        lambda: prg.add_keystreams(words, [SEEDS[0], mask_seed], []),
        lambda: prg.SecretRandom(mask_seed),
    ):
        with pytest.raises(ValueError):
            call()
    assert not words.any()


def test_agrees_with_one_block_after_another():
    assert (prg.expand(SEEDS[0], 1001) == references.keystream(SEEDS[0], 1001)).all()


@given(st.integers(1, 100), st.permutations(range(4)), st.integers(0, 4))
def test_order_does_not_matter_and_masks_cancel(num_words, order, cut):
    words = np.arange(num_words, dtype=np.uint64)
    masked = words.copy()
    prg.add_keystreams(masked, SEEDS[:2], SEEDS[2:])
    again = words.copy()
    add = [SEEDS[i] for i in order if i < 2]
    subtract = [SEEDS[i] for i in order if i >= 2]
    prg.add_keystreams(again, add, subtract)
    assert (masked == again).all() and (masked != words).any()
    chosen = [SEEDS[i] for i in order[:cut]]
    prg.add_keystreams(again, chosen, chosen)
    assert (masked == again).all()
    prg.add_keystreams(masked, SEEDS[2:], SEEDS[:2])
    assert (masked == words).all()


def test_masks_cancel_over_several_segments():
    words = np.zeros(2 * SEGMENT_WORDS + 12345, np.uint64)
    prg.add_keystreams(words, SEEDS[:1], SEEDS[1:2])
    assert np.count_nonzero(words) == words.size
    prg.add_keystreams(words, SEEDS[1:2], SEEDS[:1])
    assert not words.any()


@pytest.mark.parametrize(
    "words",
    [
        np.zeros(4, np.int64),
        np.zeros((2, 2), np.uint64),
        np.zeros(8, np.uint64)[::2],
        np.frombuffer(bytes(32), np.uint64),
    ],
    ids=["signed", "two-dimensional", "strided", "read-only"],
)
def test_arrays_that_cannot_be_masked_in_place(words):
    with pytest.raises(ValueError, match="words"):
        prg.add_keystreams(words, SEEDS, [])


@pytest.mark.parametrize("sizes", [[1, 2, 997], [1000], [0, 999, 1]])
def test_secret_random_is_the_keystream_however_it_is_cut(sizes):
    random = prg.SecretRandom(SEEDS[0])
    parts = [np.empty(size, np.uint64) for size in sizes]
    for part in parts:
        random(part)
    assert (np.concatenate(parts) == prg.expand(SEEDS[0], 1000)).all()
    assert SEEDS[0].hex() not in repr(random)


def test_secret_random_crosses_segments():
    random = prg.SecretRandom(SEEDS[0])
    words = np.empty(SEGMENT_WORDS + 7, np.uint64)
    random(words[:5])
    random(words[5:])
    assert (words == prg.expand(SEEDS[0], words.size)).all()


def test_bytes_are_those_of_the_words_and_never_repeat():
    words = np.empty(4, np.uint64)
    prg.SecretRandom(bytes(32))(words)
    random = prg.SecretRandom(bytes(32))
    assert random.draw(16) == words[:2].tobytes()
    assert random.draw(9) == words[2:].tobytes()[:9]
    assert random.draw(0) == b""
    assert random.draw(8) not in words.tobytes()
