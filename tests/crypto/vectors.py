"""Loads ``tests/vectors/<primitive>/{generate,verify,invalid}.json``."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "vectors"


def load(primitive: str, name: str) -> list[dict[str, Any]]:
    """Return the cases of one file, which must state their source."""
    content = json.loads((FOLDER / primitive / f"{name}.json").read_text())
    assert content["source"] and content["cases"]
    return content["cases"]
