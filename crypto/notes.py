"""Signed notes: a text and a signature that tools outside this project read too.

::

    text, whole lines
                                        an empty line
    — key name base64(key ID 4 || Ed25519 signature 64)

The signature is over the text itself, its last line end included, under no label of
ours: that is the format. It is still good for nothing else. What ``crypto.signatures``
signs begins with one byte that holds the length of its label, and no label is as long
as 32 bytes, nor has 10: so that byte is a control character, which no note may contain.
Nothing is ever signed that could be read as both; a test holds the labels to it.

Source: C2SP signed-note (c2sp.org/signed-note).
"""

import base64
import hashlib

from cryptography.exceptions import InvalidSignature as Refused
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from crypto.errors import InvalidSignature
from crypto.keys import IdentityKey

ED25519 = b"\x01"
"""The kind of signature, in key IDs and verifier keys."""
_DASH = "\u2014"


def key_id(name: str, public: bytes) -> bytes:
    """Return the four bytes that tell keys of one name apart."""
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + public).digest()[:4]


def verifier_key(name: str, public: bytes) -> str:
    """Return the line by which tools are told whose signature to expect."""
    encoded = base64.b64encode(ED25519 + public).decode()
    return f"{name}+{key_id(name, public).hex()}+{encoded}"


def sign_text(key: IdentityKey, text: str) -> bytes:
    """Return the signature of a note's text, 64 bytes.

    Raises:
        ValueError: the text may not stand in a note.
    """
    return key.sign_unlabelled(_checked(text))


def verify_text(public: bytes, text: str, signature: bytes) -> None:
    """Return if the holder of ``public`` signed a note of this text.

    Raises:
        InvalidSignature: in every other case, malformed keys and texts included.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _checked(text))
    except (Refused, ValueError):
        raise InvalidSignature(f"not signed by the key {public.hex()[:16]}…") from None


def signed_note(text: str, name: str, public: bytes, signature: bytes) -> str:
    """Return a whole note with one signature, which is not verified here."""
    encoded = base64.b64encode(key_id(name, public) + signature).decode()
    return f"{text}\n{_DASH} {name} {encoded}\n"


def split_signature_line(line: str) -> tuple[str, bytes, bytes]:
    """Return key name, key ID and signature of a line without its end.

    Raises:
        ValueError: it is no signature line.
    """
    dash, name, encoded = line.split(" ")
    content = base64.b64decode(encoded, validate=True)
    if dash != _DASH or not name or len(content) != 68:
        raise ValueError("not an Ed25519 signature line")
    return name, content[:4], content[4:]


def _checked(text: str) -> bytes:
    """Return a text's bytes; it is lines without other control characters."""
    if not text.endswith("\n") or "\n\n" in text or text.startswith("\n"):
        raise ValueError("a note's text must be whole lines, none of them empty")
    if any(char < " " and char != "\n" for char in text):
        raise ValueError("a note's text must have no control characters")
    return text.encode()
