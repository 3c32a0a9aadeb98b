"""Whole runs with the plan's options for quantisation, clipping and weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import aggregator.averaging
import aggregator.rounds
import silo.trainer
import silo.update
from aggregator.state import RoundState, shared_layout
from crypto.ring import pack
from privacy.clipping import norm
from protocol.records import RoundLost
from protocol.transcript import read_records
from protocol.update_settings import ProtectionConfig, UpdateConfig
from simulation.federation import make_federation
from simulation.settings import SimulationConfig
from tests.end_to_end.conftest import Harness, equal_parameters, tiny_draft

Make = Callable[..., Harness]

OPTIONS = {
    "rotation": UpdateConfig(rounding="nearest", rotation=True, value_bits=12),
    "secret": UpdateConfig(rounding="nearest", weights="secret", max_weight=64),
    "both": UpdateConfig(
        rounding="nearest", rotation=True, weights="secret", max_weight=64
    ),
    "previous-mean": UpdateConfig(rounding="nearest", clipping="previous-mean"),
    "all": UpdateConfig(
        rounding="nearest",
        rotation=True,
        weights="secret",
        max_weight=64,
        clipping="previous-mean",
    ),
}


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Keep every clipped update before it is quantised, and every mean of a sum."""
    names = ("updates", "means", "weights", "norms", "grids")
    kept: dict[str, Any] = {name: {} for name in names}
    clip, make = silo.update.clip, silo.trainer.make_update
    mean = aggregator.rounds.mean_update

    def keep_update(plan: Any, layout: Any, numbers: Any, **rest: Any) -> Any:
        place = rest["round_number"], rest["silo"]
        kept["weights"][place] = rest["num_examples"]
        kept["norms"][place] = numbers.clipping_norm
        kept["grids"][place] = numbers.grid

        def keep_clipped(update: Any, clipping_norm: float) -> Any:
            clipped = clip(update, clipping_norm)
            kept["updates"][place] = clipped.vector.copy()
            return clipped

        monkeypatch.setattr(silo.update, "clip", keep_clipped)
        return make(plan, layout, numbers, **rest)

    def keep_mean(*arguments: Any) -> Any:
        kept["means"][arguments[-1]] = mean(*arguments).copy()
        return kept["means"][arguments[-1]]

    monkeypatch.setattr(silo.trainer, "make_update", keep_update)
    monkeypatch.setattr(aggregator.rounds, "mean_update", keep_mean)
    return kept


