"""The bytes of one exchange by purpose, and of some; the vector of a slot."""

from collections.abc import Iterable
from dataclasses import dataclass

from crypto.frame import Kind
from crypto.secagg.setup import max_frame_bytes
from protocol.plan import RunPlan

WORD_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The bytes of one silo in one stage; rounds count from 1, 0 is outside of them."""

    round_number: int
    stage: str
    sent: int
    received: int
    vector: int = 0
    broadcast: int = 0
    auxiliary: int = 0

    @property
    def protocol_up(self) -> int:
        """The bytes sent that are no update, and nothing for auxiliary images."""
        return self.sent - self.vector - self.auxiliary

    @property
    def protocol_down(self) -> int:
        """The bytes received that are no model."""
        return self.received - self.broadcast


@dataclass(frozen=True)
class Vector:
    """What a slot sums: the words of each stretch, and which of them one silo fills."""

    words: tuple[int, ...]
    own: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """The bytes of the silo's stretches, as words."""
        return WORD_BYTES * sum(self.words[place] for place in self.own)


def whole(num_words: int) -> Vector:
    """Return a vector of one stretch, which every silo fills."""
    return Vector((num_words,), (0,))


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
        auxiliary=sum(row.auxiliary for row in rows),
    )


def by_round(exchanges: Iterable[Exchange]) -> dict[int, Exchange]:
    """Return the sums of rounds; 0 are key exchanges and the end."""
    rows: dict[int, list[Exchange]] = {}
    for row in exchanges:
        rows.setdefault(row.round_number, []).append(row)
    return {number: total(found, "round") for number, found in sorted(rows.items())}


def frame_bytes(
    plan: RunPlan, kind: Kind, num_words: int = 0, *, num_ciphertexts: int = 0
) -> int:
    """Return the length of a frame in which all silos take part."""
    config = plan.secagg_config()
    return max_frame_bytes(kind, config, num_words, num_ciphertexts=num_ciphertexts)
