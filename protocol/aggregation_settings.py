"""Sections of a plan: what the aggregator does with a mean, and how it is measured."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from diffusion.config import SamplerConfig
from protocol.encoding import check_hex
from protocol.reference_words import DIMS, MAX_FEATURE, MAX_IMAGES, num_words
from protocol.settings import require

MIN_REFERENCE_COUNT = 16
"""Fewer images would make rounding visible in the sixth decimal of a mean."""
MAX_NOISED_DIMS = 256


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

    ``reference`` "published" measures against a file that the aggregator brings;
    "federation" against the silos' own images, whose feature statistics are summed
    securely before round 1. A silo with fewer than ``min_reference_count`` images does
    not take part. In a plan with DP-SGD each silo adds noise to its sums, of
    ``reference_noise_multiplier`` times ``reference_clipping``, the norm that every
    privacy unit's (1, f, upper triangle of f fᵀ) is clipped to; or the plan says with
    ``reference_uncovered`` that epsilon does not cover the exact sums.
    """

    every_rounds: int = 0
    in_silos: bool = False
    num_samples: int = 500
    extractor: Literal["fd-small-digits", "fd-small-fashion", "inception"] = (
        "fd-small-fashion"
    )
    extractor_sha256: str = ""
    sampler: SamplerConfig = SamplerConfig(kind="ddim", num_steps=50)
    reference: Literal["published", "federation"] = "published"
    min_reference_count: int = 100
    reference_noise_multiplier: float = 0.0
    reference_clipping: float = 0.0
    reference_uncovered: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.every_rounds >= 0, "every_rounds: must not be negative")
        require(self.num_samples >= 2, "num_samples: must be at least 2")
        if self.extractor_sha256:
            check_hex("extractor_sha256", self.extractor_sha256, 32)
        self._check_reference()

    def _check_reference(self) -> None:
        """Check what the silos' own reference statistics depend on."""
        for f in fields(self):
            require(
                self.is_pooled
                or f.name not in _OF_POOLED
                or getattr(self, f.name) == f.default,
                f'{f.name}: belongs to reference "federation"',
            )
        if not self.is_pooled:
            return
        require(
            self.is_asked_for,
            'reference: "federation" needs every_rounds or in_silos: nothing is '
            "measured against it",
        )
        require(
            MIN_REFERENCE_COUNT <= self.min_reference_count <= MAX_IMAGES,
            f"min_reference_count: must be {MIN_REFERENCE_COUNT} to {MAX_IMAGES:,}",
        )
        noise, norm = self.reference_noise_multiplier, self.reference_clipping
        require(0 <= noise < math.inf, "reference_noise_multiplier: must be positive")
        require(
            0 <= norm <= MAX_FEATURE**2,
            f"reference_clipping: must be above 0, at most {MAX_FEATURE**2:g}",
        )
        require(
            (noise > 0) == (norm > 0),
            "reference_clipping: give it together with reference_noise_multiplier",
        )
        require(
            not (self.is_noised and self.reference_uncovered),
            "reference_uncovered: with noise the statistics are covered; leave it out",
        )
        require(
            not self.is_noised or DIMS[self.extractor] <= MAX_NOISED_DIMS,
            "reference_noise_multiplier: noise would drown the "
            f"{num_words(DIMS[self.extractor]):,} sums of {self.extractor}; choose an "
            f"extractor of at most {MAX_NOISED_DIMS} dimensions",
        )

    @property
    def is_asked_for(self) -> bool:
        """Whether a run needs reference statistics."""
        return self.in_silos or self.every_rounds > 0

    @property
    def is_pooled(self) -> bool:
        """Whether the reference is that of the silos' own images."""
        return self.reference == "federation"

    @property
    def is_noised(self) -> bool:
        """Whether each silo adds noise to its part of the reference."""
        return self.is_pooled and self.reference_noise_multiplier > 0

    @property
    def needs_published(self) -> bool:
        """Whether a run needs a file of reference statistics from outside."""
        return self.is_asked_for and not self.is_pooled

    def is_due(self, round_number: int, num_rounds: int) -> bool:
        """Return whether a round is followed by an evaluation."""
        if not self.every_rounds:
            return False
        return round_number % self.every_rounds == 0 or round_number == num_rounds


_OF_POOLED = (
    "min_reference_count",
    "reference_noise_multiplier",
    "reference_clipping",
    "reference_uncovered",
)
"""Fields that only a reference of the federation reads."""