def uneven(made: Harness) -> None:
    """Take images from the silos, so that their numbers differ: 30, 20 and 10."""
    for party, num_images in zip(made.plan.silos, (30, 20, 10), strict=True):
        path = made.federation.silo(party.name).root / "data.npz"
        with np.load(path) as file:
            arrays = {name: file[name][:num_images] for name in file.files}
        np.savez(path, **arrays)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_masked_equals_plain_and_both_are_the_mean_of_the_updates(
    harness: Make,
    observed: dict[str, Any],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    update = OPTIONS[name]
    states: list[RoundState] = []
    # Two plans have two digests, hence other signs: here they must be the same.
    for module in (silo.update, aggregator.averaging):
        monkeypatch.setattr(
            module, "sign_seed", lambda plan, number: bytes([number]) * 32
        )
    for method in ("mask", "none"):
        draft = tiny_draft(
            update=update,
            num_rounds=3,
            protection=ProtectionConfig(method=method, slots_per_setup=2),
        )
        made = harness(draft)
        uneven(made)
        states.append(made.run())
        check_means(made, observed)
        for kept in observed.values():
            kept.clear()
    assert equal_parameters(*states)


def check_means(made: Harness, observed: dict[str, Any]) -> None:
    """Compare every mean with that of the clipped updates, weighted, in float64.

    The error may be half a step a value and silo; without rotation values beyond a
    tensor's range are clamped, which in round 2 of so short a run are many.
    """
    update = made.plan.update
    assert sorted(observed["means"]) == [1, 2, 3]
    for number, mean in observed["means"].items():
        grid = observed["grids"][number, 0]
        images = [observed["weights"][number, silo_index] for silo_index in range(3)]
        assert images == [30, 20, 10]
        factors = [1.0, 1.0, 1.0]
        if update.weights == "secret":
            factors = [count / update.max_weight for count in images]
        total = np.zeros(mean.size)
        for silo_index, factor in enumerate(factors):
            own = observed["updates"][number, silo_index].astype(np.float64)
            if not update.rotation:
                ranges = np.repeat(grid.ranges, grid.segments)
                own = np.clip(own, -ranges, ranges)
            total += factor * own
        exact = total / sum(factors)
        steps = np.repeat(grid.steps, grid.segments)
        bound = 0.5 * 3 / sum(factors) * np.linalg.norm(steps)
        error = np.linalg.norm(mean - exact)
        assert 0 < error < bound + 1e-6 * np.linalg.norm(exact)
        assert error < 0.05 * np.linalg.norm(exact)


def test_the_clipping_norm_is_three_times_that_of_the_mean_before(
    harness: Make, observed: dict[str, Any]
) -> None:
    made = harness(tiny_draft(update=OPTIONS["all"], num_rounds=3))
    made.run()
    means = {number: norm(mean) for number, mean in observed["means"].items()}
    for silo_index in range(3):
        assert observed["norms"][1, silo_index] == 5.0
        for number in (2, 3):
            expected = min(5.0, 3 * means[number - 1])
            found = observed["norms"][number, silo_index]
            assert found == pytest.approx(expected, rel=1e-6)
            assert norm(observed["updates"][number, silo_index]) <= found
    assert means[1] < 5.0 / 3


def lying_in_round_2(
    monkeypatch: pytest.MonkeyPatch, lie: Callable[[Any, Any], None]
) -> None:
    """Have silo 1 send other words in round 2 than it should."""
    update = silo.trainer.RoundTrainer.update

    def changed(self: Any, round_number: int) -> Any:
        upload = update(self, round_number)
        if round_number == 2 and self._silo == 1:
            lie(upload.words, self._plan)
        return upload

    monkeypatch.setattr(silo.trainer.RoundTrainer, "update", changed)


def lost_rounds(made: Harness) -> list[RoundLost]:
    """Return the aggregator's records of lost rounds."""
    folder = made.federation.aggregator.run(made.plan) / "transcript"
    records = [entry.record for entry in read_records(folder)]
    return [record for record in records if isinstance(record, RoundLost)]


@pytest.mark.parametrize("name", ["secret", "both"])
def test_a_claimed_weight_of_1_with_full_fields_costs_a_round_and_not_the_run(
    harness: Make,
    observed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Divided by so small a weight, full fields would be a mean beyond any range."""
    made = harness(tiny_draft(update=OPTIONS[name], num_rounds=3))
    uneven(made)

    def lie(words: Any, plan: Any) -> None:
        num_values = plan.update.num_values(shared_layout(plan).size)
        bits, most = plan.update.field_bits(2, 3), 2**plan.update.value_bits - 2
        words[:-1] = pack(np.full(num_values, most, np.uint32), bits)
        words[-1] = 1

    lying_in_round_2(monkeypatch, lie)
    after = made.run()
    assert after.round_number == 3
    lost = lost_rounds(made)
    assert [record.round_number for record in lost] == [2]
    assert "larger than" in lost[0].reason
    assert sorted(observed["means"]) == [1, 3]


def test_after_a_lost_round_the_last_known_norm_holds(
    harness: Make, observed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silo whose weight cannot be costs round 2, as any other lie does."""
    made = harness(
        tiny_draft(
            update=OPTIONS["all"],
            num_rounds=3,
            protection=ProtectionConfig(method="none"),
        )
    )

    def lie(words: Any, plan: Any) -> None:
        words[-1] += np.uint64(60_000)

    lying_in_round_2(monkeypatch, lie)
    made.run()
    lost = lost_rounds(made)
    assert [record.round_number for record in lost] == [2]
    assert "the sum of the weights" in lost[0].reason
    norms = {number: observed["norms"][number, 0] for number in (1, 2, 3)}
    assert norms[2] == norms[3] < norms[1]


def test_no_weight_of_a_silo_is_on_the_wire_or_in_a_record(harness: Make) -> None:
    made = harness(tiny_draft(update=OPTIONS["both"]))
    made.run()
    assert {silo.weight for silo in made.plan.silos} == {1.0}
    text = b"".join(p.read_bytes() for p in made.federation.root.rglob("*.jsonl"))
    assert b"num_examples" not in text
    assert b"weight" not in text


def test_a_federation_with_secret_weights_declares_none(tmp_path: Any) -> None:
    config = SimulationConfig(num_silos=3, num_images=90)
    draft = tiny_draft(update=OPTIONS["secret"])
    plan = make_federation(tmp_path / "made", draft, config).load_plan()
    assert {party.weight for party in plan.silos} == {1.0}
