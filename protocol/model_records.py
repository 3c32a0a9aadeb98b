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


@dataclass(frozen=True, kw_only=True)
class MeasuredInSilos:
    """Mean and standard deviation of the Fréchet distances that silos measured.

    Each of ``num_silos`` sampled its own finished model; the single distances are in a
    secure sum. ``survivors`` names them. ``average`` is the digest of the shared
    parameters that all of them measured, ``reference`` the SHA-256 of the file of
    statistics that all of them were sent; the rest is as in :class:`Evaluated`.
    """

    kind: ClassVar[str] = "measured-in-silos"
    round_number: int
    survivors: tuple[str, ...]
    num_silos: int
    mean: float
    standard_deviation: float
    extractor: str
    extractor_digest: str
    reference: str
    reference_count: int
    num_samples: int
    average: str


@dataclass(frozen=True, kw_only=True)
class MeasurementSkipped:
    """The measurement in the silos that the plan asks for was not made."""

    kind: ClassVar[str] = "measurement-skipped"
    round_number: int
    reason: str


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
