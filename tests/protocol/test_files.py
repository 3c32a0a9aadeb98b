import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from protocol import files
from protocol.errors import FolderInUse, KeyFileRejected
from protocol.files import (
    load_identity,
    load_secret,
    locked,
    parse_key,
    remove_leftovers,
    save_bytes,
    save_identity,
    save_secret,
    whole_folder,
)
from tests.protocol.examples import make_identity

IDENTITY = make_identity("files")
OPEN = os.fdopen


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_bytes_are_saved_and_replaced(tmp_path):
    path = tmp_path / "file"
    save_bytes(path, b"old")
    save_bytes(path, b"")
    save_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert mode_of(path) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


class FullFile:
    """A file that takes half of what is written to it."""

    def __init__(self, descriptor, mode):
        self._file = OPEN(descriptor, mode)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        full_disk()


FAILURES = [
    pytest.param(files.os, "fsync", full_disk, OSError, id="fsync"),
    pytest.param(files.os, "fchmod", full_disk, OSError, id="chmod"),
    pytest.param(files.os, "fdopen", FullFile, OSError, id="write"),
    pytest.param(Path, "replace", full_disk, OSError, id="rename"),
    pytest.param(files.os, "fsync", interrupt, KeyboardInterrupt, id="Ctrl-C"),
]


@pytest.mark.parametrize(("owner", "name", "fail", "error"), FAILURES)
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    owner, name, fail, error, old, tmp_path, monkeypatch
):
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(owner, name, fail)
        save_bytes(path, b"new content")
    assert [entry.name for entry in tmp_path.iterdir()] == (["file"] if old else [])
    assert (path.read_bytes() if old else None) == old


def test_the_content_is_on_disk_before_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(
        Path, "replace", lambda old, new: (order.append("rename"), replace(old, new))
    )
    save_bytes(tmp_path / "file", b"new")
    assert order == ["fsync", "rename", "fsync"]


def test_a_secret_is_never_readable_by_others(tmp_path, monkeypatch):
    modes = []
    fsync = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (modes.append(stat.S_IMODE(os.fstat(fd).st_mode)), fsync(fd)),
    )
    save_secret(tmp_path / "key", b"secret")
    assert modes[0] == 0o600
    assert mode_of(tmp_path / "key") == 0o600
    assert load_secret(tmp_path / "key") == b"secret"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601, 0o700 | 0o010])
def test_a_secret_that_others_may_touch_is_refused(mode, tmp_path):
    path = tmp_path / "key"
    save_identity(path, IDENTITY)
    path.chmod(mode)
    for load in (load_secret, load_identity):
        with pytest.raises(KeyFileRejected) as caught:
            load(path)
        assert f"mode {mode:04o}" in str(caught.value)
        assert f"chmod 600 {path}" in str(caught.value)
        assert IDENTITY.to_bytes().hex() not in str(caught.value)


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(KeyFileRejected, match="No such file"):
        load_identity(tmp_path / "key")
    with pytest.raises(KeyFileRejected, match="Is a directory"):
        load_identity(tmp_path)


def test_an_identity_is_saved_and_loaded(tmp_path):
    path = tmp_path / "key"
    save_identity(path, IDENTITY)
    assert load_identity(path).to_bytes() == IDENTITY.to_bytes()
    assert path.read_text() == IDENTITY.to_bytes().hex() + "\n"


def test_an_identity_is_never_overwritten(tmp_path):
    path = tmp_path / "key"
    save_identity(path, IDENTITY)
    with pytest.raises(KeyFileRejected, match="never overwritten"):
        save_identity(path, make_identity("another"))
    assert load_identity(path).public == IDENTITY.public


