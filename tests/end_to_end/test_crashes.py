"""Every process dies at some point of a run, and is started again.

Whatever the point: the same parameters as without a crash, no silo trains twice for a
round, no slot masks two vectors, and the audit finds nothing wrong.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aggregator.checkpoints
import aggregator.slot_store
import crypto.secagg.journal
import protocol.transcript
import silo.store
import silo.trainer
from aggregator.state import RoundState
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from crypto.frame import Kind as SecAggKind
from protocol import records
from protocol.envelope import Kind
from protocol.privacy_settings import PrivacyConfig
from protocol.transcript import read_records
from protocol.update_settings import UpdateConfig
from simulation.federation import Federation
from tests.end_to_end.conftest import (
    Crash,
    Harness,
    equal_parameters,
    tiny_draft,
)

STAGES = [
    Kind.OPEN_SETUP,
    SecAggKind.KEYS,
    SecAggKind.ENVELOPES,
    Kind.ROUND,
    SecAggKind.ACTIVE,
    SecAggKind.SURVIVORS,
    SecAggKind.CONFIRMS,
    Kind.END,
]

EARLY = (Kind.OPEN_SETUP, SecAggKind.KEYS, SecAggKind.ENVELOPES, Kind.END)
"""Requests that belong to no round, or come before the second one in any case."""


def check_good_end(harness: Harness, undisturbed: RoundState) -> None:
    """Finish a run that was killed, and compare it with an undisturbed one."""
    assert equal_parameters(harness.run(), undisturbed)
    assert all(len(replies) == 1 for replies in harness.masked.values())
    audit = run_audit(load_evidence(harness.federation.root, None))
    failed = [finding.statement for finding in audit.with_severity(Severity.FAIL)]
    assert failed == []


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("kind", STAGES, ids=lambda kind: kind.name.lower())
def test_all_processes_die_at_a_stage(
    harness: Callable[..., Harness],
    undisturbed: RoundState,
    monkeypatch: pytest.MonkeyPatch,
    kind: int,
    victim: int,
    moment: str,
) -> None:
    trained: list[tuple[int, int]] = []
    train = silo.trainer.train

    def counting(*arguments: Any, **named: Any) -> Any:
        trained.append((named["silo"], named["round_number"]))
        return train(*arguments, **named)

    crashed, rounds = harness(), 0

    def fault(when: str, at: int, silo_index: int) -> None:
        nonlocal rounds
        rounds += at == Kind.ROUND and when == "before" and silo_index == 0
        is_late = at in EARLY or rounds == 2
        if (when, at, silo_index) == (moment, kind, victim) and is_late:
            raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(silo.trainer, "train", counting)
        with pytest.raises(Crash):
            crashed.run(fault)
        check_good_end(crashed, undisturbed)
    assert sorted(set(trained)) == sorted(trained)
    assert len(trained) == 6


POINTS = [
    (aggregator.checkpoints.CheckpointStore, "save", 2),
    (aggregator.slot_store.SlotStore, "save_setup", 2),
    (aggregator.slot_store.SlotStore, "save_slot", 14),
    (aggregator.slot_store.SlotStore, "save_sum", 2),
    (crypto.secagg.journal.Journal, "promise", 24),
    (silo.store.RunStore, "save_round", 6),
    (silo.store.RunStore, "save_secagg", 30),
    (silo.store.RunStore, "destroy_update", 6),
    (protocol.transcript.TranscriptWriter, "sign_head", 18),
    (protocol.transcript.TranscriptWriter, "append", 140),
]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name", "share"),
    [
        (owner, name, share)
        for owner, name, calls in POINTS
        for share in ((0.3, 0.7) if calls < 100 else (0.15, 0.3, 0.45, 0.6, 0.75, 0.9))
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_all_processes_die_around_a_write(
    harness: Callable[..., Harness],
    undisturbed: RoundState,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    share: float,
    moment: str,
) -> None:
    calls = next(count for kind, of, count in POINTS if (kind, of) == (owner, name))
    original, done = getattr(owner, name), 0

    def dying(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == round(share * calls) and moment == "before":
            raise Crash
        result = original(*arguments)
        if done == round(share * calls):
            raise Crash
        return result

    crashed = harness()
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, dying)
        with pytest.raises(Crash):
            crashed.run()
    check_good_end(crashed, undisturbed)


def test_a_run_that_dies_again_and_again_still_ends(
    harness: Callable[..., Harness],
    undisturbed: RoundState,
) -> None:
    crashed, countdown = harness(), 0

    def fault(when: str, kind: int, silo_index: int) -> None:
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            raise Crash

    for step in range(1, 60):
        countdown = 2 + step
        try:
            crashed.run(fault)
        except Crash:
            continue
        break
    else:
        pytest.fail("the run never ended")
    check_good_end(crashed, undisturbed)


@pytest.mark.parametrize(
    ("kind", "moment"), [(Kind.ROUND, "after"), (SecAggKind.ACTIVE, "before")]
)
def test_silos_that_were_ready_before_a_crash_are_ready_in_the_same_slot(
    harness: Callable[..., Harness],
    undisturbed: RoundState,
    kind: int,
    moment: str,
) -> None:
    """The aggregator shows the head again that they have signed: no attempt is lost."""
    crashed = harness()

    def fault(when: str, at: int, silo_index: int) -> None:
        if (when, at, silo_index) == (moment, kind, 1):
            raise Crash

    with pytest.raises(Crash):
        crashed.run(fault)
    check_good_end(crashed, undisturbed)
    folder = crashed.federation.aggregator.run(crashed.plan) / "transcript"
    found = [entry.record for entry in read_records(folder)]
    opened = [r for r in found if isinstance(r, records.RoundOpened)]
    assert {r.attempt for r in opened} == {1}
    assert not [r for r in found if isinstance(r, records.Dropped)]


def test_a_rotated_weighted_run_that_dies_gives_the_same_parameters(
    harness: Callable[..., Harness], tmp_path: Path
) -> None:
    """The rotation's float32 products come out alike when they are made again.

    Its signs follow from the plan's digest: both runs need the very same plan.
    """
    update = UpdateConfig(
        rounding="nearest",
        rotation=True,
        clipping="previous-mean",
        weights="secret",
        max_weight=1000,
    )
    crashed, asked = harness(tiny_draft(update=update)), 0
    copied = shutil.copytree(crashed.federation.root, tmp_path / "copy")
    whole = Harness(Federation(copied), crashed.plan).run()

    def fault(when: str, kind: int, silo_index: int) -> None:
        nonlocal asked
        asked += kind == SecAggKind.CONFIRMS and when == "after"
        if asked == 5:
            raise Crash

    with pytest.raises(Crash):
        crashed.run(fault)
    check_good_end(crashed, whole)


def test_a_run_that_dies_between_its_last_record_and_its_model(
    harness: Callable[..., Harness],
    undisturbed: RoundState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crashed = harness()

    def die(*arguments: Any) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(aggregator.checkpoints.CheckpointStore, "finish", die)
        with pytest.raises(Crash):
            crashed.run()
    passed = len(crashed.wire)
    check_good_end(crashed, undisturbed)
    assert len(crashed.wire) == passed
    folder = crashed.federation.aggregator.run(crashed.plan)
    assert (folder / "model.safetensors").is_file()


def test_a_run_that_dies_before_its_last_record_is_signed(
    harness: Callable[..., Harness],
    undisturbed: RoundState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crashed = harness()
    append = protocol.transcript.TranscriptWriter.append

    def die_behind_the_end(writer: Any, record: records.Record) -> None:
        append(writer, record)
        is_aggregator = writer._party == "aggregator"
        if isinstance(record, records.Finished) and is_aggregator:
            raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(
            protocol.transcript.TranscriptWriter, "append", die_behind_the_end
        )
        with pytest.raises(Crash):
            crashed.run()
    check_good_end(crashed, undisturbed)
    audit = run_audit(load_evidence(crashed.federation.root, None))
    (records_kept,) = [
        finding.statement
        for finding in audit.findings
        if (finding.check, finding.party) == ("records", "aggregator")
    ]
    assert "all signed" in records_kept
    heads = crashed.federation.aggregator.run(crashed.plan) / "transcript" / "heads.txt"
    size = heads.stat().st_size
    crashed.run()
    assert heads.stat().st_size == size


def test_a_silo_that_dies_between_its_last_record_and_its_last_word(
    harness: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is brought to the last model again, and opens its ledger again."""
    crashed = harness(
        tiny_draft(
            num_rounds=1,
            update=UpdateConfig(rounding="nearest", broadcast_bits=8),
            privacy=PrivacyConfig(
                mechanism="dp-sgd", delta=1e-3, noise_multiplier=2.0, sample_rate=0.1
            ),
        )
    )

    def die(*arguments: Any) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(silo.store.RunStore, "save_finished", die)
        with pytest.raises(Crash):
            crashed.run()
    crashed.run()
    audit = run_audit(load_evidence(crashed.federation.root, None))
    assert [f.statement for f in audit.with_severity(Severity.FAIL)] == []


