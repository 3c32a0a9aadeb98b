"""Several runs beside each other."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from audits.cli import main
from audits.report.compare import _quoted, run_name
from protocol import records as r
from tests.audits.evidence_builder import change, make_parties, script, write_run
from tests.audits.report_inputs import probe, write_probe
from tests.audits.test_budget import private_parties, private_script
from tests.audits.test_report import Page
from tests.audits.test_report_inputs import MODEL


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("compare")
    parties = make_parties()
    write_run(root / "open", parties, script(lost={2: "cork"}))
    found = probe(parties.plan.digest.hex(), "basel", MODEL, mu=0.5)
    write_probe(root / "open" / "probe.json", found, parties.keys["basel"])
    write_run(root / "private", private_parties(), private_script())
    lie = change("cork", r.Masked, 2, upload="00")
    write_run(root / "failed", private_parties(), lie(private_script()))
    return {name: root / name for name in ("open", "private", "failed")}


def compare(out: Path, *arguments: object) -> tuple[Result, dict]:
    options = ["report", "--compare", "--out", str(out), *map(str, arguments)]
    result = CliRunner().invoke(main, options)
    found = list(out.glob("comparison*.json"))
    return result, json.loads(found[0].read_text()) if found else {}


def test_runs_stand_beside_each_other(runs: dict[str, Path], tmp_path: Path) -> None:
    result, table = compare(tmp_path, runs["open"], runs["private"])
    assert result.exit_code == 0 and result.stderr == ""
    first, second = table["runs"]
    assert (first["verdict"], second["verdict"]) == ("WARN", "PASS")
    assert not first["is_private"] and first["epsilon"] is None
    assert second["epsilon"] > 0 and second["delta"] == 1e-5
    assert _quoted({"planned": 10.0, "spent": 2.0}) == 10.0
    assert _quoted({"planned": 10.0, "spent": None}) is None
    assert first["sent_bytes"] == 3 * 123_726 - 129 - 227
    assert first["closed_rounds"] == first["num_rounds"] == 3
    assert first["frechet_distance"] == 90.5 / 3
    assert first["attack_withheld"] and first["attack"] is None
    assert (first["run"], second["run"]) == ("open", "private")
    page = (tmp_path / "comparison.html").read_text()
    Page(page)
    assert str(runs["open"].parent) not in page
    assert "none: not private" in page and "internal" in page
    assert "<svg" in page and "Fréchet distance over rounds" in page
    text = (tmp_path / "comparison.md").read_text()
    assert text.startswith("# Comparison of 2 runs") and "not private" in text


def test_two_folders_of_one_name_are_told_apart() -> None:
    assert run_name(Path("a/run"), []) == "run"
    assert run_name(Path("b/run"), ["run", "other"]) == "run (2)"
    assert run_name(Path("c/run"), ["run", "run (2)"]) == "run (3)"


def test_the_internal_one_tells_of_attacks(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    result, table = compare(
        tmp_path, "--class", "silo-internal", runs["open"], runs["private"]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"comparison-internal.{end}" for end in ("html", "json", "md")
    ]
    assert table["runs"][0]["attack"]["attack"] == "PIA"
    assert table["runs"][0]["attack"]["auc"] < 0.7  # Not that of the control.
    assert "no differential privacy covers" in result.stderr
    assert not table["runs"][1]["attack_withheld"]


def test_no_epsilon_is_quoted_of_a_run_that_failed(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    result, table = compare(tmp_path, runs["failed"], runs["private"])
    assert result.exit_code == 1
    assert table["runs"][0]["epsilon"] is None
    assert "not quoted" in (tmp_path / "comparison.md").read_text()
    assert any("No epsilon is quoted" in remark for remark in table["remarks"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compare"], "give 2 to"),
        (["--compare", "--samples", "x.png"], "not with --compare"),
        ([], "use --compare"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    options: list[str], words: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    named = [runs["open"]] if options == ["--compare"] else list(runs.values())
    out = ["--out", str(tmp_path)]
    result = CliRunner().invoke(main, ["report", *options, *out, *map(str, named)])
    assert result.exit_code == 2 and words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
