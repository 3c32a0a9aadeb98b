"""One record with its proof: holds for every record, and for nothing else."""

from dataclasses import replace

import pytest
from click.testing import CliRunner

from audits.cli import main
from audits.errors import ExtractRejected
from audits.evidence import load_evidence
from audits.extract import check_extract, load_extract, make_extract
from protocol.encoding import decode, encode
from protocol.plan import make_plan
from protocol.transcript import read_records
from tests.audits.evidence_builder import (
    AGGREGATOR,
    folder_of,
    make_parties,
    script,
    write_run,
)
from tests.crypto.references import merkle_inclusion


@pytest.fixture(scope="module")
def parties():
    return make_parties()


@pytest.fixture(scope="module")
def run(tmp_path_factory, parties):
    folder = tmp_path_factory.mktemp("extract") / "run"
    write_run(folder, parties, script())
    return folder


@pytest.mark.parametrize("party", [AGGREGATOR, "cork"])
def test_every_record_of_a_transcript_can_be_shown(run, parties, party):
    evidence = load_evidence(run)
    entries = list(read_records(folder_of(run, party)))
    for entry in entries:
        made = make_extract(evidence, party, entry.index)
        check_extract(made, parties.plan)
        assert made.record.encode() == entry.line
        signed = [other.line for other in entries[: made.head.size]]
        proof = [node.hex() for node in merkle_inclusion(signed, entry.index)]
        assert list(made.proof) == proof


@pytest.mark.parametrize(("party", "index"), [("cork", 999), ("delft", 0)])
def test_what_is_not_there_cannot_be_shown(run, party, index):
    with pytest.raises(ExtractRejected):
        make_extract(load_evidence(run), party, index)


@pytest.mark.parametrize(
    "lie",
    [
        lambda made, other: replace(made, record=other.record),
        lambda made, other: replace(made, index=other.index),
        lambda made, other: replace(made, index=other.index, record=other.record),
        lambda made, other: replace(made, proof=other.proof),
        lambda made, other: replace(made, proof=made.proof[:-1]),
        lambda made, other: replace(made, proof=(*made.proof, "00" * 32)),
        lambda made, other: replace(made, proof=("zz", *made.proof[1:])),
        lambda made, other: replace(made, head=replace(made.head, party="basel")),
        lambda made, other: replace(made, head=replace(made.head, party="delft")),
        lambda made, other: replace(made, head=replace(made.head, size=99)),
        lambda made, other: replace(made, head=replace(made.head, root="00" * 32)),
        lambda made, other: replace(made, plan="00" * 32),
        lambda made, other: replace(made, format="cloister/2/extract"),
        lambda made, other: replace(made, record=made.record.replace(":", ": ", 1)),
    ],
)
def test_nothing_else_is_accepted(run, parties, lie):
    evidence = load_evidence(run)
    made, other = (make_extract(evidence, "cork", index) for index in (14, 17))
    with pytest.raises(ExtractRejected):
        check_extract(lie(made, other), parties.plan)


def test_an_extract_of_another_run_is_refused(run, parties):
    plan = make_plan(parties.plan, parties.plan.aggregator_key, parties.plan.silos)
    with pytest.raises(ExtractRejected, match="another plan"):
        check_extract(make_extract(load_evidence(run), "cork", 3), plan)


def invoke(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_the_commands(run, tmp_path):
    path = tmp_path / "record.json"
    done = invoke("extract", run, "basel", 4, "--out", path)
    assert done.exit_code == 0, done.output
    plan = run / "plan.toml"
    checked = invoke("check-extract", path, "--plan", plan)
    assert checked.exit_code == 0
    assert "PASS: record 4 of basel" in checked.output
    path.write_bytes(encode(decode(path.read_bytes()) | {"index": 5}))
    failed = invoke("check-extract", path, "--plan", plan)
    assert failed.exit_code == 1 and "FAIL" in failed.output
    path.write_bytes(b"nonsense")
    assert invoke("check-extract", path, "--plan", plan).exit_code == 1
    assert invoke("check-extract", path, "--plan", path).exit_code == 2
    assert invoke("extract", run, "delft", 0, "--out", path).exit_code == 2
    with pytest.raises(ExtractRejected, match="no extract"):
        load_extract(path)
