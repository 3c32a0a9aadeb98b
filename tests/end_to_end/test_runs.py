"""Whole runs in one process: sums, parity, dropouts, selections, bytes, audit."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import aggregator.rounds
import silo.store
import silo.trainer
from aggregator.errors import CohortTooSmall
from aggregator.state import RoundState, initial_state, shared_layout
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from crypto.frame import OVERHEAD_BYTES, read_header
from crypto.frame import Kind as SecAggKind
from crypto.ring import unpack
from diffusion.model import make_model
from diffusion.parameters import flatten, load_safetensors
from diffusion.parts import part_of
from protocol.envelope import Kind
from protocol.records import Dropped, Revealed, RoundLost, Traffic
from protocol.settings import TrainingConfig
from protocol.transcript import read_records
from protocol.update_settings import ProtectionConfig, UpdateConfig
from simulation.settings import PartitionConfig
from tests.end_to_end.conftest import Harness, equal_parameters, tiny_draft

Make = Callable[..., Harness]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Keep every vector that a silo stores, and every sum that is unmasked."""
    kept: dict[str, Any] = {"vectors": {}, "sums": {}}
    save, mean = silo.store.RunStore.save_round, aggregator.rounds.mean_update

    def keep_vector(store: Any, trained: Any, words: Any, *rest: Any) -> None:
        name = store.folder.parent.parent.name
        kept["vectors"][trained.round_number, name] = words.copy()
        save(store, trained, words, *rest)

    def keep_sum(
        plan: Any, layout: Any, grid: Any, words: Any, survivors: Any, number: int
    ) -> Any:
        kept["sums"][number] = (words.copy(), survivors)
        return mean(plan, layout, grid, words, survivors, number)

    monkeypatch.setattr(silo.store.RunStore, "save_round", keep_vector)
    monkeypatch.setattr(aggregator.rounds, "mean_update", keep_sum)
    return kept


def check_sums(harness: Harness, kept: dict[str, Any]) -> None:
    """Compare every unmasked sum with the plain sum of what was masked."""
    update, size = harness.plan.update, shared_layout(harness.plan).size
    num_silos = len(harness.plan.silos)
    for number, (words, survivors) in kept["sums"].items():
        bits = update.field_bits(number, num_silos)
        length = update.num_values(size)
        plain = np.zeros(length, dtype=np.uint64)
        for index in survivors:
            vector = kept["vectors"][number, harness.plan.silos[index].name]
            plain += unpack(vector, bits, length)
        assert np.array_equal(unpack(words, bits, length), plain)


def findings(harness: Harness, severity: Severity) -> list[str]:
    """Return the audit's statements of one severity."""
    audit = run_audit(load_evidence(harness.federation.root, None))
    return [finding.statement for finding in audit.with_severity(severity)]


def records_of(harness: Harness) -> list[Any]:
    """Return the aggregator's records."""
    folder = harness.federation.aggregator.run(harness.plan) / "transcript"
    return [entry.record for entry in read_records(folder)]


def test_stochastic_sums_are_the_sums_of_the_very_integers(
    harness: Make, watched: dict[str, Any]
) -> None:
    made = harness(tiny_draft(update=UpdateConfig(), num_rounds=3))
    made.run()
    assert sorted(watched["sums"]) == [1, 2, 3]
    check_sums(made, watched)


def test_seven_silos_one_lost_before_and_one_after_its_upload(
    harness: Make, watched: dict[str, Any]
) -> None:
    protection = ProtectionConfig(threshold=5)
    made = harness(tiny_draft(update=UpdateConfig(), protection=protection), 7)
    lost: set[int] = set()

    def fault(moment: str, kind: int, silo_index: int) -> bool:
        if kind == SecAggKind.ACTIVE and moment == "before" and silo_index == 2:
            lost.add(2)
        if kind == SecAggKind.SURVIVORS and moment == "before" and silo_index == 5:
            lost.add(5)
        return silo_index in lost

    made.run(fault)
    survivors = watched["sums"][1][1]
    assert survivors == (0, 1, 3, 4, 5, 6)
    check_sums(made, watched)
    revealed = [r for r in records_of(made) if isinstance(r, Revealed)]
    assert revealed[0].slot_keys_of == ("silo-3",)
    assert len(revealed[0].self_masks_of) == 6
    assert findings(made, Severity.FAIL) == []


