import math

import numpy as np
import pytest
import torch

from crypto.prg import SecretRandom
from crypto.ring import unpack
from diffusion.model import make_model
from diffusion.parameters import parameters_of
from privacy.errors import NotFinite, Overflow
from privacy.quantization import dequantize_sum
from privacy.rotation import rotate
from protocol.grids import first_numbers, next_numbers, round_grid, sign_seed
from protocol.update_settings import UpdateConfig
from silo.errors import DataError
from silo.update import check_weight, make_update
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
    """Return the fields of the vector, padding included, without a secret weight."""
    bits = plan.update.field_bits(round_number, len(plan.silos))
    if plan.update.weights == "secret":
        words = words[:-1]
    return unpack(words, bits, plan.update.num_values(layout.size))


def made(plan, local, global_, *, silo=0, round_number=1, ranges=NO_RANGES, **other):
    layout = shared_layout(plan)
    fields = {
        "silo": silo,
        "round_number": round_number,
        "field_bits": plan.update.field_bits(round_number, len(plan.silos)),
        "num_examples": 4,
        "local": local,
        "global_": global_,
    }
    grid = round_grid(plan, layout.segments, round_number, ranges)
    return make_update(plan, layout, grid, **(fields | other))


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
        total = fields_of(plan, layout, words[0] + words[1] + words[2], round_number)
        mean = dequantize_sum(
            [(0, total)],
            round_grid(plan, layout.segments, round_number, ranges).grid,
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


def test_the_operator_reads_how_many_values_were_clamped(global_, caplog):
    """Their number depends on data: it is in the silo's log and nowhere else."""
    plan = plan_with()
    layout = shared_layout(plan)
    ranges = np.full(len(layout.segments), 1e-3, np.float32)
    ranges[0] = 1.0
    local = {n: p + 0.01 for n, p in global_.items()}
    with caplog.at_level("INFO", "silo.update"):
        made(plan, local, global_, round_number=2, ranges=ranges)
    clamped = layout.size - layout.segments[0]
    assert f"{clamped} of {layout.size} values clamped" in caplog.text


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
        ranges = np.ones(len(shared_layout(plan).segments), np.float32)
        place = {"round_number": 2, "ranges": ranges}
        with pytest.raises(Overflow, match="16 bits do not fit a field of 16"):
            made(plan, global_, global_, field_bits=16, **place)

    @pytest.mark.parametrize("num_examples", [0, 11])
    def test_a_weight_out_of_range(self, global_, num_examples):
        plan = plan_with(weights="secret", max_weight=10)
        with pytest.raises(DataError, match=f"{num_examples} examples"):
            made(plan, global_, global_, num_examples=num_examples)
        with pytest.raises(DataError, match=r"update\.max_weight is 10"):
            check_weight(plan, num_examples)
        for permitted in (1, 10):
            check_weight(plan, permitted)
            made(plan, global_, global_, num_examples=permitted)
        check_weight(plan_with(), num_examples)


def first(plan):
    return first_numbers(plan, shared_layout(plan).segments)


class TestRotated:
    @pytest.mark.parametrize("length", [0.01, 0.5, 40.0])
    def test_against_the_slow_reference(self, global_, length):
        """The clipped update, padded, rotated, in steps of 5 C / 64 / M for 12 bits."""
        plan = plan_with(rotation=True, value_bits=12)
        layout, local = shared_layout(plan), moved(global_, 1, length)
        padded = plan.update.num_values(layout.size)
        assert padded % 4096 == 0
        assert 0 < padded - layout.size < 4096
        words = made(plan, local, global_, ranges=first(plan))
        fields = fields_of(plan, layout, words)
        vector = np.zeros(padded, np.float32)
        vector[: layout.size] = slow_update(plan, layout, local, global_)
        rotate(vector, SecretRandom(sign_seed(plan, 1)))
        step = 5 / padded**0.5 / 2047
        levels = np.clip(np.rint(vector.astype(float) / step), -2047, 2047)
        assert (fields == levels + 2047).mean() > 0.99  # Ties may fall either way.
        assert np.abs(fields - (levels + 2047.0)).max() <= 1

    def test_every_round_has_signs_of_its_own(self, global_):
        plan, local = plan_with(rotation=True), moved(global_, 1, 0.5)
        rounds = [
            made(plan, local, global_, round_number=number, ranges=first(plan))
            for number in (1, 2, 1)
        ]
        assert np.array_equal(rounds[0], rounds[2])
        assert not np.array_equal(rounds[0], rounds[1])


class TestClipping:
    def test_a_round_has_its_own_norm(self, global_):
        """A mean of norm 0.1: the next update is clipped to 0.3, not to 1."""
        plan = plan_with(rotation=True, clipping="previous-mean")
        layout = shared_layout(plan)
        mean = np.full(layout.size, 0.1 / layout.size**0.5, np.float32)
        numbers = next_numbers(plan, layout.segments, mean)
        for ranges, norm in ((first(plan), 1.0), (numbers, 0.3)):
            words = made(
                plan, moved(global_, 1, 9.0), global_, round_number=2, ranges=ranges
            )
            fields = fields_of(plan, layout, words, 2).astype(float)
            step = 6 * norm / fields.size**0.5 / 32767
            assert np.linalg.norm((fields - 32767) * step) == pytest.approx(norm, 1e-3)


class TestSecretWeights:
    @pytest.mark.parametrize("rotation", [False, True])
    def test_the_update_is_weighed_and_the_weight_is_the_last_word(
        self, global_, rotation
    ):
        plan = plan_with(
            weights="secret", max_weight=1000, rotation=rotation, value_bits=8
        )
        layout, local = shared_layout(plan), moved(global_, 1, 0.5)
        ranges = first(plan)
        if not rotation:
            ranges = np.full(len(layout.segments), 0.05, np.float32)
        levels = {}
        for num_examples in (250, 1000):
            place = {"round_number": 2, "ranges": ranges, "num_examples": num_examples}
            words = made(plan, local, global_, **place)
            assert words.size == plan.num_words(2, layout.size)
            assert words[-1] == num_examples
            fields = fields_of(plan, layout, words, 2)
            levels[num_examples] = fields.astype(float) - 127
        assert np.abs(levels[250] - levels[1000] / 4).max() <= 0.5 + 0.125
        assert np.abs(levels[1000]).max() > 20

    def test_sums_of_words_tell_the_sum_of_the_weights_alone(self, global_):
        """255 + 257 and 256 + 256 examples: other digits in base 256, the same sum.

        Without a move every field is the middle of the grid, whatever the weight.
        """
        plan = plan_with(weights="secret", max_weight=1000, rotation=True, value_bits=8)
        sums = []
        for pair in ((255, 257), (256, 256)):
            first_words, second_words = (
                made(plan, global_, global_, num_examples=weight, ranges=first(plan))
                for weight in pair
            )
            sums.append(first_words + second_words)
        assert np.array_equal(*sums)
        assert sums[0][-1] == 512

    def test_the_heaviest_weights_do_not_touch_the_values(self, global_):
        """The word of the weights may use all of its bits; no field changes."""
        plan = plan_with(weights="secret", max_weight=2**32, rotation=True)
        words = made(plan, global_, global_, num_examples=2**32, ranges=first(plan))
        total = words * np.uint64(3)
        assert total[-1] == 3 * 2**32
        assert set(fields_of(plan, shared_layout(plan), total).tolist()) == {3 * 32767}
