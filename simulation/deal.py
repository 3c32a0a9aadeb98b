"""Public images dealt into files, to try the three roles by hand."""

from pathlib import Path

from protocol.files import save_bytes, whole_folder
from protocol.plan import PlanDraft
from silo.reference import save_reference
from simulation.errors import SettingsRejected
from simulation.federation import HELD_OUT_FILE, REFERENCE_FILE, images_to_npz
from simulation.partition import partition
from simulation.settings import SimulationConfig
from simulation.sources import load_pool, subset


def deal(
    root: Path, draft: PlanDraft, config: SimulationConfig, weights: Path | None = None
) -> tuple[list[Path], tuple[float, float]]:
    """Write each silo's share as an .npz file, held-out images and their statistics.

    Returns:
        The files of the shares, and the range of their values.

    Raises:
        SettingsRejected: the folder exists, or the settings cannot be carried out.
        DataError: the images cannot be used.
    """
    if root.exists():
        raise SettingsRejected(f"{root}: exists; choose another --out")
    seed = draft.seed_for("partition")
    pool = load_pool(config, seed)
    pool.dealt.check_fits(draft.model)
    shares = partition(
        config.partition, len(pool.dealt), pool.dealt.labels, config.num_silos, seed
    )
    names = [f"silo-{number}.npz" for number in range(1, len(shares) + 1)]
    root.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(root) as folder:
        for name, share in zip(names, shares, strict=True):
            save_bytes(folder / name, images_to_npz(subset(pool.dealt, share)))
        save_bytes(folder / HELD_OUT_FILE, images_to_npz(pool.held_out))
        if draft.evaluation.is_asked_for:
            save_reference(
                folder / REFERENCE_FILE,
                pool.held_out,
                draft.evaluation.extractor,
                weights,
                sha256=draft.evaluation.extractor_sha256 or None,
            )
    return [root / name for name in names], pool.dealt.value_range
