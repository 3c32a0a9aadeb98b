"""The aggregator's step: by hand, and the same after a restart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aggregator.averaging import apply, mean_update, skip
from aggregator.checkpoints import MOMENTS_FILE, CheckpointStore
from aggregator.errors import StateBroken
from aggregator.optimizer import first_moments, step
from aggregator.state import initial_state, shared_layout
from crypto.ring import pack
from diffusion.parameters import flatten, unflatten
from privacy.noise import sampler_bound
from protocol.aggregation_settings import AggregationConfig
from protocol.grids import first_numbers, round_grid
from tests.aggregator.test_averaging import make
from tests.end_to_end.conftest import equal_parameters
from tests.protocol.test_noise_plan import RECORD, planned

ADAM = AggregationConfig(
    optimizer="adam",
    learning_rate=0.1,
    decay_mean=0.5,
    decay_square=0.75,
    adaptivity=0.25,
)


MOMENTUM = AggregationConfig(optimizer="momentum", learning_rate=0.5, decay_mean=0.75)


def float32(*values):
    return np.array(values, np.float32)


def test_plain_steps_are_the_mean_times_the_rate():
    config = AggregationConfig(learning_rate=0.5)
    assert first_moments(config, 2) is None
    added, moments = step(config, None, float32(2, -4))
    assert added.tolist() == [1, -2]
    assert moments is None


def test_adam_by_hand():
    moments = first_moments(ADAM, 2)
    assert moments.square.tolist() == [0.0625, 0.0625]
    added, moments = step(ADAM, moments, float32(2, 0))
    # m = 1; v = 0.75 / 16 + 4 / 4 = 1.046875; 0.1 / (sqrt(v) + 0.25)
    assert moments.mean.tolist() == [1, 0]
    assert moments.square.tolist() == [1.046875, 0.046875]
    assert added == pytest.approx([0.1 / (1.046875**0.5 + 0.25), 0])
    added, moments = step(ADAM, moments, float32(0, 1))
    assert moments.mean.tolist() == [0.5, 0.5]
    assert added[0] == pytest.approx(0.05 / ((0.75 * 1.046875) ** 0.5 + 0.25))


def test_momentum_by_hand():
    moments = first_moments(MOMENTUM, 2)
    assert moments.mean.tolist() == [0, 0]
    assert moments.square is None
    added, moments = step(MOMENTUM, moments, float32(2, -4))
    assert (added.tolist(), moments.mean.tolist()) == ([1, -2], [2, -4])
    added, moments = step(MOMENTUM, moments, float32(1, 4))
    # v = 0.75 * (2, -4) + (1, 4) = (2.5, 1), and half of it is added.
    assert (added.tolist(), moments.mean.tolist()) == ([1.25, 0.5], [2.5, 1])


def test_momentum_that_forgets_is_a_plain_step():
    plain = AggregationConfig(learning_rate=0.3)
    forgets = AggregationConfig(optimizer="momentum", learning_rate=0.3, decay_mean=0)
    mean = np.random.default_rng(1).normal(size=50).astype(np.float32)
    moments = first_moments(forgets, 50)
    for _ in range(2):
        added, moments = step(forgets, moments, mean)
        assert np.array_equal(added, step(plain, None, mean)[0])


@pytest.mark.parametrize("config", [ADAM, MOMENTUM])
def test_moments_are_needed(config):
    with pytest.raises(RuntimeError, match="moments"):
        step(config, None, float32(1))


def test_adam_needs_both_moments():
    with pytest.raises(RuntimeError, match="second moment"):
        step(ADAM, first_moments(MOMENTUM, 1), float32(1))


def test_momentum_moves_the_parameters_and_their_average_follows():
    config = replace(MOMENTUM, ema_decay=0.5)
    plan = replace(make([1.0, 1.0, 1.0]), aggregation=config)
    layout = shared_layout(plan)
    state = initial_state(plan, None)
    start = flatten(state.parameters, layout)
    ones = np.ones(layout.size, np.float32)
    for _ in range(2):
        state = apply(plan, layout, state, ones)
    # v = 1, then 1.75; half of each is added: 0.5, then 0.875.
    latest = flatten(state.parameters, layout)
    assert latest == pytest.approx(start + 1.375, abs=1e-5)
    # One half to each; the warm-up of the average is in ExponentialMovingAverage.
    average = initial_state(plan, None).average
    for moved in (0.5, 1.375):
        moved_to = unflatten((start + np.float32(moved)).astype(np.float32), layout)
        average = average.updated(moved_to)
    expected = flatten(average.parameters, layout)
    assert flatten(state.average.parameters, layout) == pytest.approx(
        expected, abs=1e-5
    )
    assert not np.allclose(expected, latest)


def rounds(plan, state, count, seed=3):
    layout, generator = shared_layout(plan), np.random.default_rng(seed)
    for _ in range(count):
        mean = generator.normal(0, 0.01, layout.size).astype(np.float32)
        state = apply(plan, layout, state, mean)
    return state


@pytest.mark.parametrize("config", [ADAM, MOMENTUM])
def test_a_restart_goes_on_bit_for_bit(config, tmp_path: Path):
    plan = replace(make([1.0, 1.0, 1.0]), aggregation=config)
    store = CheckpointStore(tmp_path / "run", plan)
    state = rounds(plan, initial_state(plan, None), 2)
    store.save(state)
    loaded = store.load()
    assert np.array_equal(loaded.moments.mean, state.moments.mean)
    later, again = rounds(plan, state, 2), rounds(plan, loaded, 2)
    assert equal_parameters(later, again)
    assert np.array_equal(later.moments.mean, again.moments.mean)
    assert np.array_equal(later.moments.square, again.moments.square)
    lost = skip(plan, shared_layout(plan), state)
    assert lost.moments is state.moments
    next((tmp_path / "run").glob(f"*/{MOMENTS_FILE}")).unlink()
    with pytest.raises(StateBroken, match="moments"):
        store.load()


def test_a_sum_of_gradients_is_divided_by_the_expected_batch_of_all_survivors():
    # Four silos of an expected batch of 32 units each; the noise happens to be zero.
    plan = planned(RECORD)
    layout = shared_layout(plan)
    numbers = round_grid(plan, layout.segments, 1, first_numbers(plan, layout.segments))
    middle = (1 << 23) - 1 + sampler_bound(plan.privacy.share_variance)
    fields = np.full(layout.size, 4 * middle, np.uint32)
    fields[0] += 2**15
    mean = mean_update(plan, layout, numbers.grid, pack(fields, 32), (0, 1, 3, 4), 1)
    # 2^15 grid steps are the clipping norm, 0.5.
    assert mean[0] == pytest.approx(0.5 / (4 * 32), rel=1e-6)
    assert not mean[1:].any()
