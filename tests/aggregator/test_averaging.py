"""The mean, by hand and against plain FedAvg."""

import dataclasses

import numpy as np
import pytest
import torch

from aggregator.averaging import apply, mean_update, round_grid, skip
from aggregator.state import initial_state, shared_layout
from crypto.keys import IdentityKey
from crypto.ring import pack
from diffusion.parameters import flatten
from privacy.clipping import clip
from privacy.errors import Overflow
from privacy.quantization import quantize
from protocol.plan import RunPlan, SiloParty, make_plan
from protocol.settings import AggregationConfig, ProtectionConfig, UpdateConfig
from tests.end_to_end.conftest import tiny_draft


def make(weights: list[float], **sections: object) -> RunPlan:
    parties = [
        SiloParty(
            name=f"s{n}", identity_key=IdentityKey.generate().public.hex(), weight=w
        )
        for n, w in enumerate(weights)
    ]
    return make_plan(tiny_draft(**sections), IdentityKey.generate().public, parties)


@pytest.mark.parametrize(
    ("weights", "survivors"),
    [
        ([1.0, 1.0, 1.0], (0, 1, 2)),
        ([1.0, 1.0, 1.0], (0, 2)),
        ([10.0, 30.0, 60.0], (0, 1, 2)),
        ([10.0, 30.0, 60.0], (1, 2)),
    ],
)
def test_the_mean_is_the_weighted_mean_of_the_survivors(
    weights: list[float], survivors: tuple[int, ...]
) -> None:
    update = UpdateConfig(rounding="nearest", weights="declared")
    plan = make(weights, update=update)
    state, layout = initial_state(plan), shared_layout(plan)
    grid = round_grid(plan, layout, state)
    bits = plan.update.field_bits(1, 3)
    generator = np.random.default_rng(1)
    updates = [
        generator.normal(0, 0.001, layout.size).astype(np.float32) for _ in weights
    ]
    factors = plan.relative_weights()
    total = np.zeros(pack(np.zeros(layout.size, np.uint32), bits).size, np.uint64)
    for silo in survivors:
        clipped = clip(updates[silo].copy(), plan.update.clipping_norm)
        fields = quantize(clipped, grid, None, weight=factors[silo]).fields
        total += pack(fields, bits)
    mean = mean_update(plan, grid, total, survivors, 1)
    share = np.array([weights[silo] for silo in survivors])
    plain = sum(
        w * updates[silo].astype(np.float64)
        for w, silo in zip(share / share.sum(), survivors, strict=True)
    )
    assert np.abs(mean - plain).max() < 5.0 / grid.max_level * 2


def test_a_sum_that_cannot_be_is_refused() -> None:
    plan = make([1.0, 1.0, 1.0])
    state, layout = initial_state(plan), shared_layout(plan)
    grid = round_grid(plan, layout, state)
    words = np.full((layout.size + 1) // 2, 2**64 - 1, dtype=np.uint64)
    with pytest.raises(Overflow):
        mean_update(plan, grid, words, (0, 1, 2), 1)


def test_apply_adds_the_scaled_mean_and_moves_the_average() -> None:
    aggregation = AggregationConfig(learning_rate=0.5, ema_decay=0.9)
    plan = make([1.0, 1.0, 1.0], aggregation=aggregation)
    state, layout = initial_state(plan), shared_layout(plan)
    mean = np.full(layout.size, 0.25, dtype=np.float32)
    after = apply(plan, layout, state, mean)
    assert after.round_number == 1
    moved = flatten(after.parameters, layout) - flatten(state.parameters, layout)
    assert np.allclose(moved, 0.125, atol=1e-6)
    # The warm-up of the average: it keeps min(0.9, 1/10) of the old parameters.
    averaged = flatten(after.average.parameters, layout)
    assert np.allclose(averaged - flatten(state.parameters, layout), 0.1125, atol=1e-6)
    assert after.ranges.shape == (len(layout.segments),)
    assert np.allclose(after.ranges, 0.75)
    name, untouched = layout.names[0], initial_state(plan).parameters
    assert torch.equal(state.parameters[name], untouched[name])


def test_a_round_without_a_sum_changes_nothing_but_its_number() -> None:
    plan = make([1.0, 1.0, 1.0], protection=ProtectionConfig())
    state, layout = initial_state(plan), shared_layout(plan)
    after = skip(plan, layout, state)
    assert after.round_number == 1
    assert after.parameters is state.parameters
    assert np.allclose(after.ranges, 6 * 5.0 / layout.size**0.5)
    later = skip(plan, layout, dataclasses.replace(state, ranges=after.ranges * 2))
    assert np.array_equal(later.ranges, after.ranges * 2)


def test_the_first_round_has_wide_fields_and_no_ranges() -> None:
    plan = make([1.0, 1.0, 1.0])
    state, layout = initial_state(plan), shared_layout(plan)
    first = round_grid(plan, layout, state)
    assert first.value_bits == 30
    assert set(first.ranges) == {np.float32(5.0)}
    ranges = np.full(len(layout.segments), 0.5, dtype=np.float32)
    second = round_grid(
        plan, layout, dataclasses.replace(state, round_number=1, ranges=ranges)
    )
    assert second.value_bits == 16
    assert set(second.ranges) == {np.float32(0.5)}
