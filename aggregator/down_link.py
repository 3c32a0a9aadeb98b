"""What the aggregator keeps of a quantised down-link: a value beside the round state.

The global model is what the broadcast differences define, since that is what silos
hold. The exact target of a round is missed by up to half a grid step a value; this
error is kept here and added before the next round's step (error feedback), so that it
never adds up.

Source: Seide et al. 2014 ("1-bit SGD", section 3.1); Karimireddy et al. 2019
(arXiv 1901.09847).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from privacy.clipping import Vector
from protocol.bodies import (
    check_names,
    floats_from_bytes,
    floats_to_bytes,
    join_body,
    split_body,
)
from protocol.broadcast import MAX_DIFFERENCES, Broadcast, Difference, models_in


@dataclass(frozen=True)
class DownLink:
    """The rounding error, and the latest differences with what they begin from.

    ``error`` is exact target minus global parameters, float32 ``[d]``. ``base`` is the
    digest (hexadecimal) of the model that the first difference is added to.
    """

    error: Vector = field(repr=False)
    base: str
    differences: tuple[Difference, ...] = field(default=(), repr=False)

    @property
    def models(self) -> tuple[str, ...]:
        """The digests of the models from the base to the latest, oldest first."""
        return (self.base, *(each.model for each in self.differences))

    def followed_by(self, error: Vector, difference: Difference) -> "DownLink":
        """Return the state after one more difference.

        Of the earlier ones those are kept that a silo would be sent in a row: as many
        as are together fewer bytes than all parameters; the latest in any case.
        """
        models, kept = self.models, [difference]
        base, num_bytes = models[-1], difference.num_bytes
        for index in range(len(self.differences) - 1, -1, -1):
            num_bytes += self.differences[index].num_bytes
            if num_bytes >= 4 * error.size or len(kept) == MAX_DIFFERENCES:
                break
            kept.insert(0, self.differences[index])
            base = models[index]
        return DownLink(error, base, tuple(kept))

    def to_bytes(self) -> bytes:
        """Return everything as bytes, for a file."""
        row = Broadcast.of_differences(0, self.base, self.differences)
        table = {"models": list(row.models)}
        return join_body(table, floats_to_bytes(self.error), row.ranges, row.levels)

    @classmethod
    def from_bytes(cls, data: bytes) -> "DownLink":
        """Return what :meth:`to_bytes` saved.

        Raises:
            EnvelopeRejected: cut off or damaged.
        """
        table, (error, ranges, levels) = split_body(memoryview(data), 3)
        check_names(table, ("models",))
        models = models_in(table)
        row = Broadcast(round_number=0, models=models, ranges=ranges, levels=levels)
        values = floats_from_bytes(error, len(error) // 4).copy()
        return cls(values, models[0], row.differences())

    def missed(self, model: str) -> Sequence[Difference] | None:
        """Return the differences after a model, oldest first; None if it is not known.

        The latest model misses none.
        """
        if model not in self.models:
            return None
        return self.differences[self.models.index(model) :]


def first_down_link(length: int, model: str) -> DownLink:
    """Return the state before the first round, when silos hold the first model."""
    return DownLink(np.zeros(length, np.float32), model)
