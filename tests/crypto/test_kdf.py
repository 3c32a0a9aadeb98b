import pytest

from crypto.kdf import MAX_DERIVED_BYTES, derive
from tests.crypto import references
from tests.crypto.vectors import load


@pytest.mark.parametrize("case", load("kdf", "generate"))
def test_known_answers(case):
    secret, associated = (
        bytes.fromhex(case["secret"]),
        bytes.fromhex(case["associated"]),
    )
    label = case["label"].encode()
    assert derive(secret, label, associated, case["length"]).hex() == case["key"]


def test_agrees_with_rfc_5869_written_out():
    info = references.labelled(b"label", b"associated")
    key = derive(b"secret", b"label", b"associated", MAX_DERIVED_BYTES)
    assert key == references.hkdf(b"secret", info, MAX_DERIVED_BYTES)


def test_label_and_associated_data_cannot_be_split_in_two_ways():
    assert derive(bytes(32), b"ab", b"c", 32) != derive(bytes(32), b"a", b"bc", 32)


@pytest.mark.parametrize("length", [0, -1, MAX_DERIVED_BYTES + 1])
def test_refuses_lengths_it_cannot_give(length):
    with pytest.raises(ValueError, match="length"):
        derive(bytes(32), b"label", b"", length)
