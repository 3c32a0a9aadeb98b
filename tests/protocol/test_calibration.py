"""The section of a plan on what follows the mean, its messages, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.auxiliary import (
    AuxiliaryReply,
    AuxiliaryRequest,
    content_bytes,
    samples_per_silo,
)
from protocol.bodies import join_body
from protocol.calibration_settings import MAX_IMAGES, MAX_STEPS, CalibrationConfig
from protocol.encoding import from_table
from protocol.errors import EncodingError, EnvelopeRejected
from protocol.mechanism import run_epsilon, steps_of_run
from protocol.plan import PlanDraft, RunPlan
from tests.protocol.examples import draft_table, make_example, plan_table
from tests.protocol.test_noise_plan import RECORD, SILO

COMMON = {"when": "every-round", "steps": 3, "learning_rate": 0.01}
PUBLIC = COMMON | {"images": "public", "name": "dots", "sha256": "ab" * 32}
AGGREGATE = COMMON | {"images": "aggregate", "num_images": 9, "source_round": 1}
MODELS = COMMON | {"images": "silo-models", "num_images": 9, "local_steps": 2}
SLOW = MODELS | {"when": "slow-learning"}


def changes(fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {f"calibration.{name}": value for name, value in fields.items()} | more


def draft(fields: dict[str, Any], more: dict[str, Any] | None = None) -> PlanDraft:
    return from_table(PlanDraft, draft_table(changes(fields, **(more or {}))))


@pytest.mark.parametrize(
    "fields",
    [
        PUBLIC,
        AGGREGATE,
        MODELS,
        SLOW | {"window": 2},
        AGGREGATE | {"when": "slow-learning", "window": 1},
    ],
)
def test_good_sections(fields: dict[str, Any]) -> None:
    assert draft(fields).calibration.is_on


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"steps": 1}, "steps"),
        ({"images": "aggregate"}, "images"),
        ({"examples_per_step": 8}, "examples_per_step"),
        ({"window": 4}, "window"),
        (PUBLIC | {"window": 4}, "window"),
        (PUBLIC | {"min_improvement": 0.5}, "min_improvement"),
        (PUBLIC | {"num_images": 4}, "num_images"),
        (PUBLIC | {"local_steps": 4}, "local_steps"),
        (PUBLIC | {"source_round": 1}, "source_round"),
        (PUBLIC | {"name": ""}, "name"),
        (PUBLIC | {"name": "x" * 201}, "name"),
        (PUBLIC | {"sha256": ""}, "sha256"),
        (PUBLIC | {"sha256": "AB" * 32}, "sha256"),
        (PUBLIC | {"steps": 0}, "steps"),
        (PUBLIC | {"steps": MAX_STEPS + 1}, "steps"),
        (PUBLIC | {"learning_rate": 0.0}, "learning_rate"),
        (PUBLIC | {"learning_rate": 1.5}, "learning_rate"),
        (PUBLIC | {"examples_per_step": 0}, "examples_per_step"),
        (AGGREGATE | {"name": "x"}, "name"),
        (AGGREGATE | {"sha256": "ab" * 32}, "sha256"),
        (AGGREGATE | {"source_round": 0}, "source_round"),
        (AGGREGATE | {"num_images": 0}, "num_images"),
        (AGGREGATE | {"num_images": MAX_IMAGES + 1}, "num_images"),
        (MODELS | {"source_round": 1}, "source_round"),
        (MODELS | {"local_steps": 0}, "local_steps"),
        (SLOW | {"window": 0}, "window"),
        (SLOW | {"min_improvement": 0.0}, "min_improvement"),
        (SLOW | {"min_improvement": 1.0}, "min_improvement"),
    ],
)
def test_what_is_out_of_range_or_of_another_choice(
    fields: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError) as caught:
        CalibrationConfig(**fields)
    assert str(caught.value).partition(":")[0] == name
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "more", "words"),
    [
        (MODELS, {"update.selection": "udec"}, "no complete model"),
        (AGGREGATE | {"source_round": 3}, {}, "before the last round"),
        (
            MODELS,
            {
                "model.num_classes": 10,
                "model.dim": 16,
                "training.label_dropout": 0.0,
            },
            "when: .*label_dropout 0",
        ),
        (SLOW | {"window": 3}, {}, "window: .* 4 rounds .* has 3: it could never fire"),
        (AGGREGATE | {"when": "slow-learning", "window": 2}, {}, "3 rounds .* has 2"),
        (
            PUBLIC,
            {
                "model.architecture": "means",
                "model.dim": 4,
                "model.dim_mults": [],
                "num_rounds": 1,
                "privacy.mechanism": "dp-sgd",
                "privacy.epsilon": 1.0,
                "privacy.delta": 1e-5,
                "privacy.sample_rate": 0.5,
                "privacy.multiplicity": 1,
                "update.clipping_norm": 1e6,
            },
            "central images",
        ),
        (
            MODELS,
            SILO,
            "its noise protects sums",
        ),
        (MODELS | {"images": "silo-samples"}, RECORD, "its noise protects sums"),
    ],
)
def test_combinations_that_make_no_sense(
    fields: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    from_table(PlanDraft, draft_table(more))
    with pytest.raises(EncodingError, match=words):
        draft(fields, more)


def test_every_silo_gives_an_image() -> None:
    few = changes(MODELS | {"num_images": 2})
    with pytest.raises(EncodingError, match="fewer than the 3 silos"):
        make_example(few)
    assert samples_per_silo(make_example(changes(MODELS | {"num_images": 3}))) == (
        1,
        1,
        1,
    )


def with_weights(*weights: float, declared: bool, num_images: int = 12) -> RunPlan:
    kind = "declared" if declared else "equal"
    table = plan_table(
        changes(MODELS | {"num_images": num_images}, **{"update.weights": kind}),
        num_silos=len(weights),
    )
    for silo, weight in zip(table["silos"], weights, strict=True):
        silo["weight"] = weight
    return from_table(RunPlan, table)


def test_images_by_declared_weight_else_alike() -> None:
    assert samples_per_silo(with_weights(1, 2, 3, declared=True)) == (2, 4, 6)
    assert samples_per_silo(with_weights(1, 2, 3, declared=False)) == (4, 4, 4)
    assert samples_per_silo(with_weights(1, 1, 1e6, declared=True)) == (1, 1, 12)


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=9))
def test_shares_follow_the_weights(weights: list[float]) -> None:
    shares = samples_per_silo(with_weights(*weights, declared=True, num_images=1000))
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - max(1, 1000 * weight / sum(weights))) <= 0.5 + 1e-9


def test_bytes_of_what_a_silo_gives() -> None:
    plan = make_example(changes(MODELS))
    assert content_bytes(plan, 0, 10) == 40
    plan = make_example(changes(MODELS | {"images": "silo-samples"}))
    assert content_bytes(plan, 0, 10) == 3 * 8 * 8


def test_messages_there_and_back() -> None:
    request = AuxiliaryRequest(label="silo-models")
    assert AuxiliaryRequest.from_body(memoryview(request.to_body())) == request
    reply = AuxiliaryReply(label="silo-samples", content=b"12")
    back = AuxiliaryReply.from_body(memoryview(reply.to_body()))
    assert (back.label, bytes(back.content)) == ("silo-samples", b"12")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        join_body({"label": "public"}),
        join_body({"label": 3}),
        join_body({"label": ["silo-models"]}),
        join_body({}),
        join_body({"label": "silo-models", "more": 1}),
        join_body({"label": "silo-models"}, b"", b""),
        join_body({"label": "silo-models"}) + b"x",
    ],
)
def test_malformed_messages(body: bytes) -> None:
    for kind in (AuxiliaryRequest, AuxiliaryReply):
        with pytest.raises(EnvelopeRejected):
            kind.from_body(memoryview(body))


def test_the_pre_training_is_in_the_price() -> None:
    private = {
        "privacy.mechanism": "dp-sgd",
        "privacy.epsilon": 4.0,
        "privacy.delta": 1e-5,
        "privacy.sample_rate": 0.1,
        "privacy.spare_steps": 5,
        "privacy.noise_multiplier": 2.0,
    }
    plain = from_table(PlanDraft, draft_table(private))
    more = draft(MODELS | {"local_steps": 400}, private)
    assert steps_of_run(plain) == 3 * 4 + 5
    assert steps_of_run(more) == 3 * 4 + 400 + 5
    assert run_epsilon(more, 1e-5) > 1.5 * run_epsilon(plain, 1e-5)
    assert steps_of_run(draft(AGGREGATE, private)) == steps_of_run(plain)
