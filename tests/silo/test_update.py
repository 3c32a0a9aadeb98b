import math

import numpy as np
import pytest
import torch

from crypto.ring import unpack
from diffusion.model import make_model
from diffusion.parameters import parameters_of
from privacy.errors import GridTooCoarse, NotFinite, Overflow
from privacy.quantization import dequantize_sum
from protocol.settings import UpdateConfig
from silo.update import make_update, round_grid
from tests.silo.conftest import shared_layout, tiny_plan

NO_RANGES = np.empty(0, np.float32)


def plan_with(**update):
    fields = {"rounding": "nearest", "clipping_norm": 1.0}
    return tiny_plan(update=UpdateConfig(**(fields | update)))


def moved(global_, seed, length):
    """Return the parameters with a random move of some length in all."""
    generator = torch.Generator().manual_seed(seed)
    moves = {n: torch.randn(p.shape, generator=generator) for n, p in global_.items()}
    norm = math.sqrt(sum(float((m.double() ** 2).sum()) for m in moves.values()))
    return {n: p + moves[n] * (length / norm) for n, p in global_.items()}


def slow_update(plan, layout, local, global_):
    """local - global of the selected parameters, one after the other, clipped."""
    values = []
    for name in layout.names:
        values += (local[name].double() - global_[name].double()).flatten().tolist()
    norm = math.sqrt(sum(value * value for value in values))
    factor = min(1.0, plan.update.clipping_norm / norm)
    return np.array(values) * factor


def fields_of(plan, layout, words, round_number=1):
    bits = plan.update.field_bits(round_number, len(plan.silos))
    return unpack(words, bits, layout.size)


def made(plan, local, global_, *, silo=0, round_number=1, ranges=NO_RANGES):
    layout = shared_layout(plan)
    return make_update(
        plan,
        layout,
        round_grid(plan, layout, round_number, ranges),
        silo=silo,
        field_bits=plan.update.field_bits(round_number, len(plan.silos)),
        local=local,
        global_=global_,
    )


@pytest.fixture(scope="module")
def global_():
    return parameters_of(make_model(tiny_plan().model, 3))


class TestAgainstTheSlowReference:
    @pytest.mark.parametrize("selection", ["full", "ulatdec", "udec"])
    @pytest.mark.parametrize("length", [0.0001, 0.5, 40.0])
    def test_first_round(self, global_, selection, length):
        plan = plan_with(selection=selection)
        layout, local = shared_layout(plan), moved(global_, 1, length)
        fields = fields_of(plan, layout, made(plan, local, global_)).astype(np.int64)
        level = 2**29 - 1  # 32 bits for three silos leave 30 to each value.
        update = slow_update(plan, layout, local, global_)
        # float32 parameters: their difference is only that exact.
        assert np.abs((fields - level) / level - update).max() < 1e-6
        assert np.linalg.norm((fields - level) / level) < 1.0 + 1e-6

    def test_later_round_with_ranges_of_its_own(self, global_):
        plan = plan_with(value_bits=8)
        layout, local = shared_layout(plan), moved(global_, 2, 0.5)
        ranges = np.linspace(0.01, 0.02, len(layout.segments), dtype=np.float32)
        words = made(plan, local, global_, round_number=2, ranges=ranges)
        fields = fields_of(plan, layout, words, 2).astype(np.int64)
        steps = np.repeat(ranges.astype(float) / 127, layout.segments)
        update = slow_update(plan, layout, local, global_)
        expected = np.clip(np.rint(update / steps), -127, 127) + 127
        assert (fields == expected).mean() > 0.999  # Ties may fall either way.
        assert np.abs(fields - expected).max() <= 1

    def test_no_move_is_the_middle_of_the_grid(self, global_):
        plan = plan_with()
        fields = fields_of(plan, shared_layout(plan), made(plan, global_, global_))
        assert set(fields.tolist()) == {2**29 - 1}


class TestSum:
    @pytest.mark.parametrize("weights", ["equal", "declared"])
    @pytest.mark.parametrize("round_number", [1, 2])
    def test_three_silos_give_the_mean(self, global_, weights, round_number):
        """Weights of the plan: 1, 2 and 3; the heaviest counts whole."""
        plan = plan_with(weights=weights)
        layout = shared_layout(plan)
        ranges = NO_RANGES
        if round_number == 2:
            ranges = np.full(len(layout.segments), 0.1, np.float32)
        updates, words = [], []
        for silo in range(3):
            local = moved(global_, 10 + silo, 0.5)
            updates.append(slow_update(plan, layout, local, global_))
            place = {"silo": silo, "round_number": round_number, "ranges": ranges}
            words.append(made(plan, local, global_, **place))
        factors = [1, 1, 1] if weights == "equal" else [1 / 3, 2 / 3, 1]
        expected = np.average(updates, axis=0, weights=factors)
        mean = dequantize_sum(
            fields_of(plan, layout, words[0] + words[1] + words[2], round_number),
            round_grid(plan, layout, round_number, ranges),
            num_contributors=3,
            total_weight=sum(factors),
        )
        assert np.abs(mean - expected).max() < 1e-5

    def test_largest_values_do_not_spill_into_their_neighbours(self, global_):
        plan = plan_with(clipping_norm=1.0, value_bits=16)
        layout = shared_layout(plan)
        local = {n: p + 1000.0 for n, p in global_.items()}
        ranges = np.full(len(layout.segments), 1e-6, np.float32)
        words = made(plan, local, global_, round_number=2, ranges=ranges)
        total = fields_of(plan, layout, words * np.uint64(3), 2)
        assert set(total.tolist()) == {3 * 2 * (2**15 - 1)}


class TestRounding:
    def test_stochastic_differs_nearest_does_not(self, global_):
        local = moved(global_, 1, 0.5)
        for rounding, is_same in (("stochastic", False), ("nearest", True)):
            plan = plan_with(rounding=rounding)
            first, second = made(plan, local, global_), made(plan, local, global_)
            assert np.array_equal(first, second) == is_same

    def test_stochastic_stays_within_a_step(self, global_):
        local = moved(global_, 1, 0.5)
        plan, other = plan_with(), plan_with(rounding="stochastic")
        layout = shared_layout(plan)
        exact = fields_of(plan, layout, made(plan, local, global_)).astype(np.int64)
        dithered = fields_of(plan, layout, made(other, local, global_)).astype(np.int64)
        assert np.abs(exact - dithered).max() == 1


class TestRefused:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_not_finite(self, global_, value):
        local = dict(global_)
        name = next(iter(local))
        local[name] = torch.full_like(local[name], value)
        with pytest.raises(NotFinite):
            made(plan_with(), local, global_)

    def test_a_field_too_narrow_for_the_cohort(self, global_):
        plan = plan_with()
        layout = shared_layout(plan)
        grid = round_grid(plan, layout, 2, np.ones(len(layout.segments), np.float32))
        with pytest.raises(Overflow, match="16 bits do not fit a field of 16"):
            make_update(
                plan,
                layout,
                grid,
                silo=0,
                field_bits=16,
                local=global_,
                global_=global_,
            )

    @pytest.mark.parametrize("ranges", [[1.0], [0.0] * 999, [math.nan]])
    def test_a_grid_for_another_model(self, ranges):
        plan = plan_with()
        layout = shared_layout(plan)
        ranges = np.array(ranges, np.float32)[: len(layout.segments)]
        with pytest.raises(GridTooCoarse):
            round_grid(plan, layout, 2, ranges)