@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        (Kind.ROUND, "before"),
        (Kind.ROUND, "after"),
        (SecAggKind.ACTIVE, "before"),
        (SecAggKind.ACTIVE, "after"),
        (SecAggKind.SURVIVORS, "after"),
        (SecAggKind.CONFIRMS, "before"),
    ],
)
def test_one_of_five_is_lost_at_a_stage_and_comes_back(
    harness: Make, watched: dict[str, Any], kind: int, moment: str
) -> None:
    made = harness(tiny_draft(num_rounds=3), 5)
    rounds = Counter[int]()

    def fault(when: str, at: int, silo_index: int) -> bool:
        if silo_index != 4:
            return False
        rounds[at] += when == "before"
        return (when, at) == (moment, kind) and rounds[kind] == 2

    made.run(fault)
    assert len(watched["sums"]) == 3
    check_sums(made, watched)
    dropped = [r for r in records_of(made) if isinstance(r, Dropped)]
    assert {r.silo for r in dropped} == {"silo-5"}
    assert len(watched["sums"][3][1]) == 5
    assert findings(made, Severity.FAIL) == []


def test_too_few_silos_end_the_run_and_it_can_be_resumed(
    harness: Make, undisturbed: RoundState
) -> None:
    made = harness()
    with pytest.raises(CohortTooSmall):
        made.run(lambda moment, kind, silo_index: silo_index == 1)
    assert not [r for r in records_of(made) if isinstance(r, RoundLost)]
    assert equal_parameters(made.run(), undisturbed)


def test_shares_that_never_come_close_the_round_without_a_sum(harness: Make) -> None:
    made = harness(tiny_draft(num_rounds=3))
    reveals = Counter[str]()

    def fault(moment: str, kind: int, silo_index: int) -> bool:
        if kind != SecAggKind.CONFIRMS or moment == "before":
            return False
        reveals["seen"] += 1
        return reveals["seen"] <= 3 and silo_index == 0

    made.run(fault)
    lost = [r for r in records_of(made) if isinstance(r, RoundLost)]
    assert [r.round_number for r in lost] == [1]
    assert findings(made, Severity.FAIL) == []


def test_the_same_draft_twice_gives_the_same_parameters(
    harness: Make, undisturbed: RoundState
) -> None:
    assert equal_parameters(harness().run(), undisturbed)
    assert not equal_parameters(harness(tiny_draft(seed=6)).run(), undisturbed)


def test_in_the_clear_gives_the_same_parameters_as_masked(
    harness: Make, undisturbed: RoundState
) -> None:
    made = harness(tiny_draft(protection=ProtectionConfig(method="none")))
    assert equal_parameters(made.run(), undisturbed)
    assert any("clear" in text for text in findings(made, Severity.WARN))
    assert findings(made, Severity.FAIL) == []


@pytest.mark.parametrize("selection", ["udec", "ulatdec"])
def test_parts_that_are_not_selected_stay_in_the_silo(
    harness: Make, selection: str
) -> None:
    update = UpdateConfig(rounding="nearest", selection=selection)  # type: ignore[arg-type]
    protection = ProtectionConfig(method="none")
    made = harness(tiny_draft(update=update, protection=protection, num_rounds=3))
    whole = harness(tiny_draft(protection=protection, num_rounds=3))
    made.run()
    whole.run()
    sent = sum(len(reply) for _, _, reply in made.wire)
    assert sent < 0.9 * sum(len(reply) for _, _, reply in whole.wire)
    chosen = {"udec": {"decoder"}, "ulatdec": {"bottleneck", "decoder"}}[selection]
    shared = [
        (name, parameter.numel())
        for name, parameter in make_model(made.plan.model, 0).named_parameters()
        if part_of(make_model(made.plan.model, 0))[name].value in chosen
    ]
    assert list(shared_layout(made.plan).names) == [name for name, _ in shared]
    lengths = {
        made.plan.vector_bytes(number, sum(size for _, size in shared))
        for number in (1, 2, 3)
    }
    plain = [r for _, _, r in made.wire if read_header(r).kind == Kind.PLAIN]
    assert len(plain) == 9
    assert {len(reply) - OVERHEAD_BYTES for reply in plain} == lengths
    local = []
    for party in made.plan.silos:
        folder = made.federation.silo(party.name).run(made.plan)
        tensors, _ = load_safetensors(next(folder.rglob("training.safetensors")))
        names = [name for name in tensors if name.startswith("local/")]
        local.append(torch.cat([tensors[name].flatten() for name in sorted(names)]))
        everything = b"".join(request + reply for _, request, reply in made.wire)
        for name in names:
            if tensors[name].numel() >= 16:
                assert tensors[name].numpy().tobytes() not in everything
    assert not torch.equal(local[0], local[1])


