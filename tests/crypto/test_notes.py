"""Signed notes: the reference implementation's own example, and what is no note."""

import base64

import pytest

from crypto import labels
from crypto.errors import InvalidSignature
from crypto.keys import IdentityKey
from crypto.notes import (
    key_id,
    sign_text,
    signed_note,
    split_signature_line,
    verifier_key,
    verify_text,
)
from crypto.signatures import sign, verify

# golang.org/x/mod/sumdb/note, note_test.go: its signer key and the note it made.
NAME = "PeterNeumann"
SIGNER_KEY = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
VERIFIER_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
NOTE = TEXT + (
    "\n\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZ"
    "SNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
IDENTITY = IdentityKey.from_bytes(base64.b64decode(SIGNER_KEY)[1:])


def test_the_example_of_the_reference_implementation() -> None:
    public = IDENTITY.public
    signature = sign_text(IDENTITY, TEXT)
    assert signed_note(TEXT, NAME, public, signature) == NOTE
    assert verifier_key(NAME, public) == VERIFIER_KEY
    verify_text(public, TEXT, signature)
    line = NOTE.splitlines()[-1]
    assert split_signature_line(line) == (NAME, key_id(NAME, public), signature)
    with pytest.raises(InvalidSignature):
        verify_text(public, TEXT.replace("your", "mine"), signature)


@pytest.mark.parametrize(
    "line",
    [
        "-- name " + "A" * 92,
        "\u2014 name " + base64.b64encode(bytes(67)).decode(),
        "\u2014 name " + base64.b64encode(bytes(69)).decode(),
        "\u2014  " + base64.b64encode(bytes(68)).decode(),
        "\u2014 name " + "?" * 92,
        "\u2014 name",
        "",
    ],
)
def test_what_is_no_signature_line(line: str) -> None:
    with pytest.raises(ValueError):
        split_signature_line(line)


@pytest.mark.parametrize(
    "text", ["", "no end", "\n", "two\n\nparts\n", "\nfirst\n", "a\tb\n", "\0\n"]
)
def test_a_text_that_may_not_stand_in_a_note(text: str) -> None:
    with pytest.raises(ValueError, match="a note's text"):
        sign_text(IDENTITY, text)
    with pytest.raises(InvalidSignature):
        verify_text(IDENTITY.public, text, IDENTITY.sign_unlabelled(text.encode()))


def test_nothing_is_signed_that_is_a_note_and_a_labelled_message() -> None:
    """The first byte of a labelled message is one that no note may hold."""
    table = [v for v in vars(labels).values() if isinstance(v, bytes)]
    assert table
    assert all(len(label) < ord(" ") and len(label) != ord("\n") for label in table)
    signature = sign(IDENTITY, labels.PLAN, TEXT.encode())
    with pytest.raises(InvalidSignature):
        verify_text(IDENTITY.public, TEXT, signature)
    with pytest.raises(InvalidSignature):
        verify(IDENTITY.public, labels.PLAN, TEXT.encode(), sign_text(IDENTITY, TEXT))
