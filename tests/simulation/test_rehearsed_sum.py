"""A rehearsal of a plan that encrypts: what the aggregator holds, sums, refusals."""

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from crypto.bfv.messages import encrypted_prefix
from crypto.bfv.parameters import FRESH_BYTES
from crypto.bfv.workers import Workers
from crypto.errors import MalformedMessage, WorkerFailed
from crypto.frame import HEADER_BYTES
from crypto.ring import pack
from crypto.signatures import SIGNATURE_BYTES
from diffusion.model import make_model
from diffusion.parameters import parameters_of
from protocol.plan_files import load_draft, save_plan
from protocol.rehearsal import load_rehearsal, save_rehearsal
from protocol.update_settings import ProtectionConfig
from simulation.errors import EncryptionFailed
from simulation.federation import Federation
from simulation.rehearsal_files import rehearse_files
from simulation.rehearsal_settings import (
    RehearsalSettings,
    bare,
    with_noise_in_sum,
    worst_case,
)
from simulation.rehearse import Rehearsing
from simulation.rehearsed_round import RehearsedRound
from simulation.rehearsed_sum import Parties, ciphertext_words, hidden_sum
from simulation.run import run_federation
from simulation.settings import SimulationConfig
from simulation.sources import load_pool, subset

DRAFT = """
name = "encrypted"
num_rounds = 4
seed = 7
[model]
architecture = "residual"
dim = 8
channels = 1
dim_mults = [1]
image_size = 8
[schedule]
kind = "cosine"
num_timesteps = 50
[training]
local_steps = 3
examples_per_step = 4
learning_rate = 2e-3
[protection]
method = "bfv"
key_maker = "cork"
"""
SHORTEST = RehearsalSettings(
    iterations=1, restarts=1, num_sought=1, start_steps=0, is_quick=True
)


@pytest.fixture(scope="module")
def draft_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "draft.toml"
    path.write_text(DRAFT)
    return path


@pytest.fixture(scope="module")
def draft(draft_path):
    return load_draft(draft_path)[0]


@pytest.fixture(scope="module")
def images():
    return subset(load_pool(SimulationConfig(), 1).dealt, np.arange(30))


@pytest.fixture(scope="module")
def rehearsal(draft, images):
    return Rehearsing(draft, images, "digits", SHORTEST, 3).run(lambda _: None)


@pytest.fixture(scope="module")
def part(draft, images):
    """A round of one example and one step in each of three silos."""
    shares = [subset(images, np.arange(n, n + 1)) for n in range(3)]
    start = parameters_of(make_model(draft.model, draft.seed_for("model")))
    once = worst_case(bare(draft, 3))
    return RehearsedRound(once, Parties.of(3), start, shares, seed=1)


@pytest.fixture(scope="module")
def outcome(part):
    """Updates, what is held of each silo, and the sum."""
    updates = [part.words(silo) for silo in part.everyone]
    return updates, *part.hidden_sum(updates)


def test_the_views_are_of_ciphertexts(rehearsal):
    views = [(view.setting, view.name) for view in rehearsal.views]
    assert views == [
        ("worst case", "plain update"),
        ("worst case", "plain update"),
        ("worst case", "encrypted update"),
        ("worst case", "mean"),
        ("worst case", "mean under DP"),
        ("the plan's own", "plain update"),
        ("the plan's own", "mean"),
        ("the plan's own", "mean under DP"),
    ]
    said = " ".join(view.explanation for view in rehearsal.views)
    assert "without encryption" in said
    assert "mask" not in said


def test_ciphertexts_pass_and_packed_words_fail(rehearsal):
    values = {
        words: [test.p_value for test in rehearsal.uniformity if test.words == words]
        for words in ("encrypted", "not encrypted")
    }
    assert [len(found) for found in values.values()] == [3, 3]
    assert min(values["encrypted"]) > 1e-6
    assert max(values["not encrypted"][:2]) < 1e-20


def test_the_file_comes_back_as_it_was(rehearsal, tmp_path):
    save_rehearsal(tmp_path / "rehearsal.json", rehearsal)
    assert load_rehearsal(tmp_path / "rehearsal.json") == rehearsal


def test_the_decrypted_sum_is_the_plain_one(part, outcome):
    updates, _, total = outcome
    np.testing.assert_array_equal(total, part.plain_sum(updates))


def test_the_decrypted_sum_is_the_unmasked_one(draft, part, outcome):
    protection = replace(part.plan.protection, method="mask", key_maker="")
    parties = Parties.of(3)
    plan = parties.plan(replace(bare(draft, 3), protection=protection))
    np.testing.assert_array_equal(hidden_sum(plan, parties, outcome[0])[1], outcome[2])


