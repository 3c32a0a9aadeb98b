"""Benchmarks of private training: rows survive, seeds repeat, the example adds up."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import private_digits, results_file
from benchmarks.multiplicity import RECIPE
from benchmarks.private_digits import Results, digits, half_width, train_alone
from benchmarks.private_federation import EXAMPLE
from protocol.plan_files import load_draft
from simulation.settings import load_settings


@pytest.fixture
def results_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    monkeypatch.setattr(private_digits, "RESULTS", tmp_path)
    return tmp_path


def test_a_benchmark_that_was_broken_off_goes_on(results_folder):
    Results("some", "", fresh=False).add("first", 1.5, "s", "<= 2")
    again = Results("some", "", fresh=False)
    assert again.has("first") and not again.has("second")
    again.add("second", 2.0, "s")
    rows = json.loads((results_folder / "some.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["first", "second"]
    assert rows[0] == {"name": "first", "value": 1.5, "unit": "s", "target": "<= 2"}


def test_fresh_results_forget(results_folder):
    Results("some", "", fresh=False).add("first", 1.5, "s")
    assert not Results("some", "", fresh=True).has("first")


def test_the_interval_of_three_values():
    # Standard deviation 1, so 1 / √3; Student's 97.5 % point with 2 degrees is 4.3027.
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.3026527 / 3**0.5)


def test_a_mean_stands_beside_its_interval(results_folder):
    results = Results("some", "", fresh=False)
    results.add_mean("x", [1.0, 2.0, 3.0], "s", "< 3")
    rows = json.loads((results_folder / "some.json").read_text())["rows"]
    assert [(row["name"], row["unit"], row["target"]) for row in rows] == [
        ("x, mean", "s, n = 3", "< 3"),
        ("x, ± (95 %)", "s, n = 3", ""),
    ]


def test_a_seed_repeats_a_training():
    training = replace(RECIPE.training, local_steps=1, examples_per_step=2)
    privacy = replace(RECIPE.privacy, sample_rate=2 / 1500, epsilon=100.0)
    draft = replace(RECIPE, num_rounds=2, training=training, privacy=privacy)
    first, again, other = (
        train_alone(replace(draft, seed=seed), digits()).model.parameters
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_private_example_divides_by_what_it_draws():
    draft, table = load_draft(EXAMPLE)
    num_silos = load_settings(table, EXAMPLE).num_silos
    images_per_silo = len(digits()) / num_silos
    expected = draft.privacy.sample_rate * images_per_silo
    assert draft.training.examples_per_step == expected
    assert draft.privacy.delta < 1 / images_per_silo
    assert draft.privacy.epsilon == 10
