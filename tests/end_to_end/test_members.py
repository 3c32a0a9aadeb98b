"""Whole runs with silos that cheat in the key exchange, or never come; and SUM."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

import crypto.secagg.silo_setup
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from crypto.frame import HEADER_BYTES, make_frame, read_header
from crypto.frame import Kind as SecAggKind
from crypto.secagg.messages import Shares, SumNotice
from protocol.envelope import EndRequest, Kind
from protocol.files import load_identity
from protocol.records import (
    RoundClosed,
    RoundLost,
    SetupOpened,
    SiloExcluded,
    Summed,
)
from protocol.transcript import read_records
from protocol.update_settings import ProtectionConfig
from silo.session import SiloSession
from tests.end_to_end.conftest import (
    Crash,
    Harness,
    equal_parameters,
    make_harness,
    tiny_draft,
)

Make = Callable[..., Harness]
CHEAT = 1


def aggregator_records(harness: Harness, kind: type) -> list[Any]:
    folder = harness.federation.aggregator.run(harness.plan) / "transcript"
    return [e.record for e in read_records(folder) if isinstance(e.record, kind)]


def silo_records(harness: Harness, silo: int, kind: type) -> list[Any]:
    files = harness.federation.silo(harness.plan.silos[silo].name)
    folder = files.run(harness.plan) / "transcript"
    return [e.record for e in read_records(folder) if isinstance(e.record, kind)]


def statements(harness: Harness, check: str, severity: Severity) -> list[str]:
    audit = run_audit(load_evidence(harness.federation.root, None))
    found = [f for f in audit.with_severity(severity) if f.check == check]
    return [finding.statement for finding in found]


def closed_rounds(harness: Harness) -> list[int]:
    return [r.round_number for r in aggregator_records(harness, RoundClosed)]


@pytest.fixture
def sealing_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cheat seals envelopes that do not open."""
    deal = crypto.secagg.silo_setup.deal_shares

    def cheating(setup: Any, index: int, *rest: Any) -> Any:
        shares, held = deal(setup, index, *rest)
        if index == CHEAT:
            spoilt = tuple(bytes(len(sealed)) for sealed in shares.sealed)
            shares = Shares(shares.keys_digest, spoilt)
        return shares, held

    monkeypatch.setattr(crypto.secagg.silo_setup, "deal_shares", cheating)


