import stat
from dataclasses import replace

import pytest
import torch

from privacy.events import SampledGaussian
from silo.entries import (
    Closed,
    Entry,
    Interrupted,
    LedgerHead,
    Opened,
    Reserved,
    Spending,
    Taken,
    most_taken_in_one_attempt,
)
from silo.errors import StateBroken
from silo.ledger import LedgerBroken, LedgerContent
from silo.partial import (
    CheckpointOutdated,
    PartialRound,
    forget_partial,
    load_partial,
    resume_point,
    save_partial,
)

MODEL, OTHER = "ab" * 32, "cd" * 32
OPENED = Opened(
    ledger="run",
    plan="ab" * 32,
    unit="example",
    delta=1e-5,
    commitment="00" * 32,
    nonce="00" * 32,
    tag_key="00" * 32,
    fresh=False,
    randomness="operating-system",
)
EVENT = SampledGaussian(
    sample_rate=0.5, noise_multiplier=1.5, clipping_norm=1.0, steps=6
)
R, R2 = (
    Reserved(round_number=number, event=EVENT, checkpoint_steps=2) for number in (1, 2)
)
T = Taken(round_number=1, steps=2)
I = Interrupted(round_number=1, steps=2)  # noqa: E741
C = Closed(round_number=1)


def content(*entries: Entry, salt: int = 0) -> LedgerContent:
    digests = tuple(f"{index:032x}{salt:032x}" for index in range(len(entries) + 1))
    return LedgerContent("run", (OPENED, *entries), digests)


def partial(behind: int, step: int = 2, **changes) -> PartialRound:
    """Return a checkpoint saved when the ledger had so many entries after Opened."""
    head = LedgerHead(size=behind + 1, digest=f"{behind:032x}{0:032x}")
    checkpoint = PartialRound(round_number=1, model=MODEL, step=step, ledger=head)
    return replace(checkpoint, **changes)


class TestResumePoint:
    """Every state that a crash, or several, can leave; and what no crash leaves."""

    @pytest.mark.parametrize(
        ("saved", "entries", "done"),
        [
            # Before the reservation; behind it; in the middle of the first interval.
            (None, (), 0),
            (None, (R,), 0),
            # The steps are written, their checkpoint is not; then it is.
            (None, (R, T), 0),
            (partial(2), (R, T), 2),
            (partial(2), (R, T, T), 2),
            (partial(3, 4), (R, T, T), 4),
            # All steps done, before and after the round is closed.
            (partial(4, 6), (R, T, T, T), 6),
            (partial(4, 6), (R, T, T, T, C), 6),
            (partial(3, 4), (R, T, T, T, C), 4),
            # Killed while it settled the interruption, and again after that.
            (None, (R, T, I), 0),
            (None, (R, T, I, R, T), 0),
            (partial(2), (R, T, I), 2),
            (partial(2), (R, T, I, R), 2),
            (partial(2), (R, T, T, I, R, T), 2),
            (partial(2), (R, T, T, I, R, T, I, R, T, I), 2),
            (partial(6, 4), (R, T, T, I, R, T), 4),
            # Closed, its update not saved, and begun anew.
            (partial(3, 4), (R, T, T, T, C, R), 4),
            (partial(3, 4), (R, T, T, T, C, R, T), 4),
            # Trained to the end, its update saved; begun anew for another model.
            (None, (R, T, T, T, C), 0),
            (None, (R, T, T, T, C, R), 0),
            (None, (R, T, T, T, C, R, T), 0),
            (partial(2, model=OTHER), (R, T, T), 0),
        ],
    )
    def test_after_crashes(self, saved, entries, done):
        number = 2 if entries and entries[-1] == R2 else 1
        assert resume_point(saved, content(*entries), number, MODEL) == done

    @pytest.mark.parametrize("behind", [2, 4, 5])
    def test_a_checkpoint_of_the_round_before_is_of_no_use(self, behind):
        ledger = content(R, T, T, T, C)
        assert resume_point(partial(behind), ledger, 2, MODEL) == 0

    @pytest.mark.parametrize(
        ("saved", "entries"),
        [
            (None, (R, T, T)),
            (None, (R, T, T, I, R)),
            (None, (R, T, T, T)),
            (None, (R, T, T, T, C, R, T, T)),
            (partial(2), (R, T, T, T)),
            (partial(2), (R, T, T, T, C)),
            (partial(2), (R, T, T, T, I, R, T)),
            (partial(2), (R, T, I, R, T, T)),
            (partial(2, model=OTHER), (R, T, T, T)),
        ],
    )
    def test_a_checkpoint_older_than_the_ledger(self, saved, entries):
        with pytest.raises(CheckpointOutdated, match="missing or older") as caught:
            resume_point(saved, content(*entries), 1, MODEL)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("number", [1, 2, 3])
    @pytest.mark.parametrize(
        "ledger",
        [content(R), content(R, T), content(R, T, T, T, C, salt=1), content()],
    )
    def test_a_ledger_older_than_the_checkpoint(self, ledger, number):
        with pytest.raises(LedgerBroken, match="older than the checkpoint of round 1"):
            resume_point(partial(3), ledger, number, MODEL)

    def test_a_round_that_the_ledger_has_left_behind(self):
        ledger = content(R, T, C, R2)
        with pytest.raises(CheckpointOutdated, match="the ledger knows round 2"):
            resume_point(None, ledger, 1, MODEL)

    def test_the_states_of_the_table_can_happen(self):
        assert Spending.of((OPENED, R, T, T, I, R, T, I, R, T, I)).last_round == 1


