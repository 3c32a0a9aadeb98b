"""The mean, by hand and against plain FedAvg."""

import dataclasses

import numpy as np
import pytest
import torch

from aggregator.averaging import apply, mean_update, skip
from aggregator.state import initial_state, shared_layout
from crypto.keys import IdentityKey
from crypto.prg import SecretRandom
from crypto.ring import pack, pack_blocks
from diffusion.parameters import flatten
from privacy.clipping import clip
from privacy.errors import Overflow
from privacy.quantization import Quantizer
from privacy.rotation import rotate
from protocol.aggregation_settings import AggregationConfig
from protocol.grids import round_grid, sign_seed
from protocol.plan import RunPlan, SiloParty, make_plan
from protocol.update_settings import ProtectionConfig, UpdateConfig
from tests.end_to_end.conftest import tiny_draft


def make(weights: list[float], **sections: object) -> RunPlan:
    parties = [
        SiloParty(
            name=f"s{n}", identity_key=IdentityKey.generate().public.hex(), weight=w
        )
        for n, w in enumerate(weights)
    ]
    return make_plan(tiny_draft(**sections), IdentityKey.generate().public, parties)


def grid_after(plan, layout, state):
    """Return the grid of the round after a state."""
    number = state.round_number + 1
    return round_grid(plan, layout.segments, number, state.ranges).grid


def packed(plan, layout, grid, update, factor, weight=None):
    """Return an update as a silo packs it in round 1, rounded to nearest."""
    vector = np.zeros(grid.length, np.float32)
    vector[: layout.size] = clip(update.copy(), plan.update.clipping_norm).vector
    if plan.update.rotation:
        rotate(vector, SecretRandom(sign_seed(plan, 1)))
    quantizer = Quantizer(vector, grid, None, weight=factor)
    bits = plan.update.field_bits(1, len(plan.silos))
    words = pack_blocks(quantizer.fill, grid.length, bits)
    return words if weight is None else np.append(words, np.uint64(weight))


@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("kind", ["declared", "secret"])
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
    weights: list[float], survivors: tuple[int, ...], kind: str, rotation: bool
) -> None:
    update = UpdateConfig(
        rounding="nearest",
        weights=kind,  # type: ignore[arg-type]
        max_weight=60 if kind == "secret" else 0,
        rotation=rotation,
    )
    plan = make(weights, update=update)
    state, layout = initial_state(plan), shared_layout(plan)
    grid = grid_after(plan, layout, state)
    generator = np.random.default_rng(1)
    updates = [
        generator.normal(0, 0.001, layout.size).astype(np.float32) for _ in weights
    ]
    total = np.zeros(plan.num_words(1, layout.size), np.uint64)
    for silo in survivors:
        if kind == "secret":
            factor, weight = weights[silo] / 60, int(weights[silo])
        else:
            factor, weight = plan.relative_weights()[silo], None
        total += packed(plan, layout, grid, updates[silo], factor, weight)
    mean = mean_update(plan, layout, grid, total, survivors, 1)
    assert mean.shape == (layout.size,)
    share = np.array([weights[silo] for silo in survivors])
    plain = sum(
        w * updates[silo].astype(np.float64)
        for w, silo in zip(share / share.sum(), survivors, strict=True)
    )
    relative = share.sum() / (60 if kind == "secret" else max(weights))
    bound = 0.5 * len(survivors) / relative * float(grid.steps[0])
    assert np.linalg.norm(mean - plain) < bound * layout.size**0.5 + 1e-7
    assert np.abs(mean - plain).max() < bound * (5 if rotation else 1) + 1e-8


