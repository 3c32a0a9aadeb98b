import tomllib
from pathlib import Path

from protocol.version import SOFTWARE


def test_the_stated_version_is_the_installed_one():
    file = Path(__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(file.read_text())["project"]
    assert f"{project['name']} {project['version']}" == SOFTWARE
