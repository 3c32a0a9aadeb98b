import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion.files import save_atomically
from protocol.files import remove_leftovers


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a"
    save_atomically(path, b"old")
    save_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, broken):
    path = tmp_path / "a"
    save_atomically(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os if broken == "fsync" else Path, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        save_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_flushed_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    real_fsync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("f"), real_fsync(fd)))
    monkeypatch.setattr(
        Path, "replace", lambda a, b: (calls.append("r"), real_replace(a, b))
    )
    save_atomically(tmp_path / "a", b"x")
    assert calls in (["f", "r", "f"], ["f", "r"])


def test_what_a_killed_process_left_has_a_name_that_is_recognised(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from diffusion import files\n"
        "Path.replace = lambda old, new: os._exit(9)\n"
        "files.save_atomically(Path(sys.argv[1]), b'parameters')"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.safetensors")]
    assert subprocess.run(command, check=False).returncode == 9
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"parameters"]
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
