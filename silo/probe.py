"""A silo attacks the models of a finished run with its own images.

Members are images that this silo trained on; others are held-out images of the same
kind. What is attacked: ``global``, the finished model, where all of its parts are
federated; ``own``, this silo's own, where some of its parts never left; ``control``,
one that was overfitted on purpose (``silo.control``).

Curves and counts are signed and may be shown; they depend on real images and are not
differentially private. Images, scores of images and the picture of the likest pairs
stay in the run's folder, readable by its owner alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from diffusion.checkpoint import Checkpoint, choose_device, load_checkpoint
from diffusion.images import save_grid
from diffusion.model import make_model
from diffusion.parameters import parameters_digest, selected_layout
from privacy.attack_statistics import group_of_two
from protocol.files import SECRET_MODE, load_identity
from protocol.plan import RunPlan
from protocol.probe_report import (
    AttackResult,
    Memorisation,
    ProbeReport,
    Target,
    save_probe,
)
from protocol.records import Finished, PrivacySpent
from protocol.transcript import read_records
from protocol.version import SOFTWARE
from silo.attacks import ATTACKS
from silo.config import DataConfig, SiloConfig, SiloFolder
from silo.control import ControlConfig, load_or_train_control
from silo.data import ImageSet, load_images
from silo.errors import ConfigRejected, DataError, StateBroken
from silo.memorisation import likest_pairs, memorisation
from silo.probe_attacks import Guarantee, Sides, attack_model, tune
from silo.probe_words import in_words
from silo.store import MODEL_FILE, RunStore
from silo.tags import tags_of
from silo.training import Progress

FOLDER, CONTROL_FILE = "probe", "control.safetensors"
CONTROL_IMAGES, CONTROL_SAMPLES = 128, 256
MIN_IMAGES = 16
"""Fewer of either side say nothing; half of the control's are used for tuning."""
GRID_PIXELS = 64

Say = Callable[[str], None]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """How much is attacked and compared; ``seed`` repeats all of it."""

    max_members: int = 1000
    num_samples: int = 500
    control_steps: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class FinishedRun:
    """The model that a run left here, and what this silo's transcript says of it.

    ``own_digest`` is "" where all of the model is federated.
    """

    model: Checkpoint
    round_number: int
    shared_digest: str
    own_digest: str
    guarantee: Guarantee

    @property
    def target(self) -> Target:
        """Whose model it is."""
        return "own" if self.own_digest else "global"


def run_probe(
    plan: RunPlan,
    files: SiloFolder,
    config: SiloConfig,
    held_out: DataConfig,
    options: ProbeOptions,
    out: Path,
    say: Say,
    observe: Callable[[Progress], None],
) -> list[str]:
    """Attack a finished run's models; write the signed report, return it in words.

    Args:
        held_out: where the images are that the run never saw.
        say: is told what goes on.
        observe: is told how the control's training goes.

    Raises:
        SiloError, ProtocolError, DiffusionError: one line; no report is written.
    """
    if not out.parent.is_dir():
        raise ConfigRejected(f"--out: the folder {out.parent} does not exist")
    if plan.model.is_central_images:
        raise ConfigRejected("this run made central images; there is no network in it")
    identity = load_identity(files.identity)
    silo = plan.silos[plan.silo_index(identity.public)].name
    folder = files.run(plan)
    run = finished_run(plan, folder)
    images = load_images(config.data, files.root)
    others = load_images(held_out, files.root)
    for each in (images, others):
        each.check_fits(plan.model)
    check_disjoint(images, others)
    probe = Probe(
        plan,
        images,
        others,
        options,
        folder=folder / FOLDER,
        device=choose_device(config.compute.device),
        say=say,
        observe=observe,
    )
    attacks, found = probe.everything(run)
    report = ProbeReport(
        format=1,
        plan=plan.digest.hex(),
        silo=silo,
        software=SOFTWARE,
        round_number=run.round_number,
        model=run.shared_digest,
        own_model=run.own_digest,
        seed=options.seed,
        control_images=len(probe.control_members),
        control_steps=options.control_steps,
        attacks=attacks,
        memorisation=found,
    )
    save_probe(out, report, identity)
    return [
        *in_words(report),
        f"signed report: {out}; the likest pairs, for this silo alone: {probe.folder}",
    ]


