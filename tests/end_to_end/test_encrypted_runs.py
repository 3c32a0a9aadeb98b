"""Whole runs whose updates are encrypted: the models of masks, whoever is lost or dies.

With rounding to nearest and nothing drawn from the plan's digest (no rotation, no parts
dealt), a run with encryption ends with the parameters of the same run with masks.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import crypto.bfv.workers
from aggregator.state import RoundState
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from crypto.errors import WorkerFailed
from crypto.frame import Kind as SecAggKind
from protocol.envelope import Kind
from protocol.plan import PlanDraft
from protocol.records import Decrypted, Dropped, KeyShared, Revealed, RoundLost
from protocol.transcript import read_records
from protocol.update_settings import ProtectionConfig, UpdateConfig
from tests.end_to_end.conftest import Crash, Harness, equal_parameters, tiny_draft

ENCRYPTED = ProtectionConfig(method="bfv")

STAGES = [
    SecAggKind.KEYS,
    SecAggKind.HANDED,
    SecAggKind.ACTIVE,
    SecAggKind.SURVIVORS,
    SecAggKind.DECRYPT,
    Kind.END,
]


def encrypted_draft(**changes: Any) -> PlanDraft:
    """Return the tiny draft, encrypted."""
    return tiny_draft(**({"protection": ENCRYPTED} | changes))


def check_audit(made: Harness) -> None:
    """Check that the audit finds nothing wrong."""
    audit = run_audit(load_evidence(made.federation.root, None))
    assert [f.statement for f in audit.with_severity(Severity.FAIL)] == []


def records_of(made: Harness) -> list[Any]:
    """Return the aggregator's records."""
    folder = made.federation.aggregator.run(made.plan) / "transcript"
    return [entry.record for entry in read_records(folder)]


def test_the_model_is_that_of_masks_bit_for_bit(
    harness: Callable[..., Harness], undisturbed: RoundState
) -> None:
    made = harness(encrypted_draft())
    assert equal_parameters(made.run(), undisturbed)
    check_audit(made)
    said = records_of(made)
    assert [r.maker for r in said if isinstance(r, KeyShared)] == ["silo-1"]
    assert [r.silos for r in said if isinstance(r, Decrypted)] == [
        ("silo-2", "silo-3"),
        ("silo-1", "silo-3"),
    ]
    assert not any(isinstance(record, Revealed) for record in said)


@pytest.mark.usefixtures("lent_workers")
def test_secret_weights_and_what_silos_measure_are_those_of_masks(
    harness: Callable[..., Harness],
) -> None:
    update = UpdateConfig(rounding="nearest", weights="secret", max_weight=64)
    masked, made = (
        harness(tiny_draft(update=update, protection=protection))
        for protection in (ProtectionConfig(), ENCRYPTED)
    )
    assert equal_parameters(made.run(), masked.run())
    check_audit(made)


@pytest.mark.usefixtures("lent_workers")
def test_parts_that_are_dealt_are_encrypted_for_their_groups(
    harness: Callable[..., Harness],
) -> None:
    update = UpdateConfig(selection="usplit", rotation=True, value_bits=8)
    made = harness(encrypted_draft(update=update), num_silos=6)
    made.run()
    check_audit(made)


@pytest.mark.usefixtures("lent_workers")
@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        (SecAggKind.ACTIVE, "before"),
        (SecAggKind.ACTIVE, "after"),
        (SecAggKind.SURVIVORS, "before"),
        (SecAggKind.DECRYPT, "before"),
        (SecAggKind.DECRYPT, "after"),
    ],
)
def test_a_silo_that_is_lost_costs_nothing(
    harness: Callable[..., Harness], kind: int, moment: str
) -> None:
    made = harness(encrypted_draft(protection=replace(ENCRYPTED, threshold=4)), 5)
    lost = set[int]()

    def fault(when: str, at: int, silo: int) -> bool:
        if (when, at, silo) == (moment, kind, 2):
            lost.add(silo)
        return silo in lost

    made.run(fault)
    said = records_of(made)
    assert not any(isinstance(record, RoundLost) for record in said)
    assert any(isinstance(r, Dropped) and r.silo == "silo-3" for r in said)
    decrypted = [record for record in said if isinstance(record, Decrypted)]
    assert all(len(record.silos) == 2 for record in decrypted)
    assert all("silo-3" not in record.silos for record in decrypted)
    check_audit(made)


@pytest.mark.usefixtures("lent_workers")
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", STAGES, ids=lambda kind: kind.name.lower())
def test_all_processes_die_at_a_stage(
    harness: Callable[..., Harness],
    undisturbed: RoundState,
    kind: int,
    moment: str,
) -> None:
    made, dies = harness(encrypted_draft()), iter([False, True])

    def fault(when: str, at: int, silo: int) -> None:
        if (when, at) == (moment, kind) and next(dies, False):
            raise Crash

    with pytest.raises(Crash):
        made.run(fault)
    assert equal_parameters(made.run(), undisturbed)
    check_audit(made)


@pytest.mark.usefixtures("lent_workers")
def test_a_child_that_crashes_costs_one_silo_one_attempt(
    harness: Callable[..., Harness],
    undisturbed: RoundState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encrypt, fails = crypto.bfv.workers.Workers.encrypt, iter([True])

    def failing(workers: Any, *arguments: Any) -> Any:
        if next(fails, False):
            raise WorkerFailed("a child process crashed")
        return encrypt(workers, *arguments)

    monkeypatch.setattr(crypto.bfv.workers.Workers, "encrypt", failing)
    made = harness(encrypted_draft())
    assert equal_parameters(made.run(), undisturbed)
    (dropped,) = [r for r in records_of(made) if isinstance(r, Dropped)]
    assert dropped.stage == "encrypted" and "operator" in dropped.reason
    check_audit(made)
