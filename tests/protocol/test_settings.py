import dataclasses
import math

import pytest

from crypto.ring import FIELD_BITS, WORD_BITS
from crypto.secagg.config import SecAggConfig
from protocol.aggregation_settings import AggregationConfig, EvaluationConfig
from protocol.settings import MAX_SILOS, DeadlineConfig, TrainingConfig
from protocol.update_settings import (
    MAX_CLIPPING_NORM,
    MAX_VALUE_BITS,
    MAX_WEIGHT,
    MIN_CLIPPING_NORM,
    ProtectionConfig,
    UpdateConfig,
)

GOOD = {TrainingConfig: {"local_steps": 1}}


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        (TrainingConfig, {"local_steps": 0}),
        (TrainingConfig, {"local_steps": 1, "local_epochs": 1}),
        (TrainingConfig, {"local_steps": -1, "local_epochs": 1}),
        (TrainingConfig, {"local_epochs": -1}),
        (TrainingConfig, {"examples_per_step": 0}),
        (TrainingConfig, {"learning_rate": 0.0}),
        (TrainingConfig, {"learning_rate": 1.01}),
        (TrainingConfig, {"learning_rate": math.inf}),
        (TrainingConfig, {"learning_rate": math.nan}),
        (TrainingConfig, {"final_learning_rate_fraction": 0.0}),
        (TrainingConfig, {"final_learning_rate_fraction": 1.5}),
        (TrainingConfig, {"warm_up_fraction": 1.0}),
        (TrainingConfig, {"warm_up_fraction": -0.1}),
        (UpdateConfig, {"clipping_norm": 0.0}),
        (UpdateConfig, {"clipping_norm": -1.0}),
        (UpdateConfig, {"clipping_norm": math.inf}),
        (UpdateConfig, {"clipping_norm": math.nan}),
        (UpdateConfig, {"clipping_norm": MIN_CLIPPING_NORM / 2}),
        (UpdateConfig, {"clipping_norm": MAX_CLIPPING_NORM * 2}),
        (UpdateConfig, {"value_bits": 1}),
        (UpdateConfig, {"value_bits": MAX_VALUE_BITS + 1}),
        (UpdateConfig, {"max_weight": 1}),
        (UpdateConfig, {"weights": "declared", "max_weight": 1}),
        (UpdateConfig, {"weights": "secret", "max_weight": MAX_WEIGHT + 1}),
        (UpdateConfig, {"weights": "secret", "max_weight": -1}),
        (ProtectionConfig, {"threshold": -1}),
        (ProtectionConfig, {"min_cohort": 1}),
        (ProtectionConfig, {"max_colluding": -1}),
        (ProtectionConfig, {"slots_per_setup": 0}),
        (ProtectionConfig, {"slots_per_setup": 65}),
        (AggregationConfig, {"learning_rate": 0.0}),
        (AggregationConfig, {"learning_rate": 10.5}),
        (AggregationConfig, {"ema_decay": 1.0}),
        (AggregationConfig, {"ema_decay": -0.1}),
        (EvaluationConfig, {"every_rounds": -1}),
        (EvaluationConfig, {"num_samples": 1}),
        (EvaluationConfig, {"extractor_sha256": "ab"}),
        (EvaluationConfig, {"extractor_sha256": "AB" * 32}),
        (DeadlineConfig, {"training_seconds": 0.0}),
        (DeadlineConfig, {"exchange_seconds": -1.0}),
        (DeadlineConfig, {"exchange_seconds": math.inf}),
        (DeadlineConfig, {"training_seconds": math.nan}),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(section, fields):
    good = GOOD.get(section, {})
    section(**good)
    with pytest.raises(ValueError) as caught:
        section(**(good | fields))
    assert str(caught.value).partition(":")[0] in {"local_steps", *fields}
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        (TrainingConfig, {"local_steps": 0, "local_epochs": 1}),
        (TrainingConfig, {"learning_rate": 1.0, "final_learning_rate_fraction": 1e-9}),
        (UpdateConfig, {"value_bits": 2, "clipping_norm": MIN_CLIPPING_NORM}),
        (UpdateConfig, {"value_bits": 24, "clipping_norm": MAX_CLIPPING_NORM}),
        (UpdateConfig, {"weights": "secret", "max_weight": 1}),
        (UpdateConfig, {"weights": "secret", "max_weight": MAX_WEIGHT}),
        (ProtectionConfig, {"slots_per_setup": 64, "max_colluding": 0}),
        (AggregationConfig, {"learning_rate": 10.0, "ema_decay": 0.0}),
        (EvaluationConfig, {"num_samples": 2, "extractor_sha256": "ab" * 32}),
        (DeadlineConfig, {"training_seconds": 1e-3}),
    ],
)
def test_the_bounds_themselves_are_accepted(section, fields):
    section(**(GOOD.get(section, {}) | fields))


