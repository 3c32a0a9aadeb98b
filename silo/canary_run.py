"""The canaries of one silo in one run, from the commitment to the opening.

Order: draw the seeds and keep them (``fsync``) → commit to them in the transcript →
train, scores kept on disk at every checkpoint → open them at the end, before the last
head. What a run began with holds until its end, whatever silo.toml says meanwhile.

Every noised step is scored at most once. A step that the ledger counts and a crash
kept from being scored is missing from the scores: their number of steps is at most the
ledger's, and equal to it where nothing crashed.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from diffusion.checkpoint import Checkpoint
from protocol.audit_records import CanariesCommitted, CanariesOpened
from protocol.canaries import CANARY_SEED_BYTES, CanaryForm, canary_commitment
from protocol.encoding import check_hex, decode, encode, from_table, to_table
from protocol.errors import EncodingError
from protocol.files import load_secret, save_secret
from protocol.plan import PlanDraft
from silo.canaries import GradientCanaries, Scored
from silo.canary_images import canary_images, image_scores, with_canaries
from silo.canary_plan import canary_refusals
from silo.check import count_trained
from silo.config import CanaryConfig
from silo.errors import ConfigRejected, StateBroken
from silo.evidence import Evidence
from silo.randomness import PrivateRandom
from silo.resources import LocalResources
from silo.store import RunStore

CANARIES_FILE = "canaries-{form}"
DECIMALS = 6
"""Of a score as it is published."""

Record = CanariesCommitted | CanariesOpened


@dataclass(frozen=True, kw_only=True)
class KeptCanaries:
    """What a silo keeps of its canaries of one form; secret until they are opened.

    ``scores`` are empty before anything was scored, and always for images, whose
    scores are computed at the end.
    """

    form: CanaryForm
    num_canaries: int
    seed: str = field(repr=False)
    num_steps: int = 0
    scores: tuple[float, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Check the seed, and that every canary has a score or none has."""
        check_hex("seed", self.seed, CANARY_SEED_BYTES)
        if len(self.scores) not in (0, self.num_canaries) or self.num_steps < 0:
            raise ValueError("scores, num_steps: do not fit the number of canaries")

    @property
    def seed_bytes(self) -> bytes:
        """The seed."""
        return bytes.fromhex(self.seed)

    def after(self, scored: Scored) -> "KeptCanaries":
        """Return these with the scores of further steps."""
        before = np.array(self.scores) if self.scores else np.zeros(self.num_canaries)
        return replace(
            self,
            num_steps=self.num_steps + scored.num_steps,
            scores=tuple((before + scored.scores).tolist()),
        )

    def committed(self) -> CanariesCommitted:
        """Return the record that binds the silo to them."""
        commitment = canary_commitment(self.seed_bytes, self.num_canaries, self.form)
        return CanariesCommitted(
            form=self.form,
            num_canaries=self.num_canaries,
            commitment=commitment.hex(),
        )

    def opened(self) -> CanariesOpened:
        """Return the record that opens them."""
        scores = self.scores or (0.0,) * self.num_canaries
        return CanariesOpened(
            form=self.form,
            seed=self.seed,
            num_steps=self.num_steps,
            scores=tuple(round(score, DECIMALS) for score in scores),
        )


class CanaryFile:
    """One form's canaries on disk, readable by their owner alone."""

    def __init__(self, folder: Path, form: CanaryForm) -> None:
        self.path = folder / CANARIES_FILE.format(form=form)

    def exists(self) -> bool:
        """Return whether there are any."""
        return self.path.exists()

    def save(self, kept: KeptCanaries) -> None:
        """Write them whole, or not at all; on disk on return."""
        save_secret(self.path, encode(to_table(kept)))

    def load(self) -> KeptCanaries:
        """Return them.

        Raises:
            StateBroken, KeyFileRejected: damaged, missing, or others may read them.
        """
        try:
            return from_table(KeptCanaries, decode(load_secret(self.path)))
        except EncodingError as error:
            raise StateBroken(f"{self.path}: {error}") from None


