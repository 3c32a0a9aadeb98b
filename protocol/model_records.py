"""Records about the model itself: how good it is, and what was done to it.

The rules of ``protocol.records`` hold here, too; all kinds are gathered there.
"""

from dataclasses import dataclass
from typing import ClassVar


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
class AuxiliarySent:
    """What a silo gave for auxiliary images left it (silo), or arrived (aggregator).

    ``label`` says what it is: "silo-models" or "silo-samples"; ``upload`` is the
    SHA-256 of the whole signed message, of ``size_bytes``.
    """

    kind: ClassVar[str] = "auxiliary-sent"
    silo: str
    label: str
    upload: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class AuxiliaryImages:
    """The auxiliary images of a run, as the aggregator keeps them.

    ``label`` says where they come from; ``digest`` is theirs. ``name`` and ``source``
    are a public data set's and its file's SHA-256, ``source_round`` that of the global
    model that was sampled, ``silos`` those that gave models or samples.
    """

    kind: ClassVar[str] = "auxiliary-images"
    label: str
    num_images: int
    digest: str
    name: str
    source: str
    source_round: int
    silos: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The aggregator trained on the auxiliary images after the mean of a round.

    ``steps`` of Adam on ``examples`` images in all; the losses are those of the same
    images, timesteps and noise before and after. ``triggered`` means that learning was
    found to be slow.
    """

    kind: ClassVar[str] = "calibrated"
    round_number: int
    steps: int
    examples: int
    loss_before: float
    loss_after: float
    triggered: bool
