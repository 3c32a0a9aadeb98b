import pytest

from silo.config import ComputeConfig, SiloConfig, SiloFolder, load_config
from silo.errors import ConfigRejected
from tests.silo.conftest import tiny_plan


class TestFile:
    def test_partial_file_keeps_the_defaults(self, tmp_path):
        (tmp_path / "silo.toml").write_text("[compute]\nthreads = 2\n")
        config = load_config(SiloFolder(tmp_path))
        assert config == SiloConfig(compute=ComputeConfig(threads=2))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (
                "[data]\nsorce = 'npz'",
                "data.sorce: unknown field; did you mean source?",
            ),
            ("[data]\nsource = 'web'", "data.source: must be one of"),
            ("[data]\nvalue_range = [1, 0]", "data.value_range"),
            ("[compute]\ndevice = 'tpu'", "compute.device: must be one of"),
            ("[compute]\nthreads = -1", "compute.threads: must not be negative"),
            ("[compute", "silo.toml"),
            ("data = 3", "data: must be a table"),
        ],
    )
    def test_malformed(self, tmp_path, text, words):
        (tmp_path / "silo.toml").write_text(text)
        with pytest.raises(ConfigRejected) as caught:
            load_config(SiloFolder(tmp_path))
        assert str(caught.value).startswith(str(tmp_path / "silo.toml"))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_missing(self, tmp_path):
        with pytest.raises(
            ConfigRejected, match=r"silo\.toml: No such file.*silo init"
        ):
            load_config(SiloFolder(tmp_path))


def test_each_run_has_a_folder_of_its_own(tmp_path):
    folder, plan, again = SiloFolder(tmp_path), tiny_plan(), tiny_plan()
    assert plan.name == again.name
    assert folder.run(plan) != folder.run(again)
    assert folder.approval(plan) != folder.approval(again)
    assert folder.run(plan).name.startswith("tiny-")


def test_the_whole_name_of_a_run_is_in_its_paths(tmp_path):
    """Of part of it a birthday search finds two plans with one state and journal."""
    folder, plan = SiloFolder(tmp_path), tiny_plan()
    assert len(plan.run) == 16
    assert folder.run(plan).name == f"tiny-{plan.run.hex()}"
    assert folder.journal(plan).name == f"tiny-{plan.run.hex()}.journal"
