import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from protocol.errors import KeyFileRejected
from silo.errors import StateBroken
from silo.store import RunStore, TrainedRound
from silo.training import TrainingState

WORDS = np.arange(5, dtype=np.uint64) << np.uint64(40)
STATE = TrainingState({"step.a": torch.tensor(3.0), "exp_avg.a": torch.ones(2)})
LOCAL = {"a": torch.full((2,), 7.0)}


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(tmp_path / "runs" / "tiny-0123")


def save(store, number: int, words=WORDS) -> None:
    trained = TrainedRound(round_number=number, model="ab" * 32)
    store.save_round(trained, words, STATE, LOCAL)


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


ROUND = {"update.words", "training.safetensors", "round.json"}


class TestRound:
    def test_what_is_saved_is_loaded(self, store):
        assert store.load_trained() is None
        assert store.load_training() == (TrainingState(), {})
        save(store, 4)
        assert store.load_trained() == TrainedRound(round_number=4, model="ab" * 32)
        assert np.array_equal(store.load_update(4).words, WORDS)
        state, local = store.load_training()
        assert state.moments.keys() == STATE.moments.keys()
        assert torch.equal(state.moments["exp_avg.a"], torch.ones(2))
        assert torch.equal(local["a"], LOCAL["a"])

    def test_nobody_else_can_read_it(self, store):
        previous = os.umask(0)
        try:
            save(store, 1)
        finally:
            os.umask(previous)
        assert mode(store.folder) == 0o700
        assert mode(store.folder / "round-000001") == 0o700
        assert mode(store.folder / "round-000001" / "update.words") == 0o600

    def test_older_rounds_are_removed(self, store):
        for number in (1, 2, 9, 10):
            save(store, number)
        assert listing(store.folder) == {"round-000010"} | {
            f"round-000010/{name}" for name in ROUND
        }

    def test_newest_is_found_among_what_a_crash_left(self, store):
        save(store, 2)
        (store.folder / "round-000001").mkdir()  # Removed by half.
        (store.folder / ".round-000003.partial").mkdir()
        (store.folder / "round-notes").mkdir()
        assert store.load_trained().round_number == 2
        save(store, 3)
        assert store.load_trained().round_number == 3
        assert not (store.folder / ".round-000003.partial").exists()

    def test_update_can_be_changed_without_changing_the_file(self, store):
        save(store, 1)
        store.load_update(1).words[:] = 0
        assert np.array_equal(store.load_update(1).words, WORDS)


class TestCrash:
    """Whole or absent, wherever the file system fails."""

    @pytest.mark.parametrize("function", ["os.fsync", "pathlib.Path.rename"])
    @pytest.mark.parametrize("call", range(8))
    def test_save_round(self, store, monkeypatch, function, call):
        save(store, 1)
        before = listing(store.folder)
        owner, _, name = function.rpartition(".")
        target = {"os": os, "pathlib.Path": Path}[owner]
        real, calls = getattr(target, name), []

        def failing(*arguments):
            calls.append(1)
            if len(calls) == call + 1:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        failed = False
        with monkeypatch.context() as patch:
            patch.setattr(target, name, failing)
            try:
                save(store, 2)
            except OSError:
                failed = True
        after = listing(store.folder)
        newest = store.load_trained().round_number
        if newest == 1:
            assert failed
            assert after == before
        else:
            assert {f"round-000002/{name}" for name in ROUND} < after
            assert np.array_equal(store.load_update(2).words, WORDS)
        store.load_training()

    def test_some_of_these_calls_do_fail(self, store, monkeypatch):
        def failing(*arguments):
            raise OSError(5, "Input/output error")

        for target, name in ((os, "fsync"), (Path, "rename")):
            with monkeypatch.context() as patch, pytest.raises(OSError, match="error"):
                patch.setattr(target, name, failing)
                save(store, 1)
        assert listing(store.folder) == set()

    def test_save_secagg(self, store, monkeypatch):
        store.save_secagg(1, b"first")

        def failing(*arguments):
            raise OSError(28, "No space left on device")

        for target, name in ((os, "fsync"), (Path, "replace")):
            with monkeypatch.context() as patch, pytest.raises(OSError, match="space"):
                patch.setattr(target, name, failing)
                store.save_secagg(2, b"second")
            assert store.load_secagg() == (1, b"first")
        assert listing(store.folder) == {"secagg-000001.state"}


class TestDestroyUpdate:
    def test_only_the_update_goes(self, store):
        save(store, 1)
        store.destroy_update(1)
        store.destroy_update(1)
        store.destroy_update(2)
        assert store.load_update(1) is None
        assert store.load_trained().round_number == 1
        assert listing(store.folder / "round-000001") == ROUND - {"update.words"}

    def test_it_is_on_disk(self, store, monkeypatch):
        save(store, 1)
        synced = []
        monkeypatch.setattr("silo.store.sync_folder", synced.append)
        store.destroy_update(1)
        assert synced == [store.folder / "round-000001"]


