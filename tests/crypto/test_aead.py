import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import aead
from crypto.errors import DecryptionFailed
from tests.crypto.vectors import load

KEY = bytes(range(32))


def unhex(case, *names):
    return [bytes.fromhex(case[name]) for name in names]


@pytest.mark.parametrize("case", load("aead", "generate"))
def test_the_core_is_rfc_8439(case):
    parts = unhex(case, "key", "nonce", "plaintext", "associated")
    assert aead._seal(*parts).hex() == case["sealed"]


@pytest.mark.parametrize("case", load("aead", "verify"))
def test_known_messages_open(case):
    opened = aead.open_sealed(*unhex(case, "key", "sealed", "associated"))
    assert opened.hex() == case["plaintext"]


@pytest.mark.parametrize("case", load("aead", "invalid"), ids=lambda c: c["why"])
def test_altered_messages_do_not_open(case):
    with pytest.raises(DecryptionFailed):
        aead.open_sealed(*unhex(case, "key", "sealed", "associated"))


@pytest.mark.parametrize(
    ("seal", "open_"),
    [(aead.seal, aead.open_sealed), (aead.seal_once, aead.open_once)],
)
@given(plaintext=st.binary(max_size=100), associated=st.binary(max_size=100))
def test_open_inverts_seal_and_binds_associated_data(
    seal, open_, plaintext, associated
):
    sealed = seal(KEY, plaintext, associated)
    assert open_(KEY, sealed, associated) == plaintext
    with pytest.raises(DecryptionFailed):
        open_(KEY, sealed, associated + b"x")
    with pytest.raises(DecryptionFailed):
        open_(bytes(32), sealed, associated)


def test_nonces_are_drawn_where_a_key_seals_often():
    assert aead.seal(KEY, b"x", b"") != aead.seal(KEY, b"x", b"")
    assert aead.seal_once(KEY, b"x", b"") == aead.seal_once(KEY, b"x", b"")


@pytest.mark.parametrize("length", range(aead.TAG_BYTES))
def test_open_once_refuses_less_than_a_tag(length):
    with pytest.raises(DecryptionFailed):
        aead.open_once(KEY, bytes(length), b"")
