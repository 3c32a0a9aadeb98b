"""Runs that encrypt: the honest one passes; each lie is found, named and placed.

The rows are those of test_tampering, for what only encryption has. A finding names the
record, the round where there is one, and the party.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from audits.audit import Audit, run_audit
from audits.evidence import load_evidence
from audits.findings import Finding, Severity
from protocol import records as r
from protocol.sum_records import Decrypted, KeyShared
from tests.audits.evidence_builder import (
    AGGREGATOR,
    SILOS,
    Edit,
    Parties,
    Script,
    change,
    digest,
    find,
    make_parties,
    omit,
    repeat,
    script,
    write_run,
)


@dataclass(frozen=True)
class Row:
    """One lie, and what must be found."""

    name: str
    check: str
    party: str
    words: str
    lies: tuple[Edit, ...]


def insert(party: str, record: r.Record, after: type, number: int = 2) -> Edit:
    """Return an edit: a party records something more."""

    def edit(actions: Script) -> Script:
        index = find(actions, party, after, number)
        return [*actions[: index + 1], (party, record), *actions[index + 1 :]]

    return edit


def everywhere(kind: type[r.Record], number: int, **changes: object) -> Edit:
    """Return an edit: all who record something in a round record something else."""

    def edit(actions: Script) -> Script:
        for party in (AGGREGATOR, *SILOS):
            try:
                actions = change(party, kind, number, **changes)(actions)
            except LookupError:
                continue
        return actions

    return edit


def keys(**changes: object) -> tuple[Edit, ...]:
    """Return edits: all parties record another key."""
    parties = (AGGREGATOR, *SILOS)
    return tuple(change(party, KeyShared, **changes) for party in parties)


PLACE = {"round_number": 2, "setup": 1, "slot": 1}
REVEALED = r.Revealed(**PLACE, silos=("cork",), self_masks_of=SILOS, slot_keys_of=())
SECOND_SETUP = r.SetupOpened(setup=2, members=SILOS, advertisements=digest("more"))
SECOND_KEY = KeyShared(setup=2, maker="basel", commitment=digest("shared key"))
OTHER_SLOT = Decrypted(
    round_number=2,
    setup=1,
    slot=9,
    silos=("cork",),
    survivors=SILOS,
    sum=digest("sum of another list"),
)

# In round 2 the sum over all three is decrypted by cork and amsterdam.
ROWS = (
    Row(
        "another key at one silo",
        "key-shared",
        "cork",
        "Setup 1: cork has another key than aggregator",
        (change("cork", KeyShared, commitment=digest("another key")),),
    ),
    Row(
        "another maker at one silo",
        "key-shared",
        "cork",
        "names another maker, amsterdam, than aggregator",
        (change("cork", KeyShared, maker="amsterdam"),),
    ),
    Row(
        "a maker that the plan does not name",
        "key-shared",
        AGGREGATOR,
        "names cork as the maker; by the plan it is basel",
        keys(maker="cork"),
    ),
    Row(
        "the first of the next after the plan's maker",
        "key-shared",
        AGGREGATOR,
        "names basel as the maker; by the plan it is cork",
        (change(AGGREGATOR, r.SetupOpened, members=("amsterdam", "cork")),),
    ),
    Row(
        "the key of an earlier setup",
        "key-shared",
        AGGREGATOR,
        "Setup 2: aggregator has the key of setup 1",
        (
            insert(AGGREGATOR, SECOND_KEY, r.RoundClosed),
            insert(AGGREGATOR, SECOND_SETUP, r.RoundClosed),
        ),
    ),
    Row(
        "a silo that says nothing of a key",
        "key-shared",
        "cork",
        "Setup 1: cork does not say with which key",
        (omit("cork", KeyShared),),
    ),
    Row(
        "the sum differs at a silo that decrypted",
        "decrypted",
        "cork",
        "Round 2: cork decrypted another sum than the one of slot 1 that was told",
        (change("cork", Decrypted, 2, sum=digest("another sum")),),
    ),
    Row(
        "the aggregator tells another sum",
        "decrypted",
        AGGREGATOR,
        "Round 2: aggregator decrypted another sum than the one of slot 1",
        (everywhere(r.Summed, 2, sum=digest("another sum")),),
    ),
    Row(
        "one silo has decrypted",
        "decrypted",
        AGGREGATOR,
        "took a sum that 1 silo decrypted; 2 must agree",
        (change(AGGREGATOR, Decrypted, 2, silos=("cork",)),),
    ),
    Row(
        "one silo, named twice",
        "decrypted",
        AGGREGATOR,
        "took a sum that 1 silo decrypted; 2 must agree",
        (change(AGGREGATOR, Decrypted, 2, silos=("cork", "cork")),),
    ),
    Row(
        "a silo is named that did not decrypt",
        "decrypted",
        AGGREGATOR,
        "says that basel decrypted; basel did not write it",
        (change(AGGREGATOR, Decrypted, 2, silos=("basel", "cork")),),
    ),
    Row(
        "no record of who decrypted",
        "decrypted",
        AGGREGATOR,
        "told of a sum, and not which silos decrypted it",
        (omit(AGGREGATOR, Decrypted, 2),),
    ),
    Row(
        "a silo decrypted two sums",
        "decrypted",
        "cork",
        "Round 2: cork has two decrypted sums, of slots 1 and 9",
        (insert("cork", OTHER_SLOT, Decrypted),),
    ),
    Row(
        "a silo decrypted over two lists",
        "decrypted",
        "cork",
        "Round 2: cork has two decrypted sums, of slots 1 and 1",
        (repeat("cork", Decrypted, 2, survivors=SILOS[:2], sum=digest("less")),),
    ),
    Row(
        "a round opened in two slots",
        "decrypted",
        AGGREGATOR,
        "Round 2: aggregator has two decrypted sums, of slots 1 and 9",
        (repeat(AGGREGATOR, Decrypted, 2, slot=9, sum=digest("another sum")),),
    ),
    Row(
        "decrypted over others than the survivors",
        "decrypted",
        "cork",
        "decrypted a sum over basel and cork; the survivors are amsterdam, basel and",
        (change("cork", Decrypted, 2, survivors=SILOS[1:]),),
    ),
    Row(
        "decrypted by a silo that is no survivor",
        "decrypted",
        AGGREGATOR,
        "names amsterdam, no survivors, among those that decrypted",
        (everywhere(Decrypted, 2, survivors=SILOS[1:]),),
    ),
    Row(
        "decrypted without confirmation",
        "confirmed",
        "cork",
        "Round 2: cork decrypted a sum before the survivors were confirmed",
        (omit("cork", r.Confirmed, 2),),
    ),
    Row(
        "too few confirmed",
        "confirmed",
        AGGREGATOR,
        "went on with 1 confirmation; the threshold is 2",
        (change(AGGREGATOR, r.Confirmed, 2, silos=("cork",)),),
    ),
    Row(
        "a mask where the plan encrypts",
        "protection",
        "basel",
        'the plan says "bfv", but basel sent its update as "mask"',
        (change("basel", r.Masked, 2, protection="mask"),),
    ),
    Row(
        "in the clear where the plan encrypts",
        "protection",
        "basel",
        'the plan says "bfv", but basel sent its update as "none"',
        (change("basel", r.Masked, 2, protection="none"),),
    ),
    Row(
        "shares revealed where the plan encrypts",
        "protection",
        "cork",
        'Round 2: cork wrote `revealed`, which a run protected by "bfv" does not have',
        (insert("cork", REVEALED, r.Summed),),
    ),
    Row(
        "an upload that is no number of ciphertexts",
        "protection",
        "basel",
        "Round 2: basel sent 61,701 bytes, which is no number of ciphertexts",
        (everywhere(r.Masked, 2, silo="basel", size_bytes=61_701),),
    ),
    Row(
        "more ciphertexts than the other silos",
        "protection",
        "basel",
        "Round 2: basel sent 92,484 bytes, where amsterdam sent 61,700",
        (change("basel", r.Masked, 2, size_bytes=61_700 + 30_784),),
    ),
    Row(
        "another upload than arrived",
        "uploads",
        "basel",
        "Round 2: basel uploaded another message than the aggregator recorded",
        (change("basel", r.Masked, 2, upload=digest("another")),),
    ),
    Row(
        "one slot in two rounds",
        "slots",
        "basel",
        "Round 2: basel used slot 0 of setup 1 for two rounds",
        (change("basel", r.Masked, 2, slot=0),),
    ),
    Row(
        "two sums told of one slot",
        "same-sum",
        "basel",
        "Round 2: basel has another sum of slot 1 than aggregator",
        (change("basel", r.Summed, 2, sum=digest("another sum")),),
    ),
    Row(
        "a maker that does not exist",
        "plausible",
        "cork",
        "'delft' is no silo of the plan",
        (change("cork", KeyShared, maker="delft"),),
    ),
    Row(
        "a silo that speaks for another",
        "plausible",
        "cork",
        "it is cork's transcript, and speaks for basel",
        (change("cork", Decrypted, 2, silos=("basel",)),),
    ),
    Row(
        "bytes of a decrypted sum kept quiet",
        "disclosures",
        "cork",
        "1 byte of cork left in stage decrypt; 0 are counted",
        (lambda actions: without_traffic(actions, "cork", "decrypt"),),
    ),
)


def without_traffic(actions: Script, silo: str, stage: str) -> Script:
    """Return what all do, without the bytes of one stage, at both ends."""
    return [
        (party, item)
        for party, item in actions
        if not (
            isinstance(item, r.Traffic) and (item.silo, item.stage) == (silo, stage)
        )
    ]


@pytest.fixture(scope="module")
def parties() -> Parties:
    return make_parties(method="bfv")


def audit_of(
    folder: Path, parties: Parties, *lies: Callable[[Script], Script], **options
) -> Audit:
    actions = script(method="bfv", **options)
    for lie in lies:
        actions = lie(actions)
    write_run(folder, parties, actions)
    return run_audit(load_evidence(folder))


def checks(audit: Audit, severity: Severity) -> list[str]:
    return [f.check for f in audit.with_severity(severity)]


@pytest.mark.parametrize("lost", [{}, {2: "basel"}])
def test_the_honest_run_passes(tmp_path, parties, lost):
    audit = audit_of(tmp_path, parties, lost=lost)
    assert checks(audit, Severity.FAIL) == []
    assert checks(audit, Severity.WARN) == ["traffic"] * len(lost) + ["privacy"]
    passed = {f.check: f.statement for f in audit.with_severity(Severity.PASS)}
    assert {"key-shared", "decrypted", "witnesses"} <= set(passed)
    assert "revealed" not in passed
    assert passed["protection"] == "All updates were encrypted, as the plan says."
    assert "3 sums, each decrypted alike by at least 2 silos" in passed["decrypted"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_lies_are_found_and_named(row, parties, tmp_path):
    audit = audit_of(tmp_path, parties, *row.lies)
    failed = audit.with_severity(Severity.FAIL)
    found = [finding for finding in failed if matches(row, finding)]
    assert found, failed
    said = " ".join((found[0].statement, *found[0].evidence))
    assert "record " in said or row.check == "same-sum"
    if "Round 2" in found[0].statement:
        assert found[0].round_number == 2
    assert {f.check for f in failed}.isdisjoint({"records", "signatures"})


def matches(row: Row, finding: Finding) -> bool:
    return (finding.check, finding.party) == (row.check, row.party) and (
        row.words in finding.statement
    )


def test_names_of_rows_differ():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) >= 12


def test_an_update_may_be_encrypted_again(tmp_path, parties):
    """Asked again after a crash, a silo sends other bytes of the very same words."""
    again = repeat("basel", r.Masked, 2, upload=digest("another encryption"))
    first = change("basel", r.Masked, 2, upload=digest("never arrived"))
    assert not checks(audit_of(tmp_path / "after", parties, again), Severity.FAIL)
    lies = (repeat("basel", r.Masked, 2), first)
    assert not checks(audit_of(tmp_path / "before", parties, *lies), Severity.FAIL)


def test_a_sum_may_be_decrypted_again(tmp_path, parties):
    audit = audit_of(tmp_path, parties, repeat("cork", Decrypted, 2))
    assert not checks(audit, Severity.FAIL)


@pytest.mark.parametrize("party", [AGGREGATOR, "cork"])
def test_a_transcript_that_is_missing_accuses_nobody(tmp_path, parties, party):
    from shutil import rmtree

    from tests.audits.evidence_builder import folder_of

    write_run(tmp_path, parties, script(method="bfv"))
    rmtree(folder_of(tmp_path, party))
    failed = run_audit(load_evidence(tmp_path)).with_severity(Severity.FAIL)
    assert [f.check for f in failed] == ["present"] * len(failed)


@pytest.mark.parametrize(
    "record",
    [
        Decrypted(**PLACE, silos=("cork",), survivors=SILOS, sum=digest("sum", 2)),
        KeyShared(setup=1, maker="cork", commitment=digest("shared key")),
    ],
    ids=lambda record: record.kind,
)
def test_a_masked_run_has_no_records_of_encryption(tmp_path, record):
    masked = make_parties()
    actions = insert("cork", record, r.Summed)(script())
    write_run(tmp_path, masked, actions)
    failed = run_audit(load_evidence(tmp_path)).with_severity(Severity.FAIL)
    (found,) = [f for f in failed if f.check == "protection"]
    assert f'cork wrote `{record.kind}`, which a run protected by "mask"' in (
        found.statement
    )
    assert found.party == "cork" and "record " in found.evidence[0]
