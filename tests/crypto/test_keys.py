import pytest

from crypto.errors import MalformedMessage, ProtocolViolation
from crypto.keys import AgreementKey, IdentityKey
from tests.crypto.vectors import load

GENERATE = load("keys", "generate")


@pytest.mark.parametrize("case", [c for c in GENERATE if c["kind"] == "identity"])
def test_identity_keys_are_rfc_8032(case):
    key = IdentityKey.from_bytes(bytes.fromhex(case["secret"]))
    assert key.public.hex() == case["public"]
    message = bytes.fromhex(case["message"])
    assert key.sign_unlabelled(message).hex() == case["signature"]


@pytest.mark.parametrize("case", [c for c in GENERATE if c["kind"] == "agreement"])
def test_agreement_keys_are_rfc_7748(case):
    key = AgreementKey.from_bytes(bytes.fromhex(case["secret"]))
    assert key.exchange(bytes.fromhex(case["peer"])).hex() == case["shared_secret"]


@pytest.mark.parametrize("case", load("keys", "invalid"))
def test_points_of_low_order_are_refused(case):
    with pytest.raises(ProtocolViolation, match="low order"):
        AgreementKey.generate().exchange(bytes.fromhex(case["peer"]))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_public_keys_of_another_length_are_malformed(length):
    with pytest.raises(MalformedMessage):
        AgreementKey.generate().exchange(bytes(length))


def test_both_ends_agree():
    a, b = AgreementKey.generate(), AgreementKey.generate()
    assert a.exchange(b.public) == b.exchange(a.public)


@pytest.mark.parametrize("kind", [IdentityKey, AgreementKey])
def test_bytes_round_trip_and_stay_out_of_repr(kind):
    key = kind.generate()
    secret = key.to_bytes()
    again = kind.from_bytes(secret)
    assert (again.to_bytes(), again.public) == (secret, key.public)
    assert secret.hex() not in repr(key) and repr(secret) not in repr(key)
    assert kind.generate().to_bytes() != secret
    with pytest.raises(ValueError):
        kind.from_bytes(secret[:-1])
