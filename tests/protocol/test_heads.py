"""Heads as checkpoints: frozen, and as an independent implementation reads them."""

from protocol.heads import Head, sign, verifier_of
from tests.protocol.examples import make_identity

DIGEST = bytes(range(32))
NOTE = (
    "cloister/000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f/silo-0\n"
    "5\n"
    "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n"
    "\n"
    "\u2014 "
    "cloister/000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f/silo-0 "
    "z7eIOHl0ro6PAAf2baUrHfy3hjlrh9cgZHXHPn5T9GW0y+OTp9MvSHz8ODAb7pe83tw5+R"
    "xWPCQB41oW2qU9qhWRQA4=\n"
)
VERIFIER = (
    "cloister/000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f/"
    "silo-0+cfb78838+AeN417I30h5LolAjdROmoCmoLyQo5CkcZpeXDaglgulC"
)
"""Both were opened with golang.org/x/mod/sumdb/note (docs/decisions/0010)."""


def test_a_head_is_this_very_note() -> None:
    identity = make_identity("silo 0")
    head = sign(identity, DIGEST, "silo-0", 5, b"\1" * 32)
    assert head.to_note(DIGEST, identity.public) == NOTE
    assert Head.from_note(NOTE) == head
    assert verifier_of(DIGEST, "silo-0", identity.public) == VERIFIER
