"""Bytes, exact: what a plan will move, and what a message has moved, by purpose.

Every byte of a run has one purpose:

- *vector*: the fields of an update, on the way up;
- *broadcast*: the global model, or differences of it, on the way down;
- *protocol*: all the rest in both directions: keys, shares, signatures, grids, headers.

The length of every message follows from the plan and from the lengths of the federated
tensors, but for refusals. :func:`predict` says what each silo sends and receives in a
run in which nothing is lost and nobody is started again; the transcripts of both sides
then count the same, stage by stage (docs/bytes.md).
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from crypto.encoding import BytesLike
from crypto.errors import CryptoError
from crypto.frame import HEADER_BYTES, OVERHEAD_BYTES, read_header
from crypto.frame import Kind as SecAggKind
from crypto.merkle import HASH_BYTES
from crypto.secagg.setup import max_frame_bytes
from crypto.signatures import SIGNATURE_BYTES
from protocol.bodies import split_body
from protocol.broadcast import Broadcast, Held, difference_bytes
from protocol.dealing import BOTTLENECK, DECODER, ENCODER, PARTS
from protocol.envelope import EndReply, EndRequest, Kind, LedgerNotice, RoundRequest
from protocol.errors import EnvelopeRejected
from protocol.grids import first_numbers
from protocol.plan import RunPlan
from protocol.transcript import HEAD_BYTES, Head

Own: TypeAlias = Callable[[int], Collection[str]]
"""The parts that one silo returns in a round."""

_HEAD = Head.from_bytes(bytes(HEAD_BYTES), "")
_DIGEST = "00" * HASH_BYTES
_FLOAT_BYTES = 4


Segments: TypeAlias = Sequence[tuple[str, int]]
"""The part and the length of every federated tensor, in the order of the layout."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The bytes of one silo in one stage; rounds count from 1, 0 is outside of them."""

    round_number: int
    stage: str
    sent: int
    received: int
    vector: int = 0
    broadcast: int = 0

    @property
    def protocol_up(self) -> int:
        """The bytes sent that are no update."""
        return self.sent - self.vector

    @property
    def protocol_down(self) -> int:
        """The bytes received that are no model."""
        return self.received - self.broadcast


def total(exchanges: Iterable[Exchange], stage: str = "all") -> Exchange:
    """Return the sum of some exchanges, as of a stage of this name and round 0."""
    rows = list(exchanges)
    return Exchange(
        round_number=0,
        stage=stage,
        sent=sum(row.sent for row in rows),
        received=sum(row.received for row in rows),
        vector=sum(row.vector for row in rows),
        broadcast=sum(row.broadcast for row in rows),
    )


def by_round(exchanges: Iterable[Exchange]) -> dict[int, Exchange]:
    """Return the sums of rounds; 0 are key exchanges and the end."""
    rows: dict[int, list[Exchange]] = {}
    for row in exchanges:
        rows.setdefault(row.round_number, []).append(row)
    return {number: total(found, "round") for number, found in sorted(rows.items())}


def predict(
    plan: RunPlan, segments: Segments, own: Own = lambda round_number: PARTS
) -> tuple[Exchange, ...]:
    """Return what each silo sends and receives, exchange by exchange, in order.

    Guarantees: exact, for every silo alike, as long as no silo is lost, no attempt at a
    round is repeated and no process is started again. One that is adds to it.

    Args:
        segments: parts and lengths of the federated tensors.
        own: where parts are dealt (USplit), those that the silo returns in a round;
            elsewhere it is not asked.
    """
    return tuple(_predict(plan, segments, own))


def predict_range(
    plan: RunPlan, segments: Segments
) -> tuple[tuple[Exchange, ...], tuple[Exchange, ...]]:
    """Return the least and the most that one silo sends and receives.

    They differ where parts are dealt, and only in what is sent.
    """
    sizes = broadcast_by_part(segments)
    least, most = sorted((ENCODER, DECODER), key=lambda part: sizes.get(part, 0))
    return (
        predict(plan, segments, lambda round_number: (least,)),
        predict(plan, segments, lambda round_number: (most, BOTTLENECK)),
    )


def run_range(plan: RunPlan, segments: Segments) -> tuple[Exchange, Exchange]:
    """Return the least and the most that all silos together move in a run.

    Equal but where parts are dealt to an odd number of silos: by a coin the last one
    returns the encoder or the decoder.
    """
    if not plan.update.is_dealt:
        rows = predict(plan, segments) * len(plan.silos)
        return total(rows), total(rows)
    bare = total(predict(plan, segments, lambda round_number: ()) * len(plan.silos))
    pairs, left = divmod(len(plan.silos), 2)
    least = most = 0
    for number in range(1, plan.num_rounds + 1):
        parts = vector_by_part(plan, segments, number)
        sides = (parts[ENCODER], parts[DECODER])
        least += pairs * sum(parts.values()) + left * (parts[BOTTLENECK] + min(sides))
        most += pairs * sum(parts.values()) + left * (parts[BOTTLENECK] + max(sides))
    return (
        replace(bare, sent=bare.sent + least, vector=least),
        replace(bare, sent=bare.sent + most, vector=most),
    )


