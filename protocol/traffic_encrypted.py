"""What encryption moves: a shared key, and a slot of which some silos decrypt the sum.

Silos are not alike here: one makes the key, and in each round only as many decrypt as
have to agree.
"""

from collections.abc import Iterator
from typing import TypeAlias

from crypto.bfv.digits import chunks_in
from crypto.bfv.messages import Dealt, Handed
from crypto.bfv.parameters import FRESH_BYTES
from crypto.frame import OVERHEAD_BYTES, Kind
from crypto.secagg.messages import DIGEST_BYTES
from crypto.secagg.parts import Part
from protocol.packing import layouts
from protocol.plan import RunPlan
from protocol.traffic_rows import Exchange, Vector, frame_bytes

Chunks: TypeAlias = tuple[int, ...]
"""The ciphertexts of each stretch of a vector."""


def setup(plan: RunPlan, silo: int, notice: int) -> Iterator[Exchange]:
    """Yield the key exchange that serves the next slots, as one silo counts it."""
    is_maker = silo == plan.secagg_config().key_maker
    dealt, handed = (frame_bytes(plan, kind) for kind in (Kind.DEALT, Kind.HANDED))
    digest, silos = bytes(DIGEST_BYTES), tuple(range(len(plan.silos)))
    if is_maker:
        nothing = Handed(digest, silos, digest).to_bytes(len(silos))
        handed = OVERHEAD_BYTES + len(nothing)
    else:
        dealt = OVERHEAD_BYTES + len(Dealt(digest).to_bytes())
    for stage, sent, received in (
        ("setup", frame_bytes(plan, Kind.ADVERTISE), OVERHEAD_BYTES + notice),
        ("key", dealt, frame_bytes(plan, Kind.KEYS)),
        ("handed", OVERHEAD_BYTES, handed),
    ):
        yield Exchange(round_number=0, stage=stage, sent=sent, received=received)


def slot(plan: RunPlan, silo: int, number: int, vector: Vector) -> Iterator[Exchange]:
    """Yield the exchanges of a round's encrypted sum, as one silo counts them."""
    chunks = chunks_of(plan, number, vector.words)
    own, every = sum(chunks[place] for place in vector.own), sum(chunks)
    yield Exchange(
        round_number=number,
        stage="encrypted",
        sent=frame_bytes(plan, Kind.ENCRYPTED, num_ciphertexts=own),
        received=frame_bytes(plan, Kind.ACTIVE),
        vector=own * FRESH_BYTES,
    )
    yield Exchange(
        round_number=number,
        stage="confirm",
        sent=frame_bytes(plan, Kind.CONFIRM),
        received=frame_bytes(plan, Kind.SURVIVORS),
    )
    if silo in asked(plan, number):
        yield Exchange(
            round_number=number,
            stage="decrypt",
            sent=frame_bytes(plan, Kind.DECRYPTED, sum(vector.words)),
            received=frame_bytes(plan, Kind.DECRYPT, num_ciphertexts=every),
        )


def chunks_of(plan: RunPlan, number: int, words: tuple[int, ...]) -> Chunks:
    """Return the ciphertexts of each stretch of a round's vector, tags included."""
    parts = tuple(Part(each, ()) for each in words)
    return tuple(chunks_in(layout) for layout in layouts(plan, number, parts))


def asked(plan: RunPlan, number: int) -> tuple[int, ...]:
    """Return the silos that decrypt a round's sum, if none is lost and all agree.

    As many as must agree, from one on that is another in each round.
    """
    count = len(plan.silos)
    return tuple((number + place) % count for place in range(num_witnesses(plan)))


def num_witnesses(plan: RunPlan) -> int:
    """Return how many silos must have decrypted the same sum: c + 1, at least two."""
    return max(2, plan.protection.max_colluding + 1)
