"""One silo's model through the rounds of a run: trained once a round, kept on disk."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from crypto.encoding import BytesLike
from crypto.secagg.upload import Upload
from diffusion.checkpoint import Checkpoint, save_checkpoint
from diffusion.initial import first_model
from diffusion.parameters import (
    Vector,
    flatten,
    load_parameters,
    parameters_of,
    selected_layout,
    unflatten,
)
from diffusion.schedule import make_schedule
from protocol.bodies import floats_from_bytes, floats_to_bytes
from protocol.envelope import EndRequest, RoundRequest, model_digest
from protocol.grids import RoundGrid, round_grid
from protocol.plan import RunPlan
from protocol.stretches import EVERYTHING, Agreed, Dealing, make_dealing
from silo.data import ImageSet
from silo.errors import DataError, PolicyViolation
from silo.feedback import Residual, RoundResidual
from silo.held_model import HeldModel
from silo.noisy_round import NoisyRounds
from silo.private_round import PrivateRounds
from silo.proximal import proximal_term
from silo.store import RunStore, TrainedRound
from silo.training import Progress, Tensors, TrainingState, train
from silo.update import check_weight, make_update, own_weight


class RoundTrainer:
    """Turns a round's request into a stored update, once.

    Args:
        initial: the file of the parameters that the plan begins with, if it names one.
        private: the mechanism, where the plan has one.

    Raises:
        DataError: the images do not fit the plan's model, or their number is not a
            weight that the plan permits.
        DiffusionError: the file of the first parameters is missing or another one.
    """

    def __init__(
        self,
        plan: RunPlan,
        silo: int,
        store: RunStore,
        images: ImageSet,
        device: torch.device,
        observe: Callable[[Progress], None],
        *,
        initial: Path | None = None,
        private: PrivateRounds | None = None,
    ) -> None:
        images.check_fits(plan.model)
        check_weight(plan, len(images))
        self._plan, self._silo, self._store = plan, silo, store
        self._images, self._device, self._observe = images, device, observe
        self._private = private
        seed = plan.seed_for("model")
        self._model = first_model(plan.model, seed, plan.initial.sha256, initial)
        self._model.to(device)
        update = plan.update
        self._layout = selected_layout(self._model, update.selection, update.parts)
        if plan.training.local_parts == "frozen":
            self._train_only(self._layout.names)
        if plan.privacy.num_values not in (0, self._layout.size):
            raise DataError(
                f"privacy.num_values is {plan.privacy.num_values:,}, the plan's model "
                f"federates {self._layout.size:,} parameters"
            )
        self._schedule = make_schedule(plan.schedule).to(device)
        first = self._parameters()
        self._first_parts = self._local_parts(first)
        shared, bits = flatten(first, self._layout), plan.update.broadcast_bits
        self.held = HeldModel(store.folder, self._layout, shared, bits)
        self.residual = Residual(store.folder, self._layout, silo)

    def field_bits(self, round_number: int) -> int:
        """Return the bits of one packed field in a round."""
        return self._plan.field_bits(round_number)

    def check_round(self, request: RoundRequest) -> None:
        """Refuse a round that is over, or that was trained for another model.

        Raises:
            PolicyViolation: with the reason.
        """
        number, trained = request.round_number, self._store.load_trained()
        if number > self._plan.num_rounds:
            raise PolicyViolation(f"round {number} of {self._plan.num_rounds}")
        if trained is None or number > trained.round_number:
            self._check_start(request)
            return
        if number < trained.round_number:
            raise PolicyViolation(
                f"round {number} is over, this silo trained {trained.round_number}"
            )
        if trained.model != request.model_digest().hex():
            raise PolicyViolation(f"round {number} was trained for another model")
        if not self._store.has_update(number):
            raise PolicyViolation(f"the update of round {number} was revealed already")

    def _check_start(self, request: RoundRequest) -> None:
        """Refuse a model that the silo holds or that is another, and a wrong grid."""
        number = request.round_number
        if len(request.parameters) and (
            number == 1 or self._plan.update.broadcast_bits
        ):
            raise PolicyViolation(f"round {number} brings a model that silos hold")
        self._shared(request)
        self._grid(request)

    def _shared(self, request: RoundRequest) -> Vector:
        """Return the shared parameters of a request: sent, or held here.

        Raises:
            EnvelopeRejected: of another length, NaN or infinity.
            PolicyViolation: they are not those that the request names.
        """
        shared = self._sent_or_held(request.parameters)
        digest = model_digest(floats_to_bytes(shared), request.ranges)
        if digest != request.model_digest():
            origin = "that came" if len(request.parameters) else "that this silo holds"
            raise PolicyViolation(
                f"the model of round {request.round_number} is not the one {origin}"
            )
        return shared

    def _sent_or_held(self, sent: BytesLike) -> Vector:
        """Return shared parameters as they came, or those held where none came."""
        if not len(sent):
            return self.held.vector()
        return floats_from_bytes(sent, self._layout.size)

    def _grid(self, request: RoundRequest) -> RoundGrid:
        """Return the grid of a request.

        Raises:
            EnvelopeRejected: it is not one that the plan permits in this round.
        """
        numbers = floats_from_bytes(request.ranges, len(request.ranges) // 4)
        layout, number = self._layout, request.round_number
        return round_grid(self._plan, layout.segments, number, numbers, layout.counts)

    def dealing(self, agreed: Agreed, round_number: int) -> Dealing:
        """Return which silos fill which stretch of a round's vector."""
        return make_dealing(
            self._plan, agreed, round_number, self._lengths(round_number)
        )

    def _lengths(self, round_number: int) -> list[int]:
        """Return the words of each stretch of a round's vector."""
        stretches = self._layout.stretches
        return [self._plan.num_words(round_number, each.size) for each in stretches]

    def train_once(
        self, request: RoundRequest, own: tuple[int, ...] = EVERYTHING
    ) -> None:
        """Train and store the update of a round, unless it is on disk.

        Where parts are dealt and an attempt has failed, the update that is on disk may
        be of other parts than this silo shall return now. It is made anew then, from
        the trained values that were kept for this; the silo never trains twice.

        Args:
            own: the stretches of the vector that this silo returns.

        Raises:
            EnvelopeRejected: parameters or ranges of another length, NaN, infinity.
            TrainingDiverged, PrivacyError: nothing is stored then.
        """
        number, trained = request.round_number, self._store.load_trained()
        if trained is not None and trained.round_number == number:
            if trained.stretches != own:
                self._pack_again(request, replace(trained, stretches=own))
            return
        shared = self._shared(request)
        grid = self._grid(request)
        state, local = self._store.load_training()
        load_parameters(self._model, local or self._first_parts)
        load_parameters(self._model, unflatten(shared, self._layout))
        before = self._parameters()
        if isinstance(self._private, NoisyRounds):
            state, after = TrainingState(), before
            words = self._private.contribute(
                self._model,
                self._schedule,
                self._layout,
                grid,
                round_number=number,
                model_digest=request.model_digest(),
            )
        else:
            if not self._plan.training.train_unassigned:
                self._train_only(
                    [n for i in own for n in self._layout.stretches[i].names]
                )
            state = self._train(request, state)
            after = self._parameters()
            words = self._pack(request, own, before, after)
        trained = TrainedRound(
            round_number=number,
            model=request.model_digest().hex(),
            stretches=own,
            ledger=self._private.head if self._private is not None else None,
        )
        kept = None
        if self._plan.update.is_dealt:
            kept = {name: after[name] for name in self._layout.names}
        self._store.save_round(trained, words, state, self._local_parts(after), kept)
        if self._private is not None:
            self._private.forget_partial()

    def _pack(
        self,
        request: RoundRequest,
        own: tuple[int, ...],
        before: Tensors,
        after: Tensors,
    ) -> npt.NDArray[np.uint64]:
        """Return the packed update of a round: some stretches of it.

        What it lacks is on disk then, where the plan has error feedback.
        """
        number, grid = request.round_number, self._grid(request)
        residual = None
        if self._plan.update.error_feedback:
            residual = RoundResidual(
                self._plan,
                self._layout,
                grid,
                round_number=number,
                own=own,
                weight=own_weight(self._plan, self._silo, len(self._images)),
                current=self.residual.current(),
            )
        words = make_update(
            self._plan,
            self._layout,
            grid,
            silo=self._silo,
            round_number=number,
            field_bits=self.field_bits(number),
            num_examples=len(self._images),
            local=after,
            global_=before,
            own=own,
            residual=residual,
        )
        if residual is not None:
            self.residual.pend(number, residual.after(words))
        return words

    def _pack_again(self, request: RoundRequest, trained: TrainedRound) -> None:
        """Store the update of a trained round anew, for other stretches.

        The model of the request is the one that was trained (:meth:`check_round`).
        """
        words = self._pack(
            request,
            trained.stretches,
            unflatten(self._shared(request), self._layout),
            self._store.load_shared(trained.round_number),
        )
        self._store.replace_update(trained, words)

    def _train_only(self, names: Collection[str]) -> None:
        """Let these parameters be trained and freeze the others."""
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name in names)

    def _train(self, request: RoundRequest, state: TrainingState) -> TrainingState:
        """Train the model in place, with the plan's mechanism if it has one."""
        mu = self._plan.training.proximal_mu
        proximal = proximal_term(self._model, self._layout.names, mu)
        if self._private is not None:
            return self._private.train(
                self._model,
                self._schedule,
                state,
                round_number=request.round_number,
                model_digest=request.model_digest(),
                proximal=proximal,
            )
        return train(
            self._model,
            self._images,
            self._schedule,
            self._plan,
            state,
            silo=self._silo,
            round_number=request.round_number,
            device=self._device,
            observe=self._observe,
            proximal=proximal,
        )

    def update(self, round_number: int) -> Upload:
        """Return the packed update of a round, of the length that the plan implies.

        Raises:
            PolicyViolation: it was never made, was revealed already, or is damaged.
        """
        upload, trained = (
            self._store.load_update(round_number),
            self._store.load_trained(),
        )
        if upload is None or trained is None:
            raise PolicyViolation(f"there is no update of round {round_number}")
        lengths = self._lengths(round_number)
        if upload.words.size != sum(lengths[index] for index in trained.stretches):
            raise PolicyViolation(f"the update of round {round_number} is damaged")
        return upload

    def last_average(self, request: EndRequest) -> Vector:
        """Return the average of the last shared parameters, float32 ``[d]``.

        Raises:
            EnvelopeRejected: of another length, NaN or infinity.
            PolicyViolation: the parameters are not those that the request names.
        """
        shared = self._sent_or_held(request.parameters)
        if self.held.digest_of(shared) != request.model:
            raise PolicyViolation("the last model is not the one here")
        if not request.average:
            return shared
        return self.shared(request.average)

    def shared(self, parameters: BytesLike) -> Vector:
        """Return shared parameters, float32 ``[d]``, as they come over the wire.

        Raises:
            EnvelopeRejected: of another length, NaN or infinity.
        """
        return floats_from_bytes(parameters, self._layout.size)

    def save_model(self, average: Vector) -> None:
        """Save the finished model: the shared average, and this silo's own parts."""
        save_checkpoint(self._store.model, self.finished_model(average))

    def finished_model(self, average: Vector) -> Checkpoint:
        """Return the shared average, float32 ``[d]``, with this silo's own parts."""
        _, local = self._store.load_training()
        shared = unflatten(average, self._layout)
        return Checkpoint(
            model=self._plan.model,
            schedule=self._plan.schedule,
            sampler=self._plan.evaluation.sampler,
            parameters={**self._first_parts, **local, **shared},
            notes={"plan": self._plan.digest.hex(), "silo": str(self._silo)},
        )

    def _parameters(self) -> Tensors:
        """Return copies of the model's parameters, on the CPU."""
        named = parameters_of(self._model)
        return {name: parameter.cpu() for name, parameter in named.items()}

    def _local_parts(self, parameters: Tensors) -> Tensors:
        """Return the parameters that are not federated."""
        shared = set(self._layout.names)
        return {n: value for n, value in parameters.items() if n not in shared}
