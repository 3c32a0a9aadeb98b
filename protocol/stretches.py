"""The stretches of a round's packed vector, and the silos whose words fill each.

A vector is one stretch that all silos fill, or, where the plan deals the parts of the
model (:mod:`protocol.dealing`), three: encoder, bottleneck and decoder in this order. A
stretch begins at a word, and has its own place in the grid, its own padding of the
rotation and its own secret weight. A silo's vector is those of its stretches in a row.

Nobody is told a dealing: silos and aggregator compute it from T2, the digest of the
setup and its members that every silo has agreed to before, and from the round. Where
nothing is masked there is no setup, and the plan's digest and all silos stand for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from crypto.secagg.parts import Part, Parts, whole
from protocol.dealing import PARTS, deal
from protocol.model_records import Dealt
from protocol.plan import RunPlan

EVERYTHING = (0,)
"""The stretches of a silo that returns the only one there is."""


@dataclass(frozen=True)
class Agreed:
    """What a dealing follows from: a digest that all agreed on before, and members.

    Nobody sets it, but the aggregator may make setups until one suits it.
    """

    digest: bytes
    members: tuple[int, ...]


@dataclass(frozen=True)
class Dealing:
    """Which silos fill which stretch of one round's vector, with its length in words.

    Attributes:
        agreed: what it follows from.
        parts: the stretches, as secure aggregation calls them.
    """

    agreed: Agreed
    parts: Parts

    @property
    def is_dealt(self) -> bool:
        """Whether silos fill different stretches."""
        return len(self.parts) > 1

    def stretches_of(self, silo: int) -> tuple[int, ...]:
        """Return the indices of the stretches that a silo fills, ascending."""
        return tuple(
            index for index, part in enumerate(self.parts) if silo in part.contributors
        )


def without_setup(plan: RunPlan) -> Agreed:
    """Return what dealings follow from in a run without secure aggregation."""
    return Agreed(plan.digest, tuple(range(len(plan.silos))))


def make_dealing(
    plan: RunPlan, agreed: Agreed, round_number: int, lengths: Sequence[int]
) -> Dealing:
    """Return the dealing of a round.

    Args:
        lengths: words of each stretch, ``plan.num_words``.

    Raises:
        ValueError: another number of stretches than the plan has.
    """
    if not plan.update.is_dealt:
        (length,) = lengths
        return Dealing(agreed, whole(length, agreed.members))
    groups = deal(agreed.digest, round_number, agreed.members)
    pairs = zip(PARTS, lengths, strict=True)
    return Dealing(agreed, tuple(Part(length, groups[name]) for name, length in pairs))


def largest_share(plan: RunPlan, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the stretches that a silo with the most values in a round returns.

    Args:
        sizes: values of each stretch, in their order.
    """
    if not plan.update.is_dealt:
        return tuple(sizes)
    encoder, bottleneck, decoder = sizes
    return max(encoder, decoder), bottleneck


def dealt_record(plan: RunPlan, place: Mapping[str, int], dealing: Dealing) -> Dealt:
    """Return the record of a dealing.

    Args:
        place: round number, setup and slot, by these names.
    """

    def names(silos: Iterable[int]) -> tuple[str, ...]:
        return tuple(plan.silos[silo].name for silo in silos)

    encoder, bottleneck, decoder = (names(part.contributors) for part in dealing.parts)
    return Dealt(
        round_number=place["round_number"],
        setup=place["setup"],
        slot=place["slot"],
        digest=dealing.agreed.digest.hex(),
        members=names(dealing.agreed.members),
        encoder=encoder,
        bottleneck=bottleneck,
        decoder=decoder,
    )
