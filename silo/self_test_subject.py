"""What a self-test tests: a plan's model and mechanism, some images, a device."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.config import UNetConfig
from diffusion.model import make_model
from diffusion.parameters import selected_layout
from diffusion.parts import DenoisingNetwork
from protocol.mechanism import calibrated
from protocol.plan import PlanDraft
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig
from silo.data import ImageSet
from silo.dpsgd import check_independence, validate
from silo.errors import ConfigRejected
from silo.observed import StepSeen, Watch, train_watched
from silo.per_example import GradientEngine, default_engine
from silo.private_training import multiplicity_of
from silo.randomness import PrivateRandom
from silo.units import PrivacyUnits, units_of

FALSE_ALARM_RATE = 1e-6
SHARE = FALSE_ALARM_RATE / 10
"""What each of at most ten random results may cost of it."""

DEFAULT_STEPS = 8
UNITS_PER_STEP = 16
"""Units expected in a step: few, at the plan's rate, so that a test takes seconds."""

MIN_UNITS = 8
MAX_UNITS = 4096
IMAGE_SIZE = 8
"""Of made-up images, where no plan and no images say otherwise."""


@dataclass(frozen=True)
class CheckResult:
    """What one check found, in words with its numbers; for the operator alone."""

    name: str
    passed: bool
    statement: str
    tolerance: str

    def line(self) -> str:
        """Return it as one line."""
        verdict = "PASS" if self.passed else "FAIL"
        permitted = f" (permitted: {self.tolerance})" if self.tolerance else ""
        return f"{verdict}  {self.name}: {self.statement}{permitted}"


@dataclass(frozen=True)
class Subject:
    """A plan's model and mechanism on some images, on a device.

    ``num_steps`` are the steps in which the noise is measured.
    """

    draft: PlanDraft
    images: ImageSet
    units: PrivacyUnits
    device: torch.device
    num_steps: int = DEFAULT_STEPS

    @property
    def privacy(self) -> PrivacyConfig:
        """The mechanism."""
        return self.draft.privacy

    @property
    def noise_stddev(self) -> float:
        """That of the noise in a sum."""
        return self.privacy.noise_multiplier * self.privacy.clipping_norm

    @property
    def multiplicity(self) -> int:
        """Draws per image."""
        return multiplicity_of(self.draft, self.device)

    def brief(self, steps: int, **privacy: Any) -> PlanDraft:
        """Return the draft with so many steps a round, and other numbers of privacy."""
        training = replace(self.draft.training, local_steps=steps, local_epochs=0)
        changed = replace(self.privacy, **privacy)
        return replace(self.draft, training=training, privacy=changed)

    def model(self) -> DenoisingNetwork:
        """Return the model as a run begins with it, what is frozen frozen."""
        model = make_model(self.draft.model, self.draft.seed_for("model"))
        if self.draft.training.local_parts == "frozen":
            update = self.draft.update
            layout = selected_layout(model, update.selection, update.parts)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in layout.names)
        return model.to(self.device)

    def engine(self) -> GradientEngine:
        """Return the engine that training would use here."""
        num_pixels = self.images.pixels[0].size
        return default_engine(self.model(), num_pixels, self.multiplicity)

    def watch(self, **options: Any) -> Watch:
        """Return that engine, watched."""
        norm = self.privacy.clipping_norm
        return Watch(self.engine(), clipping_norm=norm, **options)

    def first_units(self, count: int) -> PrivacyUnits:
        """Return the first of the units, so many at most."""
        starts = self.units.starts[: count + 1]
        return PrivacyUnits(self.units.kind, self.units.order[: starts[-1]], starts)

    def train(
        self,
        draft: PlanDraft,
        watch: Watch,
        seen: Callable[[StepSeen], None],
        *,
        images: ImageSet | None = None,
        units: PrivacyUnits | None = None,
    ) -> DenoisingNetwork:
        """Train privately; ``seen`` is told of every step. Return the model."""
        model = self.model()

        def released(values: Tensor) -> None:
            seen(watch.take(values))

        train_watched(
            model,
            self.images if images is None else images,
            self.units if units is None else units,
            draft,
            watch,
            released,
            device=self.device,
        )
        return model

    def train_one_step(self, watch: Watch, **options: Any) -> StepSeen:
        """Train one step with every unit and, as good as, without noise."""
        draft = self.brief(1, sample_rate=1.0, noise_multiplier=NO_NOISE)
        steps: list[StepSeen] = []
        self.train(draft, watch, steps.append, **options)
        (step,) = steps
        return step


