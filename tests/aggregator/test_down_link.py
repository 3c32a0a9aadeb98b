"""What the aggregator keeps of the down-link: error, differences, and for whom."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from aggregator.averaging import apply, skip
from aggregator.broadcast import defined, with_error
from aggregator.checkpoints import CheckpointStore
from aggregator.down_link import DownLink, first_down_link
from aggregator.errors import RoundAborted, StateBroken
from aggregator.state import RoundState, initial_state, shared_layout
from diffusion.parameters import flatten, parameters_digest
from protocol.broadcast import Difference, moved
from protocol.errors import EnvelopeRejected
from protocol.plan import RunPlan
from tests.aggregator.test_averaging import make
from tests.end_to_end.conftest import equal_parameters


def made(bits: int = 8) -> RunPlan:
    plan = make([1.0, 1.0, 1.0])
    return dataclasses.replace(
        plan, update=dataclasses.replace(plan.update, broadcast_bits=bits)
    )


def digest(number: int) -> str:
    return f"{number:02x}" * 32


def difference(number: int, num_bytes: int) -> Difference:
    return Difference(b"", bytes(num_bytes), digest(number))


def round_of(plan: RunPlan, state: RoundState, seed: int) -> RoundState:
    """Return the state after one round of a made-up mean."""
    layout = shared_layout(plan)
    mean = np.random.default_rng(seed).normal(0, 0.01, layout.size).astype(np.float32)
    target = apply(plan, layout, with_error(layout, state), mean)
    return defined(plan, layout, state, target)


class TestDownLink:
    def test_only_differences_that_are_fewer_bytes_than_all_are_kept(self) -> None:
        """All parameters are 40 bytes; three differences of 13 are less, four not."""
        link = first_down_link(10, digest(0))
        error = link.error
        for number in range(1, 6):
            link = link.followed_by(error, difference(number, 13))
            first = max(0, number - 3)
            assert link.base == digest(first)
            assert link.models == tuple(digest(n) for n in range(first, number + 1))

    def test_the_latest_is_kept_whatever_its_size(self) -> None:
        link = first_down_link(10, digest(0))
        for number in (1, 2):
            link = link.followed_by(link.error, difference(number, 50))
        assert link.models == (digest(1), digest(2))

    def test_what_is_missed(self) -> None:
        link = first_down_link(10, digest(0))
        assert link.missed(digest(0)) == ()
        for number in (1, 2):
            link = link.followed_by(link.error, difference(number, 13))
        assert link.missed(digest(2)) == ()
        assert link.missed(digest(1)) == link.differences[1:]
        assert link.missed(digest(0)) == link.differences
        assert link.missed(digest(9)) is None

    @pytest.mark.parametrize("rounds", [0, 1, 3])
    def test_bytes_round_trip(self, rounds: int) -> None:
        link = first_down_link(10, digest(0))
        for number in range(1, rounds + 1):
            error = np.full(10, number, np.float32)
            link = link.followed_by(error, difference(number, 13))
        again = DownLink.from_bytes(link.to_bytes())
        assert np.array_equal(again.error, link.error)
        assert (again.base, again.differences) == (link.base, link.differences)
        with pytest.raises(EnvelopeRejected):
            DownLink.from_bytes(link.to_bytes()[:-1])


class TestDefined:
    def test_without_bits_the_target_itself(self) -> None:
        plan = made(0)
        layout, state = shared_layout(plan), initial_state(plan)
        assert state.down_link is None
        assert with_error(layout, state) is state
        target = skip(plan, layout, state)
        assert defined(plan, layout, state, target) is target

    @pytest.mark.parametrize("bits", [4, 8, 16])
    def test_what_a_silo_computes_is_the_state(self, bits: int) -> None:
        plan = made(bits)
        layout, state = shared_layout(plan), initial_state(plan)
        held = flatten(state.parameters, layout)
        for seed in range(5):
            state = round_of(plan, state, seed)
            assert state.down_link is not None
            latest = state.down_link.differences[-1]
            held = moved(held, latest.ranges, latest.levels, layout.segments, bits)
            assert held.tobytes() == flatten(state.parameters, layout).tobytes()
            found = parameters_digest(state.parameters, layout).hex()
            assert latest.model == found
            average = flatten(state.average.parameters, layout)
            assert np.array_equal(average, held)

    def test_the_error_never_adds_up(self) -> None:
        """After fifty rounds the model is half a step from the sum of all means."""
        plan = made(4)
        layout, state = shared_layout(plan), initial_state(plan)
        exact = flatten(state.parameters, layout).astype(np.float64)
        for seed in range(50):
            mean = np.random.default_rng(seed).normal(0, 0.01, layout.size)
            exact += mean.astype(np.float32)
            state = round_of(plan, state, seed)
            assert state.down_link is not None
            ranges = np.frombuffer(state.down_link.differences[-1].ranges, "<f4")
            step = np.repeat(ranges.astype(np.float64) / 7, layout.segments)
            error = np.abs(flatten(state.parameters, layout) - exact)
            assert (error <= 0.5 * step + 1e-5).all()

    def test_a_lost_round_changes_nothing(self) -> None:
        plan = made()
        state = round_of(plan, initial_state(plan), 1)
        after = skip(plan, shared_layout(plan), state)
        assert after.down_link is state.down_link
        assert equal_parameters(after, state)

    def test_a_model_that_diverged_is_a_lost_round(self) -> None:
        plan = made()
        layout, state = shared_layout(plan), initial_state(plan)
        huge = np.full(layout.size, 3e38, np.float32)
        target = apply(plan, layout, state, huge)
        parameters = {n: p * 3 for n, p in target.parameters.items()}
        broken = dataclasses.replace(target, parameters=parameters)
        with pytest.raises(RoundAborted, match="beyond float32"):
            defined(plan, layout, state, broken)


class TestCheckpoint:
    @pytest.mark.parametrize("rounds", [0, 2])
    def test_bit_for_bit(self, tmp_path: Path, rounds: int) -> None:
        plan = made()
        state = initial_state(plan)
        for seed in range(rounds):
            state = round_of(plan, state, seed)
        store = CheckpointStore(tmp_path, plan)
        store.save(state)
        loaded = store.load()
        assert loaded is not None
        assert loaded.is_initial is (rounds == 0)
        assert loaded.down_link is not None
        assert state.down_link is not None
        assert loaded.down_link.to_bytes() == state.down_link.to_bytes()

    def test_cut_off(self, tmp_path: Path) -> None:
        plan = made()
        store = CheckpointStore(tmp_path, plan)
        store.save(round_of(plan, initial_state(plan), 1))
        path = tmp_path / "checkpoint-000001" / "broadcast"
        for content in (path.read_bytes()[:-1], b""):
            path.write_bytes(content)
            with pytest.raises(StateBroken, match="checkpoint-000001"):
                store.load()
