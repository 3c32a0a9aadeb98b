"""What a user gets wrong ends in one line, a code, and the files as they were."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import aggregator.cli
import silo.cli
import simulation.cli
from tests.silo.conftest import (
    DRAFT_TEXT,
    Ended,
    listing,
    one_thread,  # noqa: F401 (a fixture)
    run_command,
    tiny_images,
)

COMMANDS = {
    "silo": silo.cli.main,
    "cloister": simulation.cli.main,
    "aggregator": aggregator.cli.main,
}
PIXELS = tiny_images(num_images=60).pixels

SIMULATION = """\

[simulation]
num_silos = 3
held_out_images = 20
transport = "memory"

[simulation.data]
source = "npz"
path = "data.npz"
"""


def run(text: str) -> Ended:
    """Run a command line of one of the commands."""
    command, *arguments = text.split()
    return run_command(COMMANDS[command], *arguments)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder where everything is right: images, draft, model, two parties."""
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", images=PIXELS)
    Path("draft.toml").write_text(DRAFT_TEXT)
    Path("plan.toml").write_text(DRAFT_TEXT + SIMULATION)
    return tmp_path


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> bytes:
    """The bytes of a checkpoint."""
    folder = tmp_path_factory.mktemp("model")
    np.savez(folder / "data.npz", images=PIXELS)
    (folder / "draft.toml").write_text(DRAFT_TEXT)
    arguments = ("--local", folder / "draft.toml", "--data", folder / "data.npz")
    ended = run_command(
        silo.cli.main, "train", *arguments, "--out", folder / "model.safetensors"
    )
    assert ended.code == 0, ended.err
    return (folder / "model.safetensors").read_bytes()


def save_npz(pixels: np.ndarray, **more: np.ndarray) -> Callable[[], None]:
    return lambda: np.savez("data.npz", images=pixels, **more)


def truncated() -> None:
    path = Path("data.npz")
    path.write_bytes(path.read_bytes()[:500])


def folder_of(*images: np.ndarray) -> Callable[[], None]:
    def make() -> None:
        Path("images").mkdir()
        for number, pixels in enumerate(images):
            Image.fromarray(pixels).save(f"images/patient-{number}.png")

    return make


def unreadable_image() -> None:
    folder_of(PIXELS[0, ..., 0])()
    Path("images/patient-7.png").write_bytes(b"\x89PNG nothing")


def locked_file() -> None:
    Path("data.npz").unlink()
    Path("data.npz").mkdir()


BAD_DATA = {
    "missing": ("none.npz", lambda: None, "No such file"),
    "missing folder": ("none/data.npz", lambda: None, "No such file"),
    "cut off": ("data.npz", truncated, "not a readable .npz file"),
    "not a file": ("data.npz", locked_file, "data.npz: "),
    "NaN": ("data.npz", save_npz(np.where(PIXELS > 9, np.nan, 1.0)), "NaN"),
    "infinite": ("data.npz", save_npz(np.where(PIXELS > 9, np.inf, 1.0)), "NaN or inf"),
    "out of range": ("data.npz", save_npz(PIXELS.astype(int) + 9), "value_range"),
    "no array": ("data.npz", lambda: np.savez("data.npz", pictures=PIXELS), "pictures"),
    "no images": ("data.npz", save_npz(PIXELS[:0]), "holds no images"),
    "other size": ("data.npz", save_npz(PIXELS[:, :7]), "7×8 with 1 channel"),
    "colours": ("data.npz", save_npz(np.repeat(PIXELS, 3, 3)), "3 channels"),
    "labels": ("data.npz", save_npz(PIXELS, labels=np.arange(3)), "60 images but 3"),
    "empty folder": ("images", folder_of(), "holds no images"),
    "mixed sizes": (
        "images",
        folder_of(PIXELS[0, ..., 0], PIXELS[1, :4, :, 0]),
        "image 2 of 2 is 4×8",
    ),
    "unreadable image": ("images", unreadable_image, "image 2 in sorted order"),
    "deep images": (
        "images",
        folder_of(np.full((8, 8), 4095, np.uint16)),
        "more than 8 bits",
    ),
}


@pytest.mark.parametrize("row", BAD_DATA)
@pytest.mark.parametrize(
    "command",
    [
        "silo train --local draft.toml --out m --data",
        "cloister simulate plan.toml --out run --data",
        "silo reference --extractor fd-small-digits --split train --out m --data",
    ],
)
def test_data(here, command, row):
    path, make, words = BAD_DATA[row]
    if command.startswith("silo reference") and row in ("other size", "colours"):
        words = ""
    make()
    before = listing(here)
    ended = run(f"{command} {path}")
    assert words in ended.error
    assert "patient" not in ended.out + ended.err
    assert ended.code == 1
    assert listing(here) == before


def edited(old: str, new: str) -> Callable[[], None]:
    def edit() -> None:
        for name in ("draft.toml", "plan.toml"):
            text = Path(name).read_text()
            Path(name).write_text(text.replace(old, new, 1))

    return edit