def test_what_is_held_is_whole_ciphertexts_and_not_the_words(outcome):
    updates, held, _ = outcome
    for words, update in zip(held, updates, strict=True):
        assert words.nbytes % FRESH_BYTES == 0
        assert words.size > update.size
        assert (words[: update.size] != update).mean() > 0.99
    assert (held[0] != held[1]).mean() > 0.99


def test_two_rehearsals_encrypt_differently(part, outcome):
    """The key and every seed are new each time."""
    updates, held, _ = outcome
    again, _ = part.hidden_sum(updates)
    assert (again[0] != held[0]).mean() > 0.99


def test_ciphertexts_are_cut_out_of_their_frame():
    data = np.arange(FRESH_BYTES // 4, dtype="<u8")
    frame = b"".join(
        (
            bytes(HEADER_BYTES),
            encrypted_prefix(bytes(32), 2),
            data.tobytes(),
            bytes(SIGNATURE_BYTES),
        )
    )
    np.testing.assert_array_equal(ciphertext_words(memoryview(frame), 2), data)
    with pytest.raises(MalformedMessage, match="2 ciphertexts, 3 are expected"):
        ciphertext_words(memoryview(frame), 3)


def test_hidden_words_are_an_update_as_far_as_they_reach(part, outcome):
    """Fields of 32 bits: the first words' low halves, then their high ones."""
    update = outcome[0][0]
    whole = part.as_if_plain(update)
    np.testing.assert_array_equal(whole, part.mean(update, [0]))
    longer = np.append(update, np.uint64(5))
    np.testing.assert_array_equal(part.as_if_plain(longer), whole)
    short = part.as_if_plain(pack(_levels(part, [3, -2, 1, 7]), 32))
    step = part.grid.grid.steps[0]
    np.testing.assert_allclose(short[:4], np.array([3, -2, 1, 7]) * step, rtol=1e-6)
    assert not short[4:].any()


def _levels(part, values):
    """Fields that stand for so many grid steps."""
    return (np.array(values) + part.grid.grid.max_level).astype(np.uint32)


def test_a_bare_round_hides_as_the_plan_does(draft):
    """Whoever makes the key is a made-up party."""
    protection = bare(draft, 3).protection
    assert (protection.method, protection.key_maker) == ("bfv", "")
    for method in ("mask", "none"):
        other = replace(draft, protection=ProtectionConfig(method=method))
        assert bare(other, 3).protection == ProtectionConfig()
    assert with_noise_in_sum(draft).protection == ProtectionConfig(method="bfv")


@pytest.mark.parametrize("num_silos", [2, 8])
def test_few_and_many_silos_find_their_sum(draft, num_silos):
    parties = Parties.of(num_silos)
    plan = parties.plan(bare(draft, num_silos))
    updates = [np.full(9, 1 << silo, np.uint64) for silo in range(num_silos)]
    _, total = hidden_sum(plan, parties, updates)
    assert total.tolist() == [2**num_silos - 1] * 9


def test_without_tenseal_it_is_one_line(draft_path, tmp_path, monkeypatch):
    """And nothing is trained before."""

    def fail(_):
        raise WorkerFailed("ModuleNotFoundError: No module named 'tenseal'")

    monkeypatch.setattr(Workers, "make_key", fail)
    monkeypatch.setattr("simulation.rehearse.train", None)
    with pytest.raises(EncryptionFailed, match=r"needs TenSEAL.*No module named .*l'$"):
        rehearse_files(
            draft_path,
            None,
            tmp_path / "out",
            None,
            seed=1,
            is_quick=True,
            observe=lambda _: None,
        )
    assert not (tmp_path / "out").exists()


def test_a_run_does_not_begin_without_it(draft, tmp_path, monkeypatch):
    """Silos' processes and displays are not started."""

    def fail(_):
        raise WorkerFailed("no such library")

    monkeypatch.setattr(Workers, "make_key", fail)
    monkeypatch.setattr("simulation.run.Display", None)
    parties = Parties.of(3)
    plan = parties.plan(bare(draft, 3))
    federation = Federation(tmp_path)
    save_plan(federation.plan_path, plan, parties.aggregator)
    with pytest.raises(EncryptionFailed, match="no such library"):
        run_federation(federation, SimulationConfig(), Console())


def test_a_process_that_crashes_later_is_one_line(part, outcome, monkeypatch):
    def fail(*_):
        raise WorkerFailed("it was ended by SIGKILL")

    monkeypatch.setattr(Workers, "encrypt", fail)
    with pytest.raises(EncryptionFailed, match="it was ended by SIGKILL"):
        part.hidden_sum(outcome[0])
