"""What this silo gives for auxiliary images: its own model, or samples of it; once.

Before round 1 the silo trains a model from the run's first parameters on its own images
alone, with the plan's DP-SGD where it has it: its steps are then on the silo's ledger,
as round 0. What leaves is made once and kept until round 1 begins, so that a request
that is repeated after a crash is answered with the same bytes. Nothing hides it in a
sum: whether it may leave is for the silo's policy (``permitted_auxiliary_images``).
"""

import dataclasses
from pathlib import Path

from crypto.encoding import BytesLike
from diffusion.checkpoint import Checkpoint
from diffusion.images import to_8_bit
from diffusion.initial import first_model
from diffusion.parameters import flatten, make_layout, parameters_of
from diffusion.parts import SELECTIONS, DenoisingNetwork
from diffusion.schedule import make_schedule
from protocol.auxiliary import AuxiliaryReply, AuxiliaryRequest, samples_per_silo
from protocol.bodies import floats_to_bytes, join_body, split_body
from protocol.calibration_settings import CalibrationConfig
from protocol.encoding import from_table, to_table
from protocol.errors import EncodingError, EnvelopeRejected
from protocol.files import load_secret, save_bytes, save_secret, sync_folder
from protocol.plan import PlanDraft, RunPlan
from silo.entries import LedgerHead
from silo.errors import PolicyViolation, StateBroken
from silo.private_round import PrivateRounds
from silo.resources import LocalResources
from silo.training import Progress, TrainingState, train

GIVEN_FILE = "auxiliary"
OVER_FILE = "auxiliary-over"
"""Stands in the run's folder once a round has begun: nothing is given any more."""
BEFORE_ROUNDS = 0
"""The round to which ledger and progress count the pre-training."""


class AuxiliaryShare:
    """This silo's part in the auxiliary images of one run.

    Args:
        folder: of the run; what leaves is kept there, mode 0600.
        private: the mechanism, where the plan has one.

    Raises:
        LedgerBroken: the ledger lacks the steps of what is kept.
        StateBroken: what is kept is damaged.
    """

    def __init__(
        self,
        plan: RunPlan,
        silo: int,
        folder: Path,
        resources: LocalResources,
        private: PrivateRounds | None,
    ) -> None:
        self._plan, self._silo, self._path = plan, silo, folder / GIVEN_FILE
        self._over = folder / OVER_FILE
        self._resources, self._private = resources, private
        if self._over.exists():
            self.destroy()
        if private is not None and self._path.exists():
            private.check_ledger(self._load()[0])

    def check(self, request: AuxiliaryRequest, asked_round: int) -> None:
        """Refuse what the plan does not say, and what comes too late.

        Args:
            asked_round: the last round that this process was asked for, or that was
                trained.

        Raises:
            PolicyViolation: with the reason.
        """
        config = self._plan.calibration
        if not config.asks_silos or request.label != config.images:
            raise PolicyViolation(
                f'auxiliary images "{request.label}": not in the plan'
            )
        if asked_round:
            raise PolicyViolation(
                f"auxiliary images are given before round 1, not after {asked_round}"
            )
        if self._over.exists():
            raise PolicyViolation("auxiliary images are given before round 1")

    def reply(self) -> AuxiliaryReply:
        """Return what this silo gives; it is on disk when this returns.

        Raises:
            TrainingDiverged, PrivacyError, DiffusionError: nothing is kept then.
        """
        if not self._path.exists():
            content = self._make()
            head = self._private.head if self._private is not None else None
            save_secret(self._path, join_body({"ledger": to_table(head)}, content))
        if self._private is not None:
            self._private.forget_partial()
        _, content = self._load()
        return AuxiliaryReply(label=self._plan.calibration.images, content=content)

    def close(self) -> None:
        """Give nothing any more, also after a crash; call it before a round trains."""
        if self._plan.calibration.asks_silos and not self._over.exists():
            save_bytes(self._over, b"")
        self.destroy()

    def destroy(self) -> None:
        """Remove what was given: the aggregator has it, or went on without it."""
        if self._path.exists():
            self._path.unlink()
            sync_folder(self._path.parent)

    def _load(self) -> tuple[LedgerHead | None, BytesLike]:
        """Return the ledger's head then, and the content."""
        try:
            table, (content,) = split_body(memoryview(load_secret(self._path)), 1)
            head = table["ledger"]
            ledger = from_table(LedgerHead, head) if head is not None else None
        except (EnvelopeRejected, EncodingError, KeyError) as error:
            raise StateBroken(f"{self._path}: {error}") from None
        return ledger, content

    def _make(self) -> BytesLike:
        """Train this silo's own model; return it, or samples of it, as bytes."""
        model = self._train()
        parameters = {name: p.cpu() for name, p in parameters_of(model).items()}
        if self._plan.calibration.images == "silo-models":
            layout = make_layout(model, SELECTIONS["full"])
            return floats_to_bytes(flatten(parameters, layout))
        checkpoint = Checkpoint(
            model=self._plan.model,
            schedule=self._plan.schedule,
            sampler=self._plan.evaluation.sampler,
            parameters=parameters,
        )
        drawn = checkpoint.images(
            seed=self._plan.seed_for("auxiliary-images", self._silo),
            count=samples_per_silo(self._plan)[self._silo],
            device=self._resources.device,
        )
        return to_8_bit(drawn).tobytes()

    def _train(self) -> DenoisingNetwork:
        """Return a model that was trained on this silo's images alone."""
        plan, local = self._plan, self._resources
        seed = plan.seed_for("model")
        model = first_model(plan.model, seed, plan.initial.sha256, local.initial)
        model.to(local.device)
        schedule = make_schedule(plan.schedule).to(local.device)
        alone = pre_training(plan)
        if self._private is not None:
            self._private.pre_train(model, schedule, alone, observe=self._observe)
        else:
            train(
                model,
                local.images,
                schedule,
                alone,
                TrainingState(),
                silo=self._silo,
                round_number=1,
                device=local.device,
                observe=self._observe,
            )
        return model

    def _observe(self, progress: Progress) -> None:
        """Show the operator how it goes."""
        self._resources.observe(
            dataclasses.replace(progress, round_number=BEFORE_ROUNDS)
        )


def pre_training(plan: RunPlan) -> PlanDraft:
    """Return the pre-training of a plan as a plan of one round.

    Mechanism, noise and learning rate are those of the rounds; the number of steps is
    ``calibration.local_steps``, and order and noise have a seed of their own.
    """
    training = dataclasses.replace(
        plan.training, local_steps=plan.calibration.local_steps, local_epochs=0
    )
    sections = {f.name: getattr(plan, f.name) for f in dataclasses.fields(PlanDraft)}
    sections |= {
        "num_rounds": 1,
        "seed": plan.seed_for("auxiliary-training"),
        "training": training,
        "calibration": CalibrationConfig(),
    }
    return PlanDraft(**sections)
