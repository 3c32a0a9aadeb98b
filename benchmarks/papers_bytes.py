"""Bytes of the papers' settings on FedDiffuse's own network, predicted and counted.

15 rounds, five silos (six for usplit, which needs them under masks), the UNet of
2,996,315 parameters. All settings are predicted by ``protocol.traffic``; the two that a
target compares are run as well, and must count exactly that. What a run moves does not
depend on what is learnt: they take one step of one image a round.

Full float32 FedAvg, the baseline, sends the model down and an update up, four bytes a
value, in every round.

Results: ``benchmarks/results/papers_bytes.json``.
"""

import tempfile
from pathlib import Path

import numpy as np
import tomli_w
import torch
from rich.console import Console

from aggregator.state import shared_segments
from benchmarks.papers_grid import EIGHT, FLOAT, ROUNDS, Cell, Table, draft_of
from benchmarks.results_file import Row, row, save
from crypto.keys import IdentityKey
from protocol.plan import RunPlan, SiloParty, make_plan
from protocol.plan_files import load_draft
from protocol.traffic_range import run_range
from simulation.federation import make_federation
from simulation.run import run_federation
from simulation.settings import load_settings

BOTH_WAYS = {**EIGHT["update"], "broadcast_bits": 8}
SETTINGS = (
    Cell("full, float32, in the clear", changes=FLOAT),
    Cell("full, 16 bits"),
    Cell("usplit, 16 bits, six silos", "usplit", num_silos=6),
    Cell("ulatdec, 16 bits", "ulatdec"),
    Cell("udec, 16 bits", "udec"),
    Cell("full, 8 bits, rotated", changes=EIGHT),
    Cell("full, 8 bits, rotated, down-link 8", changes={"update": BOTH_WAYS}),
    Cell("udec, 8 bits, rotated, down-link 8", "udec", changes={"update": BOTH_WAYS}),
    Cell(
        "udec, 4 bits, rotated, down-link 4",
        "udec",
        changes={"update": {**BOTH_WAYS, "value_bits": 4, "broadcast_bits": 4}},
    ),
)
BASELINE = "full, float32, in the clear"
NUM_PARAMETERS = 2_996_315
TARGET = "udec, 8 bits, rotated, down-link 8"


def draft(cell: Cell) -> Table:
    """Return the setting with one step of one image a round."""
    made = draft_of(cell, 1, "paper")
    made["training"].pop("local_epochs")
    made["training"] |= {"local_steps": 1, "examples_per_step": 1}
    made["simulation"] |= {"num_images": 60, "held_out_images": 10}
    made["simulation"]["data"] = {"source": "npz", "path": "noise.npz"}
    made["evaluation"] = {"every_rounds": 0}
    return made


def plan_of(cell: Cell) -> RunPlan:
    """Return the plan of a setting, with parties that are made up."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "draft.toml"
        path.write_text(tomli_w.dumps(draft(cell)))
        keys = [IdentityKey.generate().public for _ in range(cell.num_silos + 1)]
        silos = [
            SiloParty(name=f"silo-{number}", identity_key=key.hex())
            for number, key in enumerate(keys[1:], start=1)
        ]
        return make_plan(load_draft(path)[0], keys[0], silos)


def counted(cell: Cell, folder: Path) -> tuple[int, int]:
    """Run a setting; return the bytes that its silos sent and received."""
    path, table = folder / "draft.toml", draft(cell)
    path.write_text(tomli_w.dumps(table))
    settings = load_settings(table["simulation"], path)
    federation = make_federation(folder / cell.name, load_draft(path)[0], settings)
    outcome = run_federation(federation, settings, Console(quiet=True), device="cpu")
    return outcome.sent_bytes, outcome.received_bytes


def main() -> None:
    """Predict all settings, run two, and keep the results."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for cell in SETTINGS:
        plan = plan_of(cell)
        moved, most = run_range(plan, shared_segments(plan))
        if moved != most:
            raise SystemExit(f"{cell.name}: the prediction is a range")
        both = moved.sent + moved.received
        base = ROUNDS["paper"] * cell.num_silos * 2 * 4 * NUM_PARAMETERS
        target = ">= 91" if cell.name == TARGET else ""
        rest = moved.protocol_up + moved.protocol_down
        rows += [
            row(f"{cell.name}: up", moved.sent, "B"),
            row(f"{cell.name}: down", moved.received, "B"),
            row(f"{cell.name}: protocol of both", 100 * rest / both, "%"),
            row(f"{cell.name}: less than FedAvg", 100 * (1 - both / base), "%", target),
        ]
        if cell.name in (TARGET, BASELINE):
            with tempfile.TemporaryDirectory() as name:
                noise = np.random.default_rng(0).integers(0, 256, (70, 28, 28), "u1")
                np.savez(Path(name) / "noise.npz", images=noise)
                sent, received = counted(cell, Path(name))
            wanted = f"== {moved.sent}", f"== {moved.received}"
            rows.append(row(f"{cell.name}: up, counted", sent, "B", wanted[0]))
            rows.append(row(f"{cell.name}: down, counted", received, "B", wanted[1]))
    print(save("papers_bytes", rows))


if __name__ == "__main__":
    main()
