"""The grid of ``benchmarks/papers.py``: which runs there are, each a draft of a plan.

Two scales. ``small`` is what two CPU cores finish: Fashion-MNIST at 14×14, a residual
UNet of 163,985 parameters, 6,000 images, 12 rounds of one epoch. ``paper`` is
FedDiffuse's own setting, for a GPU: 28×28, its UNet of 2,996,315 parameters, 60,000
images, 15 rounds of five epochs. Everything else is the same code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Scale = Literal["small", "paper"]
Table = dict[str, Any]

SELECTIONS = ("full", "usplit", "ulatdec", "udec")
PARTITIONS: Mapping[str, str] = {
    "iid": "iid",
    "label skew": "published-label-skew",
    "quantity skew": "published-quantity-skew",
}
"""The partitions at K = 5; with other numbers of silos the skews are drawn."""
DRAWN: Mapping[str, str] = {
    "iid": "iid",
    "label skew": "label-skew",
    "quantity skew": "quantity-skew",
}
ROUNDS: Mapping[Scale, int] = {"small": 12, "paper": 15}
IMAGES: Mapping[Scale, int] = {"small": 6_000, "paper": 60_000}
EPOCHS: Mapping[Scale, int] = {"small": 1, "paper": 5}
BATCH: Mapping[Scale, int] = {"small": 32, "paper": 128}


@dataclass(frozen=True)
class Cell:
    """One setting; with a seed it is a run.

    ``changes`` are sections of the draft that differ from the plain setting;
    ``central`` counts optimizer steps where all images are in one place, as multiples
    of what one silo takes (0: a federation). ``exact`` compares every round's mean with
    the mean of the silos' own updates.
    """

    name: str
    selection: str = "full"
    partition: str = "iid"
    num_silos: int = 5
    changes: Mapping[str, Table] = field(default_factory=dict)
    central: int = 0
    exact: bool = False


FLOAT = {"update": {"form": "float32"}, "protection": {"method": "none"}}
EIGHT = {"update": {"value_bits": 8, "rotation": True}}


def _bits(bits: int, **more: Any) -> Mapping[str, Table]:
    """Return the sections of an update of so many bits."""
    return {"update": {"value_bits": bits, **more}}


def cells() -> list[Cell]:
    """Return all settings, the most wanted first."""
    grid = [
        Cell(f"{selection}, {partition}, K = {silos}", selection, partition, silos)
        for silos in (5, 10, 2)
        for partition in PARTITIONS
        for selection in SELECTIONS
    ]
    first, rest = grid[: 4 * len(PARTITIONS)], grid[4 * len(PARTITIONS) :]
    return [*first, *_transport(), *_central(), *_heterogeneous(), *rest]


def _transport() -> list[Cell]:
    """Return FedDM-quant: bits, rotation, error feedback, the down-link."""
    down = {"value_bits": 8, "rotation": True, "broadcast_bits": 8}
    return [
        Cell("full, float32", changes=FLOAT, exact=True),
        Cell("udec, float32", "udec", changes=FLOAT),
        Cell("full, 8 bits, rotated", changes=EIGHT, exact=True),
        Cell("udec, 8 bits, rotated, down-link 8", "udec", changes={"update": down}),
        Cell("full, down-link 8, 8 bits, rotated", changes={"update": down}),
        Cell("full, 4 bits, rotated", changes=_bits(4, rotation=True), exact=True),
        Cell(
            "full, 4 bits, rotated, error feedback",
            changes=_bits(4, rotation=True, error_feedback=True),
            exact=True,
        ),
        Cell("full, 8 bits", changes=_bits(8), exact=True),
        Cell("full, 4 bits", changes=_bits(4), exact=True),
        Cell(
            "full, 4 bits, error feedback",
            changes=_bits(4, error_feedback=True),
            exact=True,
        ),
    ]


def _central() -> list[Cell]:
    """Return training in one place: the steps of one silo, and those of all."""
    return [
        Cell("central, steps of one silo", central=1),
        Cell("central, examples of all silos", central=5),
    ]


def _heterogeneous() -> list[Cell]:
    """Return what is said to help under label skew, at equal total compute."""
    skew: dict[str, Any] = {"partition": "label skew"}
    return [
        *(
            Cell(
                f"prox {mu:g}, label skew",
                changes={"training": {"proximal_mu": mu}},
                **skew,
            )
            for mu in (0.001, 0.01, 0.1)
        ),
        Cell("FedDDPM, label skew", changes={"calibration": FEDDDPM}, **skew),
        Cell("FedDDPM+, label skew", changes={"calibration": FEDDDPM_PLUS}, **skew),
    ]


FEDDDPM: Table = {
    "when": "every-round",
    "images": "aggregate",
    "source_round": 6,
    "num_images": 600,
    "steps": 38,
    "learning_rate": 2e-4,
    "examples_per_step": 32,
}
"""After each round from the seventh on, on 600 samples of the sixth global model (10 %
of all images; methods.md's proposal is 1 to 5 %): as many steps as one silo takes in a
round, at a tenth of its learning rate."""

FEDDDPM_PLUS: Table = {
    **FEDDDPM,
    "when": "slow-learning",
    "steps": 190,
    "window": 3,
    "min_improvement": 0.05,
}
"""One correction of five rounds' steps, when the auxiliary loss falls slower than 5 %
over three rounds: twelve rounds are too few for a window of five and 1 %."""


def draft_of(cell: Cell, seed: int, scale: Scale) -> Table:
    """Return the draft of a run as a table, ``[simulation]`` included."""
    is_small = scale == "small"
    is_open = (cell.selection == "usplit" and cell.num_silos < 6) or cell.num_silos < 3
    draft: Table = {
        "name": "papers",
        "num_rounds": ROUNDS[scale],
        "seed": seed,
        "model": {
            "architecture": "residual" if is_small else "feddiffuse",
            "dim": 16 if is_small else 28,
            "channels": 1,
            "dim_mults": [1, 2] if is_small else [1, 2, 4],
            "image_size": 14 if is_small else 28,
        },
        "schedule": {"kind": "linear"},
        "training": {
            "local_epochs": EPOCHS[scale],
            "examples_per_step": BATCH[scale],
            "learning_rate": 2e-3 if is_small else 1e-4,
            "optimizer_state": "fresh",
            "loss": "huber",
        },
        "update": {
            "selection": cell.selection,
            "clipping_norm": 10.0,
            "clipping": "previous-mean",
            "weights": "declared",
        },
        "protection": {
            "method": "none" if is_open else "mask",
            "min_cohort": 2 if is_open else 3,
        },
        "evaluation": {"sampler": {"kind": "ddim", "num_steps": 50}},
        "deadlines": {"training_seconds": 1e6},
        "simulation": {
            "num_silos": cell.num_silos,
            "num_images": IMAGES[scale],
            "transport": "memory",
            "partition": {"kind": _partition(cell)},
        },
    }
    for section, fields in cell.changes.items():
        draft.setdefault(section, {}).update(fields)
    if draft["update"].get("form") == "float32":
        draft["update"]["clipping"] = "fixed"
        draft["update"]["clipping_norm"] = 1e6
    return draft


def _partition(cell: Cell) -> str:
    """Return the kind of partition: the published one where there is one."""
    kinds = PARTITIONS if cell.num_silos == 5 else DRAWN
    return kinds[cell.partition]


def is_open(cell: Cell) -> bool:
    """Return whether a cell's updates travel in the clear, in the simulation only."""
    return draft_of(cell, 0, "small")["protection"]["method"] == "none"
