"""What follows from a canary seed: the same everywhere, fair, and bound."""

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from protocol.canaries import (
    MAX_CANARIES,
    canary_commitment,
    draw_canaries,
    draw_included,
    step_sign,
)

SEED = bytes(range(32))


def stream(part: bytes, num_bytes: int) -> bytes:
    """Return the bytes of a part, computed from the definition alone."""
    label = b"cloister/1/canaries"
    info = bytes([len(label)]) + label + part
    key = HKDF(SHA256(), 32, salt=None, info=info).derive(SEED)
    counter = CTR(bytes(12) + (2).to_bytes(4, "big"))
    return Cipher(AES256(key), counter).encryptor().update(bytes(num_bytes))


def test_coins_and_signs_are_the_bits_of_their_streams():
    made = draw_canaries(SEED, 20, 1000)
    for part, found in ((b"included", made.included), (b"signs", made.signs > 0)):
        data = stream(part, 3)
        bits = [bool(data[i // 8] >> (i % 8) & 1) for i in range(20)]
        assert found.tolist() == bits
    assert made.num_included == sum(made.included.tolist())
    assert draw_included(SEED, 20).tolist() == made.included.tolist()


def test_coordinates_are_words_modulo_the_length_without_repetition():
    number, length = 60, 64
    words = np.frombuffer(stream(b"coordinates", 8 * 2000), "<u8").tolist()
    expected: list[int] = []
    for word in words:
        if word % length not in expected and len(expected) < number:
            expected.append(word % length)
    assert draw_canaries(SEED, number, length).coordinates.tolist() == expected


@given(seed=st.binary(min_size=32, max_size=32), m=st.integers(1, 300))
def test_all_coordinates_can_be_taken(seed, m):
    made = draw_canaries(seed, m, m)
    assert sorted(made.coordinates.tolist()) == list(range(m))
    assert set(made.signs.tolist()) <= {1, -1}


def test_coins_signs_and_coordinates_are_fair():
    included, signs, places = [], [], []
    for number in range(40):
        seed = hashlib.sha256(bytes([number])).digest()
        made = draw_canaries(seed, 1000, 3000)
        included += made.included.tolist()
        signs += (made.signs > 0).tolist()
        places += made.coordinates.tolist()
    coins = np.array([included, signs, np.array(places) % 3 == 0], float)
    deviation = np.sqrt(40_000) * (coins.mean(1) - [1 / 2, 1 / 2, 1 / 3])
    assert np.abs(deviation).max() < 4 * 0.5
    assert np.abs(np.corrcoef(coins)[np.triu_indices(3, 1)]).max() < 4 / 200


def test_the_commitment_is_the_digest_of_its_definition():
    state = hashlib.sha256()
    for part in (b"cloister/1/canary-commitment",):
        state.update(bytes([len(part)]) + part)
    for part in (b"gradient", (1000).to_bytes(4, "big"), SEED):
        state.update(len(part).to_bytes(8, "big") + part)
    assert canary_commitment(SEED, 1000, "gradient") == state.digest()


def test_the_commitment_binds_seed_number_and_form():
    made = {
        canary_commitment(seed, number, form)
        for seed in (SEED, SEED[::-1])
        for number in (10, 11)
        for form in ("gradient", "input")
    }
    assert len(made) == 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_canaries(SEED[1:], 5, 9), "seed: must be 32"),
        (lambda: draw_canaries(SEED, 0, 9), "num_canaries: must be 1"),
        (lambda: draw_canaries(SEED, 10, 9), "num_canaries: 10 do not fit"),
        (lambda: draw_included(SEED, MAX_CANARIES + 1), "num_canaries"),
        (lambda: canary_commitment(SEED, 5, "image"), "form: must be"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_signs_of_steps_take_turns():
    assert [step_sign(step) for step in range(4)] == [1, -1, 1, -1]
