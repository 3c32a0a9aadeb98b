"""Local matters of one silo: where its files lie, which data, which device.

Nothing here is agreed with others and nothing here can change what is private; what
the silo refuses is in ``silo.policy``.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from protocol.encoding import from_table
from protocol.errors import EncodingError
from protocol.plan import RunPlan
from silo.errors import ConfigRejected

T = TypeVar("T")

IDENTITY_FILE = "identity.key"
PUBLIC_FILE = "identity.pub"
CONFIG_FILE = "silo.toml"
POLICY_FILE = "policy.toml"
INITIAL_FILE = "initial.safetensors"
APPROVED_FOLDER = "approved"
JOURNALS_FOLDER = "journals"
RUNS_FOLDER = "runs"
LEDGERS_FOLDER = "ledgers"

MAX_CANARIES = 10_000
"""Of each form: their scores are one line of a transcript."""

DEFAULT_CONFIG = """\
# This silo's own matters. Paths are relative to this file's folder.

[data]
# Where the images are: an .npz file ("npz"), a folder of images ("folder"), or a
# torchvision data set ("torchvision", its name in `dataset`: MNIST, FashionMNIST,
# CIFAR10, CIFAR100, CelebA, or CelebA16, which has labels).
source = "npz"
path = "data.npz"
split = "train"
# The smallest and largest value that a pixel may have; [0, 255] for 8-bit images.
# Values outside are refused, never clamped.
value_range = [0, 255]
# Whose the images are, for plans that protect patients rather than single images:
# "" if unknown; "folder" if an image's parent folder is its patient (source "folder";
# sub-folders are then no labels); else the name of an array in the .npz file, text or
# whole numbers, one for each image. An image without a patient is refused. The
# identifiers never leave this silo.
patients = ""

[compute]
device = "auto"      # auto, cuda or cpu
threads = 0          # CPU threads; 0: all cores
checkpoint_steps = 50  # private steps between two checkpoints of a round
inception_weights = ""  # where a plan measures with Inception; "": torch hub's cache

