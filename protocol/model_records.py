"""Records about the model itself: how good it is, and what was done to it.

The rules of ``protocol.records`` hold here, too; all kinds are gathered there.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """Which silos return which part of the model in a round, as one party computed it.

    ``digest`` is what the dealing follows from, together with ``members`` and the round
    (``protocol.stretches``); all parties must have used the same.
    """

    kind: ClassVar[str] = "dealt"
    round_number: int
    setup: int
    slot: int
    digest: str
    members: tuple[str, ...]
    encoder: tuple[str, ...]
    bottleneck: tuple[str, ...]
    decoder: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A Fréchet distance of samples of the global model.

    ``extractor`` is its name and ``extractor_digest`` the SHA-256 of its weights;
    ``reference`` the digest of the reference statistics, over ``reference_count``
    images; ``class_shares`` the shares of the extractor's classes among the samples,
    where it has classes.
    """

    kind: ClassVar[str] = "evaluated"
    round_number: int
    extractor: str
    extractor_digest: str
    reference: str
    reference_count: int
    num_samples: int
    frechet_distance: float
    class_shares: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ModelHeld:
    """A silo holds a global model that was broadcast (silo), or says so (aggregator).

    ``parameters`` is the digest of the model, as in ``round-closed``; the round is the
    one that begins with it, 0 where the run ends.
    """

    kind: ClassVar[str] = "model-held"
    round_number: int
    silo: str
    parameters: str
