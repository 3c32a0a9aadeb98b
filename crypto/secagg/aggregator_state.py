"""What the aggregator must remember of a setup and a slot, and how it is written down.

It holds no key, but sealed shares and revealed ones: saved with mode 0600. With it a
crashed aggregator finishes the very slot that it was in, and gives every silo the same
requests again. The sum itself is not part of it: the caller saves that once, as a file
of its own, when the survivors are closed.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from crypto import labels
from crypto.encoding import Reader, Writer, digest
from crypto.errors import MalformedMessage
from crypto.secagg.messages import DIGEST_BYTES
from crypto.secagg.parts import Parts, decode_parts, encode_parts
from crypto.secagg.ready import HEAD_BYTES

MAX_STATE_FIELD_BYTES = 1 << 24
Words = npt.NDArray[np.uint64]
_INDEX_BYTES = 2


@dataclass
class SetupState:
    """The aggregator's memory of one key exchange.

    Attributes:
        advertised: by silo, the body of ADVERTISE followed by its signature.
        keys: the body of KEYS, empty before it was sent.
        shares: by silo, the body of SHARES.
        members: bitmap of U2, empty before the first ENVELOPES were sent.
    """

    advertised: dict[int, bytes] = field(default_factory=dict)
    keys: bytes = b""
    shares: dict[int, bytes] = field(default_factory=dict)
    members: bytes = b""


@dataclass
class SlotState:
    """One slot: what was asked, and who answered.

    ``active``, ``survivors`` and ``confirms`` are the bodies that were sent, empty
    before; what has been sent is never changed. ``masked_digest`` is that of the
    masked sum once the survivors are closed, ``sum_digest`` that of the sum.
    """

    slot: int
    round_number: int
    model_digest: bytes
    head: bytes
    parts: Parts
    ready: dict[int, bytes] = field(default_factory=dict)
    active: bytes = b""
    masked: dict[int, bytes] = field(default_factory=dict)
    survivors: bytes = b""
    masked_digest: bytes = b""
    confirmed: dict[int, bytes] = field(default_factory=dict)
    confirms: bytes = b""
    reveals: dict[int, bytes] = field(default_factory=dict)
    sum_digest: bytes = b""


def encode_setup(state: SetupState, owner: bytes) -> bytes:
    """Return the state as bytes, with a digest at the end against torn writes."""
    writer = Writer().fixed(owner, DIGEST_BYTES)
    for table in (state.advertised, state.shares):
        _write_table(writer, table)
    for data in (state.keys, state.members):
        writer.prefixed(data, MAX_STATE_FIELD_BYTES)
    return _closed(writer, labels.AGGREGATOR_STATE)


def decode_setup(data: bytes, owner: bytes) -> SetupState:
    """Return the state of :func:`encode_setup`.

    Raises:
        MalformedMessage: torn, altered, or of another setup.
    """
    reader = _opened(data, owner, labels.AGGREGATOR_STATE)
    advertised, shares = (_read_table(reader) for _ in range(2))
    keys, members = (reader.prefixed(MAX_STATE_FIELD_BYTES) for _ in range(2))
    reader.end()
    return SetupState(advertised, keys, shares, members)


def encode_slot(state: SlotState, owner: bytes, num_silos: int) -> bytes:
    """Return the state as bytes; uploads count only once the survivors are closed."""
    writer = Writer().fixed(owner, DIGEST_BYTES)
    writer.integer(state.slot, 4).integer(state.round_number, 4)
    writer.fixed(state.model_digest, DIGEST_BYTES).fixed(state.head, HEAD_BYTES)
    masked = state.masked if state.survivors else {}
    for table in (state.ready, masked, state.confirmed, state.reveals):
        _write_table(writer, table)
    for data in (
        encode_parts(state.parts, num_silos),
        state.active,
        state.survivors,
        state.masked_digest,
        state.confirms,
        state.sum_digest,
    ):
        writer.prefixed(data, MAX_STATE_FIELD_BYTES)
    return _closed(writer, labels.SLOT_STATE)


def decode_slot(data: bytes, owner: bytes, num_silos: int) -> SlotState:
    """Return the state of :func:`encode_slot`.

    Raises:
        MalformedMessage: torn, altered, or of another setup.
    """
    reader = _opened(data, owner, labels.SLOT_STATE)
    slot, round_number = reader.integer(4), reader.integer(4)
    model_digest, head = reader.fixed(DIGEST_BYTES), reader.fixed(HEAD_BYTES)
    ready, masked, confirmed, reveals = (_read_table(reader) for _ in range(4))
    parts, active, survivors, masked_digest, confirms, sum_digest = (
        reader.prefixed(MAX_STATE_FIELD_BYTES) for _ in range(6)
    )
    reader.end()
    return SlotState(
        slot,
        round_number,
        model_digest,
        head,
        decode_parts(parts, num_silos),
        ready,
        active,
        masked,
        survivors,
        masked_digest,
        confirmed,
        confirms,
        reveals,
        sum_digest,
    )


def _closed(writer: Writer, label: bytes) -> bytes:
    """Return what was written, with its digest."""
    body = writer.to_bytes()
    return body + digest(label, body)


def _opened(data: bytes, owner: bytes, label: bytes) -> Reader:
    """Return a reader behind the owner of a state whose digest holds."""
    body = memoryview(data)[:-DIGEST_BYTES]
    if digest(label, body) != data[-DIGEST_BYTES:]:
        raise MalformedMessage("an aggregator state that is torn or of another version")
    reader = Reader(body)
    if reader.fixed(DIGEST_BYTES) != owner:
        raise MalformedMessage("an aggregator state of another setup")
    return reader


def _write_table(writer: Writer, table: dict[int, bytes]) -> None:
    """Append byte strings by silo, in the order of the roster."""
    writer.integer(len(table), _INDEX_BYTES)
    for silo, data in sorted(table.items()):
        writer.integer(silo, _INDEX_BYTES)
        writer.prefixed(data, MAX_STATE_FIELD_BYTES)


def _read_table(reader: Reader) -> dict[int, bytes]:
    """Read what :func:`_write_table` wrote."""
    table = {}
    for _ in range(reader.integer(_INDEX_BYTES)):
        silo = reader.integer(_INDEX_BYTES)
        table[silo] = reader.prefixed(MAX_STATE_FIELD_BYTES)
    return table
