"""What silo 0 of the whole run must refuse: ``tests/vectors/secagg/invalid.json``."""

import json

import numpy as np
import pytest

from crypto import errors
from crypto.secagg.parts import Part
from crypto.secagg.upload import Upload
from tests.crypto.secagg.refusals import STAGES, honest, make_refusals
from tests.crypto.secagg.test_whole_run_vectors import CASE, Replay
from tests.crypto.vectors import FOLDER, load

REFUSALS = load("secagg", "invalid")
SLOT = CASE["slots"][0]


class Alone:
    """Silo 0 of the whole run, given the file's frames."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
        replay = Replay()
        if stage in ("keys", "envelopes"):
            replay.advertise(monkeypatch)
        else:
            replay.set_up(monkeypatch)
        self.silo = replay.silos[0]
        if stage == "envelopes":
            self.give("keys")
        if stage not in ("keys", "envelopes"):
            model = bytes.fromhex(SLOT["model_digest"])
            head = bytes.fromhex(SLOT["head"])
            self.silo.ready(SLOT["slot"], SLOT["round_number"], model, head)
        for name in STAGES[2:]:
            if name == stage:
                break
            if stage not in ("keys", "envelopes"):
                self.give(name)

    def give(self, stage: str, frame: bytes | None = None) -> object:
        """Hand over a frame of a stage, the honest one by default."""
        frame = frame if frame is not None else honest(CASE, stage)
        if stage == "active":
            words = np.array(list(map(int, SLOT["words"][0])), np.uint64)
            parts = tuple(
                Part(part["num_words"], tuple(part["contributors"]))
                for part in SLOT["parts"]
            )
            return self.silo.mask(frame, Upload.of(words), parts)
        methods = {
            "keys": self.silo.share,
            "envelopes": self.silo.receive_shares,
            "survivors": self.silo.confirm,
            "confirms": self.silo.reveal,
            "sum": self.silo.close_slot,
        }
        return methods[stage](frame)


@pytest.mark.parametrize("case", REFUSALS, ids=lambda c: f"{c['stage']}-{c['why']}")
def test_it_is_refused_and_the_honest_frame_is_not(monkeypatch, case):
    alone = Alone(monkeypatch, case["stage"])
    before = alone.silo.to_bytes()
    with pytest.raises(getattr(errors, case["raises"])) as raised:
        alone.give(case["stage"], bytes.fromhex(case["frame"]))
    assert type(raised.value).__name__ == case["raises"]
    assert alone.silo.to_bytes() == before
    alone.give(case["stage"])


def test_the_second_computation_gives_the_file():
    assert make_refusals(CASE) == REFUSALS


def test_the_readme_names_every_file_and_field():
    text = (FOLDER / "README.md").read_text()
    for path in sorted(FOLDER.glob("*/*.json")):
        assert f"`{path.parent.name}" in text
        content = json.loads(path.read_text())
        for name in fields_of(content["cases"]) | set(content):
            assert f"`{name}`" in text, (path.name, name)


def fields_of(value: object) -> set[str]:
    """Return all names in a JSON value but silo indices and names of data."""
    if isinstance(value, list):
        return set().union(*map(fields_of, value))
    if not isinstance(value, dict):
        return set()
    names = {name for name in value if not name.lstrip("-")[0].isdigit()}
    inner = [fields_of(v) for name, v in value.items() if name != "groups"]
    return names.union(*inner)
