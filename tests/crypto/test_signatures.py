import pytest

from crypto.errors import InvalidSignature
from crypto.keys import IdentityKey
from crypto.signatures import SIGNATURE_BYTES, sign, verify
from tests.crypto.vectors import load


def arguments(case):
    return (
        bytes.fromhex(case["public"]),
        case["label"].encode(),
        bytes.fromhex(case["message"]),
        bytes.fromhex(case["signature"]),
    )


@pytest.mark.parametrize("case", load("signatures", "generate"))
def test_known_answers(case):
    key = IdentityKey.from_bytes(bytes.fromhex(case["secret"]))
    signature = sign(key, case["label"].encode(), bytes.fromhex(case["message"]))
    assert signature.hex() == case["signature"]
    assert len(signature) == SIGNATURE_BYTES


@pytest.mark.parametrize("case", load("signatures", "verify"))
def test_valid_signatures_verify(case):
    verify(*arguments(case))


@pytest.mark.parametrize("case", load("signatures", "invalid"), ids=lambda c: c["why"])
def test_invalid_signatures_raise(case):
    with pytest.raises(InvalidSignature):
        verify(*arguments(case))