def test_declared_weights_weigh_the_mean(harness: Make) -> None:
    """The masked sum of weighted integers is near the weighted mean in float64."""
    skewed = PartitionConfig(kind="quantity-skew", concentration=2.0)
    clear = ProtectionConfig(method="none")
    drafts = [
        tiny_draft(update=UpdateConfig(rounding="nearest", weights="declared")),
        tiny_draft(
            update=UpdateConfig(form="float32", weights="declared"), protection=clear
        ),
        tiny_draft(update=UpdateConfig(form="float32"), protection=clear),
    ]
    ends = []
    for draft in drafts:
        made = harness(dataclasses.replace(draft, num_rounds=1), partition=skewed)
        layout = shared_layout(made.plan)
        ends.append(flatten(made.run().parameters, layout))
        if draft.update.weights == "declared":
            assert len(set(made.plan.relative_weights())) == 3
    first = flatten(initial_state(made.plan).parameters, layout)
    moved = float(np.linalg.norm(ends[1] - first))
    assert np.linalg.norm(ends[0] - ends[1]) < 1e-5 * moved
    assert np.linalg.norm(ends[2] - ends[1]) > 0.05 * moved


def test_every_byte_on_the_wire_is_in_both_transcripts(harness: Make) -> None:
    made = harness(tiny_draft(num_rounds=3))
    made.run()
    sent = sum(len(reply) for _, _, reply in made.wire)
    received = sum(len(request) for _, request, _ in made.wire)
    folders = [made.federation.aggregator.run(made.plan)]
    traffic = [r for r in records_of(made) if isinstance(r, Traffic)]
    assert sum(r.sent_bytes for r in traffic) == sent
    assert sum(r.received_bytes for r in traffic) == received
    folders = [made.federation.silo(s.name).run(made.plan) for s in made.plan.silos]
    own = [
        entry.record
        for folder in folders
        for entry in read_records(folder / "transcript")
        if isinstance(entry.record, Traffic)
    ]
    assert sum(r.sent_bytes for r in own) == sent
    assert sum(r.received_bytes for r in own) == received
    size = shared_layout(made.plan).size
    vectors = sum(made.plan.vector_bytes(number, size) for number in (1, 2, 3))
    assert sum(r.vector_bytes for r in own) == 3 * vectors
    assert findings(made, Severity.FAIL) == []


def test_no_secret_and_no_place_is_in_any_transcript(harness: Make) -> None:
    made = harness()
    made.run()
    text = b"".join(p.read_bytes() for p in made.federation.root.rglob("*.jsonl"))
    assert str(made.federation.root).encode() not in text
    assert b"data.npz" not in text
    for party in made.plan.silos:
        key = made.federation.silo(party.name).identity.read_text().strip()
        assert key.encode() not in text


def test_requests_that_arrive_twice_change_nothing(
    harness: Make, undisturbed: RoundState, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = harness()

    def fault(moment: str, kind: int, silo_index: int) -> bool:
        return False

    import tests.end_to_end.conftest as conftest

    exchange = conftest.Recorder.exchange

    def twice(self: Any, requests: Any, **limits: Any) -> Any:
        for silo_index, reply in exchange(self, requests, **limits):
            if read_header(requests[silo_index]).kind != Kind.END:
                again = self.sessions[silo_index].handle(requests[silo_index])
                assert again == reply
            yield silo_index, reply

    monkeypatch.setattr(conftest.Recorder, "exchange", twice)
    assert equal_parameters(made.run(fault), undisturbed)


def test_a_silo_that_lies_costs_a_round_and_not_the_run(
    harness: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = harness(tiny_draft(num_rounds=3))
    update = silo.trainer.RoundTrainer.update

    def lie(self: Any, round_number: int) -> Any:
        upload = update(self, round_number)
        if round_number == 2 and self._silo == 1:
            upload.words[:] = np.uint64(2**64 - 1)
        return upload

    monkeypatch.setattr(silo.trainer.RoundTrainer, "update", lie)
    made.run()
    lost = [r for r in records_of(made) if isinstance(r, RoundLost)]
    assert [r.round_number for r in lost] == [2]
    assert "larger than" in lost[0].reason
    assert findings(made, Severity.FAIL) == []


def test_two_rounds_with_a_fresh_optimizer_and_no_parts_of_ones_own(
    harness: Make,
) -> None:
    """Nothing is left then for the next round: the file of it holds no tensors."""
    training = TrainingConfig(
        local_steps=1,
        examples_per_step=4,
        learning_rate=1e-2,
        optimizer_state="fresh",
    )
    assert UpdateConfig().selection == "full"
    made = harness(tiny_draft(training=training))
    state = made.run()
    assert state.round_number == 2
    assert not [r for r in records_of(made) if isinstance(r, RoundLost | Dropped)]
    assert findings(made, Severity.FAIL) == []
    for party in made.plan.silos:
        folder = made.federation.silo(party.name).run(made.plan)
        (path,) = folder.rglob("training.safetensors")
        assert load_safetensors(path) == ({}, {})
