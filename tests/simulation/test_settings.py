import tomllib
from importlib import resources
from pathlib import Path

import pytest

from simulation.errors import SettingsRejected
from simulation.settings import PartitionConfig, SimulationConfig, load_settings

DRAFT = Path("plans/draft.toml")


class TestFields:
    @pytest.mark.parametrize(
        ("table", "words"),
        [
            ({"num_silos": 0}, "simulation.num_silos: must be 1 to 1,000"),
            ({"num_silos": 1001}, "num_silos"),
            ({"num_silos": 2.5}, "num_silos: must be a whole number"),
            ({"num_silo": 3}, "unknown field; did you mean num_silos?"),
            ({"num_images": -1}, "num_images: must not be negative"),
            ({"held_out_images": -1}, "held_out_images: must not be negative"),
            ({"threads_per_silo": 0}, "threads_per_silo: must be at least 1"),
            ({"aggregator_threads": 0}, "aggregator_threads: must be at least 1"),
            ({"transport": "pigeons"}, "simulation.transport: must be one of"),
            ({"partition": {"kind": "alphabet"}}, "simulation.partition.kind"),
            ({"partition": {"concentration": 0}}, "simulation.partition.concentration"),
            ({"data": {"source": "web"}}, "simulation.data.source"),
            ({"data": {"value_range": [0]}}, "simulation.data.value_range"),
            ({"data": {"value_range": [5, 5]}}, "simulation.data.value_range"),
            ({"data": {"value_range": [0, float("inf")]}}, "value_range"),
            ({"data": {"value_range": "all"}}, "value_range: must be a list"),
            ({"data": {"source": "npz"}}, "simulation.data.path: is missing"),
            ({"data": {"source": "folder"}}, "simulation.data.path: is missing"),
            ({"data": 7}, "simulation.data: must be a table"),
            (7, "simulation: must be a table"),
            ([], "has no [simulation] table"),
            ({}, "has no [simulation] table"),
        ],
    )
    def test_refused(self, table, words):
        with pytest.raises(SettingsRejected) as caught:
            load_settings(table, DRAFT)
        message = str(caught.value)
        assert message.startswith("plans/draft.toml: ")
        assert words in message
        assert "\n" not in message

    @pytest.mark.parametrize("value", [0.0, -1.0, 1e6, float("nan"), float("inf")])
    def test_concentration(self, value):
        with pytest.raises(ValueError, match="concentration"):
            PartitionConfig(concentration=value)

    def test_digits_need_no_file(self):
        with pytest.raises(ValueError, match="digits have no file"):
            SimulationConfig().data.silo_config("train")


class TestPaths:
    def test_relative_to_the_draft(self, tmp_path):
        table = {"data": {"source": "npz", "path": "data.npz"}}
        config = load_settings(table, tmp_path / "plans" / "draft.toml")
        assert config.data.path == str(tmp_path / "plans" / "data.npz")
        silo = config.data.silo_config("test")
        assert (silo.source, silo.path, silo.split) == ("npz", config.data.path, "test")

    def test_absolute(self, tmp_path):
        table = {"data": {"source": "folder", "path": str(tmp_path)}}
        assert load_settings(table, DRAFT).data.path == str(tmp_path)

    def test_of_the_command_line(self, tmp_path):
        table = {"data": {"source": "torchvision", "dataset": "MNIST", "path": "sets"}}
        config = load_settings(table, DRAFT, tmp_path)
        assert (config.data.source, config.data.path) == ("folder", str(tmp_path))
        config = load_settings({}, DRAFT, tmp_path / "data.npz")
        assert (config.data.source, config.data.path) == (
            "npz",
            str(tmp_path / "data.npz"),
        )
        assert config.num_silos == 3


def test_plans_of_the_package_are_read():
    for plan in resources.files("simulation").joinpath("plans").iterdir():
        table = tomllib.loads(plan.read_text())["simulation"]
        config = load_settings(table, Path(plan.name))
        assert config.num_silos >= 3
