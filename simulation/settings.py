"""The ``[simulation]`` table of a plan's draft: silos and data of a made-up federation.

It is read by ``cloister`` alone and is no part of the plan that the parties sign.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from protocol.encoding import from_table
from protocol.errors import EncodingError
from silo.config import CanaryConfig, DataConfig, check_value_range
from simulation.errors import SettingsRejected


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where the images come from.

    ``digits`` are scikit-learn's handwritten digits, which need no file. The other
    sources are those of a silo.
    """

    source: Literal["digits", "npz", "folder", "torchvision"] = "digits"
    path: str = ""
    dataset: str = ""
    value_range: tuple[float, ...] = (0.0, 255.0)
    download: bool = False

    def __post_init__(self) -> None:
        """Check the range."""
        check_value_range(self.value_range)

    def silo_config(self, split: Literal["train", "test"]) -> DataConfig:
        """Return the same source as a silo's configuration."""
        if self.source == "digits":
            raise ValueError("source: digits have no file")
        return DataConfig(
            source=self.source,
            path=self.path,
            dataset=self.dataset,
            split=split,
            value_range=self.value_range,
            download=self.download,
        )


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """How the images are dealt to the silos (FedDiffuse; NIID-Bench; McMahan et al.).

    ``concentration`` is the parameter of the Dirichlet distribution of the two skews;
    ``shards_per_silo`` is how many shards of one label, or nearly so, a silo is dealt.
    The published kinds are FedDiffuse's tables for five silos.
    """

    kind: Literal[
        "iid",
        "label-skew",
        "quantity-skew",
        "shards",
        "published-label-skew",
        "published-quantity-skew",
    ] = "iid"
    concentration: float = 0.5
    shards_per_silo: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.concentration < 1e6:
            raise ValueError("concentration: must be positive")
        if not 1 <= self.shards_per_silo <= 1000:
            raise ValueError("shards_per_silo: must be 1 to 1,000")


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """A federation on one machine.

    ``num_images`` images (0: all) are dealt to ``num_silos`` silos. The reference of
    the evaluation is the source's own test split, or, where ``held_out_images`` is
    positive, as many images that are kept from every silo. ``transport`` runs each
    silo as a process of its own behind a local socket, or all of them in this one.
    The threads are those of a silo's training and of the aggregator's sampling; small
    images want one. ``initial`` is the file of the parameters that the plan begins
    with; ``auxiliary`` that of the public images that it calibrates on. ``canaries``
    are those that every silo plants.
    """

    num_silos: int = 3
    num_images: int = 0
    held_out_images: int = 0
    transport: Literal["sockets", "memory"] = "sockets"
    threads_per_silo: int = 1
    aggregator_threads: int = 1
    initial: str = ""
    auxiliary: str = ""
    data: SourceConfig = SourceConfig()
    partition: PartitionConfig = PartitionConfig()
    canaries: CanaryConfig = CanaryConfig()

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 <= self.num_silos <= 1000:
            raise ValueError("num_silos: must be 1 to 1,000")
        for name in ("num_images", "held_out_images"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must not be negative")
        for name in ("threads_per_silo", "aggregator_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1")


def load_settings(
    table: Mapping[str, Any], draft_path: Path, data: Path | None = None
) -> SimulationConfig:
    """Return the settings of a draft; relative paths begin at the draft's folder.

    Args:
        data: an .npz file or folder to use instead of the draft's own source.

    Raises:
        SettingsRejected: a field is unknown or wrong, or there are no settings at all;
            one line that names it.
    """
    if not table and data is None:
        raise SettingsRejected(
            f"{draft_path}: has no [simulation] table, which says how many silos there "
            "are and what they hold"
        )
    try:
        config = from_table(SimulationConfig, table, "simulation")
    except EncodingError as error:
        raise SettingsRejected(f"{draft_path}: {error}") from None
    if config.initial:
        initial = (draft_path.parent / config.initial).resolve()
        config = replace(config, initial=str(initial))
    if config.auxiliary:
        auxiliary = (draft_path.parent / config.auxiliary).resolve()
        config = replace(config, auxiliary=str(auxiliary))
    source = config.data
    if data is not None:
        kind: Literal["folder", "npz"] = "folder" if data.is_dir() else "npz"
        source = replace(source, source=kind, path=str(data.resolve()))
    elif source.path:
        source = replace(source, path=str((draft_path.parent / source.path).resolve()))
    elif source.source != "digits":
        raise SettingsRejected(f"{draft_path}: simulation.data.path: is missing")
    return replace(config, data=source)