def finished_run(plan: RunPlan, folder: Path) -> FinishedRun:
    """Return what a finished run left in this silo's folder of it.

    Raises:
        ConfigRejected: the run is not over here.
        StateBroken: the model is not the one that the run ended with.
        TranscriptBroken, DiffusionError: the files are damaged.
    """
    path = folder / MODEL_FILE
    if not path.exists():
        raise ConfigRejected(f"{path} does not exist: the run is not over here")
    model = load_checkpoint(path)
    records = [entry.record for entry in read_records(RunStore(folder).transcript)]
    ends = [record for record in records if isinstance(record, Finished)]
    if not ends:
        raise ConfigRejected(f"{folder}: its transcript knows no end of the run")
    network, update = make_model(plan.model, 0), plan.update
    shared = selected_layout(network, update.selection, update.parts)
    digest = parameters_digest(model.parameters, shared).hex()
    if digest != ends[-1].average:
        raise StateBroken(f"{path}: is not the model that the run ended with")
    whole = parameters_digest(model.parameters, selected_layout(network, "full"))
    spent = [record for record in records if isinstance(record, PrivacySpent)]
    return FinishedRun(
        model,
        ends[-1].round_number,
        digest,
        "" if update.is_complete else whole.hex(),
        guarantee_of(plan, spent[-1] if spent else None),
    )


def guarantee_of(plan: RunPlan, spent: PrivacySpent | None) -> Guarantee:
    """Return epsilon and delta that bound an attack on one image of this silo.

    From what the silo's ledger says it spent in this run; with all that it spent
    before, where the run began from an earlier one's parameters. Where a patient is
    protected, one of their images can be exchanged for nothing at the price of two
    units. (0, 0) where DP-SGD gives no guarantee.
    """
    if plan.privacy.mechanism != "dp-sgd" or spent is None:
        return 0.0, 0.0
    continues = plan.initial.origin == "run"
    epsilon = spent.account_epsilon if continues else spent.epsilon
    guarantee = (epsilon, plan.privacy.delta)
    return group_of_two(*guarantee) if plan.privacy.unit == "patient" else guarantee


def check_disjoint(images: ImageSet, held_out: ImageSet) -> None:
    """Refuse held-out images that were trained on, or whose patient was.

    Images are compared value for value (``silo.tags``).

    Raises:
        DataError: it says how many.
    """
    common = _num_common(_without_patients(images), _without_patients(held_out))
    if common:
        raise DataError(
            f"{common:,} of the held-out images are training images of this silo; "
            "take them out: they would count as not trained on"
        )
    patients = set(images.patient_names) & set(held_out.patient_names)
    if patients:
        raise DataError(
            f"{len(patients):,} patients have held-out images and training images; "
            "take them out of the held-out ones"
        )


def _num_common(images: ImageSet, held_out: ImageSet) -> int:
    """Return how many different held-out images are also in the other set."""
    key = bytes(32)  # The tags go nowhere.
    return len(np.intersect1d(tags_of(images, key), tags_of(held_out, key)))


def _without_patients(images: ImageSet) -> ImageSet:
    """Return the same images as nobody's."""
    return replace(images, patients=None, patient_names=())