class ScoredSteps:
    """Gradient canaries over the trainings of a run, which crashes may interrupt.

    Args:
        file: of the run; it holds gradient canaries.
    """

    def __init__(self, file: CanaryFile, plan: PlanDraft) -> None:
        self._file, self._plan = file, plan

    def begin(self, random: PrivateRandom) -> GradientCanaries:
        """Return the canaries for one training, which begins or goes on."""
        kept = self._file.load()
        return GradientCanaries(
            kept.seed_bytes,
            kept.num_canaries,
            sample_rate=self._plan.privacy.sample_rate,
            clipping_norm=self._plan.privacy.clipping_norm,
            random=random,
            first_step=kept.num_steps,
        )

    def keep(self, canaries: GradientCanaries) -> None:
        """Add what was scored since the last call; on disk on return.

        Call it once the ledger has the steps as taken.
        """
        self._file.save(self._file.load().after(canaries.take()))


class RunCanaries:
    """All canaries of one silo in one run.

    The seeds are drawn here, once, before the run has left any other trace.

    Raises:
        ConfigRejected: the plan refuses canaries that silo.toml asks for, or they are
            asked for after the run has begun.
        StateBroken: what is on disk is damaged.
    """

    def __init__(
        self, plan: PlanDraft, store: RunStore, resources: LocalResources
    ) -> None:
        self._plan, self._resources = plan, resources
        self._files: dict[CanaryForm, CanaryFile] = {
            "gradient": CanaryFile(store.folder, "gradient"),
            "input": CanaryFile(store.folder, "input"),
        }
        is_first = not any(file.exists() for file in self._files.values())
        if is_first and not store.is_finished():
            self._draw(resources.canaries, has_begun=store.has_begun())
        self._kept = {
            form: file.load() for form, file in self._files.items() if file.exists()
        }

    def _draw(self, config: CanaryConfig, *, has_begun: bool) -> None:
        """Draw the seeds of the canaries that are asked for."""
        if not (config.gradient or config.images):
            return
        for reason in canary_refusals(self._plan, config, count_trained(self._plan)):
            raise ConfigRejected(f"silo.toml, [canaries] {reason}")
        if has_begun:
            raise ConfigRejected(
                "silo.toml, [canaries]: this run has begun without them; set gradient "
                "and images to 0 for it"
            )
        numbers: dict[CanaryForm, int] = {
            "gradient": config.gradient,
            "input": config.images,
        }
        for form, number in numbers.items():
            if number:
                seed = os.urandom(CANARY_SEED_BYTES).hex()
                self._files[form].save(
                    KeptCanaries(form=form, num_canaries=number, seed=seed)
                )

    @property
    def gradient(self) -> ScoredSteps | None:
        """The canaries of the private steps, if there are any."""
        if "gradient" not in self._kept:
            return None
        return ScoredSteps(self._files["gradient"], self._plan)

    def planted(self) -> LocalResources:
        """Return the silo's resources, with the included images among its own."""
        kept, resources = self._kept.get("input"), self._resources
        if kept is None:
            return resources
        images = with_canaries(
            resources.images,
            kept.seed_bytes,
            kept.num_canaries,
            self._plan.model.num_classes,
        )
        return replace(resources, images=images)

    def commit(self, evidence: Evidence) -> None:
        """Write the commitments to the transcript, unless they are there.

        Raises:
            StateBroken: the transcript has a commitment whose seed is lost.
        """
        for form, file in self._files.items():
            if form in self._kept:
                evidence.canaries(self._kept[form].committed())
            elif evidence.has_canaries("canaries-committed", form):
                raise StateBroken(
                    f"{file.path}: is missing, and the transcript has a commitment to "
                    "it; restore it from a backup"
                )

    def open(self, evidence: Evidence, model: Checkpoint) -> None:
        """Write seeds and scores to the transcript, unless they are there.

        Args:
            model: the silo's finished one.
        """
        for form, file in self._files.items():
            if form not in self._kept or evidence.has_canaries("canaries-opened", form):
                continue
            kept = file.load()
            if form == "input":
                kept = replace(kept, scores=self._losses(kept, model))
            evidence.canaries(kept.opened())

    def _losses(self, kept: KeptCanaries, model: Checkpoint) -> tuple[float, ...]:
        """Return the scores of the image canaries."""
        made = canary_images(
            kept.seed_bytes,
            kept.num_canaries,
            self._resources.images,
            self._plan.model.num_classes,
        )
        return image_scores(
            model, self._plan, kept.seed_bytes, made, self._resources.device
        )
