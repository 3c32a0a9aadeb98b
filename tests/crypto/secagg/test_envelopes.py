import pytest

from crypto.errors import DecryptionFailed
from crypto.frame import NO_SLOT, Header, Kind
from crypto.keys import AgreementKey
from crypto.secagg.envelopes import open_shares, seal_shares

ALICE, BOB = (AgreementKey.from_bytes(bytes([i]) * 32) for i in (1, 2))
HEADER = Header(Kind.SHARES, bytes(16), 1, NO_SLOT, 0, 1)
SEALED = seal_shares(ALICE, BOB.public, bytes(32), HEADER, b"shares")


def test_the_recipient_opens():
    assert open_shares(BOB, ALICE.public, bytes(32), HEADER, SEALED) == b"shares"


@pytest.mark.parametrize(
    "arguments",
    [
        (AgreementKey.generate(), ALICE.public, bytes(32), HEADER, SEALED),
        (BOB, AgreementKey.generate().public, bytes(32), HEADER, SEALED),
        (BOB, ALICE.public, b"\x01" * 32, HEADER, SEALED),
        (BOB, ALICE.public, bytes(32), HEADER, SEALED[:-1] + b"\x00"),
        *(
            (BOB, ALICE.public, bytes(32), header, SEALED)
            for header in (
                Header(Kind.SHARES, bytes(16), 1, NO_SLOT, 1, 0),
                Header(Kind.SHARES, bytes(16), 1, NO_SLOT, 0, 2),
                Header(Kind.SHARES, bytes(16), 2, NO_SLOT, 0, 1),
                Header(Kind.SHARES, b"\x01" * 16, 1, NO_SLOT, 0, 1),
            )
        ),
    ],
)
def test_nobody_else_and_nothing_else(arguments):
    with pytest.raises(DecryptionFailed, match="envelope of silo"):
        open_shares(*arguments)


def test_the_two_directions_have_two_keys():
    back = Header(Kind.SHARES, bytes(16), 1, NO_SLOT, 1, 0)
    sealed = seal_shares(BOB, ALICE.public, bytes(32), back, b"shares")
    assert sealed[:-16] != SEALED[:-16]