class TestSecagg:
    def test_newest_setup(self, store):
        assert store.load_secagg() is None
        store.save_secagg(1, b"one")
        store.save_secagg(1, b"one again")
        assert store.load_secagg() == (1, b"one again")
        store.save_secagg(12, b"twelve")
        assert store.load_secagg() == (12, b"twelve")
        assert listing(store.folder) == {"secagg-000012.state"}
        assert mode(store.folder / "secagg-000012.state") == 0o600

    def test_both_are_there_after_a_crash_between(self, store):
        store.save_secagg(1, b"one")
        content = store.folder / "secagg-000001.state"
        store.save_secagg(2, b"two")
        content.write_bytes(b"one")
        content.chmod(0o600)
        assert store.load_secagg() == (2, b"two")

    def test_large_numbers(self, store):
        store.save_secagg(2**32 - 1, b"last")
        assert store.load_secagg() == (2**32 - 1, b"last")

    def test_readable_by_others(self, store):
        store.save_secagg(1, b"one")
        (store.folder / "secagg-000001.state").chmod(0o640)
        with pytest.raises(KeyFileRejected, match="chmod 600"):
            store.load_secagg()

    def test_other_files_are_left_alone(self, store):
        (store.folder / "secagg-notes.state").write_bytes(b"")
        assert store.load_secagg() is None


class TestFinished:
    def test_nothing_secret_is_left(self, store):
        save(store, 3)
        store.save_secagg(1, b"secret")
        assert not store.is_finished()
        assert store.load_last_reply() is None
        store.save_finished(b"reply")
        assert store.is_finished()
        assert store.load_last_reply() == b"reply"
        assert listing(store.folder) == {
            "finished",
            "round-000003",
            "round-000003/round.json",
            "round-000003/training.safetensors",
        }

    def test_a_crash_leaves_no_secret_behind_a_finished_run(self, store, monkeypatch):
        store.save_secagg(1, b"secret")

        def failing(*arguments):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch, pytest.raises(OSError, match="space"):
            patch.setattr("silo.store.save_bytes", failing)
            store.save_finished(b"reply")
        assert not store.is_finished()
        store.save_finished(b"reply")
        assert listing(store.folder) == {"finished"}


class TestKilled:
    """A process that SIGKILL ends between ``fsync`` and the new name."""

    PROGRAM = """
import os, signal, sys
from pathlib import Path
import numpy as np
from silo.store import RunStore, TrainedRound
from silo.training import TrainingState

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

store = RunStore(Path(sys.argv[1]))
if sys.argv[2] == "state":
    Path.replace = die
    store.save_secagg(1, b"secret")
Path.rename = die
trained = TrainedRound(round_number=1, model="ab" * 32)
store.save_round(trained, np.arange(5, dtype=np.uint64), TrainingState(), {})
"""

    @pytest.fixture(params=["state", "round"])
    def killed(self, store, request):
        command = [sys.executable, "-c", self.PROGRAM, store.folder, request.param]
        done = subprocess.run(command, check=False)
        assert done.returncode == -signal.SIGKILL
        assert any(path.name.startswith(".") for path in store.folder.iterdir())
        return store

    def test_nothing_is_left_when_the_next_begins(self, killed):
        killed.remove_leftovers()
        assert listing(killed.folder) == set()

    def test_nothing_is_left_at_the_end(self, killed):
        killed.save_finished(b"reply")
        assert listing(killed.folder) == {"finished"}


class TestDamaged:
    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[]", b'{"model":"a"}', b'{"model":"a","round_number":"1"}'],
    )
    def test_round(self, store, content):
        save(store, 1)
        (store.folder / "round-000001" / "round.json").write_bytes(content)
        self.check(store.load_trained)

    def test_round_missing(self, store):
        save(store, 1)
        (store.folder / "round-000001" / "round.json").unlink()
        self.check(store.load_trained)

    @pytest.mark.parametrize("kept", [0, 7, 40, -1])
    def test_training_cut_off(self, store, kept):
        save(store, 1)
        path = store.folder / "round-000001" / "training.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        self.check(store.load_training)

    def test_training_missing(self, store):
        save(store, 1)
        (store.folder / "round-000001" / "training.safetensors").unlink()
        self.check(store.load_training)

    @pytest.mark.parametrize("kept", [1, 39])
    def test_update_cut_off(self, store, kept):
        save(store, 1)
        path = store.folder / "round-000001" / "update.words"
        path.write_bytes(path.read_bytes()[:kept])
        self.check(lambda: store.load_update(1))

    def check(self, load) -> None:
        with pytest.raises(StateBroken) as caught:
            load()
        assert "\n" not in str(caught.value)
        assert "round-000001" in str(caught.value)
