"""Stretches of a vector: who fills them, how long they are, on which grid."""

import hashlib

import numpy as np
import pytest
import tomli_w

from crypto.secagg.parts import Part
from privacy.grids import rotated_range
from protocol.dealing import PARTS, deal
from protocol.errors import EnvelopeRejected, PlanRejected
from protocol.grids import first_numbers, next_numbers, numbers_after_loss, round_grid
from protocol.plan import RunPlan
from protocol.plan_files import load_unsigned_plan
from protocol.stretches import (
    Agreed,
    dealt_record,
    largest_share,
    make_dealing,
    without_setup,
)
from tests.protocol.examples import make_example, plan_table

DIGEST = hashlib.sha256(b"a setup").digest()
SEGMENTS, COUNTS = (3, 5, 8, 2, 4), (2, 1, 2)
LENGTHS = (8, 8, 6)


def dealt(num_silos: int = 6, **changes: object) -> RunPlan:
    table = {"update.selection": "usplit"} | {
        name.replace("__", "."): value for name, value in changes.items()
    }
    return make_example(table, num_silos=num_silos)


def test_a_dealing_is_the_rule_applied_to_what_was_agreed() -> None:
    members = (0, 1, 3, 4, 5)
    dealing = make_dealing(dealt(), Agreed(DIGEST, members), 2, (10, 20, 30))
    groups = deal(DIGEST, 2, members)
    expected = zip(PARTS, (10, 20, 30), strict=True)
    assert dealing.parts == tuple(Part(n, groups[name]) for name, n in expected)
    for silo in range(7):
        own = [PARTS[index] for index in dealing.stretches_of(silo)]
        assert own == [part for part in PARTS if silo in groups[part]]


def test_other_selections_have_one_stretch_that_all_fill() -> None:
    plan = make_example({"update.selection": "udec"})
    dealing = make_dealing(plan, without_setup(plan), 1, (7,))
    assert dealing.parts == (Part(7, (0, 1, 2)),)
    assert dealing.stretches_of(1) == (0,)
    with pytest.raises(ValueError, match="too many"):
        make_dealing(plan, without_setup(plan), 1, (7, 7))


def test_what_is_recorded() -> None:
    plan = dealt()
    dealing = make_dealing(plan, without_setup(plan), 1, (1, 2, 3))
    record = dealt_record(plan, {"round_number": 1, "setup": 4, "slot": 9}, dealing)
    assert (record.digest, record.setup, record.slot) == (plan.digest.hex(), 4, 9)
    groups = deal(plan.digest, 1, range(6))
    for part in PARTS:
        assert getattr(record, part) == tuple(f"silo-{i}" for i in groups[part])


def test_the_largest_share_by_hand() -> None:
    assert largest_share(dealt(), (5, 7, 3)) == (5, 7)
    assert largest_share(dealt(), (2, 7, 3)) == (3, 7)
    assert largest_share(make_example(), (9,)) == (9,)


class TestGrids:
    def test_one_grid_for_each_stretch_in_round_1(self) -> None:
        plan = dealt()
        numbers = first_numbers(plan, SEGMENTS, COUNTS)
        made = round_grid(plan, SEGMENTS, 1, numbers, COUNTS)
        assert [g.segments for g in made.grids] == [(3, 5), (8,), (2, 4)]
        assert numbers.size == 0

    def test_later_rounds_cut_the_ranges_at_the_stretches(self) -> None:
        plan = dealt()
        mean = np.arange(1, 23, dtype=np.float32) / 100
        numbers = next_numbers(plan, SEGMENTS, mean, COUNTS)
        assert np.array_equal(numbers, next_numbers(plan, SEGMENTS, mean))
        made = round_grid(plan, SEGMENTS, 2, numbers, COUNTS)
        cut = [grid.ranges.tolist() for grid in made.grids]
        assert cut == [
            numbers[:2].tolist(),
            numbers[2:3].tolist(),
            numbers[3:].tolist(),
        ]

    def test_a_rotated_stretch_has_a_range_and_padding_of_its_own(self) -> None:
        plan = dealt(update__rotation=True, update__clipping="previous-mean")
        norm = np.float32(plan.update.clipping_norm)
        padded = [plan.update.num_values(length) for length in LENGTHS]
        bits = plan.update.value_bits
        ranges = [rotated_range(float(norm), length, bits) for length in padded]
        for number, numbers in (
            (1, first_numbers(plan, SEGMENTS, COUNTS)),
            (2, next_numbers(plan, SEGMENTS, np.zeros(22, np.float32), COUNTS)),
        ):
            assert numbers.tolist() == [*ranges, norm]
            made = round_grid(plan, SEGMENTS, number, numbers, COUNTS)
            assert [g.segments for g in made.grids] == [(n,) for n in padded]
            lost = numbers_after_loss(plan, SEGMENTS, numbers)
            assert np.array_equal(lost, numbers)

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_a_silo_refuses_another_range_of_any_stretch(self, place: int) -> None:
        plan = dealt(update__rotation=True)
        numbers = first_numbers(plan, SEGMENTS, COUNTS)
        numbers[place] *= 2
        with pytest.raises(EnvelopeRejected, match="not the one of the clipping"):
            round_grid(plan, SEGMENTS, 2, numbers, COUNTS)
        with pytest.raises(EnvelopeRejected, match="needs 3 numbers"):
            round_grid(plan, SEGMENTS, 2, numbers[:2], COUNTS)