LABEL_SKEW = '[simulation.partition]\nkind = "label-skew"\n\n'
EVALUATION = '[evaluation]\nevery_rounds = 1\nextractor = "fd-small-fashion"\n'
BAD_DRAFTS = {
    "unknown field": (edited("num_rounds", "num_round"), "did you mean num_rounds?"),
    "unknown table": (edited("[schedule]", "[scedule]"), "did you mean schedule?"),
    "wrong type": (edited("seed = 5", 'seed = "5"'), "seed: must be a whole number"),
    "out of range": (edited("seed = 5", "seed = -5"), "seed: must be 0 to"),
    "missing field": (edited("seed = 5\n", ""), "seed: is missing"),
    "bad network": (edited("dim = 4", "dim = 5"), "model.dim"),
    "dp-sgd": (
        lambda: Path("plan.toml").write_text(
            DRAFT_TEXT + '[privacy]\nmechanism = "dp-sgd"\n' + SIMULATION
        ),
        "privacy.epsilon: give the target",
    ),
    "not TOML": (lambda: Path("plan.toml").write_text("{json: 1}"), "not valid TOML"),
    "not text": (lambda: Path("plan.toml").write_bytes(b"\xff\xfe"), "not valid TOML"),
    "missing file": (lambda: Path("plan.toml").unlink(), "plan.toml: No such file"),
    "huge file": (
        lambda: Path("plan.toml").write_text("# \n" * (1 << 19)),
        "larger than",
    ),
    "signed plan": (edited("seed", 'nonce = "00"\nseed'), "belongs to a finished plan"),
    "no settings": (
        lambda: Path("plan.toml").write_text(DRAFT_TEXT),
        "has no [simulation] table",
    ),
    "unknown setting": (edited("num_silos", "silos"), "simulation.silos"),
    "two silos": (edited("num_silos = 3", "num_silos = 2"), "min_cohort: 2 silos"),
    "no silos": (edited("num_silos = 3", "num_silos = 0"), "num_silos: must be"),
    "threshold": (
        edited("[simulation]", "[protection]\nthreshold = 4\n\n[simulation]"),
        "protection.threshold: must be 1 to num_silos = 3, is 4",
    ),
    "low threshold": (
        edited("[simulation]", "[protection]\nthreshold = 2\n\n[simulation]"),
        "protection.threshold",
    ),
    "too few images": (
        edited("num_silos = 3", "num_silos = 5"),
        "40 images are too few",
    ),
    "more than there are": (
        edited("held_out_images = 20", "held_out_images = 60"),
        "held_out_images: 60 of only 60",
    ),
    "no labels": (
        edited("[simulation.data]", LABEL_SKEW + "[simulation.data]"),
        "label-skew needs images with labels",
    ),
    "no path": (edited('path = "data.npz"\n', ""), "simulation.data.path: is missing"),
    "range": (
        edited('path = "data.npz"\n', 'path = "data.npz"\nvalue_range = [9, 1]\n'),
        "simulation.data.value_range",
    ),
    "extractor of another size": (
        edited("[evaluation.sampler]", EVALUATION + "[evaluation.sampler]"),
        "images of shape (1, 8, 8) do not fit the extractor",
    ),
}


@pytest.mark.parametrize("row", BAD_DRAFTS)
def test_draft(here, row):
    make, words = BAD_DRAFTS[row]
    make()
    before = listing(here)
    ended = run("cloister simulate plan.toml --out run")
    assert words in ended.error
    assert ended.code == 1
    assert listing(here) == before


@pytest.mark.parametrize(
    "row", ["unknown field", "wrong type", "missing field", "bad network"]
)
def test_draft_of_a_silo(here, row):
    make, words = BAD_DRAFTS[row]
    make()
    before = listing(here)
    assert words in run("silo train --local draft.toml --data data.npz --out m").error
    assert listing(here) == before


class TestRunFolder:
    def test_exists(self, here):
        (here / "run").mkdir()
        before = listing(here)
        ended = run("cloister simulate plan.toml --out run")
        assert "run: exists; continue it with --resume" in ended.error
        assert listing(here) == before

    def test_resumes_nothing(self, here):
        (here / "run").mkdir()
        before = listing(here)
        ended = run("cloister simulate plan.toml --resume run")
        assert "run: holds no run to resume" in ended.error
        assert listing(here) == before

    def test_resumes_what_is_not_there(self, here):
        ended = run("cloister simulate plan.toml --resume run")
        assert ended.code == 2
        assert "does not exist" in ended.error

    def test_new_and_old_at_once(self, here):
        (here / "run").mkdir()
        ended = run("cloister simulate plan.toml --out new --resume run")
        assert ended.code == 2
        assert "give either --out or --resume" in ended.error

    def test_a_file_in_its_place(self, here):
        (here / "run").write_text("mine")
        assert run("cloister simulate plan.toml --out run").code != 0
        assert (here / "run").read_text() == "mine"

    def test_below_a_file(self, here):
        before = listing(here)
        assert run("cloister simulate plan.toml --out plan.toml/run").error
        assert listing(here) == before


