"""A made-up federation on disk: keys, plan, approvals, and each silo's share of images.

::

    RUN/
      plan.toml                 signed
      reference.npz             statistics of the held-out images
      held-out.npz              those images, for `silo probe`
      aggregator/               as `aggregator init` makes it
      silos/silo-1/ …           as `silo init` makes it, with data.npz
"""

import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w

from aggregator.config import AggregatorFolder
from aggregator.state import with_num_values
from crypto.keys import IdentityKey
from protocol.encoding import to_table
from protocol.files import save_bytes, save_identity, whole_folder
from protocol.plan import PlanDraft, RunPlan, SiloParty, make_plan
from protocol.plan_files import load_plan, save_plan
from silo.config import ComputeConfig, DataConfig, SiloConfig, SiloFolder
from silo.data import ImageSet
from silo.policy import Policy
from silo.reference import save_reference
from simulation.errors import SettingsRejected
from simulation.partition import partition
from simulation.settings import SimulationConfig
from simulation.sources import Pool, load_pool, subset

PLAN_FILE = "plan.toml"
REFERENCE_FILE = "reference.npz"
HELD_OUT_FILE = "held-out.npz"
DATA_FILE = "data.npz"


@dataclass(frozen=True)
class Federation:
    """The files of a simulated federation."""

    root: Path

    @property
    def plan_path(self) -> Path:
        """The signed plan."""
        return self.root / PLAN_FILE

    @property
    def reference(self) -> Path:
        """The reference statistics."""
        return self.root / REFERENCE_FILE

    @property
    def aggregator(self) -> AggregatorFolder:
        """The aggregator's folder."""
        return AggregatorFolder(self.root / "aggregator")

    def silo(self, name: str) -> SiloFolder:
        """A silo's folder."""
        return SiloFolder(self.root / "silos" / name)

    def load_plan(self) -> RunPlan:
        """Return the plan.

        Raises:
            PlanRejected: missing or malformed.
        """
        return load_plan(self.plan_path)


def make_federation(
    root: Path,
    draft: PlanDraft,
    config: SimulationConfig,
    *,
    weights: Path | None = None,
) -> Federation:
    """Make a federation's folder; it appears whole or not at all.

    Raises:
        SettingsRejected: the folder exists, or the settings cannot be carried out.
        DataError: the images cannot be used.
        PlanRejected: the draft does not permit so many silos.
    """
    if root.exists():
        raise SettingsRejected(
            f"{root}: exists; continue it with --resume, or choose another --out"
        )
    seed = draft.seed_for("partition")
    pool = load_pool(config, seed)
    pool.dealt.check_fits(draft.model)
    shares = partition(
        config.partition, len(pool.dealt), pool.dealt.labels, config.num_silos, seed
    )
    aggregator = IdentityKey.generate()
    keys = {
        f"silo-{number + 1}": IdentityKey.generate() for number in range(len(shares))
    }
    is_declared = draft.update.weights == "declared"
    parties = [
        SiloParty(
            name=name,
            identity_key=key.public.hex(),
            weight=float(len(share)) if is_declared else 1.0,
        )
        for (name, key), share in zip(keys.items(), shares, strict=True)
    ]
    plan = make_plan(with_num_values(draft), aggregator.public, parties)
    root.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(root) as folder:
        federation = Federation(folder)
        federation.aggregator.root.mkdir()
        save_identity(federation.aggregator.identity, aggregator)
        public = aggregator.public.hex().encode() + b"\n"
        save_bytes(federation.aggregator.public, public)
        save_plan(federation.plan_path, plan, aggregator)
        for (name, key), share in zip(keys.items(), shares, strict=True):
            _make_silo(federation.silo(name), plan, key, config, pool, share)
        if config.initial:
            _copy_initial(Path(config.initial), federation, list(keys))
        if config.auxiliary:
            _copy(
                Path(config.auxiliary), "auxiliary", [federation.aggregator.auxiliary]
            )
        save_bytes(folder / HELD_OUT_FILE, images_to_npz(pool.held_out))
        if plan.evaluation.needs_published:
            save_reference(
                federation.reference,
                pool.held_out,
                plan.evaluation.extractor,
                weights,
                sha256=plan.evaluation.extractor_sha256 or None,
            )
    return Federation(root)


def _make_silo(
    folder: SiloFolder,
    plan: RunPlan,
    key: IdentityKey,
    config: SimulationConfig,
    pool: Pool,
    share: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> None:
    """Make one silo's folder, with its images and its approval of the plan."""
    folder.root.mkdir(parents=True, mode=0o700)
    save_identity(folder.identity, key)
    save_bytes(folder.public, key.public.hex().encode() + b"\n")
    silo_config = SiloConfig(
        data=DataConfig(path=DATA_FILE, value_range=pool.dealt.value_range),
        compute=ComputeConfig(device="auto", threads=config.threads_per_silo),
        canaries=config.canaries,
    )
    policy = Policy(
        min_cohort=min(Policy().min_cohort, plan.protection.min_cohort),
        permitted_protections=(plan.protection.method,),
        min_colluding=min(Policy().min_colluding, plan.protection.max_colluding),
        accept_semi_honest=plan.protection.trust == "semi-honest",
        permit_reference=plan.evaluation.is_pooled,
        max_delta=max(Policy().max_delta, plan.privacy.delta),
        permitted_auxiliary_images=tuple(
            dict.fromkeys(
                (*Policy().permitted_auxiliary_images, plan.calibration.images)
            )
        ),
    )
    save_bytes(folder.config, tomli_w.dumps(to_table(silo_config)).encode())
    save_bytes(folder.policy, tomli_w.dumps(to_table(policy)).encode())
    save_bytes(folder.root / DATA_FILE, images_to_npz(subset(pool.dealt, share)))
    folder.approval(plan).parent.mkdir()
    save_bytes(folder.approval(plan), plan.name.encode() + b"\n")


def _copy_initial(path: Path, federation: Federation, silos: Sequence[str]) -> None:
    """Give every party the parameters that the plan begins with."""
    targets = [federation.silo(name).initial for name in silos]
    _copy(path, "initial", [federation.aggregator.initial, *targets])


def _copy(path: Path, name: str, targets: Sequence[Path]) -> None:
    """Copy the file that a setting names."""
    if not path.is_file():
        raise SettingsRejected(f"simulation.{name}: {path}: there is no such file")
    for target in targets:
        shutil.copyfile(path, target)


def images_to_npz(images: ImageSet) -> bytes:
    """Return images, and labels where there are any, as an .npz file."""
    buffer = io.BytesIO()
    arrays = {"images": images.pixels}
    if images.labels is not None:
        arrays["labels"] = images.labels
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