@pytest.mark.parametrize(
    ("entries", "most"),
    [((), 0), ((T,), 1), ((R, T, T, I, T), 2), ((T, R, T, I, R, T), 1), ((T, C, T), 2)],
)
def test_longest_attempt(entries, most):
    assert most_taken_in_one_attempt(entries) == most


class TestFile:
    def test_comes_back(self, tmp_path):
        tensors = {"conv.weight": torch.arange(6.0).reshape(2, 3)}
        moments = {"step.conv.weight": torch.tensor(4.0)}
        save_partial(tmp_path, partial(3), tensors, moments)
        loaded = load_partial(tmp_path)
        assert loaded is not None
        assert loaded.partial == partial(3)
        assert torch.equal(loaded.parameters["conv.weight"], tensors["conv.weight"])
        assert torch.equal(loaded.moments["step.conv.weight"], torch.tensor(4.0))
        assert loaded.parameters.keys() == tensors.keys()
        assert "tensor" not in repr(loaded)
        mode = (tmp_path / "partial.safetensors").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600

    def test_is_replaced_and_removed(self, tmp_path):
        for step in (2, 4):
            save_partial(tmp_path, partial(3, step), {"w": torch.zeros(1)}, {})
        loaded = load_partial(tmp_path)
        assert loaded is not None
        assert loaded.partial.step == 4
        assert loaded.moments == {}
        forget_partial(tmp_path)
        forget_partial(tmp_path)
        assert load_partial(tmp_path) is None
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("kept", [0, 7, 40, -1])
    def test_cut_off(self, tmp_path, kept):
        save_partial(tmp_path, partial(3), {"w": torch.zeros(3)}, {})
        path = tmp_path / "partial.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(StateBroken, match=r"partial\.safetensors") as caught:
            load_partial(tmp_path)
        assert "\n" not in str(caught.value)

    def test_another_file(self, tmp_path):
        save_partial(tmp_path, partial(3), {"w": torch.zeros(3)}, {})
        path = tmp_path / "partial.safetensors"
        path.write_bytes(path.read_bytes().replace(b"round_number", b"round_numbes"))
        with pytest.raises(StateBroken, match="round_numbe"):
            load_partial(tmp_path)

    @pytest.mark.parametrize(
        "change", [{"round_number": -1}, {"step": 0}, {"model": "ab"}]
    )
    def test_malformed(self, change):
        with pytest.raises(ValueError, match=next(iter(change))):
            partial(3, **change)
