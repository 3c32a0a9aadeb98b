import shutil
from pathlib import Path

import pytest

from audits.errors import UnreadableTranscript
from audits.evidence import load_evidence
from tests.audits.evidence_builder import (
    AGGREGATOR,
    SILOS,
    Parties,
    folder_of,
    make_parties,
    script,
    write_run,
)


@pytest.fixture(scope="module")
def parties() -> Parties:
    return make_parties()


@pytest.fixture
def run(tmp_path: Path, parties: Parties) -> Path:
    write_run(tmp_path / "run", parties, script(rounds=1))
    return tmp_path / "run"


def test_transcripts_are_found_anywhere_and_told_apart_by_content(run: Path) -> None:
    (run / "deep" / "er").mkdir(parents=True)
    shutil.move(folder_of(run, "cork"), run / "deep" / "er" / "basel")
    evidence = load_evidence(run)
    assert list(evidence.silos) == list(SILOS)
    assert evidence.silos["cork"].name == "deep/er/basel"
    assert evidence.missing == ()
    assert [t.party for t in evidence.transcripts] == [AGGREGATOR, *SILOS]


def test_a_transcript_without_heads_is_known_by_its_first_record(run: Path) -> None:
    (folder_of(run, "cork") / "heads.txt").unlink()
    assert "cork" in load_evidence(run).silos


def test_a_transcript_that_says_nothing_is_a_stranger(run: Path) -> None:
    for name in ("heads.txt", "transcript.jsonl"):
        (folder_of(run, "cork") / name).write_bytes(b"\xff\n")
    evidence = load_evidence(run)
    assert evidence.missing == ("cork",)
    assert [t.name for t in evidence.strangers] == ["silos/cork/state/transcript"]


def test_the_plan_may_lie_elsewhere(run: Path, tmp_path: Path) -> None:
    shutil.move(run / "plan.toml", tmp_path / "agreed.toml")
    assert load_evidence(run, tmp_path / "agreed.toml").missing == ()
    with pytest.raises(UnreadableTranscript, match="name the run's plan with --plan"):
        load_evidence(run)


def test_two_transcripts_of_one_party_are_refused(run: Path) -> None:
    shutil.copytree(folder_of(run, "cork"), run / "copy")
    with pytest.raises(UnreadableTranscript, match="cork has two transcripts, in copy"):
        load_evidence(run)


def test_an_altered_plan_is_refused(run: Path) -> None:
    text = (run / "plan.toml").read_text()
    (run / "plan.toml").write_text(text.replace("threshold = 2", "threshold = 3"))
    with pytest.raises(UnreadableTranscript, match=r"plan\.toml: the signature"):
        load_evidence(run)


def test_nothing_to_read_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableTranscript, match="not a folder"):
        load_evidence(tmp_path / "nowhere")
    for folder in (run / "silos", run / "aggregator"):
        shutil.rmtree(folder)
    with pytest.raises(UnreadableTranscript, match="no transcript found"):
        load_evidence(run)
