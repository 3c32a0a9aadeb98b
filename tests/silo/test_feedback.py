"""Error feedback: the residual of a round, when it counts, and what it is good for."""

import dataclasses
import stat

import numpy as np
import pytest
import torch

from crypto.ring import unpack
from crypto.secagg.silo_state import SlotProgress
from diffusion.parameters import ParameterLayout
from privacy.rotation import padded_length
from protocol.grids import next_numbers, round_grid
from protocol.update_settings import UpdateConfig
from silo.errors import StateBroken
from silo.feedback import CURRENT_FILE, PENDING_FILE, Residual, RoundResidual
from silo.update import make_update, own_weight
from tests.silo.conftest import tiny_plan

LAYOUT = ParameterLayout(("a", "b"), ((20,), (4, 5)))
DEALT = ParameterLayout(("a", "b", "c"), ((6,), (5,), (7,)), (1, 1, 1))
FORMS = {
    "plain": {},
    "rotated": {"rotation": True},
    "secret": {"weights": "secret", "max_weight": 7},
    "stochastic": {"rounding": "stochastic"},
    "declared": {"weights": "declared"},
}


def plan_with(num_silos=3, **changes):
    fields = {"rounding": "nearest", "value_bits": 4, "error_feedback": True}
    return tiny_plan(num_silos, update=UpdateConfig(**(fields | changes)))


def grid_of(plan, layout=LAYOUT):
    mean = np.full(layout.size, 0.05, np.float32)
    numbers = next_numbers(plan, layout.segments, mean, layout.counts)
    return round_grid(plan, layout.segments, 2, numbers, layout.counts)


def tensors(vector, layout=LAYOUT):
    parts = np.split(vector, np.cumsum(layout.segments)[:-1])
    return {
        name: torch.from_numpy(part.copy()).reshape(shape)
        for name, shape, part in zip(layout.names, layout.shapes, parts, strict=True)
    }


def packed(plan, update, residual, layout=LAYOUT, own=(0,)):
    """Return words of an update, and its residual after the one given."""
    grid = grid_of(plan, layout)
    made = RoundResidual(
        plan,
        layout,
        grid,
        round_number=2,
        own=own,
        weight=own_weight(plan, 1, 4),
        current=residual,
    )
    words = make_update(
        plan,
        layout,
        grid,
        silo=1,
        round_number=2,
        field_bits=plan.field_bits(2),
        num_examples=4,
        local=tensors(update, layout),
        global_=tensors(np.zeros_like(update), layout),
        own=own,
        residual=made,
    )
    return words, made.after(words)


def slow_stands_for(plan, words, layout=LAYOUT):
    """Return what the words of one stretch stand for, one value at a time."""
    grid = grid_of(plan, layout).grids[0]
    if plan.update.weights == "secret":
        words = words[:-1]
    fields = unpack(words, plan.field_bits(2), grid.length)
    steps = np.repeat(grid.ranges.astype(float) / 7, grid.segments)
    values = [
        (int(f) - 7) * s / own_weight(plan, 1, 4)
        for f, s in zip(fields, steps, strict=True)
    ]
    return np.array(values)


