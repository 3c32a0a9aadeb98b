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


def test_adam_needs_its_moments():
    with pytest.raises(RuntimeError, match="moments"):
        step(ADAM, None, float32(1))


def rounds(plan, state, count, seed=3):
    layout, generator = shared_layout(plan), np.random.default_rng(seed)
    for _ in range(count):
        mean = generator.normal(0, 0.01, layout.size).astype(np.float32)
        state = apply(plan, layout, state, mean)
    return state


def test_a_restart_goes_on_bit_for_bit(tmp_path: Path):
    plan = replace(make([1.0, 1.0, 1.0]), aggregation=ADAM)
    store = CheckpointStore(tmp_path / "run", plan)
    state = rounds(plan, initial_state(plan, None), 2)
    store.save(state)
    loaded = store.load()
    assert np.array_equal(loaded.moments.mean, state.moments.mean)
    later, again = rounds(plan, state, 2), rounds(plan, loaded, 2)
    assert equal_parameters(later, again)
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
