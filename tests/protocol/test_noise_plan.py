"""Plans with noise inside the sum: what follows from them, and what is refused."""

import math

import pytest

from aggregator.state import with_num_values
from privacy.distributed import distributed_epsilon
from privacy.distributed import share_epsilon as price_of_share
from protocol.encoding import decode, encode, from_table, to_table
from protocol.errors import PlanRejected, ProtocolError
from protocol.grids import first_numbers, next_numbers, numbers_after_loss, round_grid
from protocol.mechanism import run_epsilon, steps_of_run
from protocol.noise_claim import plan_sentences, upward
from protocol.noise_plan import (
    gradient_step,
    min_survivors,
    noisy_grid,
    prices,
    round_noise,
    sensitivity_of,
)
from protocol.plan import PlanDraft, make_plan
from protocol.records import NoiseSpent
from tests.protocol.examples import (
    AGGREGATOR_IDENTITY,
    draft_table,
    make_example,
    with_change,
)

SILO = {
    "privacy.mechanism": "silo",
    "privacy.unit": "silo",
    "privacy.epsilon": 8.0,
    "privacy.delta": 1e-3,
    "update.value_bits": 24,
    "update.clipping_norm": 2.0,
    "training.optimizer_state": "fresh",
}
RECORD = {
    "privacy.mechanism": "record-distributed",
    "privacy.epsilon": 8.0,
    "privacy.delta": 1e-5,
    "privacy.sample_rate": 0.05,
    "privacy.clipping_norm": 0.5,
    "update.value_bits": 24,
    "update.clipping_norm": 16.0,
    "training.local_steps": 1,
    "training.optimizer_state": "fresh",
}
BOTH = {"silo": SILO, "record-distributed": RECORD}


def planned(changes, num_silos=5):
    changes = {name: value for name, value in changes.items() if value is not None}
    draft = with_num_values(from_table(PlanDraft, draft_table(changes)))
    parties = make_example(num_silos=num_silos).silos
    return make_plan(draft, AGGREGATOR_IDENTITY.public, parties)


@pytest.fixture(scope="module", params=BOTH)
def plan(request):
    return planned(BOTH[request.param])


class TestFinished:
    def test_the_noise_reaches_the_target_and_little_more(self, plan):
        spent, share = prices(plan, plan.privacy.delta)
        assert 0.99 * 8.0 < spent <= 8.0 < share
        assert run_epsilon(plan, plan.privacy.delta) == spent
        assert steps_of_run(plan) == plan.num_rounds

    def test_the_prices_are_those_of_the_proofs(self, plan):
        event = round_noise(plan)
        options = {"sample_rate": event.sample_rate, "rounds": plan.num_rounds}
        expected = (
            distributed_epsilon(event.noise, plan.privacy.delta, **options),
            price_of_share(event.noise, plan.privacy.delta, **options),
        )
        assert prices(plan, plan.privacy.delta) == expected
        assert event.noise.honest == 3

    def test_the_grid_has_2_15_steps_in_the_norm(self, plan):
        norm = 2.0 if plan.privacy.mechanism == "silo" else 0.5
        grid = noisy_grid(plan, 100)
        assert grid.steps == pytest.approx([norm / 2**15], rel=1e-6)
        assert 2**15 < sensitivity_of(plan, 10_000) < 2**15 * 1.001

    def test_every_round_has_the_same_grid_and_no_numbers(self, plan):
        segments = (30, 70)
        numbers = first_numbers(plan, segments)
        assert numbers.size == 0
        assert numbers_after_loss(plan, segments, numbers).size == 0
        assert next_numbers(plan, segments, numbers).size == 0
        grids = [round_grid(plan, segments, n, numbers).grid for n in (1, 2, 3)]
        assert {float(g.ranges[0]) for g in grids} == {float(grids[0].ranges[0])}
        assert {(g.value_bits, g.length) for g in grids} == {(24, 100)}
        assert {plan.field_bits(n) for n in (1, 2)} == {32}
        assert plan.num_words(2, 100) == 50

    def test_the_words_say_claim_assumption_and_what_is_left(self, plan):
        text = " ".join(plan_sentences(plan))
        assert "at least 3 of those in every sum are honest" in text
        assert "if secure aggregation fails" in text
        assert f"{plan.privacy.share_variance:,}" in text
        is_silo = plan.privacy.mechanism == "silo"
        assert ("WARNING: the noise is" in text) == is_silo

    def test_the_record_survives_the_wire(self, plan):
        event = round_noise(plan)
        record = NoiseSpent(
            round_number=1, ledger_size=3, ledger_head="00" * 32, multiplicity=0,
            events=(event,), earlier=(event,), epsilon=1.0, share_epsilon=None,
            account_epsilon=2.0,
        )  # fmt: skip
        assert from_table(NoiseSpent, decode(encode(to_table(record)))) == record