class Probe:
    """One silo's attacks on its models, with the images that they are made with.

    Args:
        folder: for what stays here: the control, and pictures of pairs.

    Raises:
        DataError: too few images of one side.
    """

    def __init__(
        self,
        plan: RunPlan,
        images: ImageSet,
        held_out: ImageSet,
        options: ProbeOptions,
        *,
        folder: Path,
        device: torch.device,
        say: Say,
        observe: Callable[[Progress], None],
    ) -> None:
        fewest = min(len(images), len(held_out))
        if fewest < MIN_IMAGES:
            raise DataError(
                f"{len(images):,} images and {len(held_out):,} held-out ones: a probe "
                f"needs {MIN_IMAGES} of each"
            )
        self.folder = folder
        self._plan, self._options, self._device = plan, options, device
        self._images, self._held_out = images, held_out
        self._say, self._observe = say, observe
        order = np.random.default_rng([options.seed, 1]).permutation
        self._members, self._others = order(len(images)), order(len(held_out))
        count = min(CONTROL_IMAGES, fewest)
        self.control_members: Indices = order(len(images))[:count]
        self._sides = Sides(images, held_out, bool(plan.model.num_classes), device)

    def everything(
        self, run: FinishedRun
    ) -> tuple[tuple[AttackResult, ...], tuple[Memorisation, ...]]:
        """Return all results: of the run's model first, then of the control."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        control = self._control()
        tuning, testing = self._halves()
        self._say("finding the attacks' timesteps on one half of the control's images")
        seed = self._options.seed
        chosen = [tune(name, control, self._sides, *tuning, seed) for name in ATTACKS]
        count = min(len(self._images), len(self._held_out), self._options.max_members)
        members, others = self._members[:count], self._others[:count]
        attacks: list[AttackResult] = []
        for target, model, one, two, guarantee in (
            (run.target, run.model, members, others, run.guarantee),
            ("control", control, *testing, (0.0, 0.0)),
        ):
            for setting in chosen:
                self._say(f"{target}: {setting.attack} on {len(one)} + {len(two)}")
                attacks.append(
                    attack_model(
                        setting, target, model, self._sides, one, two, guarantee, seed
                    )
                )
        found = [
            self._memorised(run.target, run.model, self._images),
            self._memorised("control", control, self._control_images()),
        ]
        return tuple(attacks), tuple(found)

    def _control_images(self) -> ImageSet:
        """Return the images of the control."""
        chosen = self.control_members
        labels = None if self._images.labels is None else self._images.labels[chosen]
        return replace(
            _without_patients(self._images),
            pixels=self._images.pixels[chosen],
            labels=labels,
        )

    def _control(self) -> Checkpoint:
        """Return the control, trained or as it was kept."""
        steps = self._options.control_steps
        count = len(self.control_members)
        self._say(f"control: {steps:,} steps on {count} images")
        return load_or_train_control(
            self.folder / CONTROL_FILE,
            self._plan,
            self._control_images(),
            ControlConfig(num_steps=steps, seed=self._options.seed),
            device=self._device,
            observe=self._observe,
        )

    def _halves(self) -> tuple[tuple[Indices, Indices], tuple[Indices, Indices]]:
        """Return the control's members and others for tuning, and for its result."""
        count = len(self.control_members)
        others, half = self._others[:count], count // 2
        return (
            (self.control_members[:half], others[:half]),
            (self.control_members[half:], others[half:]),
        )

    def _memorised(
        self, target: Target, model: Checkpoint, training: ImageSet
    ) -> Memorisation:
        """Return how a model's samples compare, and keep a picture of the pairs."""
        most = self._options.num_samples if target != "control" else CONTROL_SAMPLES
        count = min(len(training), len(self._held_out), most)
        self._say(f"{target}: {most:,} samples beside {count:,} + {count:,} images")
        samples = model.images(seed=self._options.seed, count=most, device=self._device)
        order = np.random.default_rng([self._options.seed, 2]).permutation
        found = memorisation(
            target,
            samples,
            training,
            self._held_out,
            chosen=order(len(training))[:count],
            chosen_held_out=order(len(self._held_out))[:count],
        )
        if self._plan.model.channels in (1, 3):
            path = self.folder / f"pairs-{target}.png"
            pairs = likest_pairs(samples, training, found.everywhere)
            enlarge = max(1, GRID_PIXELS // self._plan.model.image_size)
            save_grid(path, pairs, 8, enlarge)
            path.chmod(SECRET_MODE)
        return found.result
