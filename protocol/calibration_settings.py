"""The section of a plan on what follows the mean: training on auxiliary images.

FedDDPM trains the aggregated model further, on auxiliary images, after every round;
FedDDPM+ does so once, when learning has become slow (Peng et al., 2025, arXiv
2503.06426). What the papers leave open is ours: docs/calibration.md.
"""

from dataclasses import dataclass, fields
from typing import Literal, Protocol, TypeAlias

from protocol import noise_plan
from protocol.encoding import check_hex
from protocol.settings import require

AuxiliaryLabel: TypeAlias = Literal[
    "public", "aggregate", "silo-samples", "silo-models"
]
"""Where auxiliary images come from, and so what making them reveals."""

FROM_SILOS: tuple[AuxiliaryLabel, ...] = ("silo-samples", "silo-models")
"""The labels for which each silo trains a model of its own, before round 1."""

MAX_IMAGES = 100_000
MAX_STEPS = 1_000_000
MAX_WINDOW = 1_000


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How the aggregator trains after the mean, when, and on which images.

    ``steps`` of Adam at ``learning_rate``, ``examples_per_step`` images each, follow
    the mean of every round ("every-round"), or of one round alone ("slow-learning"):
    the first in which the auxiliary loss, as a moving average over ``window`` rounds,
    improves by less than ``min_improvement`` of itself.

    ``images`` is the privacy label. "public": a file that the aggregator has, by
    ``name`` and ``sha256``. "aggregate": ``num_images`` samples of the moving average
    of the global parameters after ``source_round``. "silo-samples", "silo-models": each
    silo trains a model of its own for ``local_steps`` before round 1 and sends samples
    of it, or the model, of which the aggregator draws them; ``num_images`` in all.
    """

    when: Literal["never", "every-round", "slow-learning"] = "never"
    images: AuxiliaryLabel = "public"
    name: str = ""
    sha256: str = ""
    num_images: int = 0
    source_round: int = 0
    local_steps: int = 0
    steps: int = 0
    learning_rate: float = 0.0
    examples_per_step: int = 32
    window: int = 5
    min_improvement: float = 0.01

    def __post_init__(self) -> None:
        """Check the ranges, and that nothing of another choice is given."""
        for f in fields(self)[1:]:
            require(
                self._has(f.name) or getattr(self, f.name) == f.default,
                f"{f.name}: has no meaning with {self._choice(f.name)}; leave it out",
            )
        if not self.is_on:
            return
        is_possible = 1 <= self.steps <= MAX_STEPS
        require(is_possible, f"steps: must be 1 to {MAX_STEPS:,}, is {self.steps}")
        require(0 < self.learning_rate <= 1, "learning_rate: must be in (0, 1]")
        require(self.examples_per_step >= 1, "examples_per_step: must be at least 1")
        require(1 <= self.window <= MAX_WINDOW, f"window: must be 1 to {MAX_WINDOW:,}")
        require(0 < self.min_improvement < 1, "min_improvement: must be in (0, 1)")
        if self.images == "public":
            require(0 < len(self.name) <= 200, "name: say what the images are, briefly")
            check_hex("sha256", self.sha256, 32)
            return
        is_possible = 1 <= self.num_images <= MAX_IMAGES
        require(is_possible, f"num_images: must be 1 to {MAX_IMAGES:,}")
        needed = "local_steps" if self.asks_silos else "source_round"
        is_possible = 1 <= getattr(self, needed) <= MAX_STEPS
        require(is_possible, f"{needed}: must be 1 or more with images of this label")

    @property
    def is_on(self) -> bool:
        """Whether the aggregator ever trains after the mean."""
        return self.when != "never"

    @property
    def asks_silos(self) -> bool:
        """Whether the images are made of what each silo has trained by itself."""
        return self.is_on and self.images in FROM_SILOS

    def _has(self, name: str) -> bool:
        """Return whether a field means anything with these choices."""
        if not self.is_on:
            return False
        if name in _ONCE:
            return self.when == "slow-learning"
        return self.images in _OWNERS.get(name, (self.images,))

    def _choice(self, name: str) -> str:
        """Return the choice with which a field has no meaning, in words."""
        is_when = not self.is_on or name in _ONCE
        return f'when "{self.when}"' if is_when else f'images "{self.images}"'


_ONCE = ("window", "min_improvement")
_OWNERS: dict[str, tuple[AuxiliaryLabel, ...]] = {
    "name": ("public",),
    "sha256": ("public",),
    "num_images": ("aggregate", *FROM_SILOS),
    "source_round": ("aggregate",),
    "local_steps": FROM_SILOS,
}
"""The labels that read a field; those that are not named belong to all."""


class HasCalibration(noise_plan.HasSections, Protocol):
    """A draft, as far as training after the mean depends on it."""

    @property
    def calibration(self) -> CalibrationConfig:
        """What follows the mean."""


def check_calibration(draft: HasCalibration) -> None:
    """Refuse training after the mean where it makes no sense, or hides its price.

    Raises:
        ValueError: names the field and the reason.
    """
    config, when = draft.calibration, f'calibration.when: "{draft.calibration.when}"'
    require(
        not draft.model.is_central_images,
        f"{when} with central images (model.architecture): there is no network",
    )
    require(
        draft.update.is_complete,
        f'{when} with selection "{draft.update.selection}": the aggregator holds no '
        "complete model that it could train",
    )
    require(
        not draft.model.num_classes or draft.training.label_dropout > 0,
        f"{when} with training.label_dropout 0: auxiliary images have no labels, and "
        "the model never learns what an image of no class looks like",
    )
    require(
        config.images != "aggregate" or config.source_round < draft.num_rounds,
        "calibration.source_round: must be before the last round, or nothing is "
        "trained on its samples",
    )
    measured = draft.num_rounds - config.source_round
    require(
        config.when != "slow-learning" or config.window < measured,
        f"calibration.window: the rule needs window + 1 = {config.window + 1} rounds "
        f"with an auxiliary loss, this run has {measured}: it could never fire",
    )
    require(
        not (config.asks_silos and draft.privacy.is_in_sum),
        f'calibration.images: "{config.images}" with mechanism '
        f'"{draft.privacy.mechanism}": its noise protects sums, and what each silo '
        "sends here is no sum",
    )


def check_share(config: CalibrationConfig, num_silos: int) -> None:
    """Raise ``ValueError`` when silos could not give an image each."""
    require(
        not config.asks_silos or config.num_images >= num_silos,
        f"calibration.num_images: {config.num_images} are fewer than the {num_silos} "
        "silos that give some",
    )