class TestRoundResidual:
    @pytest.mark.parametrize("form", sorted(set(FORMS) - {"rotated"}))
    def test_slow_reference(self, form):
        plan = plan_with(**FORMS[form])
        random = np.random.default_rng(3)
        update = random.normal(0, 0.05, 40).astype(np.float32)
        before = random.normal(0, 0.01, 40).astype(np.float32)
        words, after = packed(plan, update, before)
        expected = update.astype(float) + before - slow_stands_for(plan, words)
        assert np.allclose(after, expected, atol=1e-6)
        assert np.abs(after).max() > 1e-3

    def test_clipped_first(self):
        plan = plan_with(clipping_norm=0.1)
        update = np.random.default_rng(3).normal(0, 0.05, 40).astype(np.float32)
        words, after = packed(plan, update, np.zeros(40, np.float32))
        clipped = update * (0.1 / np.linalg.norm(update))
        assert np.allclose(after, clipped - slow_stands_for(plan, words), atol=1e-6)

    def test_rotated_back(self):
        """A rotation keeps lengths: the residual is as long as the rounding."""
        plan = plan_with(rotation=True, clipping_norm=0.4)
        assert padded_length(40) > 40
        update = np.random.default_rng(3).normal(0, 0.05, 40).astype(np.float32)
        _, after = packed(plan, update, np.zeros(40, np.float32))
        step = float(grid_of(plan).grids[0].steps[0])
        assert 0 < np.linalg.norm(after) <= 0.5 * step * padded_length(40) ** 0.5

    @pytest.mark.parametrize("form", sorted(FORMS))
    def test_sums_track_the_true_ones_and_drift_without(self, form):
        """After many rounds: within a residual with it, far beyond without."""
        plan = plan_with(**FORMS[form], clipping_norm=0.6)
        random = np.random.default_rng(5)
        constant = random.normal(0, 0.03, 40)
        residual, total, true = np.zeros(40, np.float32), np.zeros(40), np.zeros(40)
        without = np.zeros(40)
        zeros = np.zeros(40, np.float32)
        for _ in range(60):
            update = (constant + random.normal(0, 0.002, 40)).astype(np.float32)
            true += update
            before = residual
            _, residual = packed(plan, update, before)
            total += update + before - residual
            _, lost = packed(plan, update, zeros)
            without += update - lost
        reach = np.abs(residual).max()
        assert np.abs(total - true).max() <= reach + 1e-4
        step = max(float(each.steps.max()) for each in grid_of(plan).grids)
        step /= own_weight(plan, 1, 4)
        spread = padded_length(40) ** 0.5 / 2 if plan.update.rotation else 1
        assert reach <= step * spread
        if plan.update.rounding == "nearest":
            assert np.abs(without - true).max() > 3 * step

    def test_only_returned_stretches_advance(self):
        plan = plan_with(6, selection="usplit")
        random = np.random.default_rng(3)
        update, before = random.normal(0, 0.05, (2, 18)).astype(np.float32)
        _, after = packed(plan, update, before, DEALT, own=(1, 2))
        assert np.array_equal(after[:6], before[:6])
        assert not np.isclose(after[6:], before[6:]).any()


@pytest.fixture
def residual(tmp_path):
    return Residual(tmp_path, LAYOUT, silo=1)


ONES = np.ones(40, np.float32)


def slot(**changes):
    done = SlotProgress(
        slot=0,
        round_number=2,
        model_digest=bytes(32),
        head=bytes(104),
        survivors=(0, 1),
        sum_digest=b"x" * 32,
    )
    return dataclasses.replace(done, **changes)


class TestSettle:
    def test_zeros_first(self, residual):
        assert not residual.current().any()

    @pytest.mark.parametrize(
        ("progress", "counts"),
        [
            (slot(), True),
            (slot(survivors=(0, 2)), False),
            (slot(sum_digest=b""), False),
            (slot(round_number=1), False),
            (None, False),
        ],
        ids=["summed", "lost", "no sum", "another round", "no slot"],
    )
    def test_it_counts_only_when_its_update_was_summed(
        self, residual, tmp_path, progress, counts
    ):
        residual.pend(1, ONES * 5)
        residual.settle(slot(round_number=1))
        residual.pend(2, ONES * 7)
        residual.settle(progress)
        assert residual.current().tolist() == [7.0 if counts else 5.0] * 40
        residual.settle(progress)
        again = Residual(tmp_path, LAYOUT, silo=1)
        assert again.current().tolist() == [7.0 if counts else 5.0] * 40

    def test_a_crash_between_the_sum_and_the_next_round(self, residual, tmp_path):
        """The slot's state was saved, the residual not yet: the next start settles."""
        residual.pend(2, ONES)
        Residual(tmp_path, LAYOUT, silo=1).settle(slot())
        assert residual.current().tolist() == [1.0] * 40

    def test_a_round_trained_again_takes_its_place(self, residual):
        residual.pend(2, ONES)
        residual.pend(2, ONES * 3)
        residual.settle(slot())
        assert residual.current().tolist() == [3.0] * 40

    def test_files_are_secret_and_go_with_the_run(self, residual, tmp_path):
        residual.pend(1, ONES)
        residual.settle(slot(round_number=1))
        residual.pend(2, ONES)
        for name in (CURRENT_FILE, PENDING_FILE):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        residual.forget()
        residual.forget()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("damage", ["cut", "flip", "empty", "open"])
    def test_damage_is_told(self, residual, tmp_path, damage):
        residual.pend(2, ONES)
        residual.settle(slot())
        path = tmp_path / CURRENT_FILE
        data = bytearray(path.read_bytes())
        data[-1] ^= damage == "flip"
        contents = {"cut": data[:-4], "flip": data, "empty": b"", "open": data}
        path.write_bytes(contents[damage])
        path.chmod(0o644 if damage == "open" else 0o600)
        with pytest.raises(StateBroken, match="residual"):
            residual.current()
