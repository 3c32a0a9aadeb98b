import logging
import subprocess
import sys

import pytest

from crypto.errors import InvalidSignature
from privacy.errors import Overflow
from protocol.command import missing_extra, reporting_errors, set_up_logging
from protocol.errors import PlanRejected


class OwnError(Exception):
    pass


class BelowError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OwnError("what failed"), "error: what failed"),
        (BelowError("below"), "error: below"),
        (PlanRejected("plan.toml: name: is missing"), "error: plan.toml: name: is"),
        (InvalidSignature("not signed"), "error: not signed"),
        (Overflow("too much"), "error: too much"),
        (PlanRejected("two\nlines"), "error: two lines"),
        (FileNotFoundError(2, "No such file", "a/b"), "error: a/b: No such file"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (OSError("AF_UNIX path too long"), "error: AF_UNIX path too long"),
    ],
)
def test_a_known_error_is_one_line_and_exit_code_1(error, line, capsys):
    with pytest.raises(SystemExit) as caught, reporting_errors(OwnError, BelowError):
        raise error
    assert caught.value.code == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(line)
    assert shown.err.endswith("\n")
    assert shown.err.count("\n") == 1


def test_ctrl_c_is_one_line_and_exit_code_130(capsys):
    with pytest.raises(SystemExit) as caught, reporting_errors():
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted; what is finished is saved\n"


@pytest.mark.parametrize(
    "error", [ValueError, RuntimeError, KeyError, ZeroDivisionError, OwnError]
)
def test_a_bug_of_ours_keeps_its_traceback(error, capsys):
    with pytest.raises(error), reporting_errors():
        raise error("bug")
    assert capsys.readouterr().err == ""


def test_success_and_exits_pass_through(capsys):
    with reporting_errors():
        pass
    with pytest.raises(SystemExit) as caught, reporting_errors():
        sys.exit(3)
    assert caught.value.code == 3
    assert capsys.readouterr().err == ""


def test_nobody_reads_standard_error():
    program = (
        "import os, sys; from protocol.command import reporting_errors\n"
        "from protocol.errors import ProtocolError\n"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 2)\n"
        "with reporting_errors(): raise ProtocolError('x')"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("verbosity", "level"),
    [(0, logging.WARNING), (1, logging.INFO), (2, logging.DEBUG), (5, logging.DEBUG)],
)
def test_verbosity(verbosity, level, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    before = root.level
    try:
        set_up_logging(verbosity)
        assert root.level == level
        assert root.handlers[0].stream is sys.stderr
    finally:
        root.setLevel(before)


@pytest.mark.parametrize(("module", "shown"), [("torch", "torch"), (None, "a library")])
def test_a_missing_extra_names_what_to_install(module, shown):
    line = missing_extra("silo", module)
    assert line.startswith(f"error: {shown} is not installed")
    assert "pip install 'cloister[silo]'" in line
    assert "\n" not in line
