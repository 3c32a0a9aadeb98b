"""The shared key: who makes it, sealing, and the commitment that binds it."""

import hashlib

import numpy as np
import pytest

from crypto.bfv.parameters import POLY_DEGREE, SEALED_KEY_BYTES, SECRET_KEY_BYTES
from crypto.bfv.residues import pack_residues
from crypto.bfv.shared_key import commit_to_key, key_maker, open_key, seal_key
from crypto.errors import DecryptionFailed, ProtocolViolation
from crypto.frame import NO_SLOT, Header, Kind
from crypto.keys import AgreementKey
from crypto.secagg.config import SecAggConfig
from tests.crypto.references import digest

T1, OTHER = bytes(32), bytes([1]) * 32
MAKER, SILO, STRANGER = (
    AgreementKey.from_bytes(hashlib.sha256(name).digest())
    for name in (b"maker", b"silo", b"stranger")
)
KEY = pack_residues(np.arange(POLY_DEGREE, dtype=np.uint64)[None]).tobytes()
"""Any residues below q: what a key is, the engine alone knows."""
HEADER = Header(Kind.SHARES, bytes(16), 1, NO_SLOT, 2, 0)


def config(maker: int, num_silos: int = 5) -> SecAggConfig:
    return SecAggConfig(
        num_silos=num_silos, threshold=4, protection="bfv", key_maker=maker
    )


@pytest.mark.parametrize(
    ("chosen", "silos", "maker"),
    [
        (0, range(5), 0),
        (3, range(5), 3),
        (3, {0, 1, 2, 4}, 4),
        (4, {0, 1, 2, 3}, 0),
        (4, {1, 2, 3}, 1),
        (1, {0}, 0),
    ],
)
def test_the_maker_is_the_next_one_that_is_there(chosen, silos, maker):
    assert key_maker(config(chosen), silos) == maker


def sealed(key: bytes = KEY, t1: bytes = T1, header: Header = HEADER) -> bytes:
    return seal_key(MAKER, SILO.public, t1, header, key)


def test_what_was_sealed_opens():
    data = sealed()
    assert len(data) == SEALED_KEY_BYTES == SECRET_KEY_BYTES + 28
    assert data != sealed()  # Nonces are drawn.
    commitment = commit_to_key(T1, KEY)
    assert open_key(SILO, MAKER.public, T1, HEADER, data, commitment) == KEY
    assert commitment == digest(b"cloister/1/key-commitment", T1, KEY)


def test_every_bit_of_it_counts():
    data, commitment = sealed(), commit_to_key(T1, KEY)
    for place in (0, 11, 12, 5_000, len(data) - 17, len(data) - 1):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(DecryptionFailed, match="silo 2 sealed to silo 0") as raised:
            open_key(SILO, MAKER.public, T1, HEADER, bytes(changed), commitment)
        assert raised.value.silo == 2


def header_of(**fields) -> Header:
    return Header(**{**vars(HEADER), **fields})


NO_KEY = b"\xff" * SECRET_KEY_BYTES
WRONG = {
    "of another setup": (sealed(t1=OTHER), commit_to_key(T1, KEY)),
    "to another silo": (sealed(header=header_of(recipient=1)), commit_to_key(T1, KEY)),
    "of another run": (
        sealed(header=header_of(run=OTHER[:16])),
        commit_to_key(T1, KEY),
    ),
    "committed to in another setup": (sealed(), commit_to_key(OTHER, KEY)),
    "not committed to": (sealed(), bytes(32)),
    "residues out of range": (sealed(NO_KEY), commit_to_key(T1, NO_KEY)),
    "another length": (sealed(KEY[:-1]), commit_to_key(T1, KEY[:-1])),
    "nothing": (b"", commit_to_key(T1, KEY)),
}


@pytest.mark.parametrize("name", WRONG)
def test_no_other_key_is_taken(name):
    data, commitment = WRONG[name]
    with pytest.raises(DecryptionFailed, match="does not open"):
        open_key(SILO, MAKER.public, T1, HEADER, data, commitment)


def test_nobody_else_opens_it():
    data, commitment = sealed(), commit_to_key(T1, KEY)
    with pytest.raises(DecryptionFailed):
        open_key(STRANGER, MAKER.public, T1, HEADER, data, commitment)
    with pytest.raises(DecryptionFailed):
        open_key(SILO, STRANGER.public, T1, HEADER, data, commitment)
    with pytest.raises(ProtocolViolation, match="low order"):
        open_key(SILO, bytes(32), T1, HEADER, data, commitment)