NO_NOISE = 1e-12
"""A noise multiplier that shows what is there without noise."""


def make_subject(
    draft: PlanDraft | None,
    images: ImageSet | None,
    *,
    device: torch.device,
    num_steps: int = DEFAULT_STEPS,
) -> Subject:
    """Return what is to be tested.

    Args:
        draft: a plan or a draft; None for a small model and mechanism.
        images: the silo's own, of which a few units are used; None for made-up ones.

    Raises:
        ConfigRejected: the plan has no privacy mechanism, or no network.
        DataError: the images do not fit the model, or do not say whose they are.
        NotPrivate: the model mixes examples.
        Uncalibrated: no noise multiplier reaches the plan's target.
    """
    if draft is None:
        draft = _default_draft(images)
    if not draft.privacy.is_private:
        raise ConfigRejected(f'the plan "{draft.name}" has no privacy mechanism')
    if draft.model.is_central_images:
        raise ConfigRejected(
            "central images are released without training; test the mechanism on the "
            "plan of a network"
        )
    if draft.privacy.is_in_sum:
        raise ConfigRejected(
            f'the self-test is for dp-sgd; "{draft.privacy.mechanism}" has none yet'
        )
    mechanism = replace(calibrated(draft), epsilon=0.0)
    sections = {f.name: getattr(draft, f.name) for f in fields(PlanDraft)}
    draft = PlanDraft(**(sections | {"privacy": mechanism}))
    wanted = round(UNITS_PER_STEP / mechanism.sample_rate)
    num_units = min(MAX_UNITS, max(MIN_UNITS, wanted))
    if images is None:
        images = _made_up(draft, num_units)
    images.check_fits(draft.model)
    few = _few_units(images, units_of(images, mechanism.unit), num_units)
    subject = Subject(
        draft, few, units_of(few, mechanism.unit), device, num_steps=num_steps
    )
    model = subject.model().train()
    validate(model)
    size = draft.model.image_size
    check_independence(model, (draft.model.channels, size, size))
    return subject


def _default_draft(images: ImageSet | None) -> PlanDraft:
    """Return a small model, of the images' shape where it can be, and a mechanism."""
    size, channels = IMAGE_SIZE, 1
    if images is not None:
        _, size, _, channels = images.pixels.shape
    return PlanDraft(
        name="self-test",
        num_rounds=1,
        seed=0,
        model=UNetConfig(
            architecture="residual",
            dim=8,
            channels=channels,
            dim_mults=(1, 2),
            image_size=size,
        ),
        training=TrainingConfig(
            local_steps=100, examples_per_step=16, learning_rate=1e-3
        ),
        privacy=PrivacyConfig(
            mechanism="dp-sgd",
            delta=1e-5,
            noise_multiplier=1.0,
            sample_rate=0.1,
        ),
    )


def _made_up(draft: PlanDraft, num_units: int) -> ImageSet:
    """Return images of the model's shape; units of one image, or of 1, 2, … 8."""
    rng = np.random.default_rng(0)
    sizes = np.ones(num_units, np.int64)
    if draft.privacy.unit == "patient":
        sizes = 1 + np.arange(num_units) % 8
    size = draft.model.image_size
    shape = (int(sizes.sum()), size, size, draft.model.channels)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(len(pixels)) % max(1, draft.model.num_classes)
    return of_patients(ImageSet(pixels, (0.0, 255.0), labels), sizes)


def _few_units(images: ImageSet, units: PrivacyUnits, count: int) -> ImageSet:
    """Return the images of a few units, drawn at random, unit after unit."""
    chosen = np.arange(len(units))
    if len(units) > count:
        chosen = PrivateRandom().choose(len(units), count)
    mine = [units.images(int(unit)) for unit in chosen]
    indices = np.concatenate(mine)
    labels = None if images.labels is None else images.labels[indices]
    few = ImageSet(images.pixels[indices], images.value_range, labels)
    return of_patients(few, np.array([len(indices) for indices in mine]))


def of_patients(images: ImageSet, sizes: Any) -> ImageSet:
    """Return the images as those of patients who have so many each."""
    return replace(
        images,
        patients=np.repeat(np.arange(len(sizes)), sizes),
        patient_names=tuple(map(str, range(len(sizes)))),
    )
