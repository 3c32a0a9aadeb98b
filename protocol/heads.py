"""Signed heads of transcripts: in memory, in messages, and as text that others read.

A head says that the first records of a party's transcript have this root. It is signed
as a checkpoint: the note ::

    cloister/<plan digest>/<party>
    <size>
    <root, base64>

so that whoever has a tool for transparency logs can verify it, and an outside witness
or timestamp can be added to it (``audits heads``). The first line is origin and key
name; it binds the head to run and party.

Source: C2SP tlog-checkpoint and signed-note.
"""

import base64
import binascii
from dataclasses import dataclass

from crypto.encoding import BytesLike
from crypto.errors import InvalidSignature
from crypto.keys import IdentityKey
from crypto.merkle import HASH_BYTES
from crypto.notes import (
    sign_text,
    signed_note,
    split_signature_line,
    verifier_key,
    verify_text,
)
from crypto.signatures import SIGNATURE_BYTES
from protocol.errors import EncodingError, TranscriptBroken

HEAD_BYTES = 8 + HASH_BYTES + SIGNATURE_BYTES
MAX_PROOF_NODES = 32
"""Enough for 2^31 records."""
SHOWN_HEAD_BYTES = HEAD_BYTES + 8 + 1 + MAX_PROOF_NODES * HASH_BYTES
NOTE_LINES = 5


@dataclass(frozen=True, kw_only=True)
class Head:
    """A signed head: the first ``size`` records have this root (hexadecimal)."""

    party: str
    size: int
    root: str
    signature: str

    def check(self, plan_digest: bytes, public_key: bytes) -> None:
        """Raise :class:`TranscriptBroken` unless the party signed this head."""
        try:
            text = head_text(plan_digest, self.party, self.size, self.root)
            signature = bytes.fromhex(self.signature)
            if signature.hex() != self.signature:
                raise ValueError("not the one way to write these bytes")
            verify_text(public_key, text, signature)
        except (InvalidSignature, ValueError):
            raise TranscriptBroken(
                f"head of {self.party} at size {self.size}: wrong signature"
            ) from None

    def to_note(self, plan_digest: bytes, public_key: bytes) -> str:
        """Return the head as a checkpoint: a signed note."""
        return signed_note(
            head_text(plan_digest, self.party, self.size, self.root),
            origin(plan_digest, self.party),
            public_key,
            bytes.fromhex(self.signature),
        )

    @classmethod
    def from_note(cls, note: str) -> "Head":
        """Return the head of a note; nothing is verified, not even the key's ID.

        Raises:
            EncodingError: not a note of a head, or not in its one form.
        """
        lines = note.split("\n")
        if len(lines) != NOTE_LINES + 1 or lines[3] or lines[5]:
            raise EncodingError("must be three lines, an empty one and a signature")
        name, size, root = lines[:3]
        try:
            root_hex = base64.b64decode(root, validate=True).hex()
            signer, _, signature = split_signature_line(lines[4])
        except (binascii.Error, ValueError):
            raise EncodingError("its root or its signature is not in base64") from None
        party = name.rpartition("/")[2]
        head = cls(
            party=party,
            size=int(size) if size.isascii() and size.isdigit() else -1,
            root=root_hex,
            signature=signature.hex(),
        )
        is_ours = name.startswith("cloister/") and name.count("/") == 2 and party
        if not is_ours or signer != name or len(root_hex) != 2 * HASH_BYTES:
            raise EncodingError("is no head of a transcript")
        if str(head.size) != size or head.size >> 63:
            raise EncodingError("its size is not a whole number in decimal")
        return head

    def to_bytes(self) -> bytes:
        """Return size (8 bytes, big-endian), root and signature: what messages hold.

        Always :data:`HEAD_BYTES`, so that the length of a message tells nothing.
        """
        return b"".join(
            (
                self.size.to_bytes(8, "big"),
                bytes.fromhex(self.root),
                bytes.fromhex(self.signature),
            )
        )

    @classmethod
    def from_bytes(cls, data: BytesLike, party: str) -> "Head":
        """Return a party's head of a message; its signature is not verified here.

        Raises:
            ValueError: another length, or a size of 2^63 or more.
        """
        content = bytes(data)
        if len(content) != HEAD_BYTES:
            raise ValueError(f"a head of {len(content)} bytes, expected {HEAD_BYTES}")
        size = int.from_bytes(content[:8], "big")
        if size >> 63:
            raise ValueError("a head's size must be 0 to 2^63 - 1")
        root, signature = content[8 : 8 + HASH_BYTES], content[8 + HASH_BYTES :]
        return cls(party=party, size=size, root=root.hex(), signature=signature.hex())


@dataclass(frozen=True, kw_only=True)
class ShownHead:
    """A head as silos are shown it: with a proof that it extends an earlier one.

    ``proof`` leads from the root of the first ``old_size`` records to that of ``head``
    (RFC 6962, consistency). An ``old_size`` of 0 stands for a silo that has seen none,
    and the proof is empty then.
    """

    head: Head
    old_size: int = 0
    proof: tuple[bytes, ...] = ()

    def to_bytes(self) -> bytes:
        """Return :data:`SHOWN_HEAD_BYTES`, whatever the proof's length."""
        nodes = b"".join(self.proof)
        return b"".join(
            (
                self.head.to_bytes(),
                self.old_size.to_bytes(8, "big"),
                len(self.proof).to_bytes(1, "big"),
                nodes.ljust(MAX_PROOF_NODES * HASH_BYTES, b"\0"),
            )
        )

    @classmethod
    def from_bytes(cls, data: BytesLike, party: str) -> "ShownHead":
        """Return the head of a message with its proof; neither is verified here.

        Raises:
            ValueError: another length, too many nodes, or not in its one form.
        """
        content = bytes(data)
        if len(content) != SHOWN_HEAD_BYTES:
            raise ValueError(
                f"a shown head of {len(content)} bytes, expected {SHOWN_HEAD_BYTES}"
            )
        head, rest = content[:HEAD_BYTES], content[HEAD_BYTES:]
        count, nodes = rest[8], rest[9:]
        end = count * HASH_BYTES
        if count > MAX_PROOF_NODES or any(nodes[end:]):
            raise ValueError("a proof that is not in its one form")
        return cls(
            head=Head.from_bytes(head, party),
            old_size=int.from_bytes(rest[:8], "big"),
            proof=tuple(
                nodes[start : start + HASH_BYTES] for start in range(0, end, HASH_BYTES)
            ),
        )


def origin(plan_digest: bytes, party: str) -> str:
    """Return what a party's checkpoints and its key are called."""
    return f"cloister/{plan_digest.hex()}/{party}"


def head_text(plan_digest: bytes, party: str, size: int, root: str) -> str:
    """Return the text that a head's signature covers.

    Raises:
        ValueError: the root is not hexadecimal.
    """
    encoded = base64.b64encode(bytes.fromhex(root)).decode()
    return f"{origin(plan_digest, party)}\n{size}\n{encoded}\n"


def sign(
    identity: IdentityKey, plan_digest: bytes, party: str, size: int, root: bytes
) -> Head:
    """Return the signed head of a party's transcript."""
    text = head_text(plan_digest, party, size, root.hex())
    signature = sign_text(identity, text).hex()
    return Head(party=party, size=size, root=root.hex(), signature=signature)


def verifier_of(plan_digest: bytes, party: str, public_key: bytes) -> str:
    """Return the verifier key of a party's heads, as tools for notes take it."""
    return verifier_key(origin(plan_digest, party), public_key)
