"""Tampered dealings are found and named, beside the honest run."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Finding, Severity
from crypto.keys import IdentityKey
from protocol import records as r
from protocol.dealing import deal
from protocol.model_records import Dealt
from protocol.plan import PlanDraft, RunPlan, SiloParty, make_plan
from protocol.update_settings import ProtectionConfig, UpdateConfig
from tests.audits import evidence_builder
from tests.audits.evidence_builder import (
    AGGREGATOR,
    Edit,
    Parties,
    Script,
    change,
    digest,
    make_parties,
    omit,
    script,
    write_run,
)

SILOS = ("amsterdam", "basel", "cork", "delft")
THREE = make_parties()
T2, OTHER = digest("setup", 1), digest("setup", 2)


@pytest.fixture(autouse=True, scope="module")
def _four_silos() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_builder, "SILOS", SILOS)
        yield


def dealt_parties(method: Any = "mask") -> Parties:
    """Return a plan for four silos, with groups of two."""
    keys = {name: IdentityKey.generate() for name in (AGGREGATOR, *SILOS)}
    fields = dataclasses.fields(PlanDraft)
    sections: dict[str, Any] = {f.name: getattr(THREE.plan, f.name) for f in fields}
    sections["update"] = UpdateConfig(selection="usplit")
    sections["protection"] = ProtectionConfig(
        method=method, min_cohort=2, max_colluding=0
    )
    silos = [SiloParty(name=s, identity_key=keys[s].public.hex()) for s in SILOS]
    return Parties(
        make_plan(PlanDraft(**sections), keys[AGGREGATOR].public, silos), keys
    )


def dealing(number: int, seed: str, members: tuple[int, ...] = (0, 1, 2, 3)) -> Dealt:
    groups = deal(bytes.fromhex(seed), number, members)
    names: dict[str, Any] = {p: tuple(SILOS[i] for i in groups[p]) for p in groups}
    place = {"round_number": number, "setup": 1, "slot": number - 1}
    return Dealt(
        **place, digest=seed, members=tuple(SILOS[i] for i in members), **names
    )


def dealt_script(plan: RunPlan, seed: str = T2, **options: Any) -> Script:
    """Return what all parties do; everybody records the dealing of every round."""
    method, result = plan.protection.method, []
    for party, item in script(method=method, **options):
        if isinstance(item, r.RoundOpened):
            result.append((party, dealing(item.round_number, seed)))
        result.append((party, item))
    return result


def failures(run: Path, parties: Parties, actions: Script) -> list[Finding]:
    write_run(run, parties, actions)
    return list(run_audit(load_evidence(run)).with_severity(Severity.FAIL))


@pytest.mark.parametrize("method", ["mask", "none"])
def test_the_honest_run_passes(method: str, tmp_path: Path) -> None:
    parties = dealt_parties(method)
    seed = T2 if method == "mask" else parties.plan.digest.hex()
    actions = dealt_script(parties.plan, seed)
    assert failures(tmp_path, parties, actions) == []
    audit = run_audit(load_evidence(tmp_path))
    (found,) = [f for f in audit.findings if f.check == "dealing"]
    assert found.statement.startswith("3 dealings follow from the agreed digest")


def swapped(number: int) -> dict[str, tuple[str, ...]]:
    """Return the groups of a round with encoder and decoder the other way round."""
    true = dealing(number, T2)
    return {"encoder": true.decoder, "decoder": true.encoder}


def taking(record: Dealt) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}


def for_everyone(number: int, **changes: Any) -> Edit:
    def edit(actions: Script) -> Script:
        for party in (AGGREGATOR, *SILOS):
            actions = change(party, Dealt, number, **changes)(actions)
        return actions

    return edit


LIES: list[tuple[str, str, str, Edit]] = [
    (
        "groups of a silo's own",
        "basel",
        "Round 2: basel dealt the parts otherwise than the agreed digest says",
        change("basel", Dealt, 2, **swapped(2)),
    ),
    (
        "groups of the aggregator's own",
        AGGREGATOR,
        "Round 1: aggregator dealt the parts otherwise than the agreed digest says",
        change(AGGREGATOR, Dealt, 1, **swapped(1)),
    ),
    (
        "a silo was told of another setup",
        "cork",
        "Round 1: cork dealt from another digest or members than aggregator",
        change("cork", Dealt, 1, **taking(dealing(1, OTHER))),
    ),
    (
        "no digest at all",
        "delft",
        "Round 3: delft dealt the parts otherwise than the agreed digest says",
        change("delft", Dealt, 3, digest="zz"),
    ),
    (
        "a member is left out",
        "amsterdam",
        "the members of setup 1 are amsterdam, basel, cork and delft",
        for_everyone(2, **taking(dealing(2, T2, (0, 1, 2)))),
    ),
    (
        "a silo says nothing",
        "delft",
        "Round 2: delft does not say who was dealt what",
        omit("delft", Dealt, 2),
    ),
    (
        "the aggregator says nothing",
        AGGREGATOR,
        "Round 3: aggregator does not say who was dealt what",
        omit(AGGREGATOR, Dealt, 3),
    ),
]


@pytest.mark.parametrize(
    ("party", "words", "lie"), [row[1:] for row in LIES], ids=[row[0] for row in LIES]
)
def test_lies_are_found_and_named(
    party: str, words: str, lie: Edit, tmp_path: Path
) -> None:
    parties = dealt_parties()
    found = failures(tmp_path, parties, lie(dealt_script(parties.plan)))
    assert {f.check for f in found} == {"dealing"}
    assert any(f.party == party and words in f.statement for f in found), found


def test_a_sum_over_a_group_that_dropouts_left_too_small(tmp_path: Path) -> None:
    parties = dealt_parties()
    actions = dealt_script(parties.plan, lost={2: "basel"})
    found = failures(tmp_path, parties, actions)
    assert {f.check for f in found} == {"dealing"}
    assert {f.party for f in found} == {AGGREGATOR, "amsterdam", "cork", "delft"}
    assert all(f.round_number == 2 for f in found)
    true = dealing(2, T2)
    for part in ("encoder", "bottleneck", "decoder"):
        is_small = "basel" in getattr(true, part)
        words = f"names 1 survivor for the {part}; the plan asks for at least 2"
        assert any(words in f.statement for f in found) == is_small


def test_without_masks_the_digest_is_the_plans(tmp_path: Path) -> None:
    parties = dealt_parties("none")
    found = failures(tmp_path, parties, dealt_script(parties.plan, T2))
    assert {f.check for f in found} == {"dealing"}
    words = "dealt from something else than the plan's digest and all silos"
    assert all(words in f.statement for f in found)


def test_a_plan_that_deals_nothing_has_no_such_check(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_builder, "SILOS", SILOS[:3])
        write_run(tmp_path, THREE, script())
    audit = run_audit(load_evidence(tmp_path))
    assert "dealing" not in {finding.check for finding in audit.findings}
