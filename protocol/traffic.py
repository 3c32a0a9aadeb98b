"""Bytes, exact: what a plan will move, and what a message has moved, by purpose.

Every byte of a run has one purpose:

- *vector*: the fields of an update, or the ciphertexts that hold them, on the way up;
- *broadcast*: the global model, or differences of it, on the way down;
- *auxiliary*: samples or models that silos give before round 1, where a plan asks;
- *protocol*: all the rest in both directions: keys, shares, signatures, grids, headers.

The length of every message follows from the plan and from the lengths of the federated
tensors, but for refusals. :func:`predict` says what each silo sends and receives in a
run in which nothing is lost and nobody is started again; the transcripts of both sides
then count the same, stage by stage (docs/bytes.md).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeAlias

from crypto.encoding import BytesLike
from crypto.errors import CryptoError
from crypto.frame import HEADER_BYTES, OVERHEAD_BYTES, read_header
from crypto.frame import Kind as SecAggKind
from crypto.merkle import HASH_BYTES
from crypto.signatures import SIGNATURE_BYTES
from protocol import traffic_encrypted, traffic_masked
from protocol.auxiliary import STAGE as AUXILIARY
from protocol.auxiliary import AuxiliaryReply, AuxiliaryRequest, content_bytes
from protocol.bodies import split_body
from protocol.broadcast import Broadcast, Held, difference_bytes
from protocol.dealing import PARTS
from protocol.envelope import EndReply, EndRequest, Kind, LedgerNotice, RoundRequest
from protocol.errors import EnvelopeRejected
from protocol.grids import first_numbers
from protocol.heads import HEAD_BYTES, Head, ShownHead
from protocol.measurement import MEASURE, NUM_WORDS, MeasureRequest
from protocol.plan import RunPlan
from protocol.reference import (
    REFERENCE,
    REFERENCE_ROUND,
    ReferenceRequest,
    first_slot_round,
    reference_words,
)
from protocol.traffic_parts import FLOAT_BYTES, Segments, stretches_of
from protocol.traffic_rows import WORD_BYTES, Exchange, Vector, frame_bytes, whole

Own: TypeAlias = Callable[[int], Collection[str]]
"""The parts that one silo returns in a round."""

_HEAD = Head.from_bytes(bytes(HEAD_BYTES), "")
_SHOWN = ShownHead(head=_HEAD)
_DIGEST = "00" * HASH_BYTES


def predict(
    plan: RunPlan,
    segments: Segments,
    own: Own = lambda round_number: PARTS,
    *,
    silo: int = 0,
    statistics_bytes: int = 0,
) -> tuple[Exchange, ...]:
    """Return what a silo sends and receives, exchange by exchange, in order.

    Guarantees: exact, as long as no silo is lost, no attempt at a round is repeated and
    no process is started again. One that is adds to it. All silos are alike, but for
    auxiliary samples, whose number follows from declared weights, and for the silos
    that make a shared key and that decrypt (``traffic_encrypted``).

    Args:
        segments: parts and lengths of the federated tensors.
        own: where parts are dealt (USplit), those that the silo returns in a round;
            elsewhere it is not asked.
        silo: the index of the silo.
        statistics_bytes: the length of the file of reference statistics that silos are
            sent to measure their models with, where the plan asks for that.
    """
    return tuple(_predict(plan, segments, own, silo, statistics_bytes))


def _predict(
    plan: RunPlan, segments: Segments, own: Own, silo: int, statistics_bytes: int
) -> Iterator[Exchange]:
    """Yield the exchanges of a run."""
    is_hidden = plan.protection.is_hidden
    slots = traffic_encrypted if plan.protection.is_encrypted else traffic_masked
    every, notice = plan.protection.slots_per_setup, 0
    first = first_slot_round(plan)
    if plan.calibration.asks_silos:
        yield _auxiliary(plan, segments, silo)
    last = plan.num_rounds + plan.evaluation.in_silos
    for number in range(first, last + 1):
        if is_hidden and (number - first) % every == 0:
            yield from slots.setup(plan, silo, notice)
        if number == REFERENCE_ROUND:
            vector = whole(reference_words(plan))
            yield _reference(plan, notice)
        elif number > plan.num_rounds:
            vector = whole(NUM_WORDS)
            yield _measure(plan, segments, notice, statistics_bytes)
        else:
            vector = _vector(plan, segments, number, own)
            if plan.update.broadcast_bits and number > 1:
                yield _broadcast(plan, segments, number)
            yield _ready(plan, segments, number, notice, vector.num_bytes)
        if is_hidden:
            yield from slots.slot(plan, silo, number, vector)
            notice = frame_bytes(plan, SecAggKind.SUM)
    if plan.update.broadcast_bits:
        yield _broadcast(plan, segments, 0)
    yield _end(plan, segments, notice)


def _auxiliary(plan: RunPlan, segments: Segments, silo: int) -> Exchange:
    """Return the exchange in which a silo gives its own model, or samples of it."""
    label = plan.calibration.images
    content = content_bytes(plan, silo, sum(length for _, length in segments))
    reply = AuxiliaryReply(label=label, content=b"")
    sent = OVERHEAD_BYTES + len(reply.to_body()) + content + _ledger(plan)
    return Exchange(
        round_number=0,
        stage=AUXILIARY,
        sent=sent,
        received=OVERHEAD_BYTES + len(AuxiliaryRequest(label=label).to_body()),
        auxiliary=content,
    )


def _ledger(plan: RunPlan) -> int:
    """Return what the head of a privacy ledger adds to a reply, where there is one."""
    if not plan.privacy.is_private:
        return 0
    ledger = LedgerNotice(size=1, head=_DIGEST, reply=b"")
    return OVERHEAD_BYTES + len(ledger.to_body())


def _reference(plan: RunPlan, notice: int) -> Exchange:
    """Return the request for the sums of a silo's features, and what answers it."""
    request = ReferenceRequest(attempt=1, shown=_SHOWN, extractor_digest=_DIGEST)
    sent = frame_bytes(plan, SecAggKind.READY)
    return Exchange(
        round_number=REFERENCE_ROUND,
        stage=REFERENCE,
        sent=sent + (_ledger(plan) if plan.evaluation.is_noised else 0),
        received=OVERHEAD_BYTES + len(request.to_body()) + notice,
    )


