import math
from dataclasses import replace

import pytest

from privacy.errors import Uncalibrated
from privacy.events import SampledGaussian
from protocol.encoding import from_table
from protocol.mechanism import (
    calibrated,
    not_covered,
    round_event,
    run_epsilon,
    run_events,
    steps_of_run,
    steps_per_round,
)
from protocol.plan import PlanDraft, SiloParty, make_plan
from protocol.privacy_settings import PrivacyConfig
from tests.protocol.examples import AGGREGATOR_IDENTITY, IDENTITIES, draft_table

DP_SGD = {
    "privacy.mechanism": "dp-sgd",
    "privacy.noise_multiplier": 1.5,
    "privacy.delta": 1e-5,
    "privacy.sample_rate": 0.01,
}
TARGET = {
    "privacy.mechanism": "dp-sgd",
    "privacy.epsilon": 3.0,
    "privacy.delta": 1e-5,
    "privacy.sample_rate": 0.01,
}


def make_draft(changes):
    return from_table(PlanDraft, draft_table(changes))


def parties(num_silos):
    return [
        SiloParty(name=f"silo-{i}", identity_key=IDENTITIES[i].public.hex())
        for i in range(num_silos)
    ]


def epochs(number, rate):
    return make_draft(
        DP_SGD
        | {
            "training.local_steps": 0,
            "training.local_epochs": number,
            "privacy.sample_rate": rate,
        }
    )


class TestSteps:
    def test_steps_are_the_plans(self):
        draft = make_draft(DP_SGD | {"training.local_steps": 7})
        assert steps_per_round(draft) == 7

    @pytest.mark.parametrize(
        ("number", "rate", "steps"),
        [(1, 0.5, 2), (1, 0.3, 4), (3, 1.0, 3), (2, 0.25, 8), (3, 1 / 3, 9)],
    )
    def test_an_epoch_is_as_many_steps_as_draw_everyone_once(self, number, rate, steps):
        assert steps_per_round(epochs(number, rate)) == steps

    def test_spare_steps_are_counted_in(self):
        draft = make_draft(
            DP_SGD
            | {
                "training.local_steps": 7,
                "num_rounds": 3,
                "privacy.spare_steps": 5,
                "privacy.clipping_norm": 0.5,
            }
        )
        assert steps_of_run(draft) == 26
        event = SampledGaussian(
            sample_rate=0.01, noise_multiplier=1.5, clipping_norm=0.5, steps=7
        )
        assert round_event(draft) == event
        assert run_events(draft) == (event.times(26),)


class TestCalibration:
    def test_a_plan_says_the_multiplier_that_its_target_needs(self):
        draft = make_draft(TARGET)
        plan = make_plan(draft, AGGREGATOR_IDENTITY.public, parties(3))
        assert plan.privacy.epsilon == 3.0
        assert plan.privacy.noise_multiplier > 0
        spent = run_epsilon(plan, 1e-5)
        assert 3.0 * 0.995 < spent <= 3.0

    def test_more_spare_steps_need_more_noise(self):
        few, many = (
            calibrated(make_draft(TARGET | {"privacy.spare_steps": n}))
            for n in (0, 1000)
        )
        assert many.noise_multiplier > few.noise_multiplier

    def test_a_multiplier_that_misses_the_target_is_refused(self):
        draft = make_draft(TARGET | {"privacy.noise_multiplier": 0.4})
        with pytest.raises(Uncalibrated, match=r"spends epsilon .* leave one of"):
            calibrated(draft)

    def test_a_multiplier_without_any_guarantee_is_refused(self):
        draft = make_draft(DP_SGD | {"privacy.noise_multiplier": 1e-4})
        with pytest.raises(Uncalibrated, match="no finite epsilon"):
            calibrated(draft)

    def test_a_multiplier_that_holds_it_stays(self):
        draft = make_draft(TARGET | {"privacy.noise_multiplier": 50.0})
        assert calibrated(draft).noise_multiplier == 50.0

    def test_without_a_mechanism_there_is_no_bound(self):
        draft = make_draft({})
        assert calibrated(draft) == PrivacyConfig()
        assert run_epsilon(draft, 1e-5) == math.inf


class TestNotCovered:
    def test_names_public_data_and_the_evaluation(self):
        draft = make_draft(
            DP_SGD
            | {
                "initial.name": "faces",
                "initial.sha256": "ab" * 32,
                "evaluation.every_rounds": 1,
                "update.weights": "declared",
            }
        )
        said = list(not_covered(draft))
        assert said[0] == "public data: faces"
        assert any("Fréchet" in each for each in said)
        assert any("weights" in each for each in said)

    def test_parameters_of_an_earlier_run_are_no_public_data(self):
        draft = make_draft(DP_SGD)
        initial = replace(draft.initial, name="run", sha256="ab" * 32, origin="run")
        assert not any(
            "public" in each for each in not_covered(replace(draft, initial=initial))
        )
