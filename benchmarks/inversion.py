"""What gradient inversion reads off digits: by architecture, steps, silos, masks, DP.

    python -m benchmarks.inversion

Each row is the median PSNR over the images that were looked for, by ``cloister
rehearse`` on its example plan with another network, number of steps or number of silos.
A case that is in the results already is not run again.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from statistics import median

import torch

from benchmarks.results_file import RESULTS, Row, row, save
from protocol.plan import PlanDraft
from protocol.plan_files import load_draft
from protocol.rehearsal import View
from simulation.rehearsal_settings import RehearsalSettings, public_images
from simulation.rehearse import Rehearsing
from simulation.settings import SimulationConfig

NAME = "inversion"
SEED = 1


def cases() -> Iterator[tuple[str, PlanDraft, int]]:
    """Yield name, draft and number of silos of each case."""
    example = resources.files("simulation").joinpath("plans/digits.toml")
    with resources.as_file(example) as path:
        draft, _ = load_draft(path)
    for architecture in ("residual", "feddiffuse"):
        model = replace(draft.model, architecture=architecture)
        for steps, silos in ((1, 3), (16, 3), (16, 6)):
            training = replace(draft.training, local_steps=steps, examples_per_step=4)
            name = f"{architecture}, {steps} steps of 4, {silos} silos"
            yield name, replace(draft, model=model, training=training), silos


def rows_of(name: str, draft: PlanDraft, silos: int) -> Iterator[Row]:
    """Rehearse one case; yield a row a view."""
    images, words = public_images(SimulationConfig(), draft, SEED)
    settings = RehearsalSettings(seed=SEED)
    seen: list[View] = []
    Rehearsing(draft, images, words, settings, silos).run(seen.append)
    for view in seen:
        draws = "draws sought" if view.known.startswith("no draws") else ""
        title = ", ".join(filter(None, (name, view.setting, view.name, draws)))
        yield row(title, median(view.psnr), "dB")
        yield row(f"{title}, guess", median(view.psnr_guess), "dB")


def finished() -> list[Row]:
    """Return the rows of earlier calls."""
    path: Path = RESULTS / f"{NAME}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def main() -> None:
    """Run the cases that are missing; save after each."""
    torch.set_num_threads(1)
    rows = finished()
    for name, draft, silos in cases():
        if not any(str(each["name"]).startswith(name) for each in rows):
            rows += rows_of(name, draft, silos)
            save(NAME, rows, f"scikit-learn's digits, seed {SEED}")


if __name__ == "__main__":
    main()
