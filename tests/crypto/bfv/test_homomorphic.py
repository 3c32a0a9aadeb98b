"""SEAL's contexts themselves; tests may import them, the parent processes never do."""

import copy
import gc
import pickle
from pathlib import Path

import numpy as np
import pytest
from tenseal import sealapi

from crypto import homomorphic
from crypto.bfv.parameters import (
    COEFF_MODULUS,
    FRESH_BYTES,
    PLAIN_MODULUS,
    POLY_BYTES,
    POLY_DEGREE,
    SECRET_KEY_BYTES,
)
from crypto.bfv.residues import add_residues, unpack_residues
from crypto.errors import MalformedMessage, WorkerFailed


@pytest.fixture(scope="module")
def secret():
    return homomorphic.SecretContext.generate()


@pytest.fixture(scope="module")
def public():
    return homomorphic.PublicContext()


def draw(num, bound=PLAIN_MODULUS):
    return np.random.default_rng(1).integers(
        0, bound, (num, POLY_DEGREE), dtype=np.uint64
    )


def unpack_fresh(public, fresh):
    """Return residues [c, 2, N] of fresh ciphertexts."""
    c0 = unpack_residues(fresh[:, :POLY_BYTES].tobytes(), len(fresh))
    seeds = np.ascontiguousarray(fresh[None, :, POLY_BYTES:])
    return np.stack([c0, public.expand_sum(seeds)], axis=1)


def test_decryption_is_the_inverse(secret, public):
    slots = draw(2)
    slots[0, :3] = [0, PLAIN_MODULUS - 1, 2**44 - 1]
    fresh = secret.encrypt(slots)
    assert fresh.shape == (2, FRESH_BYTES)
    decrypted, budget = secret.decrypt(unpack_fresh(public, fresh))
    assert (decrypted == slots).all()
    assert budget >= 9


def test_addition_is_seals_own_bit_for_bit(secret, public):
    fresh = secret.encrypt(draw(3))
    summed = unpack_fresh(public, fresh)
    total = summed[0].copy()
    add_residues(total, summed[1])
    add_residues(total, summed[2])
    seal = homomorphic._Seal()
    evaluator = sealapi.Evaluator(seal.context)
    ciphertexts = []
    for row in fresh:
        ciphertexts.append(sealapi.Ciphertext())
        c0 = unpack_residues(row[:POLY_BYTES].tobytes(), 1).tobytes()
        rest = c0 + seal._generator + row[POLY_BYTES:].tobytes()
        seal._load(ciphertexts[-1], seal._fresh_prefix, rest)
    for other in ciphertexts[1:]:
        evaluator.add_inplace(ciphertexts[0], other)
    assert (seal.residues(ciphertexts[0]) == total).all()
    c1 = public.expand_sum(np.ascontiguousarray(fresh[:, None, POLY_BYTES:]))
    assert (c1[0] == total[1]).all()


def test_a_key_goes_out_and_comes_back(secret, public):
    key = secret.export_key_for_sealing()
    assert len(key) == SECRET_KEY_BYTES
    other = homomorphic.SecretContext(key)
    assert other.export_key_for_sealing() == key
    residues = unpack_fresh(public, secret.encrypt(draw(1)))
    assert (other.decrypt(residues)[0] == draw(1)).all()


@pytest.mark.parametrize(
    "leak",
    [
        pickle.dumps, copy.copy, copy.deepcopy,
        lambda secret: secret.__reduce__(), lambda secret: secret.__getstate__(),
        lambda secret: pickle.dumps({"context": [secret]}),
        lambda secret: pickle.dumps(vars(secret)),
    ],
)  # fmt: skip
def test_a_secret_context_is_not_serialised_by_mistake(leak, secret):
    with pytest.raises(TypeError):
        leak(secret)


def test_a_secret_context_shows_nothing(secret):
    assert repr(secret) == str(secret) == f"{secret}" == "SecretContext(…)"
    assert not [name for name in dir(secret) if name in {"to_bytes", "save", "key"}]
    assert not isinstance(secret, homomorphic.PublicContext)
    with pytest.raises(TypeError):
        bytes(secret)


def test_the_file_holds_no_key_afterwards(secret):
    secret.export_key_for_sealing()
    assert secret._seal._file.read_after(lambda path: None) == b""


def test_without_memory_files_a_private_folder_serves(monkeypatch, public):
    monkeypatch.delattr("os.memfd_create")
    secret = homomorphic.SecretContext.generate()
    path = secret._seal._file.path
    assert not path.startswith("/proc")
    residues = unpack_fresh(public, secret.encrypt(draw(1)))
    assert (secret.decrypt(residues)[0] == draw(1)).all()
    assert Path(path).read_bytes()
    secret.export_key_for_sealing()
    assert not Path(path).read_bytes()
    folder = Path(path).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    del secret
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize("name", ["_KEY_PREFIX_BYTES", "_CIPHERTEXT_PREFIX_BYTES"])
def test_a_stream_of_another_length_is_an_error(name, monkeypatch):
    monkeypatch.setattr(homomorphic, name, getattr(homomorphic, name) + 1)
    with pytest.raises(WorkerFailed, match="length"):
        homomorphic.PublicContext()


@pytest.mark.parametrize(("name", "value"), [("_HEADER", b"xyz"), ("_ZSTD", 1)])
def test_another_header_is_an_error(name, value, monkeypatch):
    monkeypatch.setattr(homomorphic, name, value)
    with pytest.raises(WorkerFailed, match="header"):
        homomorphic.PublicContext()


def test_a_stream_beyond_its_bound_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(homomorphic, "_MAX_STREAM_BYTES", 1 << 15)
    with pytest.raises(WorkerFailed):
        homomorphic.PublicContext()


@pytest.mark.parametrize("name", ["COEFF_MODULUS", "PLAIN_MODULUS"])
def test_parameters_that_seal_refuses_are_an_error(name, monkeypatch):
    monkeypatch.setattr(homomorphic, name, COEFF_MODULUS - 2)
    with pytest.raises(WorkerFailed, match="refuses"):
        homomorphic.PublicContext()


def test_numbers_out_of_range_never_reach_seal(secret):
    with pytest.raises(ValueError, match="t or more"):
        secret.encrypt(draw(1) * 0 + np.uint64(PLAIN_MODULUS))
    residues = np.zeros((1, 2, POLY_DEGREE), np.uint64)
    residues[0, 1, 7] = COEFF_MODULUS
    with pytest.raises(MalformedMessage):
        secret.decrypt(residues)
    with pytest.raises(MalformedMessage):
        homomorphic.SecretContext(b"\xff" * SECRET_KEY_BYTES)
    with pytest.raises(MalformedMessage):
        homomorphic.SecretContext(bytes(7))