class TestCheckpoint:
    @pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
    @pytest.mark.parametrize(
        "command",
        [
            "silo sample model --out m.png",
            "aggregator sample model --out m.png",
        ],
    )
    def test_cut_off(self, here, model, share, command):
        (here / "model").write_bytes(model[: int(share * len(model))])
        before = listing(here)
        assert "model" in run(command).error
        assert listing(here) == before

    def test_of_something_else(self, here):
        (here / "model").write_bytes((here / "data.npz").read_bytes())
        assert "model" in run("silo sample model --out m.png").error

    def test_missing(self, here):
        assert "none" in run("silo sample none --out m.png").error

    def test_out_below_a_missing_folder(self, here, model):
        (here / "model").write_bytes(model)
        before = listing(here)
        assert run("silo sample model --count 1 --out none/m.png").error
        assert listing(here) == before


class TestAggregator:
    @pytest.fixture
    def parties(self, here) -> Path:
        for name in ("a", "b", "c"):
            assert run(f"silo init {name}").code == 0
        assert run("aggregator init centre").code == 0
        return here

    @pytest.mark.parametrize(
        ("silos", "words"),
        [
            ("", "--silo"),
            ("--silo a=a/identity.pub", "min_cohort: 1 silos are fewer"),
            ("--silo a=a/identity.pub --silo b=b/identity.pub", "min_cohort: 2 silos"),
            ("--silo a=a/identity.pub " * 3, "two have the same name"),
            ("--silo a", "expected NAME=KEY"),
            ("--silo a=none.pub", "64 hexadecimal digits"),
            ("--silo A=a/identity.pub", "name"),
            ("--silo a=a/identity.pub,many", "--silo"),
            ("--silo a=a/identity.pub,nan", "weight"),
        ],
    )
    def test_silos_of_a_plan(self, parties, silos, words):
        before = listing(parties)
        ended = run(f"aggregator plan make draft.toml --dir centre --out p {silos}")
        assert words in ended.error
        assert listing(parties) == before

    def test_a_draft_is_no_plan(self, parties):
        for command in (
            "aggregator run draft.toml --dir centre --listen s",
            "silo check-plan draft.toml --approve --dir a",
        ):
            before = listing(parties)
            assert "is a draft without parties" in run(command).error
            assert listing(parties) == before

    def test_overwrites_nothing(self, parties):
        before = listing(parties)
        assert "nothing was changed" in run("aggregator init centre").error
        assert listing(parties) == before


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestFullDisk:
    @pytest.mark.parametrize("call", [1, 2, 3, 5, 9])
    @pytest.mark.parametrize(
        "command",
        [
            "silo init new",
            "aggregator init new",
            "silo train --local draft.toml --data data.npz --out m",
            "silo reference --extractor fd-small-digits --split train "
            "--data data.npz --out m",
            "cloister simulate plan.toml --out run",
        ],
    )
    def test_leaves_what_was_there(self, here, monkeypatch, command, call):
        before, calls, real = listing(here), [], os.fsync

        def fsync(descriptor: int) -> None:
            calls.append(1)
            if len(calls) >= call:
                raise FULL
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        ended = run(command)
        if ended.code == 0:
            assert len(calls) < call
            return
        assert "No space left on device" in ended.error
        left = {name: content for name, content in listing(here).items() if content}
        if call > 1 and not command.startswith(("silo init", "cloister")):
            return  # What was whole before stays: here the first file, or the only one.
        assert left == {name: content for name, content in before.items() if content}

    @pytest.mark.parametrize("name", ["m", "m.png"])
    def test_real_limit(self, here, model, name):
        """The kernel refuses files above a size; a shell's ``ulimit -f`` does that."""
        (here / "model").write_bytes(model)
        command = {
            "m": ["train", "--local", "draft.toml", "--data", "data.npz"],
            "m.png": ["sample", "model", "--count", "100", "--enlarge", "8"],
        }[name]
        before = listing(here)
        root = Path(__file__).parents[2]
        ended = subprocess.run(
            [sys.executable, "-m", "silo", *command, "--out", name],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        )
        assert Ended(ended.returncode, ended.stdout, ended.stderr).error == (
            "error: File too large"
        )
        assert listing(here) == before

    def test_a_run_goes_on_when_there_is_room_again(self, here, monkeypatch):
        calls, real = [], os.fsync

        def fsync(descriptor: int) -> None:
            calls.append(1)
            if len(calls) > 70:
                raise FULL
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            ended = run("cloister simulate plan.toml --out run")
            assert "No space left on device" in ended.error
        assert (here / "run" / "plan.toml").exists()
        assert not (here / "run" / "samples.png").exists()
        ended = run("cloister simulate plan.toml --resume run")
        assert ended.code == 0, ended.err
        assert (here / "run" / "samples.png").exists()
        assert "FAIL" not in ended.out
