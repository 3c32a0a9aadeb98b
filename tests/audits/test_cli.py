import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from audits.cli import main
from audits.evidence import load_evidence
from protocol import records as r
from protocol.heads import Head
from protocol.transcript import read_heads
from tests.audits.evidence_builder import (
    change,
    folder_of,
    make_parties,
    script,
    write_run,
)
from tests.audits.report_inputs import PIXEL


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("cli") / "run"
    write_run(run, make_parties(), script())
    return run


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "run"))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def last_line(result: Result) -> str:
    return result.stdout.splitlines()[-1]


def test_verify_ends_with_zero_and_one_line(run: Path) -> None:
    result = call("verify", run)
    assert result.exit_code == 0
    assert last_line(result) == "WARN: No check failed; 1 reservation to know of."
    assert "heads-seen" in result.stdout


def test_verify_ends_with_one_when_a_check_fails(run: Path) -> None:
    path = folder_of(run, "cork") / "transcript.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5] + lines[6:]))
    result = call("verify", run)
    assert result.exit_code == 1
    assert last_line(result).startswith("FAIL: Do not rely on this run")
    assert "record 5 was removed" in " ".join(result.stdout.replace("│", " ").split())


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda run: shutil.rmtree(run), "not a folder"),
        (lambda run: (run / "plan.toml").unlink(), "--plan"),
        (lambda run: (run / "plan.toml").write_text("format = ["), "not valid TOML"),
        (
            lambda run: [shutil.rmtree(run / n) for n in ("silos", "aggregator")],
            "no transcript found",
        ),
        (
            lambda run: shutil.copytree(folder_of(run, "cork"), run / "again"),
            "two transcripts",
        ),
    ],
)
@pytest.mark.parametrize("command", ["verify", "report"])
def test_unreadable_input_is_one_line_and_two(
    command: str, break_it, words: str, run: Path
) -> None:
    break_it(run)
    result = call(command, run)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_verify_takes_the_plan_from_elsewhere(run: Path, tmp_path: Path) -> None:
    shutil.move(run / "plan.toml", tmp_path / "p.toml")
    assert call("verify", run, "--plan", tmp_path / "p.toml").exit_code == 0


def test_report_writes_three_files_and_names_them(run: Path) -> None:
    result = call("report", run)
    assert result.exit_code == 0
    names = ["report.html", "report.json", "report.md"]
    assert result.stdout.splitlines()[:3] == [str(run / name) for name in names]
    assert all((run / name).stat().st_size > 1000 for name in names)
    leftovers = [path for path in run.iterdir() if path.name.startswith(".")]
    assert leftovers == []


def test_report_can_be_made_again_over_itself(run: Path) -> None:
    assert call("report", run).exit_code == 0
    first = (run / "report.html").read_bytes()
    assert call("report", run).exit_code == 0
    assert (run / "report.html").read_bytes() == first


def test_report_on_a_failed_run_is_written_and_ends_with_one(tmp_path: Path) -> None:
    lie = change("cork", r.Masked, 2, upload="00")
    write_run(tmp_path, make_parties(), lie(script()))
    result = call("report", tmp_path, "--out", tmp_path / "deep" / "out")
    assert result.exit_code == 1
    page = (tmp_path / "deep" / "out" / "report.html").read_text()
    assert "Do not rely on this run as it stands" in page


def test_samples_are_found_or_named(run: Path, tmp_path: Path) -> None:
    (run / "samples.png").write_bytes(PIXEL)
    assert call("report", run).exit_code == 0
    assert "data:image/png;base64," in (run / "report.html").read_text()
    (tmp_path / "other.png").write_bytes(b"GIF89a")
    result = call("report", run, "--samples", tmp_path / "other.png")
    assert result.exit_code == 2
    assert "not a PNG image; choose another file with --samples" in result.stderr


def test_an_output_that_cannot_be_written_is_one_line(run: Path) -> None:
    (run / "file").write_text("")
    result = call("report", run, "--out", run / "file")
    assert result.exit_code == 2
    assert "--out" in result.stderr


def test_the_command_needs_neither_torch_nor_other_roles() -> None:
    code = (
        "import sys, audits.cli\n"
        "bad = {'torch', 'silo', 'aggregator', 'simulation'} & set(sys.modules)\n"
        "sys.exit(', '.join(bad) or 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_heads_are_checkpoints_with_their_verifier_keys(
    run: Path, tmp_path: Path
) -> None:
    result = call("heads", run, "--out", tmp_path / "heads")
    assert result.exit_code == 0
    names = [Path(line).name for line in result.stdout.splitlines()]
    parties = ("aggregator", "amsterdam", "basel", "cork")
    assert names == [f"{p}.{kind}" for p in parties for kind in ("checkpoint", "vkey")]
    evidence = load_evidence(run)
    for party in parties:
        note = (tmp_path / "heads" / f"{party}.checkpoint").read_text()
        head = Head.from_note(note)
        head.check(evidence.plan.digest, evidence.key_of(party))
        assert head == list(read_heads(folder_of(run, party)))[-1]
        name, _, _ = (tmp_path / "heads" / f"{party}.vkey").read_text().split("+", 2)
        assert name == note.splitlines()[0]
    printed = call("heads", run, "--party", "basel").stdout
    assert printed.count("\u2014") == 1
    assert (tmp_path / "heads" / "basel.checkpoint").read_text() in printed


@pytest.mark.parametrize(
    ("break_it", "arguments", "words"),
    [
        (lambda run: None, ("--party", "delft"), "no transcript of 'delft'"),
        (
            lambda run: (folder_of(run, "cork") / "heads.txt").write_text(""),
            (),
            "no head was ever signed",
        ),
        (
            lambda run: (folder_of(run, "cork") / "heads.txt").write_text("x\n"),
            (),
            "heads.txt, head 0: must be a note",
        ),
        (
            lambda run: shutil.copy(
                folder_of(run, "basel") / "heads.txt", folder_of(run, "cork")
            ),
            ("--party", "cork"),
            "two transcripts",
        ),
    ],
)
def test_heads_that_cannot_be_given_out(
    break_it: object, arguments: tuple[str, ...], words: str, run: Path
) -> None:
    break_it(run)  # type: ignore[operator]
    result = call("heads", run, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