TOO_FEW = 'silos: 5 are too few for selection "usplit": a part would be summed over 2'
IN_SUM = {
    "privacy.mechanism": "silo",
    "privacy.unit": "silo",
    "privacy.delta": 1e-3,
    "privacy.share_variance": 10**8,
    "privacy.num_values": 1000,
    "update.value_bits": 24,
    "training.optimizer_state": "fresh",
}
DP_SGD = {
    "privacy.mechanism": "dp-sgd",
    "privacy.noise_multiplier": 1.5,
    "privacy.delta": 1e-5,
    "privacy.sample_rate": 0.01,
}
USPLIT: dict[str, object] = {"update.selection": "usplit"}
SPARE: dict[str, object] = USPLIT | {"training.train_unassigned": False}


@pytest.mark.parametrize(
    ("num_silos", "changes", "message"),
    [
        (
            5,
            USPLIT,
            f"{TOO_FEW} of them, protection.min_cohort is 3; it takes at least 6",
        ),
        (7, USPLIT | {"protection.min_cohort": 4}, "silos: 7 are too few"),
        (6, USPLIT | IN_SUM, 'update.selection: "usplit" sums each part over a group'),
        (6, SPARE | DP_SGD, "training.train_unassigned: must be true with dp-sgd"),
        (3, {"training.train_unassigned": False}, "training.train_unassigned: belongs"),
        (3, {"update.selection": "parts"}, "update.parts: must name one or more"),
        (
            3,
            {"update.parts": ["decoder"]},
            'update.parts: belongs to selection "parts"',
        ),
        (
            3,
            {"update.selection": "parts", "update.parts": ["head"]},
            "update.parts: must name one or more of encoder, bottleneck, decoder",
        ),
        (
            3,
            {"update.selection": "parts", "update.parts": ["decoder", "decoder"]},
            "update.parts: names a part twice",
        ),
        (
            3,
            {
                "update.selection": "parts",
                "update.parts": ["encoder", "decoder"],
                "evaluation.every_rounds": 1,
            },
            "evaluation.every_rounds: must be 0",
        ),
    ],
)
def test_what_a_plan_may_not_say(num_silos, changes, message, tmp_path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps(plan_table(changes, num_silos=num_silos)))
    with pytest.raises(PlanRejected) as caught:
        load_unsigned_plan(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("num_silos", "changes"),
    [
        (6, USPLIT | {"evaluation.every_rounds": 1}),
        (6, USPLIT | DP_SGD),
        (8, USPLIT | {"protection.min_cohort": 4}),
        (2, USPLIT | {"protection.method": "none", "protection.min_cohort": 2}),
        (
            3,
            {
                "update.selection": "parts",
                "update.parts": ["decoder", "encoder", "bottleneck"],
                "evaluation.every_rounds": 1,
            },
        ),
    ],
)
def test_what_a_plan_may_say(num_silos, changes) -> None:
    assert make_example(changes, num_silos=num_silos).update.is_complete
