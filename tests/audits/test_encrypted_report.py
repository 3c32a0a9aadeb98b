"""The report of an encrypted run: what it promises, what it does not, in every form."""

import html
import json
from pathlib import Path

import pytest

from audits.audit import Audit, run_audit
from audits.evidence import load_evidence
from audits.report.content import make_content
from audits.report.inputs import Inputs
from audits.report.page import write_report
from protocol import records as r
from tests.audits.evidence_builder import (
    change,
    digest,
    make_parties,
    script,
    write_run,
)
from tests.audits.json_schema import errors

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs" / "report.schema.json").read_text()
)
KEY = "one that gives it away opens each silo's update, not only sums"


@pytest.fixture(scope="module")
def audit(tmp_path_factory) -> Audit:
    run = tmp_path_factory.mktemp("encrypted") / "run"
    write_run(run, make_parties(method="bfv"), script(method="bfv"))
    return run_audit(load_evidence(run))


@pytest.fixture(scope="module")
def content(audit):
    return make_content(audit)


@pytest.mark.parametrize("report_class", ["public", "silo-internal"])
def test_every_form_of_both_classes_says_it(audit, tmp_path, report_class):
    paths = write_report(audit, Inputs(), tmp_path, report_class=report_class)
    texts = {path.suffix: path.read_text() for path in paths}
    assert set(texts) == {".html", ".json", ".md"}
    table = json.loads(texts[".json"])
    assert list(errors(table, SCHEMA, SCHEMA)) == []
    assert table["run"]["protection"] == "bfv"
    for text in map(html.unescape, texts.values()):
        assert KEY in text
        assert "masked" not in text
        assert "each decrypted alike by at least 2 silos" in text


def test_the_verdict_says_what_it_rests_on(content):
    said = " ".join(content["verdict"]["sentences"])
    assert "encrypted updates" in said and "sealed keys, decrypted sums" in said
    assert "silos decrypted 3 sums for it, each of at least 3 updates" in said
    assert "as long as no silo gave it the key that they share" in said
    assert any(KEY in line for line in content["verdict"]["not_covered"])
    assert any("gave the shared key" in line for line in content["limits"])
    assert "it opened" not in said


def test_colluding_silos_are_not_withstood(content):
    brief = dict(content["plan"])
    assert "exact BFV" in brief["Protection"]
    assert "made by basel" in brief["Protection"]
    assert "any silo that gives it to the aggregator" in brief["Protection"]
    rows = {who: (sees, guarantee) for who, sees, guarantee in content["scope"]}
    assert rows["The aggregator"][1].startswith("encryption: no single update is seen")
    sees, guarantee = rows["The aggregator with any one of the silos"]
    assert "every silo has the key" in sees and guarantee == "none"
    assert rows["A silo that comes by another's upload"][1] == "none"
    assert not any("up to" in who for who in rows)


def test_the_pitfall_is_present(content):
    states = {row["pitfall"]: row for row in content["checklist"]}
    assert states["One key that opens every update"]["state"] == "present"
    assert states["Updates readable by the aggregator"]["state"] == "avoided"
    assert "encrypted" in states["Updates readable by the aggregator"]["why"]
    assert states["An aggregator that is trusted"]["state"] == "avoided"


def test_the_ledger_says_encrypted(content):
    (ledger,) = [d["ledger"] for d in content["disclosures"] if d["silo"] == "cork"]
    lines = {(line["stage"], line["form"]): line for line in ledger}
    upload = lines["encrypted", "encrypted"]
    assert "cannot decrypt it unless a silo gives it the key" in upload["recipient"]
    assert "no silo gives the aggregator the key" in upload["guarantee"]
    assert "in the clear" in lines["decrypt", "plain"]["what"]
    assert ("key", "sealed") in lines


@pytest.mark.parametrize("method", ["mask", "none"])
def test_other_runs_have_no_key_to_give_away(tmp_path, method):
    write_run(tmp_path, make_parties(method=method), script(method=method))
    content = make_content(run_audit(load_evidence(tmp_path)))
    assert not any("key, and" in line for line in content["verdict"]["not_covered"])
    states = {row["pitfall"]: row["state"] for row in content["checklist"]}
    assert states["One key that opens every update"] == "not applicable"
    assert "up to 0 of the silos" in " ".join(row[0] for row in content["scope"])


def test_what_failed_takes_the_promise_back(tmp_path):
    actions = script(method="bfv")
    lie = change("cork", r.Summed, 2, sum=digest("another sum"))
    write_run(tmp_path, make_parties(method="bfv"), lie(actions))
    said = make_content(run_audit(load_evidence(tmp_path)))["verdict"]["sentences"]
    assert any("does not show that each silo's update stayed hidden" in s for s in said)