def test_a_share_that_is_given_is_kept_or_refused():
    given = RECORD | {"privacy.epsilon": None, "privacy.share_variance": 10**9}
    assert planned(given).privacy.share_variance == 10**9
    with pytest.raises(PlanRejected, match="spends epsilon"):
        planned(RECORD | {"privacy.share_variance": 10**6})
    with pytest.raises(PlanRejected, match="more than can be priced"):
        planned(given | {"privacy.share_variance": 1})
    with pytest.raises(PlanRejected, match=r"privacy\.num_values: must"):
        planned(RECORD | {"privacy.num_values": 7})


@pytest.mark.parametrize(
    ("mechanism", "changes", "words"),
    [
        (mechanism, changes, words)
        for mechanism in BOTH
        for changes, words in (
            ({"protection.method": "none"}, "protection.method: must be"),
            ({"protection.trust": "semi-honest"}, "protection.trust: must be"),
            ({"protection.max_colluding": 0}, "protection.max_colluding: must be"),
            ({"update.weights": "declared"}, "update.weights: must be equal"),
            ({"update.rounding": "nearest"}, "update.rounding: must be stochastic"),
            ({"update.rotation": True}, "update.rotation: must be false"),
            ({"update.clipping": "previous-mean"}, "update.clipping: must be fixed"),
            ({"update.value_bits": 16}, "update.value_bits: must be at least 17"),
            ({"update.error_feedback": True}, "update.error_feedback: would carry"),
            ({"training.optimizer_state": "kept"}, "training.optimizer_state: must"),
            ({"update.selection": "udec"}, "training.local_parts: must be"),
            ({"privacy.noise_multiplier": 1.0}, "privacy.noise_multiplier: belongs"),
            ({"privacy.epsilon": None}, "privacy.epsilon: give the target"),
            ({"protection.threshold": 3}, "threshold: "),
            ({"privacy.epsilon": 1e-9}, "no noise of up to"),
        )
    ]
    + [
        ("record-distributed", {"training.local_steps": 2}, "local_steps: must be 1"),
        ("record-distributed", {"privacy.unit": "silo"}, 'privacy.unit: "silo" with'),
        ("record-distributed", {"privacy.sample_rate": None}, "privacy.sample_rate: m"),
        ("silo", {"privacy.unit": "example"}, 'privacy.unit: "example" with'),
        ("silo", {"privacy.sample_rate": 0.5}, "privacy.sample_rate: belongs to"),
        ("silo", {"privacy.clipping_norm": 0.5}, "privacy.clipping_norm: belongs to"),
        ("silo", {"privacy.delta": 0.3}, "privacy.delta: must be below one over"),
    ],
)  # fmt: skip
def test_what_the_proofs_do_not_cover_is_refused(mechanism, changes, words):
    with pytest.raises(ProtocolError) as caught:
        planned(BOTH[mechanism] | changes)
    assert words in str(caught.value), str(caught.value)


def test_a_draft_without_the_number_of_its_values_is_not_finished():
    draft = from_table(PlanDraft, draft_table(RECORD))
    with pytest.raises(PlanRejected, match=r"privacy\.num_values: the number"):
        make_plan(draft, AGGREGATOR_IDENTITY.public, make_example(num_silos=5).silos)


def test_three_honest_silos_are_the_least():
    with pytest.raises(PlanRejected, match="fewer than 3 honest"):
        planned(RECORD, num_silos=3)
    assert min_survivors(planned(RECORD | {"protection.threshold": 4}, 4)) == 4
    colluding = {"protection.max_colluding": 2, "protection.min_cohort": 4}
    with pytest.raises(PlanRejected, match="fewer than 3 honest"):
        planned(RECORD | colluding, num_silos=5)


def test_noise_that_could_leave_its_fields_is_refused():
    large = {"privacy.epsilon": None, "privacy.share_variance": 2**48}
    assert planned(SILO | large, num_silos=9).privacy.share_variance == 2**48
    with pytest.raises(PlanRejected, match="share_variance: 10 levels up to"):
        planned(SILO | large, num_silos=10)


def test_a_finished_plan_says_its_noise():
    plan = planned(RECORD)
    for field in ("share_variance", "num_values"):
        with pytest.raises(Exception, match=f"privacy.{field}: a finished plan says"):
            with_change(plan, f"privacy.{field}", 0)


@pytest.mark.parametrize("norm", [0.5, 1.0, 1.5, 3.0, 1e-3])
def test_the_step_of_gradients_is_a_power_of_two(norm):
    step = gradient_step(norm)
    assert math.frexp(step)[0] == 0.5
    assert 2**-31 * norm < step <= 2**-30 * norm


def test_epsilon_is_shown_rounded_up():
    assert [upward(x) for x in (1.23412, 8.0, None, math.inf, 0.0)] == [
        "1.235", "8", "infinity", "infinity", "0",
    ]  # fmt: skip