@pytest.fixture
def dealing_wrong_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cheat deals shares of other secrets than it has committed to."""
    deal = crypto.secagg.silo_setup.deal_shares
    draw = crypto.secagg.silo_setup.draw_secrets

    def cheating(setup: Any, index: int, channel: Any, own: Any, *rest: Any) -> Any:
        others = draw(len(own)) if index == CHEAT else own
        return deal(setup, index, channel, others, *rest)

    monkeypatch.setattr(crypto.secagg.silo_setup, "deal_shares", cheating)


@pytest.mark.usefixtures("sealing_nonsense")
def test_whose_envelopes_open_for_nobody_is_left_out(harness: Make) -> None:
    made = harness(num_silos=5)
    made.run()
    excluded = aggregator_records(made, SiloExcluded)
    cheat = made.plan.silos[CHEAT].name
    assert [(r.setup, r.silo) for r in excluded] == [(1, cheat)]
    setups = aggregator_records(made, SetupOpened)
    assert [cheat in r.members for r in setups] == [True, False]
    assert closed_rounds(made) == [1, 2]
    (told,) = statements(made, "members", Severity.WARN)
    assert told.startswith(f"{cheat} was left out of every setup after setup 1")
    audit = run_audit(load_evidence(made.federation.root, None))
    assert not audit.with_severity(Severity.FAIL)


@pytest.mark.usefixtures("sealing_nonsense")
def test_a_restart_does_not_bring_a_cheat_back(harness: Make) -> None:
    made = harness(num_silos=5)

    def fault(when: str, kind: int, silo: int) -> None:
        if kind == SecAggKind.SURVIVORS:
            raise Crash

    with pytest.raises(Crash):
        made.run(fault)
    assert len(aggregator_records(made, SiloExcluded)) == 1
    passed = len(made.wire)
    made.run()
    kinds = {read_header(q).kind for s, q, _ in made.wire[passed:] if s == CHEAT}
    assert kinds == {Kind.END}


def test_a_setup_that_too_few_can_join_is_given_up(harness: Make) -> None:
    """Silo 0 loses what it knows of setup 1 just before the envelopes come."""
    made, lost = harness(num_silos=3), 0

    def fault(moment: str, kind: int, silo: int) -> bool:
        nonlocal lost
        is_it = (moment, kind, silo) == ("before", SecAggKind.ENVELOPES, 0)
        if is_it and not lost:
            lost += 1
            name = made.plan.silos[0].name
            (state,) = (made.federation.silo(name).run(made.plan)).glob("secagg-*")
            state.unlink()
            raise Crash
        return False

    with pytest.raises(Crash):
        made.run(fault)
    made.run()
    setups = [record.setup for record in aggregator_records(made, SetupOpened)]
    assert setups == [1, 2]
    assert closed_rounds(made) == [1, 2]


def test_a_member_that_cannot_join_is_invited_again(harness: Make) -> None:
    """Four silos, of whom one loses its state: the setup goes on, and is made anew."""
    protection = ProtectionConfig(slots_per_setup=16)
    made, lost = harness(tiny_draft(num_rounds=3, protection=protection), 4), 0

    def fault(moment: str, kind: int, silo: int) -> bool:
        nonlocal lost
        if (moment, kind, silo) != ("before", SecAggKind.ENVELOPES, 0) or lost:
            return False
        lost += 1
        return True

    made.run(fault)
    setups = [record.setup for record in aggregator_records(made, SetupOpened)]
    survivors = [len(r.survivors) for r in aggregator_records(made, RoundClosed)]
    assert setups == [1] and survivors == [3, 4, 4]


def test_a_member_that_lost_its_shares_is_brought_back(harness: Make) -> None:
    """Silo 0 of three is restarted without its state between two rounds."""
    protection = ProtectionConfig(slots_per_setup=16)
    made = harness(tiny_draft(num_rounds=3, protection=protection), 3)

    def fault(moment: str, kind: int, silo: int) -> None:
        if kind == Kind.ROUND and moment == "before" and len(closed_rounds(made)) == 1:
            raise Crash

    with pytest.raises(Crash):
        made.run(fault)
    name = made.plan.silos[0].name
    (state,) = made.federation.silo(name).run(made.plan).glob("secagg-*")
    state.unlink()
    made.run()
    setups = [record.setup for record in aggregator_records(made, SetupOpened)]
    assert setups == [1, 2]
    assert closed_rounds(made) == [1, 2, 3]


def test_a_member_that_loses_its_shares_in_mid_run_is_brought_back(
    harness: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    protection = ProtectionConfig(slots_per_setup=16)
    made = harness(tiny_draft(num_rounds=2, protection=protection), 3)
    handle, lost = SiloSession.handle, 0

    def forgetful(self: Any, request: Any) -> Any:
        nonlocal lost
        is_second = read_header(request).kind == Kind.ROUND and closed_rounds(made)
        if is_second and self._silo == 0 and not lost:
            lost += 1
            self._secure._side = None
        return handle(self, request)

    monkeypatch.setattr(SiloSession, "handle", forgetful)
    made.run()
    setups = [record.setup for record in aggregator_records(made, SetupOpened)]
    assert lost == 1 and setups == [1, 2]
    assert closed_rounds(made) == [1, 2]


@pytest.mark.usefixtures("dealing_wrong_shares")
def test_whose_shares_are_wrong_costs_a_round_and_is_left_out(harness: Make) -> None:
    made = harness(tiny_draft(num_rounds=3), num_silos=7)
    made.run()
    lost = aggregator_records(made, RoundLost)
    assert [(r.round_number, r.reason) for r in lost] == [
        (1, f"no shares give the committed secret of silo {CHEAT}")
    ]
    (excluded,) = aggregator_records(made, SiloExcluded)
    assert excluded.reason == "dealt wrong shares"
    assert closed_rounds(made) == [2, 3]


def test_a_silo_that_never_comes_is_invited_less_and_less(harness: Make) -> None:
    made = harness(tiny_draft(num_rounds=9), num_silos=5)
    made.run(lambda moment, kind, silo: silo == 4 and kind != Kind.END)
    setups = aggregator_records(made, SetupOpened)
    # Two slots a setup: rounds 1, 2 and 4 invite it again; 6 and 8 need slots anyway.
    assert len(setups) == 5
    assert closed_rounds(made) == list(range(1, 10))


def test_a_plan_that_trusts_the_aggregator_does_without_confirm(tmp_path: Any) -> None:
    protection = ProtectionConfig(slots_per_setup=2, trust="semi-honest")
    made = make_harness(tmp_path / "run", tiny_draft(protection=protection))
    state = made.run()
    kinds = {read_header(q).kind for _, q, _ in made.wire}
    assert SecAggKind.SURVIVORS in kinds and SecAggKind.CONFIRMS not in kinds
    replies = {read_header(r).kind for _, _, r in made.wire}
    assert SecAggKind.REVEAL in replies and SecAggKind.CONFIRM not in replies
    (told,) = statements(made, "confirmed", Severity.WARN)
    assert "trusts the aggregator" in told
    wary = make_harness(tmp_path / "wary").run()
    assert equal_parameters(state, wary)


def test_the_semi_honest_lose_a_round_when_shares_never_come(harness: Make) -> None:
    """SURVIVORS asked for shares: the same update must not be summed again."""
    protection = ProtectionConfig(slots_per_setup=4, trust="semi-honest")
    made = harness(tiny_draft(protection=protection))
    asked = 0

    def fault(moment: str, kind: int, silo: int) -> bool:
        nonlocal asked
        asked += kind == SecAggKind.SURVIVORS and moment == "before"
        return kind == SecAggKind.SURVIVORS and moment == "after" and asked <= 3

    made.run(fault)
    assert [r.round_number for r in aggregator_records(made, RoundLost)] == [1]
    assert closed_rounds(made) == [2]


def test_every_party_keeps_the_digest_of_every_sum(harness: Make) -> None:
    made = harness(tiny_draft(num_rounds=3))
    made.run()
    sums = aggregator_records(made, Summed)
    assert [(r.round_number, r.setup, r.slot) for r in sums] == [
        (1, 1, 0),
        (2, 1, 1),
        (3, 2, 0),
    ]
    assert len({r.sum for r in sums}) == 3
    for silo in range(3):
        assert silo_records(made, silo, Summed) == sums


def test_two_sums_of_one_slot_are_found(
    harness: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = harness(tiny_draft(num_rounds=1))
    handle, lies = SiloSession.handle, 0

    def told_otherwise(self: Any, request: Any) -> Any:
        """Silo 0 is told of another sum, signed by the aggregator all the same."""
        nonlocal lies
        if read_header(request).kind == Kind.END and self._silo == 0:
            lies += 1
            request = lying_end(made, request)
        return handle(self, request)

    monkeypatch.setattr(SiloSession, "handle", told_otherwise)
    made.run()
    assert lies == 1
    (found,) = statements(made, "same-sum", Severity.FAIL)
    assert "another sum of slot 0" in found


def lying_end(made: Harness, request: Any) -> bytes:
    """Return END with a SUM of the same slot and survivors, and another digest."""
    key = load_identity(made.federation.aggregator.identity)
    end = EndRequest.from_body(memoryview(request)[HEADER_BYTES:-64])
    notice = bytes(end.sum_notice)
    body = SumNotice.from_bytes(notice[HEADER_BYTES:-64], 3)
    other = dataclasses.replace(body, sum_digest=bytes(32)).to_bytes(3)
    lie = make_frame(key, read_header(notice), other)
    forged = dataclasses.replace(end, sum_notice=lie).to_body()
    return make_frame(key, read_header(request), forged)
