"""Checkpoints: whole or absent, exact, and refused when they are damaged."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aggregator.checkpoints
import protocol.files
from aggregator.averaging import apply
from aggregator.checkpoints import CheckpointStore
from aggregator.config import AggregatorFolder
from aggregator.errors import StateBroken
from aggregator.slot_store import SlotStore
from aggregator.state import RoundState, initial_state, shared_layout
from diffusion.checkpoint import load_checkpoint
from protocol.plan import RunPlan
from tests.aggregator.test_averaging import make
from tests.end_to_end.conftest import equal_parameters


@pytest.fixture
def plan() -> RunPlan:
    return make([1.0, 1.0, 1.0])


@pytest.fixture
def store(tmp_path: Path, plan: RunPlan) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run", plan)


def later(plan: RunPlan, rounds: int) -> RoundState:
    """Return a state after some rounds of made-up means."""
    state, layout = initial_state(plan), shared_layout(plan)
    generator = np.random.default_rng(3)
    for _ in range(rounds):
        mean = generator.normal(0, 0.01, layout.size).astype(np.float32)
        state = apply(plan, layout, state, mean)
    return state


def test_what_is_saved_is_loaded_bit_for_bit(
    store: CheckpointStore, plan: RunPlan
) -> None:
    assert store.load() is None
    state = later(plan, 2)
    store.save(state)
    loaded = store.load()
    assert loaded is not None
    assert equal_parameters(loaded, state)
    assert loaded.round_number == 2
    assert loaded.average.num_updates == 2
    assert np.array_equal(loaded.ranges, state.ranges)
    for name, value in state.average.parameters.items():
        assert np.array_equal(loaded.average.parameters[name], value)


def test_only_the_newest_checkpoint_is_kept(
    store: CheckpointStore, plan: RunPlan
) -> None:
    store.save(later(plan, 1))
    store.save(later(plan, 2))
    assert [path.name for path in store.folder.iterdir()] == ["checkpoint-000002"]


@pytest.mark.parametrize(
    "name", ["global.safetensors", "average.safetensors", "state.json"]
)
@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_a_checkpoint_cut_off_is_refused_in_one_line(
    store: CheckpointStore, plan: RunPlan, name: str, keep: float
) -> None:
    store.save(later(plan, 1))
    path = store.folder / "checkpoint-000001" / name
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(StateBroken) as caught:
        store.load()
    assert "\n" not in str(caught.value)
    assert "checkpoint-000001" in str(caught.value)


def test_a_checkpoint_of_another_plan_is_refused(
    store: CheckpointStore, plan: RunPlan
) -> None:
    store.save(later(plan, 1))
    other = CheckpointStore(store.folder, make([1.0, 1.0, 1.0]))
    with pytest.raises(StateBroken, match="another plan"):
        other.load()


def test_a_full_disk_leaves_the_older_checkpoint(
    store: CheckpointStore, plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = later(plan, 1)
    store.save(first)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(protocol.files.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.save(later(plan, 2))
    loaded = store.load()
    assert loaded is not None
    assert equal_parameters(loaded, first)
    assert [path.name for path in store.folder.iterdir()] == ["checkpoint-000001"]


def test_the_finished_model_is_the_average(
    store: CheckpointStore, plan: RunPlan
) -> None:
    state = later(plan, 2)
    slots = SlotStore(store.folder)
    slots.save_setup(1, b"state of a setup")
    store.finish(state)
    assert slots.load_setup() is None
    checkpoint = load_checkpoint(store.model)
    assert checkpoint.model == plan.model
    assert checkpoint.notes["round"] == "2 of 2"
    for name, value in state.average.parameters.items():
        assert np.array_equal(checkpoint.parameters[name], value)


def leave_halves(folder: Path) -> None:
    """Leave what a killed process leaves."""
    for name in (".secagg-000001-00.sum.x1.tmp", ".model.safetensors.x2.tmp"):
        (folder / name).write_bytes(b"secret")
    (folder / ".checkpoint-000003.partial").mkdir()
    (folder / ".checkpoint-000003.partial" / "global.safetensors").write_bytes(b"x")


def test_leftovers_are_removed_and_nothing_else(
    store: CheckpointStore, plan: RunPlan
) -> None:
    store.save(later(plan, 1))
    before = sorted(store.folder.rglob("*"))
    leave_halves(store.folder)
    store.remove_leftovers()
    assert sorted(store.folder.rglob("*")) == before


def test_nothing_of_secure_aggregation_is_left_beside_the_model(
    store: CheckpointStore, plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the process dies as soon as the model is there."""
    state = later(plan, 1)
    SlotStore(store.folder).save_slot(1, 0, b"slot")
    leave_halves(store.folder)
    save = aggregator.checkpoints.save_checkpoint

    def save_and_die(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(aggregator.checkpoints, "save_checkpoint", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        store.finish(state)
    assert [path.name for path in store.folder.iterdir()] == ["model.safetensors"]


def test_the_name_of_the_folder_holds_the_whole_name_of_the_run(plan: RunPlan) -> None:
    folder = AggregatorFolder(Path("x")).run(plan)
    assert folder.name == f"{plan.name}-{plan.run.hex()}"
    assert len(plan.run) == 16