[canaries]
# Planted examples that let an auditor measure what a run gives away (docs/canaries.md).
# Their scores are published in this silo's transcript at the end of each run.
gradient = 0  # with dp-sgd: 1000 is a good number
images = 0    # images of noise among this silo's own: weak, and they change training
"""


def check_value_range(value_range: tuple[float, ...]) -> None:
    """Raise ``ValueError`` unless these are a smallest and a largest value."""
    if (
        len(value_range) != 2
        or not -math.inf < value_range[0] < value_range[1] < math.inf
    ):
        raise ValueError("value_range: must be two numbers, the smaller one first")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where this silo's images are, and the range of their values.

    ``patients`` says where an image's patient is found: nowhere (""), its parent folder
    ("folder"), or the .npz array of this name. ``classes`` names the sub-folders of a
    folder of images by label, from 0; empty: in sorted order. ``download`` lets
    torchvision fetch a data set.
    """

    source: Literal["npz", "folder", "torchvision"] = "npz"
    path: str = "data.npz"
    dataset: str = ""
    split: Literal["train", "test", "val"] = "train"
    value_range: tuple[float, ...] = (0.0, 255.0)
    download: bool = False
    patients: str = ""
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the range, and that the source can say whose its images are."""
        check_value_range(self.value_range)
        if self.classes and (self.source != "folder" or self.patients):
            raise ValueError(
                "classes: only for a folder of images whose sub-folders are classes; "
                "other sources say the labels themselves"
            )
        if len(set(self.classes)) != len(self.classes) or "" in self.classes:
            raise ValueError("classes: must be names, none of them twice")
        if self.patients and self.source == "torchvision":
            raise ValueError("patients: a torchvision data set does not name any")
        if self.patients and (self.patients == "folder") != (self.source == "folder"):
            raise ValueError(
                'patients: must be "folder" for a folder of images, and the name of an '
                "array for an .npz file"
            )


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """The device, the number of CPU threads (0: all cores), and how often to save.

    Private training saves a checkpoint every ``checkpoint_steps`` steps; after a crash
    as many are counted again, at most. ``inception_weights`` is the file for plans that
    measure with them in the silos; empty for torch hub's cache.
    """

    device: Literal["auto", "cuda", "cpu"] = "auto"
    threads: int = 0
    checkpoint_steps: int = 50
    inception_weights: str = ""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.threads < 0:
            raise ValueError("threads: must not be negative")
        if self.checkpoint_steps < 1:
            raise ValueError("checkpoint_steps: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class CanaryConfig:
    """How many canaries this silo plants in each of its runs; 0 for none.

    ``gradient`` ones are added to the sums of DP-SGD; ``images`` are put among the
    silo's own.
    """

    gradient: int = 0
    images: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, number in (("gradient", self.gradient), ("images", self.images)):
            if not 0 <= number <= MAX_CANARIES:
                raise ValueError(f"{name}: must be 0 to {MAX_CANARIES:,}")


@dataclass(frozen=True, kw_only=True)
class SiloConfig:
    """The content of ``silo.toml``."""

    data: DataConfig = DataConfig()
    compute: ComputeConfig = ComputeConfig()
    canaries: CanaryConfig = CanaryConfig()


@dataclass(frozen=True)
class SiloFolder:
    """The files of one silo, below one folder."""

    root: Path

    @property
    def identity(self) -> Path:
        """The identity key, readable by its owner alone."""
        return self.root / IDENTITY_FILE

    @property
    def public(self) -> Path:
        """The public key, to be given to the aggregator's operator."""
        return self.root / PUBLIC_FILE

    @property
    def config(self) -> Path:
        """Data and device."""
        return self.root / CONFIG_FILE

    @property
    def policy(self) -> Path:
        """What this silo refuses."""
        return self.root / POLICY_FILE

    @property
    def initial(self) -> Path:
        """The parameters that a plan begins with, where it names a file."""
        return self.root / INITIAL_FILE

    def approval(self, plan: RunPlan) -> Path:
        """The file whose presence says that the operator approved a plan."""
        return self.root / APPROVED_FOLDER / plan.digest.hex()

    @property
    def runs(self) -> Path:
        """The folder of this silo's state in all its runs."""
        return self.root / RUNS_FOLDER

    def run(self, plan: RunPlan) -> Path:
        """The folder of this silo's state in one run."""
        return self.runs / _run_name(plan)

    def journal(self, plan: RunPlan) -> Path:
        """The file of this silo's promises in one run, apart from its state."""
        return self.root / JOURNALS_FOLDER / f"{_run_name(plan)}.journal"

    @property
    def ledgers(self) -> Path:
        """The privacy ledgers of all runs, each named as its run's folder is."""
        return self.root / LEDGERS_FOLDER


def _run_name(plan: RunPlan) -> str:
    """Return the name of a run in a silo's folders.

    It holds all 128 bits that name the run: with fewer, somebody could search two plans
    that share one journal and one state.
    """
    return f"{plan.name}-{plan.run.hex()}"


def load_config(folder: SiloFolder) -> SiloConfig:
    """Return the content of ``silo.toml``.

    Raises:
        ConfigRejected: missing or malformed; one line that names the field.
    """
    return load_toml(SiloConfig, folder.config)


def load_toml(kind: type[T], path: Path) -> T:
    """Return a TOML file as a frozen dataclass, strictly.

    Raises:
        ConfigRejected: missing or malformed; one line that names file and field.
    """
    try:
        table: Mapping[str, Any] = tomllib.loads(path.read_text())
        return from_table(kind, table)
    except OSError as error:
        raise ConfigRejected(
            f"{path}: {error.strerror}; `silo init` makes a silo's files"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, EncodingError) as error:
        raise ConfigRejected(f"{path}: {error}") from None
