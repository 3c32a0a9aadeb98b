"""Sections of a plan: what the aggregator does with a mean, and how it is measured."""

from dataclasses import dataclass
from typing import Literal

from diffusion.config import SamplerConfig
from protocol.encoding import check_hex
from protocol.settings import require


@dataclass(frozen=True, kw_only=True)
class AggregationConfig:
    """What the aggregator does with the mean update.

    With ``optimizer`` "sgd" the mean times ``learning_rate`` is added to the global
    parameters; with "momentum" it first enters a velocity that decays by ``decay_mean``
    (FedAvgM, Hsu et al. 2019); with "adam" it is the negative gradient of FedAdam,
    whose moments decay by ``decay_mean`` and ``decay_square`` and whose ``adaptivity``
    is added to the root of the second (Reddi et al. 2021). The moving average of the
    global parameters, from which samples are drawn, decays by ``ema_decay`` per round
    (0: the latest ones).
    """

    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    learning_rate: float = 1.0
    decay_mean: float = 0.9
    decay_square: float = 0.99
    adaptivity: float = 1e-3
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(0 < self.learning_rate <= 10, "learning_rate: must be in (0, 10]")
        for name in ("decay_mean", "decay_square", "ema_decay"):
            require(0 <= getattr(self, name) < 1, f"{name}: must be in [0, 1)")
        require(1e-12 <= self.adaptivity <= 1, "adaptivity: must be 1e-12 to 1")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and how a Fréchet distance is measured.

    ``every_rounds`` 0 switches it off; the last round is always evaluated otherwise.
    ``extractor_sha256``, where given, is the full SHA-256 of the Inception weights.

    With ``in_silos`` each silo measures samples of its own finished model once, after
    the last round; mean and spread over the silos come out of the secure sum.
    """

    every_rounds: int = 0
    in_silos: bool = False
    num_samples: int = 500
    extractor: Literal["fd-small-digits", "fd-small-fashion", "inception"] = (
        "fd-small-fashion"
    )
    extractor_sha256: str = ""
    sampler: SamplerConfig = SamplerConfig(kind="ddim", num_steps=50)

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.every_rounds >= 0, "every_rounds: must not be negative")
        require(self.num_samples >= 2, "num_samples: must be at least 2")
        if self.extractor_sha256:
            check_hex("extractor_sha256", self.extractor_sha256, 32)

    @property
    def is_asked_for(self) -> bool:
        """Whether a run needs reference statistics."""
        return self.in_silos or self.every_rounds > 0

    def is_due(self, round_number: int, num_rounds: int) -> bool:
        """Return whether a round is followed by an evaluation."""
        if not self.every_rounds:
            return False
        return round_number % self.every_rounds == 0 or round_number == num_rounds
