"""What a plan may say about classes, and what its operator reads of them."""

from typing import Any

import pytest

from diffusion.config import SamplerConfig, UNetConfig
from protocol.aggregation_settings import EvaluationConfig
from protocol.classes import class_sentences
from protocol.plan import PlanDraft
from protocol.settings import TrainingConfig


def draft(
    *, num_classes: int = 10, guidance: float = 0.0, **training: Any
) -> PlanDraft:
    return PlanDraft(
        name="classes",
        num_rounds=1,
        seed=1,
        model=UNetConfig(
            architecture="residual",
            dim=16,
            channels=1,
            dim_mults=(1,),
            image_size=8,
            num_classes=num_classes,
        ),
        training=TrainingConfig(local_steps=1, **training),
        evaluation=EvaluationConfig(sampler=SamplerConfig(guidance=guidance)),
    )


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_classes": 0, "guidance": 0.5}, "evaluation.sampler.guidance"),
        ({"num_classes": 0, "label_dropout": 0.2}, "training.label_dropout"),
        ({"guidance": 0.5, "label_dropout": 0.0}, "evaluation.sampler.guidance"),
        ({"label_dropout": 1.0}, "label_dropout"),
        ({"label_dropout": -0.1}, "label_dropout"),
    ],
)
def test_choices_that_make_no_sense_are_refused(changes, field):
    with pytest.raises(ValueError, match=f"^{field}: ") as caught:
        draft(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{}, {"guidance": 0.5}, {"label_dropout": 0.0}, {"num_classes": 0}],
)
def test_the_others_are_not(changes):
    draft(**changes)


def test_the_operator_reads_what_becomes_of_labels():
    assert class_sentences(draft(num_classes=0)) == []
    (sentence,) = class_sentences(draft())
    assert "10 classes" in sentence
    assert "label 0 … 9" in sentence
    assert "part of the example" in sentence
    assert "No label and no count leaves" in sentence
