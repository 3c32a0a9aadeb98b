"""What a silo must remember of a setup with encryption, and how it is written. SECRET.

As in ``crypto.secagg.silo_state``, an older state than the last one saved does no harm
as long as the journal is not older too.
"""

from dataclasses import dataclass

from crypto.encoding import Writer
from crypto.keys import AgreementKey
from crypto.secagg.messages import DIGEST_BYTES, decode_silos, encode_silos
from crypto.secagg.silo_state import (
    MAX_STATE_FIELD_BYTES,
    StagesState,
    read_progress,
    read_state,
    whole_state,
    write_progress,
)

MAX_DEALT_BYTES = 1 << 26
"""Above DEALT of the silo that makes the key, for 1000 silos (31 MB)."""


@dataclass(frozen=True, repr=False)
class BfvSiloState(StagesState):
    """One silo's memory of one setup with encryption.

    Attributes:
        advertisement: the ADVERTISE frame that was sent.
        channel: the key that seals and opens the shared one; deleted when it has come.
        dealt: the DEALT frame that was sent; of the maker until it has joined.
        handed_digest: digest of the HANDED body that was accepted.
        commitment: to the shared key, as HANDED gave it.
        secret_key: the key that all members share; the maker has it before.
    """

    advertisement: bytes = b""
    channel: AgreementKey | None = None
    dealt: bytes = b""
    handed_digest: bytes = b""
    commitment: bytes = b""
    secret_key: bytes = b""


def encode_state(state: BfvSiloState, owner: bytes, num_silos: int) -> bytes:
    """Return the state as bytes, with a digest at the end against torn writes."""
    writer = Writer().fixed(owner, DIGEST_BYTES)
    channel = state.channel.to_bytes() if state.channel else b""
    for data in (
        state.advertisement,
        channel,
        state.keys,
        state.handed_digest,
        state.commitment,
        state.secret_key,
        encode_silos(state.members, num_silos),
    ):
        writer.prefixed(data, MAX_STATE_FIELD_BYTES)
    writer.prefixed(state.dealt, MAX_DEALT_BYTES)
    writer.fixed(state.journal_link, DIGEST_BYTES)
    write_progress(writer, state.progress, num_silos)
    return whole_state(writer)


def decode_state(data: bytes, owner: bytes, num_silos: int) -> BfvSiloState:
    """Return the state of :func:`encode_state`.

    Raises:
        MalformedMessage: torn, altered, or of another setup or silo.
    """
    reader = read_state(data, owner)
    advertisement, channel, keys, handed, commitment, secret_key, members = (
        reader.prefixed(MAX_STATE_FIELD_BYTES) for _ in range(7)
    )
    dealt = reader.prefixed(MAX_DEALT_BYTES)
    journal_link = reader.fixed(DIGEST_BYTES)
    state = BfvSiloState(
        keys=keys,
        members=decode_silos(members, num_silos),
        progress=read_progress(reader, num_silos),
        journal_link=journal_link,
        advertisement=advertisement,
        channel=AgreementKey.from_bytes(channel) if channel else None,
        dealt=dealt,
        handed_digest=handed,
        commitment=commitment,
        secret_key=secret_key,
    )
    reader.end()
    return state