def _measure(
    plan: RunPlan, segments: Segments, notice: int, statistics_bytes: int
) -> Exchange:
    """Return the request to measure the finished model, and what answers it."""
    request = MeasureRequest(
        round_number=plan.num_rounds + 1,
        attempt=1,
        shown=_SHOWN,
        average=b"",
        statistics=b"",
    )
    is_hidden = plan.protection.is_hidden
    vector = 0 if is_hidden else WORD_BYTES * NUM_WORDS
    fixed = OVERHEAD_BYTES + len(request.to_body()) + notice + statistics_bytes
    return Exchange(
        round_number=plan.num_rounds + 1,
        stage=MEASURE,
        sent=frame_bytes(plan, SecAggKind.READY)
        if is_hidden
        else OVERHEAD_BYTES + vector,
        received=fixed + _model_bytes(segments),
        vector=vector,
        broadcast=_model_bytes(segments),
    )


def _ready(
    plan: RunPlan, segments: Segments, number: int, notice: int, vector: int
) -> Exchange:
    """Return the exchange that brings a round's model, and what answers it."""
    is_held = number == 1 or plan.update.broadcast_bits > 0
    model = 0 if is_held else _model_bytes(segments)
    is_hidden = plan.protection.is_hidden
    request = RoundRequest(
        round_number=number,
        attempt=1,
        shown=_SHOWN,
        model=_DIGEST,
        parameters=b"",
        ranges=b"",
    )
    fixed = OVERHEAD_BYTES + len(request.to_body()) + notice
    sent = frame_bytes(plan, SecAggKind.READY) if is_hidden else OVERHEAD_BYTES + vector
    return Exchange(
        round_number=number,
        stage="ready",
        sent=sent + _ledger(plan),
        received=fixed + model + _range_bytes(plan, segments, number),
        vector=0 if is_hidden else vector,
        broadcast=model,
    )


def _range_bytes(plan: RunPlan, segments: Segments, number: int) -> int:
    """Return the bytes of a round's grid (``protocol.grids``)."""
    lengths = [length for _, length in segments]
    counts = [len(stretch) for stretch in stretches_of(plan, segments)]
    count = first_numbers(plan, lengths, counts).size
    if number > 1 and not (plan.update.rotation or plan.privacy.is_in_sum):
        count += len(segments)
    return FLOAT_BYTES * count


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
    request = EndRequest(round_number=plan.num_rounds, shown=_SHOWN, model=_DIGEST)
    copies = (not plan.update.broadcast_bits) + (plan.aggregation.ema_decay > 0)
    model = copies * _model_bytes(segments)
    return Exchange(
        round_number=0,
        stage="end",
        sent=OVERHEAD_BYTES + len(EndReply(head=_HEAD, seen=_HEAD).to_body()),
        received=OVERHEAD_BYTES + len(request.to_body()) + model + notice,
        broadcast=model,
    )


def _vector(plan: RunPlan, segments: Segments, number: int, own: Own) -> Vector:
    """Return a round's stretches, and which of them the silo returns."""
    chosen = own(number) if plan.update.is_dealt else ()
    stretches = stretches_of(plan, segments)
    return Vector(
        tuple(
            plan.num_words(number, sum(length for _, length in stretch))
            for stretch in stretches
        ),
        tuple(
            place
            for place, stretch in enumerate(stretches)
            if not plan.update.is_dealt or stretch[0][0] in chosen
        ),
    )


def _model_bytes(segments: Segments) -> int:
    """Return the bytes of the shared parameters as they are broadcast."""
    return FLOAT_BYTES * sum(length for _, length in segments)


# ------------------------------------------------------------------------ by part


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
