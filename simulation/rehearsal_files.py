"""A rehearsal from the files that a command names, to files: JSON and one picture."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from protocol.errors import PlanRejected
from protocol.files import save_bytes, whole_folder
from protocol.plan import PlanDraft
from protocol.plan_files import load_draft, load_plan
from protocol.rehearsal import Rehearsal, save_rehearsal
from simulation.errors import SettingsRejected
from simulation.rehearsal_pages import rehearsal_png
from simulation.rehearsal_settings import QUICK, RehearsalSettings, public_images
from simulation.rehearse import Observe, Rehearsing
from simulation.settings import SimulationConfig, load_settings

JSON_FILE, PICTURE_FILE = "rehearsal.json", "rehearsal.png"


def load_any_plan(
    path: Path, data: Path | None
) -> tuple[PlanDraft, SimulationConfig, int]:
    """Return a draft or a signed plan, where its images come from, and its silos.

    A signed plan has no images: they are scikit-learn's digits unless ``data`` is
    given, as they are for a draft without a [simulation] table.

    Raises:
        PlanRejected, SettingsRejected: one line that names file and field.
    """
    try:
        draft, table = load_draft(path)
    except PlanRejected as error:
        if "belongs to a finished plan" not in str(error):
            raise
        plan = load_plan(path)
        config = load_settings({}, path, data) if data else SimulationConfig()
        return plan, config, len(plan.silos)
    if not table and data is None:
        return draft, SimulationConfig(), max(3, draft.protection.min_cohort)
    config = load_settings(table, path, data)
    return draft, config, config.num_silos


def rehearse_files(
    plan_path: Path,
    data: Path | None,
    out: Path | None,
    initial: Path | None,
    *,
    seed: int,
    is_quick: bool,
    observe: Observe,
) -> tuple[Rehearsal, Path]:
    """Rehearse a round of a plan; return what came of it, and the folder it is in.

    Raises:
        SettingsRejected: the folder exists, or the images or the plan will not do.
        PlanRejected, DataError, DiffusionError, EncryptionFailed: one line each;
            nothing is written.
    """
    plan, config, num_silos = load_any_plan(plan_path, data)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = out or Path("rehearsals") / f"{plan.name}-{stamp}"
    if folder.exists():
        raise SettingsRejected(f"{folder}: exists; choose another --out")
    images, words = public_images(config, plan, seed)
    torch.set_num_threads(config.aggregator_threads)
    settings = replace(QUICK if is_quick else RehearsalSettings(), seed=seed)
    first = initial or (Path(config.initial) if config.initial else None)
    rehearsing = Rehearsing(plan, images, words, settings, num_silos, first)
    rehearsal = rehearsing.run(observe)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as made:
        save_rehearsal(made / JSON_FILE, rehearsal)
        save_bytes(made / PICTURE_FILE, rehearsal_png(rehearsal))
    return rehearsal, folder
