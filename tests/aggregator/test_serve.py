"""What a run needs and holds: its processes end with it, however it ends."""

import os
from contextlib import suppress

import pytest
import torch

import aggregator.serve
from aggregator.errors import ConfigRejected
from aggregator.model_card import model_card
from aggregator.serve import RunSettings, check_encryption, is_over, run_plan
from crypto.bfv import installed
from crypto.keys import IdentityKey
from protocol import records
from protocol.plan import SiloParty, make_plan
from protocol.transcript import TranscriptWriter
from protocol.update_settings import ProtectionConfig
from tests.end_to_end.conftest import tiny_draft


@pytest.fixture
def key():
    return IdentityKey.generate()


def plan_with(key, method):
    parties = [
        SiloParty(name=f"s{n}", identity_key=IdentityKey.generate().public.hex())
        for n in range(3)
    ]
    draft = tiny_draft(protection=ProtectionConfig(method=method))
    return make_plan(draft, key.public, parties)


def is_alive(process):
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConfigRejected])
def test_processes_end_with_the_run(tmp_path, monkeypatch, key, error):
    started = []

    class Failing:
        def __init__(self, exchanges, store, *, workers, **options):
            self.workers = workers

        def run(self):
            self.workers.make_key()
            started.extend(self.workers.process_ids)
            assert all(is_alive(process) for process in started)
            raise error

    monkeypatch.setattr(aggregator.serve, "Run", Failing)
    settings = RunSettings(device=torch.device("cpu"))
    with pytest.raises(error):
        run_plan(plan_with(key, "bfv"), key, tmp_path, object(), settings)
    assert started and not any(is_alive(process) for process in started)


def test_a_missing_library_is_one_line_before_the_run_begins(
    tmp_path, monkeypatch, key
):
    found = installed.find_spec
    monkeypatch.setattr(
        installed,
        "find_spec",
        lambda name: None if name == "tenseal" else found(name),
    )
    check_encryption(plan_with(key, "mask"))
    settings = RunSettings(device=torch.device("cpu"))
    with pytest.raises(ConfigRejected) as caught:
        run_plan(plan_with(key, "bfv"), key, tmp_path / "run", object(), settings)
    assert "tenseal is not installed" in str(caught.value)
    assert "pip install 'cloister[aggregator]'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("mask", "| secure aggregation (malicious aggregator, up to 1 colluding)"),
        ("bfv", "| secure aggregation by homomorphic encryption, exact BFV ("),
        ("none", "| none: each silo's update was seen by the aggregator"),
    ],
)
def test_a_card_says_how_updates_were_protected(tmp_path, key, method, words):
    plan = plan_with(key, method)
    TranscriptWriter(
        tmp_path, party="aggregator", plan_digest=plan.digest, identity=key
    ).close()
    assert words in model_card(plan, tmp_path, [], [], 2)


def test_a_run_is_over_when_its_transcript_says_so(tmp_path, key):
    plan = plan_with(key, "mask")
    assert not is_over(tmp_path, plan)
    end = records.Finished(round_number=2, parameters="00" * 32, average="00" * 32)
    for record, over in ((records.Resumed(software="x"), False), (end, True)):
        with TranscriptWriter(
            tmp_path / "transcript",
            party="aggregator",
            plan_digest=plan.digest,
            identity=key,
        ) as transcript:
            transcript.append(record)
        assert is_over(tmp_path, plan) == over