def _predict(plan: RunPlan, segments: Segments, own: Own) -> Iterator[Exchange]:
    """Yield the exchanges of a run."""
    is_masked = plan.protection.method == "mask"
    every, notice = plan.protection.slots_per_setup, 0
    for number in range(1, plan.num_rounds + 1):
        if is_masked and (number - 1) % every == 0:
            yield from _setup(plan, notice)
        vector = _vector_bytes(plan, segments, number, own)
        if plan.update.broadcast_bits and number > 1:
            yield _broadcast(plan, segments, number)
        yield _ready(plan, segments, number, notice, vector)
        if is_masked:
            yield from _slot(plan, number, vector)
            notice = _frame(plan, SecAggKind.SUM)
    if plan.update.broadcast_bits:
        yield _broadcast(plan, segments, 0)
    yield _end(plan, segments, notice)


def _setup(plan: RunPlan, notice: int) -> Iterator[Exchange]:
    """Yield the key exchange that serves the next slots."""
    rows = (
        ("setup", SecAggKind.ADVERTISE, OVERHEAD_BYTES + notice),
        ("shares", SecAggKind.SHARES, _frame(plan, SecAggKind.KEYS)),
    )
    for stage, kind, received in rows:
        sent = _frame(plan, kind)
        yield Exchange(round_number=0, stage=stage, sent=sent, received=received)
    yield Exchange(
        round_number=0,
        stage="envelopes",
        sent=OVERHEAD_BYTES,
        received=_frame(plan, SecAggKind.ENVELOPES),
    )


def _ready(
    plan: RunPlan, segments: Segments, number: int, notice: int, vector: int
) -> Exchange:
    """Return the exchange that brings a round's model, and what answers it."""
    is_held = number == 1 or plan.update.broadcast_bits > 0
    model = 0 if is_held else _model_bytes(segments)
    is_masked = plan.protection.method == "mask"
    request = RoundRequest(
        round_number=number,
        attempt=1,
        head=_HEAD,
        model=_DIGEST,
        parameters=b"",
        ranges=b"",
    )
    fixed = OVERHEAD_BYTES + len(request.to_body()) + notice
    sent = _frame(plan, SecAggKind.READY) if is_masked else OVERHEAD_BYTES + vector
    if plan.privacy.is_private:
        ledger = LedgerNotice(size=1, head=_DIGEST, reply=b"")
        sent += OVERHEAD_BYTES + len(ledger.to_body())
    return Exchange(
        round_number=number,
        stage="ready",
        sent=sent,
        received=fixed + model + _range_bytes(plan, segments, number),
        vector=0 if is_masked else vector,
        broadcast=model,
    )


def _range_bytes(plan: RunPlan, segments: Segments, number: int) -> int:
    """Return the bytes of a round's grid (``protocol.grids``)."""
    lengths = [length for _, length in segments]
    counts = [len(stretch) for stretch in _stretches(plan, segments)]
    count = first_numbers(plan, lengths, counts).size
    if number > 1 and not (plan.update.rotation or plan.privacy.is_in_sum):
        count += len(segments)
    return _FLOAT_BYTES * count


def _slot(plan: RunPlan, number: int, vector: int) -> Iterator[Exchange]:
    """Yield the exchanges of a round's masked sum."""
    kinds = SecAggKind
    rows = [("masked", kinds.MASKED, kinds.ACTIVE)]
    if plan.skips_confirm:
        rows += [("reveal", kinds.REVEAL, kinds.SURVIVORS)]
    else:
        rows += [
            ("confirm", kinds.CONFIRM, kinds.SURVIVORS),
            ("reveal", kinds.REVEAL, kinds.CONFIRMS),
        ]
    for stage, up, down in rows:
        part = vector if stage == "masked" else 0
        yield Exchange(
            round_number=number,
            stage=stage,
            sent=_frame(plan, up) + part,
            received=_frame(plan, down),
            vector=part,
        )


def _broadcast(plan: RunPlan, segments: Segments, number: int) -> Exchange:
    """Return the exchange that brings one difference, or all parameters if fewer."""
    size = difference_bytes([n for _, n in segments], plan.update.broadcast_bits)
    models: tuple[str, ...] = (_DIGEST, _DIGEST)
    if size >= _model_bytes(segments):
        size, models = _model_bytes(segments), (_DIGEST,)
    request = Broadcast(round_number=number, models=models)
    return Exchange(
        round_number=number,
        stage="broadcast",
        sent=OVERHEAD_BYTES + len(Held(model=_DIGEST).to_body()),
        received=OVERHEAD_BYTES + len(request.to_body()) + size,
        broadcast=size,
    )


