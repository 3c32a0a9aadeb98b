"""What a rehearsal does with a plan: the drafts that it carries out, and on what.

A rehearsed round is one round by itself: the whole learning rate, Adam's moments fresh,
equal weights, nothing carried over. Each of these makes an attack easier or leaves it
as it is.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aggregator.state import with_num_values
from privacy.calibration import calibrate
from protocol.aggregation_settings import EvaluationConfig
from protocol.calibration_settings import CalibrationConfig
from protocol.mechanism import calibrated, steps_per_round
from protocol.plan import PlanDraft
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import InitialConfig
from protocol.update_settings import ProtectionConfig, UpdateConfig
from silo.config import CONFIG_FILE, IDENTITY_FILE
from silo.data import ImageSet, load_images
from simulation.errors import SettingsRejected
from simulation.settings import SimulationConfig
from simulation.sources import load_pool, subset

MAX_SILOS = 8
EXAMPLE_EPSILON, EXAMPLE_DELTA = 10.0, 1e-5
QUICK_STEPS = 2
BLANK_SPREAD = 0.02
SMALL_PIXELS = 8
SILO_FILES = (CONFIG_FILE, IDENTITY_FILE)


@dataclass(frozen=True, kw_only=True)
class RehearsalSettings:
    """How thorough a rehearsal is.

    In the worst case an attack is begun ``restarts`` times, else once. ``num_sought``
    images at most are looked for at once; ``start_steps`` steps on
    public images stand for the rounds before, because a network that was just drawn
    has layers of zeros, which hide more than any later round does.
    """

    seed: int = 1
    iterations: int = 120
    restarts: int = 4
    num_sought: int = 6
    start_steps: int = 100
    is_quick: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("iterations", 1), ("restarts", 1), ("num_sought", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}")


QUICK = RehearsalSettings(
    iterations=8, restarts=1, num_sought=2, start_steps=10, is_quick=True
)


def public_images(
    config: SimulationConfig, draft: PlanDraft, seed: int
) -> tuple[ImageSet, str]:
    """Return the public images of a rehearsal in an order of the seed's, and in words.

    Raises:
        SettingsRejected: they lie in a silo's folder, or are fewer than are needed.
        DataError: missing, unusable, or not such that the plan's model takes them.
    """
    source = config.data
    if source.source == "digits":
        images, words = load_pool(config, seed).dealt, "scikit-learn's digits"
    else:
        check_not_a_silos(Path(source.path))
        images = load_images(source.silo_config("train"), Path())
        words = f"{source.dataset or source.source} images given as public"
    images.check_fits(draft.model)
    if len(images) < 2 * MAX_SILOS:
        raise SettingsRejected(
            f"a rehearsal needs at least {2 * MAX_SILOS} images, here are {len(images)}"
        )
    order = np.random.default_rng(seed).permutation(len(images))
    height, width, channels = images.pixels.shape[1:]
    return (
        subset(images, order),
        f"{words}: {len(images):,} of {height}×{width}×{channels}",
    )


def check_not_a_silos(path: Path) -> None:
    """Refuse images that lie in, or below, the folder of a silo.

    Raises:
        SettingsRejected: a rehearsal shows its images; it is for public ones.
    """
    for folder in (path.resolve(), *path.resolve().parents):
        for name in SILO_FILES:
            if (folder / name).exists():
                raise SettingsRejected(
                    f"{path}: lies in the folder of a silo ({name} is there); a "
                    "rehearsal shows its images and is for public ones only"
                )


def warnings_about(
    images: ImageSet, sought: npt.NDArray[np.float32]
) -> tuple[str, ...]:
    """Return what whoever reads the pictures should know of the images.

    Args:
        sought: images ``[n, c, h, w]`` in [-1, 1] that are looked for.
    """
    warnings = []
    height, width = images.pixels.shape[1:3]
    if min(height, width) < SMALL_PIXELS:
        warnings.append(
            f"images of {height}×{width} pixels are so small that a PSNR says little"
        )
    blank = int((sought.reshape(len(sought), -1).std(axis=1) < BLANK_SPREAD).sum())
    if blank:
        warnings.append(
            f"{blank} of the images that are looked for are blank: a blank guess "
            "finds them"
        )
    return tuple(warnings)


def bare(draft: PlanDraft, num_silos: int) -> PlanDraft:
    """Return one round of a draft without a mechanism, hidden, by itself.

    Updates are encrypted where the plan has them encrypted, else masked.

    Raises:
        SettingsRejected: the plan trains no network, or has one silo only.
    """
    if draft.model.is_central_images:
        raise SettingsRejected(
            "the plan releases central images and trains no network: there is no "
            "gradient to invert"
        )
    if num_silos < 2:
        raise SettingsRejected("a rehearsal needs at least 2 silos: one has no mean")
    update = UpdateConfig(
        selection="full" if draft.update.is_dealt else draft.update.selection,
        parts=draft.update.parts,
        clipping_norm=draft.update.clipping_norm,
        value_bits=draft.update.value_bits,
        rotation=draft.update.rotation,
        rounding="nearest",
    )
    training = replace(
        draft.training,
        warm_up_fraction=0.0,
        final_learning_rate_fraction=1.0,
        optimizer_state="fresh",
        train_unassigned=True,
        local_parts="trained" if update.is_complete else draft.training.local_parts,
    )
    protection = ProtectionConfig(
        method="bfv" if draft.protection.is_encrypted else "mask",
        min_cohort=min(num_silos, 3),
        max_colluding=1 if num_silos >= 3 else 0,
    )
    return replace(
        plain_draft(draft),
        num_rounds=1,
        initial=InitialConfig(),
        training=training,
        update=update,
        protection=protection,
        privacy=PrivacyConfig(),
        calibration=CalibrationConfig(),
        evaluation=EvaluationConfig(),
    )


def plain_draft(plan: PlanDraft) -> PlanDraft:
    """Return a draft, or what a finished plan says beside its parties, as a draft."""
    names = PlanDraft.__dataclass_fields__
    return PlanDraft(**{name: getattr(plan, name) for name in names})


def worst_case(draft: PlanDraft) -> PlanDraft:
    """Return a bare draft with one example and one step in every silo."""
    training = replace(
        draft.training,
        local_steps=1,
        local_epochs=0,
        examples_per_step=1,
        proximal_mu=0.0,
    )
    return replace(draft, training=training)


def cut_short(draft: PlanDraft) -> PlanDraft:
    """Return a draft of a few steps, for a quick rehearsal."""
    steps = min(draft.training.local_steps or QUICK_STEPS, QUICK_STEPS)
    if steps == 1:
        return draft
    training = replace(draft.training, local_steps=steps, local_epochs=0)
    return replace(draft, training=training)


def starting(draft: PlanDraft, steps: int) -> PlanDraft:
    """Return a bare draft of the steps that stand for the rounds before."""
    training = replace(
        draft.training, local_steps=steps, local_epochs=0, proximal_mu=0.0
    )
    return replace(draft, training=training, seed=draft.seed ^ 1)


def with_mechanism(
    bare_draft: PlanDraft, plan: PlanDraft, num_images: int
) -> tuple[PlanDraft, str]:
    """Return a bare draft with DP-SGD: the plan's noise, or an example's; and in words.

    Where the plan has no mechanism it is epsilon 10 at delta 1e-5 for this one round.

    Args:
        num_images: of one silo; all are sought where there is one.

    Raises:
        Uncalibrated: no noise reaches the plan's target.
    """
    if plan.privacy.mechanism == "dp-sgd":
        privacy = calibrated(plan)
        words = f"the plan's DP-SGD, noise multiplier {privacy.noise_multiplier:g}"
        multiplier, rate = privacy.noise_multiplier, privacy.sample_rate
        norm, multiplicity = privacy.clipping_norm, privacy.multiplicity
    else:
        norm, multiplicity = 1.0, 1
        rate = min(1.0, bare_draft.training.examples_per_step / num_images)
        words = (
            f"DP-SGD as an example (the plan has none of its own): epsilon "
            f"{EXAMPLE_EPSILON:g} at delta {EXAMPLE_DELTA:g} for this round"
        )
        multiplier = 0.0
    if num_images == 1:
        rate, multiplicity = 1.0, 1
    privacy = PrivacyConfig(
        mechanism="dp-sgd",
        delta=EXAMPLE_DELTA,
        noise_multiplier=multiplier or 1.0,
        clipping_norm=norm,
        sample_rate=rate,
        multiplicity=multiplicity,
    )
    draft = replace(bare_draft, privacy=privacy)
    if not multiplier:
        multiplier = calibrate(
            EXAMPLE_EPSILON,
            EXAMPLE_DELTA,
            sample_rate=rate,
            clipping_norm=norm,
            steps=steps_per_round(draft),
        )
        draft = replace(draft, privacy=replace(privacy, noise_multiplier=multiplier))
        words += f", noise multiplier {multiplier:.3g}"
    return draft, words


def with_noise_in_sum(plan: PlanDraft) -> PlanDraft:
    """Return a draft whose noise lies in the secure sum, as the plan has it.

    Raises:
        PlanRejected: the plan counts its values wrongly.
    """
    return with_num_values(
        replace(
            plain_draft(plan),
            initial=InitialConfig(),
            protection=replace(plan.protection, key_maker=""),
            evaluation=EvaluationConfig(),
        )
    )
