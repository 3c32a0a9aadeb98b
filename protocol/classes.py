"""What a plan may say about classes: labels withheld in training, guidance in samples.

Source: Ho & Salimans, 2022 (classifier-free guidance).
"""

from typing import Protocol

from diffusion.config import UNetConfig
from protocol.aggregation_settings import EvaluationConfig
from protocol.settings import DEFAULT_LABEL_DROPOUT, TrainingConfig, require


class HasClasses(Protocol):
    """A plan or a draft, as far as classes ask something of it."""

    @property
    def model(self) -> UNetConfig:
        """The network."""

    @property
    def training(self) -> TrainingConfig:
        """How a silo trains."""

    @property
    def evaluation(self) -> EvaluationConfig:
        """How samples are drawn."""


def check_classes(plan: HasClasses) -> None:
    """Refuse choices about classes without classes, and guidance that was not learnt.

    Raises:
        ValueError: names the field.
    """
    dropout, guidance = plan.training.label_dropout, plan.evaluation.sampler.guidance
    if not plan.model.num_classes:
        require(
            dropout == DEFAULT_LABEL_DROPOUT,
            "training.label_dropout: leave it out where model.num_classes is 0: there "
            "are no labels to withhold",
        )
        require(
            not guidance,
            "evaluation.sampler.guidance: must be 0 where model.num_classes is 0: "
            "there is no class to guide to",
        )
    require(
        not guidance or dropout > 0,
        "evaluation.sampler.guidance: must be 0 with training.label_dropout 0: the "
        "model never learns what an image of no class in particular looks like",
    )


def class_sentences(plan: HasClasses) -> list[str]:
    """Say, for a silo's operator, what becomes of the labels; nothing without them."""
    model = plan.model
    if not model.num_classes:
        return []
    return [
        f"Labels: the model learns to draw {model.num_classes:,} classes, so every "
        f"image needs a label 0 … {model.num_classes - 1:,}; the label is part of the "
        "example, and what epsilon says of an image it says of the image with its "
        "label. No label and no count leaves by itself. Without differential privacy "
        "the mean still tells about classes: where no silo has one, what is learnt of "
        "it does not change, and how much it changes hints at its frequency."
    ]