@pytest.mark.parametrize(
    "text", ["", "00" * 31, "00" * 33, "0" * 63, "zz" * 32, "00 " * 32, "é" * 64, "\0"]
)
def test_other_text_than_a_key_is_refused_and_not_shown(text, tmp_path):
    path = tmp_path / "key"
    save_secret(path, text.encode())
    with pytest.raises(KeyFileRejected) as caught:
        load_identity(path)
    assert str(caught.value) == f"{path}: not a key of 64 hexadecimal digits"


def test_a_key_is_parsed():
    assert parse_key(f" {'0a' * 32}\n", "--silo a") == b"\x0a" * 32


def test_a_whole_folder_appears_at_the_end(tmp_path):
    path = tmp_path / "round"
    with whole_folder(path) as folder:
        assert mode_of(folder) == 0o700
        assert folder.parent == tmp_path
        (folder / "file").write_bytes(b"x")
        assert not path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["round"]
    assert (path / "file").read_bytes() == b"x"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ValueError])
def test_a_broken_folder_does_not_appear(error, tmp_path):
    with pytest.raises(error), whole_folder(tmp_path / "round") as folder:
        (folder / "file").write_bytes(b"x")
        raise error
    assert not list(tmp_path.iterdir())


def test_the_rest_of_a_crash_is_removed(tmp_path):
    rest = tmp_path / ".round.partial"
    rest.mkdir()
    (rest / "half").write_bytes(b"x")
    with whole_folder(tmp_path / "round") as folder:
        (folder / "file").write_bytes(b"x")
    assert [entry.name for entry in (tmp_path / "round").iterdir()] == ["file"]


KILLED = """
import os, signal, sys
from pathlib import Path
from protocol.files import save_secret, whole_folder

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

root = Path(sys.argv[1])
if sys.argv[2] == "file":
    Path.replace = die
    save_secret(root / "secagg-000001.state", b"secret")
Path.rename = die
with whole_folder(root / "round-000001") as folder:
    save_secret(folder / "update.words", b"secret")
    if sys.argv[2] == "file in a folder":
        Path.replace = die
        save_secret(folder / "update.words", b"secret")
"""
"""Is killed between ``fsync`` and the new name."""


@pytest.mark.parametrize("what", ["file", "folder", "file in a folder"])
def test_what_a_killed_process_left_is_found_and_removed(what, tmp_path):
    (tmp_path / "kept.tmp").write_bytes(b"x")
    (tmp_path / ".kept").write_bytes(b"x")
    (tmp_path / "kept.partial").mkdir()
    kept = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-c", KILLED, str(tmp_path), what]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    left = {path for path in tmp_path.rglob("*") if path.is_file()} - set(kept)
    assert b"secret" in {path.read_bytes() for path in left}
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == kept
    remove_leftovers(tmp_path)


def test_the_removal_of_leftovers_is_synced(tmp_path, monkeypatch):
    (tmp_path / ".a.tmp").write_bytes(b"x")
    left_at_sync = []
    monkeypatch.setattr(
        files, "sync_folder", lambda folder: left_at_sync.append([*folder.iterdir()])
    )
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path)  # Nothing to do.
    assert left_at_sync == [[]]


def test_an_existing_folder_is_not_replaced(tmp_path):
    path = tmp_path / "round"
    path.mkdir()
    (path / "old").write_bytes(b"x")
    with pytest.raises(OSError), whole_folder(path) as folder:
        (folder / "new").write_bytes(b"y")
    assert [entry.name for entry in tmp_path.iterdir()] == ["round"]
    assert [entry.name for entry in path.iterdir()] == ["old"]


def test_a_folder_is_lent_to_one_at_a_time(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(FolderInUse, match="another process works here"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_a_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(ValueError), locked(tmp_path):
        raise ValueError
    with locked(tmp_path):
        pass


def test_a_lock_ends_with_its_process_and_holds_against_others(tmp_path):
    program = (
        "import sys; from pathlib import Path; from protocol.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(FolderInUse), locked(tmp_path):
            pass
        process.kill()
        process.wait()
        with locked(tmp_path):
            pass
