"""``silo self-test`` as an operator meets it: lines, JSON, exit status, no traces."""

import json
from pathlib import Path

import numpy as np
import pytest

import silo.self_test
from crypto.keys import IdentityKey
from protocol.command import EXIT_FAILED
from protocol.plan import SiloParty, make_plan
from protocol.plan_files import load_draft, save_plan
from silo.self_test_subject import CheckResult
from tests.cli.test_silo import silo_command
from tests.silo.conftest import (
    DRAFT_TEXT,
    listing,
    one_thread,  # noqa: F401 (a fixture)
    tiny_images,
)

PRIVATE = """
[privacy]
mechanism = "dp-sgd"
delta = 1e-3
noise_multiplier = 2.0
sample_rate = 0.5
multiplicity = 4
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An ``init``-ed silo in ``silo/``, without images yet, and a private draft."""
    monkeypatch.chdir(tmp_path)
    assert silo_command("init", "silo").code == 0
    Path("draft.toml").write_text(DRAFT_TEXT + PRIVATE)
    return tmp_path


@pytest.fixture
def checks(monkeypatch):
    """One check that passes and, unless the test removes it, one that fails."""
    results = [
        CheckResult("noise norm", True, "1 within 0.01", "0.02"),
        CheckResult("clip", False, "one unit contributes 2 C", "1"),
    ]
    seen = []

    def run(subject):
        seen.append(subject)
        return results

    monkeypatch.setattr(silo.self_test.self_test, "__defaults__", ((("all", run),),))
    return results, seen


def test_the_whole_command(here, monkeypatch):
    monkeypatch.setattr("silo.run_checks.LOOP_STEPS", 300)
    before = listing(here)
    ended = silo_command("self-test", "--draft", "draft.toml", "--dir", "silo")
    assert (ended.code, ended.err) == (0, ""), ended.out
    first, *lines, last = ended.out.splitlines()
    assert "made-up images" in first
    assert "noise multiplier 2" in first
    assert len(lines) == 12
    assert all(line.startswith("PASS  ") for line in lines)
    assert last.startswith("All 12 checks passed")
    assert listing(here) == before


def test_a_failure_is_the_exit_status(here, checks):
    ended = silo_command("self-test", "--draft", "draft.toml", "--dir", "silo")
    assert ended.code == EXIT_FAILED
    assert "FAIL  clip: one unit contributes 2 C (permitted: 1)" in ended.out
    assert ended.out.splitlines()[-1].startswith("1 of 2 checks failed: clip; do not")


def test_json(here, checks):
    results, _ = checks
    ended = silo_command("self-test", "--json", "--dir", "silo")
    table = json.loads(ended.out)
    assert ended.code == EXIT_FAILED
    assert table["passed"] is False
    assert table["checks"][0] == {
        "name": "noise norm",
        "passed": True,
        "statement": "1 within 0.01",
        "tolerance": "0.02",
    }
    results.pop()
    ended = silo_command("self-test", "--json", "--dir", "silo")
    assert ended.code == 0
    assert json.loads(ended.out)["passed"] is True
    assert json.loads(ended.out)["false_alarm_rate"] == 1e-6


@pytest.mark.parametrize("where", ["silo.toml", "--data"])
def test_the_silos_own_images(here, checks, where):
    path = "silo/data.npz" if where == "silo.toml" else "other.npz"
    np.savez(path, images=tiny_images(num_images=9).pixels)
    named = () if where == "silo.toml" else ("--data", path)
    ended = silo_command("self-test", "--steps", 3, "--dir", "silo", *named)
    assert "some of this silo's images, 3 steps" in ended.out
    _, (subject,) = checks
    assert len(subject.images) == 9
    assert subject.num_steps == 3


def test_a_signed_plan(here, checks):
    aggregator = IdentityKey.generate()
    parties = [
        SiloParty(name=f"silo-{n}", identity_key=IdentityKey.generate().public.hex())
        for n in range(3)
    ]
    draft, _ = load_draft(here / "draft.toml")
    plan = make_plan(draft, aggregator.public, parties)
    save_plan(here / "plan.toml", plan, aggregator)
    ended = silo_command("self-test", "--plan", "plan.toml", "--dir", "silo")
    assert ended.out.startswith("tiny: ")
    _, (subject,) = checks
    assert subject.privacy.noise_multiplier == 2.0
    tampered = (here / "plan.toml").read_text().replace("= 2.0", "= 0.1")
    (here / "plan.toml").write_text(tampered)
    ended = silo_command("self-test", "--plan", "plan.toml", "--dir", "silo")
    assert "signature" in ended.error


@pytest.mark.parametrize(
    ("draft", "arguments", "message"),
    [
        (DRAFT_TEXT, (), 'the plan "tiny" has no privacy mechanism'),
        (DRAFT_TEXT + PRIVATE, ("--data", "none.npz"), "none.npz"),
        (DRAFT_TEXT + PRIVATE, ("--data", "large.npz"), "images are 9"),
        (DRAFT_TEXT + PRIVATE + 'unit = "patient"', ("--data", "small.npz"), "whose"),
        (
            DRAFT_TEXT + PRIVATE.replace("1e-3\nnoise_multiplier", "1e-20\nepsilon"),
            (),
            "delta 1e-20 is too small",
        ),
    ],
)
def test_bad_input_is_one_line(here, draft, arguments, message):
    np.savez("large.npz", images=np.zeros((2, 9, 9, 1), np.uint8))
    np.savez("small.npz", images=tiny_images().pixels)
    Path("draft.toml").write_text(draft)
    ended = silo_command(
        "self-test", "--draft", "draft.toml", "--dir", "silo", *arguments
    )
    assert message in ended.error
    assert ended.out == ""


def test_a_plan_and_a_draft(here):
    ended = silo_command("self-test", "--plan", "a", "--draft", "b")
    assert ended.code == 2
    assert "either --plan or --draft" in ended.err