@pytest.mark.parametrize("word", [2, 0, 901, 2**64 - 1, 2**32 + 3])
def test_weights_that_cannot_be_are_refused(word: int) -> None:
    """Three silos with 1 to 300 examples each: their sum is 3 to 900."""
    update = UpdateConfig(weights="secret", max_weight=300, rotation=True, value_bits=8)
    plan = make([1.0, 1.0, 1.0], update=update)
    state, layout = initial_state(plan), shared_layout(plan)
    grid = grid_after(plan, layout, state)

    def words(weight: int) -> np.ndarray:
        fields = np.full(grid.length, 3 * grid.max_level + 1, np.uint32)
        return np.append(pack(fields, 10), np.uint64(weight))

    assert mean_update(plan, layout, grid, words(3), (0, 1, 2), 1).any()
    mean_update(plan, layout, grid, words(900), (0, 1, 2), 1)
    with pytest.raises(Overflow, match="the sum of the weights"):
        mean_update(plan, layout, grid, words(word), (0, 1, 2), 1)


@pytest.mark.parametrize("kind", ["equal", "declared", "secret"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_light_silo_that_fills_its_fields_is_refused(kind: str, sign: int) -> None:
    """Weights 30, 20 and 1 of at most 60; the last one sends levels of ± M.

    The weights permit 51 / 60 M, or 51 / 30 M where they are declared and the heaviest
    counts whole. With equal weights a full field is any silo's right.
    """
    update = UpdateConfig(
        value_bits=8,
        rotation=True,
        weights=kind,  # type: ignore[arg-type]
        max_weight=60 if kind == "secret" else 0,
    )
    plan = make([30.0, 20.0, 1.0], update=update)
    state, layout = initial_state(plan), shared_layout(plan)
    grid = grid_after(plan, layout, state)
    most = {"equal": 3 * 127, "declared": 215 + 3, "secret": 107 + 3}[kind]

    def mean_of(level: int) -> np.ndarray:
        fields = np.full(grid.length, 3 * 127, np.uint32)
        fields[5] = 3 * 127 + sign * level
        words = pack(fields, 10)
        if kind == "secret":
            words = np.append(words, np.uint64(51))
        return mean_update(plan, layout, grid, words, (0, 1, 2), 1)

    mean_of(most)
    if sign < 0 and kind == "equal":
        return  # Below is no field.
    with pytest.raises(Overflow, match="larger than"):
        mean_of(most + 1)


def test_a_sum_that_cannot_be_is_refused() -> None:
    plan = make([1.0, 1.0, 1.0])
    state, layout = initial_state(plan), shared_layout(plan)
    grid = grid_after(plan, layout, state)
    words = np.full((layout.size + 1) // 2, 2**64 - 1, dtype=np.uint64)
    with pytest.raises(Overflow):
        mean_update(plan, layout, grid, words, (0, 1, 2), 1)


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
    assert after.ranges.shape == (len(layout.segments),)
    assert np.allclose(after.ranges, 6 * 5.0 / layout.size**0.5)
    later = skip(plan, layout, dataclasses.replace(state, ranges=after.ranges * 2))
    assert np.array_equal(later.ranges, after.ranges * 2)


def test_the_first_round_has_wide_fields_and_no_ranges() -> None:
    plan = make([1.0, 1.0, 1.0])
    state, layout = initial_state(plan), shared_layout(plan)
    assert not state.ranges.size
    first = grid_after(plan, layout, state)
    assert first.value_bits == 30
    assert set(first.ranges) == {np.float32(5.0)}
    ranges = np.full(len(layout.segments), 0.5, dtype=np.float32)
    second = grid_after(
        plan, layout, dataclasses.replace(state, round_number=1, ranges=ranges)
    )
    assert second.value_bits == 16
    assert set(second.ranges) == {np.float32(0.5)}


def test_the_clipping_norm_follows_the_mean_and_outlives_a_lost_round() -> None:
    update = UpdateConfig(rotation=True, clipping="previous-mean")
    plan = make([1.0, 1.0, 1.0], update=update)
    state, layout = initial_state(plan), shared_layout(plan)
    mean = np.full(layout.size, 0.2 / layout.size**0.5, dtype=np.float32)
    after = apply(plan, layout, state, mean)
    assert state.ranges[1] == 5.0
    assert after.ranges[1] == pytest.approx(0.6, rel=1e-5)
    assert np.array_equal(skip(plan, layout, after).ranges, after.ranges)
    assert np.array_equal(skip(plan, layout, state).ranges, state.ranges)
