"""What the aggregator must remember of one setup, and how it is written down.

It holds no key, but sealed shares and revealed ones: saved with mode 0600. With it a
crashed aggregator finishes the very slot that it was in, and gives every silo the same
requests again.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from crypto import labels
from crypto.encoding import Reader, Writer, digest
from crypto.errors import MalformedMessage
from crypto.secagg.config import MAX_WORDS
from crypto.secagg.messages import DIGEST_BYTES

MAX_STATE_FIELD_BYTES = 1 << 24
Words = npt.NDArray[np.uint64]
_INDEX_BYTES = 2


@dataclass
class SlotSum:
    """One slot: what was asked, who answered, and the sum so far.

    ``active``, ``survivors`` and ``confirms`` are the bodies that were sent, empty
    before; what has been sent is never changed. ``total`` is uint64 ``[w]``.
    """

    slot: int
    round_number: int
    model_digest: bytes
    total: Words
    ready: dict[int, bytes] = field(default_factory=dict)
    active: bytes = b""
    masked: dict[int, bytes] = field(default_factory=dict)
    survivors: bytes = b""
    confirmed: dict[int, bytes] = field(default_factory=dict)
    confirms: bytes = b""
    reveals: dict[int, bytes] = field(default_factory=dict)
    is_unmasked: bool = False


@dataclass
class AggregatorState:
    """The aggregator's memory of one setup.

    Attributes:
        advertised: by silo, the body of ADVERTISE followed by its signature.
        keys: the body of KEYS, empty before it was sent.
        shares: by silo, the body of SHARES.
        members: bitmap of U2, empty before the first ENVELOPES were sent.
        slot: the latest slot.
    """

    advertised: dict[int, bytes] = field(default_factory=dict)
    keys: bytes = b""
    shares: dict[int, bytes] = field(default_factory=dict)
    members: bytes = b""
    slot: SlotSum | None = None


def encode_state(state: AggregatorState, owner: bytes) -> bytes:
    """Return the state as bytes, with a digest at the end against torn writes."""
    writer = Writer().fixed(owner, DIGEST_BYTES)
    _write_table(writer, state.advertised)
    writer.prefixed(state.keys, MAX_STATE_FIELD_BYTES)
    _write_table(writer, state.shares)
    writer.prefixed(state.members, MAX_STATE_FIELD_BYTES)
    writer.integer(state.slot is not None, 1)
    if state.slot is not None:
        _write_slot(writer, state.slot)
    body = writer.to_bytes()
    return body + digest(labels.AGGREGATOR_STATE, body)


def decode_state(data: bytes, owner: bytes) -> AggregatorState:
    """Return the state of :func:`encode_state`.

    Raises:
        MalformedMessage: torn, altered, or of another setup.
    """
    body = memoryview(data)[:-DIGEST_BYTES]
    if digest(labels.AGGREGATOR_STATE, body) != data[-DIGEST_BYTES:]:
        raise MalformedMessage("an aggregator state that is torn or of another version")
    reader = Reader(body)
    if reader.fixed(DIGEST_BYTES) != owner:
        raise MalformedMessage("an aggregator state of another setup")
    state = AggregatorState(
        advertised=_read_table(reader),
        keys=reader.prefixed(MAX_STATE_FIELD_BYTES),
        shares=_read_table(reader),
        members=reader.prefixed(MAX_STATE_FIELD_BYTES),
        slot=_read_slot(reader) if reader.integer(1) else None,
    )
    reader.end()
    return state


def _write_slot(writer: Writer, slot: SlotSum) -> None:
    """Append a slot, its sum last."""
    writer.integer(slot.slot, 4).integer(slot.round_number, 4)
    writer.fixed(slot.model_digest, DIGEST_BYTES)
    for table in (slot.ready, slot.masked, slot.confirmed, slot.reveals):
        _write_table(writer, table)
    for data in (slot.active, slot.survivors, slot.confirms):
        writer.prefixed(data, MAX_STATE_FIELD_BYTES)
    writer.integer(slot.is_unmasked, 1)
    words = slot.total.astype("<u8", copy=False).data.cast("B")
    writer.prefixed(words, 8 * MAX_WORDS)


def _read_slot(reader: Reader) -> SlotSum:
    """Read what :func:`_write_slot` wrote."""
    slot, round_number = reader.integer(4), reader.integer(4)
    model_digest = reader.fixed(DIGEST_BYTES)
    ready, masked, confirmed, reveals = (_read_table(reader) for _ in range(4))
    active, survivors, confirms = (
        reader.prefixed(MAX_STATE_FIELD_BYTES) for _ in range(3)
    )
    is_unmasked = bool(reader.integer(1))
    words = np.frombuffer(reader.prefixed(8 * MAX_WORDS), "<u8").astype(np.uint64)
    return SlotSum(
        slot,
        round_number,
        model_digest,
        words,
        ready,
        active,
        masked,
        survivors,
        confirmed,
        confirms,
        reveals,
        is_unmasked,
    )


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