def _end(plan: RunPlan, segments: Segments, notice: int) -> Exchange:
    """Return the last exchange: the model where silos lack it, and another average."""
    request = EndRequest(round_number=plan.num_rounds, head=_HEAD, model=_DIGEST)
    copies = (not plan.update.broadcast_bits) + (plan.aggregation.ema_decay > 0)
    model = copies * _model_bytes(segments)
    return Exchange(
        round_number=0,
        stage="end",
        sent=OVERHEAD_BYTES + len(EndReply(head=_HEAD).to_body()),
        received=OVERHEAD_BYTES + len(request.to_body()) + model + notice,
        broadcast=model,
    )


def _frame(plan: RunPlan, kind: SecAggKind) -> int:
    """Return the length of a frame in which all silos take part, without a vector."""
    return max_frame_bytes(kind, plan.secagg_config())


def _stretches(plan: RunPlan, segments: Segments) -> list[Segments]:
    """Return the tensors of each stretch of the vector (``protocol.stretches``)."""
    if not plan.update.is_dealt:
        return [segments]
    groups = itertools.groupby(segments, key=lambda segment: segment[0])
    return [tuple(group) for _, group in groups]


def _vector_bytes(plan: RunPlan, segments: Segments, number: int, own: Own) -> int:
    """Return the bytes of a silo's vector in a round: its own stretches in a row."""
    chosen = own(number) if plan.update.is_dealt else ()
    return sum(
        plan.vector_bytes(number, sum(length for _, length in stretch))
        for stretch in _stretches(plan, segments)
        if not plan.update.is_dealt or stretch[0][0] in chosen
    )


def _model_bytes(segments: Segments) -> int:
    """Return the bytes of the shared parameters as they are broadcast."""
    return _FLOAT_BYTES * sum(length for _, length in segments)


# ------------------------------------------------------------------------ by part


def vector_by_part(
    plan: RunPlan, segments: Segments, round_number: int
) -> dict[str, int]:
    """Return how many bytes of a round's vector belong to each part.

    Fields are packed across the border of two tensors: the word in which one ends
    counts to it, so that the parts add up to the whole vector. What rotation pads is
    "padding", the word of a secret weight "weight". Rotated fields are no part's own;
    their number still is. Where parts are dealt, each has words, padding and weight of
    its own, which count to it, and a silo sends some of them only.
    """
    if plan.update.is_dealt:
        return {
            stretch[0][0]: plan.vector_bytes(round_number, sum(n for _, n in stretch))
            for stretch in _stretches(plan, segments)
        }
    per_word = 64 // plan.field_bits(round_number)
    size = sum(length for _, length in segments)
    padding = plan.update.num_values(size) - size
    rows = [*segments, ("padding", padding)] if padding else [*segments]
    parts = {part: 0 for part, _ in rows}
    end = before = 0
    for part, length in rows:
        end += length
        words = -(-end // per_word)
        parts[part] += 8 * (words - before)
        before = words
    if plan.update.weights == "secret":
        parts["weight"] = 8
    return parts


def broadcast_by_part(segments: Segments, broadcast_bits: int = 0) -> dict[str, int]:
    """Return how many bytes of one broadcast belong to each part.

    Args:
        broadcast_bits: of a level of a quantised difference, which has a range for each
            tensor besides; the byte in which a tensor ends counts to it. 0: float32.
    """
    parts = {part: 0 for part, _ in segments}
    end = before = 0
    for part, length in segments:
        end += length * (broadcast_bits or 8 * _FLOAT_BYTES)
        whole = -(-end // 8)
        parts[part] += whole - before + (_FLOAT_BYTES if broadcast_bits else 0)
        before = whole
    return parts


# ------------------------------------------------------------------------ counted

_MODEL_PARTS: Mapping[int, tuple[int, tuple[int, ...]]] = {
    Kind.ROUND: (4, (1,)),
    Kind.END: (4, (1, 2)),
    Kind.BROADCAST: (3, (0, 1, 2)),
    Kind.MEASURE: (4, (1,)),
}
"""By kind: byte strings of a body, and which of them are the model."""


def broadcast_bytes(request: BytesLike) -> int:
    """Return how many bytes of a message to a silo are the global model, or change it.

    Both ends count what they sent or received with this one function. What is no
    message, or not of this version, has none.
    """
    try:
        known = _MODEL_PARTS.get(read_header(request).kind)
        if known is None:
            return 0
        num_parts, chosen = known
        body = memoryview(request).cast("B")[HEADER_BYTES:-SIGNATURE_BYTES]
        _, parts = split_body(body, num_parts)
    except (CryptoError, EnvelopeRejected):
        return 0
    return sum(len(parts[index]) for index in chosen)