@pytest.mark.parametrize(
    ("value_bits", "num_silos", "field_bits"),
    [
        (8, 1, 8),
        (8, 2, 10),
        (8, 4, 10),
        (8, 5, 12),
        (4, 16, 8),
        (4, 17, 10),
        (16, 3, 21),
        (16, 32, 21),
        (16, 33, 32),
        (24, 256, 32),
        (24, 257, 64),
        (24, 1000, 64),
    ],
)
def test_field_bits_by_hand(value_bits, num_silos, field_bits):
    update = UpdateConfig(value_bits=value_bits)
    assert update.field_bits(1, num_silos) == 32
    assert update.field_bits(2, num_silos) == field_bits
    assert update.field_bits(99, num_silos) == field_bits
    assert update.value_bits_in(2, num_silos) == value_bits


def test_a_rotated_update_has_no_wide_round():
    update = UpdateConfig(value_bits=12, rotation=True)
    for round_number in (1, 2):
        assert update.field_bits(round_number, 10) == 16
        assert update.value_bits_in(round_number, 10) == 12
    assert update.num_values(5000) == 8192
    assert UpdateConfig().num_values(5000) == 5000


@pytest.mark.parametrize(
    ("num_silos", "value_bits"), [(2, 31), (3, 30), (4, 30), (5, 29), (1000, 22)]
)
def test_the_first_round_uses_all_bits_it_has(num_silos, value_bits):
    assert UpdateConfig().value_bits_in(1, num_silos) == value_bits


@pytest.mark.parametrize("round_number", [1, 2])
def test_no_sum_of_a_plan_can_overflow(round_number):
    for num_silos in range(2, MAX_SILOS + 1, 7):
        for value_bits in range(2, MAX_VALUE_BITS + 1):
            update = UpdateConfig(value_bits=value_bits)
            field_bits = update.field_bits(round_number, num_silos)
            largest = (1 << update.value_bits_in(round_number, num_silos)) - 2
            assert field_bits in FIELD_BITS
            assert field_bits <= WORD_BITS
            assert num_silos * largest < 1 << field_bits


@pytest.mark.parametrize(
    ("num_silos", "threshold"), [(3, 3), (4, 3), (5, 4), (7, 5), (10, 7), (100, 67)]
)
def test_default_thresholds(num_silos, threshold):
    assert ProtectionConfig().threshold_for(num_silos) == threshold


def test_a_given_threshold_is_kept():
    assert ProtectionConfig(threshold=9).threshold_for(10) == 9


def test_a_default_threshold_holds_wherever_one_can():
    for num_silos in range(2, 60):
        for max_colluding in range(num_silos - 1):
            config = ProtectionConfig(
                min_cohort=max_colluding + 2, max_colluding=max_colluding
            )
            possible = 2 * num_silos > num_silos + max_colluding
            assert possible
            config.check_silos(num_silos)
            assert config.secagg_config(num_silos) == SecAggConfig(
                num_silos=num_silos,
                threshold=config.threshold_for(num_silos),
                min_cohort=max_colluding + 2,
                max_colluding=max_colluding,
            )


@pytest.mark.parametrize(
    ("fields", "num_silos", "field"),
    [
        ({}, 2, "min_cohort"),
        ({"method": "none"}, 2, "min_cohort"),
        ({"threshold": 4}, 3, "threshold"),
        ({"threshold": 2}, 3, "threshold"),
        ({"threshold": 3, "max_colluding": 1}, 5, "threshold"),
        ({"min_cohort": 2}, 3, "min_cohort"),
        ({"max_colluding": 2}, 9, "min_cohort"),
        (
            {"trust": "semi-honest", "threshold": 1, "max_colluding": 1},
            3,
            "threshold",
        ),
    ],
)
def test_impossible_protection_is_refused_by_name(fields, num_silos, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        ProtectionConfig(**fields).check_silos(num_silos)


def test_protection_that_just_holds():
    ProtectionConfig(threshold=4).check_silos(5)
    ProtectionConfig(threshold=2, trust="semi-honest").check_silos(5)
    ProtectionConfig(threshold=1, method="none", min_cohort=2).check_silos(2)


@pytest.mark.parametrize(
    ("every_rounds", "due"), [(0, set()), (1, {1, 2, 3, 4, 5}), (2, {2, 4, 5})]
)
def test_evaluation_is_due(every_rounds, due):
    config = EvaluationConfig(every_rounds=every_rounds)
    assert {n for n in range(1, 6) if config.is_due(n, 5)} == due


def test_sections_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        UpdateConfig().value_bits = 8