def test_a_silo_that_is_asked_behind_its_end_which_model_it_holds(
    harness: Callable[..., Harness],
) -> None:
    """The last round was lost, so that it was brought to the last model before it."""
    update = UpdateConfig(rounding="nearest", broadcast_bits=8)
    crashed, is_last = harness(tiny_draft(update=update)), False

    def fault(when: str, at: int, silo_index: int) -> bool:
        nonlocal is_last
        is_last |= at == Kind.BROADCAST
        if (when, at, silo_index) == ("after", Kind.END, 2):
            raise Crash
        return is_last and (when, at) == ("after", SecAggKind.CONFIRMS)

    with pytest.raises(Crash):
        crashed.run(fault)
    crashed.run()
    audit = run_audit(load_evidence(crashed.federation.root, None))
    assert [f.statement for f in audit.with_severity(Severity.FAIL)] == []
    assert any("Round 2 was lost" in f.statement for f in audit.findings)


def test_what_a_killed_process_left_is_gone_when_the_next_one_begins(
    harness: Callable[..., Harness], undisturbed: RoundState
) -> None:
    """Secrets in files that never got their names, at the aggregator and a silo."""
    made = harness()
    folders = [
        made.federation.aggregator.run(made.plan),
        made.federation.silo(made.plan.silos[1].name).run(made.plan),
    ]
    for folder in folders:
        (folder / ".round-000001.partial").mkdir(parents=True)
        (folder / ".round-000001.partial" / "update.words").write_bytes(b"secret")
        (folder / ".secagg-000001.state.x.tmp").write_bytes(b"secret")
    left: list[str] = []

    def look(moment: str, kind: int, silo_index: int) -> None:
        left.extend(path.name for folder in folders for path in folder.glob(".*"))

    check = made.run(look)
    assert left == []
    assert equal_parameters(check, undisturbed)
