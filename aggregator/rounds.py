"""One round, as a function from a state to the next; and the run, as its repetition.

The order of a round: sum → mean → apply → calibration → rounding of the down-link →
transcript → checkpoint → evaluation. A crash between any two of them is made good by
the next start: what the checkpoint already holds is not done again, what the transcript
already says is not said twice.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aggregator.averaging import apply, mean_update, skip
from aggregator.broadcast import Broadcaster, defined, with_error
from aggregator.calibrator import Calibrator
from aggregator.checkpoints import CheckpointStore
from aggregator.encrypted_sum import EncryptedSum
from aggregator.errors import RoundAborted
from aggregator.evaluation import Reference, evaluate
from aggregator.exchanges import Exchanges, Stage
from aggregator.masked_sum import MaskedSum
from aggregator.measurement import measure_in_silos
from aggregator.reference import (
    REFERENCE_FILE,
    Pooled,
    load_pooled,
    pool_reference,
)
from aggregator.said import Measured, Said
from aggregator.slot_store import SlotStore
from aggregator.state import RoundState, initial_state, shared_layout
from aggregator.sums import PlainSum, RoundTask, Summation
from aggregator.witnessing import Make, Place, Witnesses
from crypto.bfv.workers import Workers
from crypto.encoding import BytesLike
from crypto.secagg.parts import places
from crypto.signatures import SIGNATURE_BYTES
from diffusion.checkpoint import Checkpoint
from diffusion.evaluation import Evaluation
from diffusion.features import FeatureExtractor
from diffusion.parameters import ParameterLayout, flatten, parameters_digest
from privacy.errors import Overflow
from protocol import model_records, records
from protocol.audit_records import ReferenceSkipped, SiloHead
from protocol.bodies import floats_to_bytes
from protocol.envelope import EndReply, EndRequest, Kind, open_envelope
from protocol.grids import round_grid
from protocol.heads import ShownHead
from protocol.plan import RunPlan
from protocol.version import SOFTWARE

logger = logging.getLogger(__name__)

MAX_END_BYTES = 1 << 13
"""The longest last word of a silo: the head of its transcript, in an envelope."""


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """Who wants to be told how a run goes; each function is called in turn."""

    on_closed: Callable[[RoundState], None] = lambda state: None
    on_lost: Callable[[int, str], None] = lambda round_number, reason: None
    on_evaluation: Callable[[int, Evaluation], None] = lambda number, result: None
    on_measured: Callable[[Measured], None] = lambda measured: None
    on_pooled: Callable[[Pooled, bool], None] = lambda pooled, has_published: None
    on_calibrated: Callable[[model_records.Calibrated], None] = lambda record: None


class Run:
    """One execution of one plan at the aggregator.

    Args:
        reference: what samples are measured against; None switches evaluation off.
        extractor: what the silos' own reference is made with, where the plan asks for
            one; ``reference`` takes its place if it fails. None leaves it out.
        workers: the processes of homomorphic encryption, where the plan encrypts.
        initial: the file of the parameters that the plan begins with, if it names one.
        auxiliary: the file of public auxiliary images, if it names one.

    Raises:
        StateBroken, TranscriptBroken: what is on disk cannot be continued.
    """

    def __init__(
        self,
        exchanges: Exchanges,
        store: CheckpointStore,
        *,
        reference: Reference | None,
        extractor: FeatureExtractor | None = None,
        workers: Workers,
        device: torch.device,
        watcher: Watcher,
        initial: Path | None = None,
        auxiliary: Path | None = None,
    ) -> None:
        store.remove_leftovers()
        self._exchanges, self._store = exchanges, store
        self._plan, self._transcript = exchanges.plan, exchanges.transcript
        self._reference, self._device, self._watcher = reference, device, watcher
        self._initial, self._extractor = initial, extractor
        self._layout = shared_layout(self._plan)
        self._broadcaster = Broadcaster(exchanges, self._layout)
        self._said = Said.read(store, self._transcript.size)
        self._calibrator = Calibrator(
            exchanges,
            store.folder,
            device=device,
            public=auxiliary,
            recorded_images=self._said.has_images,
            recorded_rounds=self._said.calibrated,
            on_calibrated=watcher.on_calibrated,
        )
        self._witnesses = Witnesses(exchanges, self._said.seen)
        self._summation = self._make_summation(workers)

    def run(self) -> RoundState:
        """Carry out the rounds that are left; return the last state.

        Raises:
            CohortTooSmall: too few silos are left; what is finished is saved.
        """
        state = self._begin()
        while state.round_number < self._plan.num_rounds:
            state = self._finish_round(self._next_state(state))
        if not self._said.is_finished:
            self._measure_in_silos(state)
            self._end(state)
        self._store.finish(state)
        return state

    def _begin(self) -> RoundState:
        """Open, or resume, the transcript; return the state to go on from."""
        state = self._store.load()
        if self._said.is_finished and state is not None:
            if not self._transcript.is_signed:
                self._transcript.sign_head()
            return state
        first: records.Record = records.Resumed(software=SOFTWARE)
        if not self._transcript.size:
            first = records.Opened(
                plan=self._plan.digest.hex(), party="aggregator", software=SOFTWARE
            )
        self._transcript.append(first)
        if self._plan.evaluation.is_pooled:
            self._reference = self._pooled_reference() or self._reference
        if state is None:
            first_state = initial_state(self._plan, self._initial)
            self._calibrator.prepare(first_state)
            return first_state
        self._calibrator.prepare(state)
        self._evaluate(state)
        return state

    def _pooled_reference(self) -> Reference | None:
        """Return the federation's own reference, made once; None where it failed."""
        path, said = self._store.folder / REFERENCE_FILE, self._said.pooled
        pooled = said or pool_reference(
            self._plan, self._extractor, self._summation, path
        )
        if said is None:
            self._transcript.append(pooled)
            self._transcript.sign_head()
        self._watcher.on_pooled(pooled, self._reference is not None)
        if self._extractor is None or isinstance(pooled, ReferenceSkipped):
            return None
        return load_pooled(path, self._extractor, pooled)

    def _next_state(self, state: RoundState) -> RoundState:
        """Return the state after one round; unchanged parameters when it was lost."""
        number = state.round_number + 1
        self._broadcaster.deliver(state, number)
        try:
            target, survivors = run_round(
                self._plan, self._layout, state, self._summation
            )
            target = self._calibrator.correct(state, target)
            following = defined(self._plan, self._layout, state, target)
        except RoundAborted as error:
            if number not in self._said.closed:
                self._transcript.append(
                    records.RoundLost(round_number=number, reason=str(error)[:400])
                )
            self._watcher.on_lost(number, str(error))
            return skip(self._plan, self._layout, state)
        if number not in self._said.closed:
            self._transcript.append(
                records.RoundClosed(
                    round_number=number,
                    survivors=self._exchanges.names(survivors),
                    parameters=self._digest(following.parameters).hex(),
                )
            )
        return following

    def _finish_round(self, state: RoundState) -> RoundState:
        """Sign, save and evaluate the state after a round; return it."""
        self._transcript.sign_head()
        self._store.save(state)
        self._watcher.on_closed(state)
        self._calibrator.is_saved(state)
        self._evaluate(state)
        return state

    def _evaluate(self, state: RoundState) -> None:
        """Measure the Fréchet distance where the plan asks for it, once."""
        number, config = state.round_number, self._plan.evaluation
        is_due = config.is_due(number, self._plan.num_rounds)
        if self._reference is None or not is_due or number in self._said.evaluated:
            return
        result = evaluate(
            self._checkpoint(state),
            self._reference,
            seed=self._plan.seed_for("evaluation"),
            num_samples=config.num_samples,
            device=self._device,
        )
        self._transcript.append(
            model_records.Evaluated(
                round_number=number,
                extractor=self._reference.extractor.name,
                extractor_digest=self._reference.extractor.digest,
                reference=self._reference.digest,
                reference_count=self._reference.statistics.count,
                num_samples=result.num_samples,
                frechet_distance=result.frechet_distance,
                class_shares=result.class_shares,
            )
        )
        self._watcher.on_evaluation(number, result)

    def _measure_in_silos(self, state: RoundState) -> None:
        """Let the silos measure their own models, where the plan asks for it, once."""
        if not self._plan.evaluation.in_silos or self._said.is_measured:
            return
        measured = measure_in_silos(
            self._plan, self._layout, state, self._summation, self._reference
        )
        self._transcript.append(measured)
        self._watcher.on_measured(measured)

    def _end(self, state: RoundState) -> None:
        """Tell the silos that the run is over; keep the heads of their transcripts."""
        everyone = range(len(self._plan.silos))
        holders = self._broadcaster.deliver(state, 0)
        brief, whole = (
            partial(self._end_request, state, is_held=is_held)
            for is_held in (True, False)
        )
        makers: dict[int, Make] = {
            silo: brief if silo in holders or state.is_initial else whole
            for silo in everyone
        }
        stage = Stage(
            name="end",
            round_number=0,
            deadline_seconds=self._plan.deadlines.exchange_seconds,
            max_reply_bytes=MAX_END_BYTES,
        )
        head = self._transcript.sign_head()
        self._witnesses.ask(stage, makers, head, self._take_head, Place(Kind.END))
        self._transcript.append(
            records.Finished(
                round_number=state.round_number,
                parameters=self._digest(state.parameters).hex(),
                average=self._digest(state.average.parameters).hex(),
            )
        )
        self._transcript.sign_head()

    def _end_request(
        self, state: RoundState, shown: ShownHead, *, is_held: bool
    ) -> EndRequest:
        """Return the notice of the end for silos that hold the last model, or do not.

        Its average is left out where it is the same.
        """
        shared, average = (
            floats_to_bytes(flatten(each, self._layout))
            for each in (state.parameters, state.average.parameters)
        )
        return EndRequest(
            round_number=state.round_number,
            shown=shown,
            model=self._digest(state.parameters).hex(),
            parameters=b"" if is_held else shared,
            average=b"" if average == shared else average,
            sum_notice=self._summation.sum_notice(),
        )

    def _take_head(self, silo: int, reply: BytesLike) -> int:
        """Record the head of a silo's transcript, and that it acknowledges ours."""
        _, body = open_envelope(self._plan, reply, sender=silo, kinds=(Kind.END_SEEN,))
        last = EndReply.from_body(body, self._plan.silos[silo].name)
        head, seen = last.head, last.seen
        head.check(self._plan.digest, self._plan.roster[silo])
        seen.check(self._plan.digest, self._plan.aggregator_key)
        self._transcript.append(
            SiloHead(
                silo=self._plan.silos[silo].name,
                size=head.size,
                root=head.root,
                signature=head.signature,
                seen_size=seen.size,
                seen_root=seen.root,
                seen_signature=seen.signature,
                acknowledgement=bytes(reply[-SIGNATURE_BYTES:]).hex(),
            )
        )
        return 0

    def _make_summation(self, workers: Workers) -> Summation:
        """Return how the plan has updates summed, and what was left unfinished."""
        exchanges, witnesses = self._exchanges, self._witnesses
        if not self._plan.protection.is_hidden:
            return PlainSum(exchanges, witnesses)
        store, excluded = SlotStore(self._store.folder), self._excluded_silos()
        if self._plan.protection.is_encrypted:
            return EncryptedSum(
                exchanges, store, witnesses, workers=workers, excluded=excluded
            )
        return MaskedSum(exchanges, store, witnesses, excluded=excluded)

    def _excluded_silos(self) -> list[int]:
        """Return the silos that this run has left out for good."""
        names = [silo.name for silo in self._plan.silos]
        return [names.index(name) for name in self._said.excluded]

    def _digest(self, parameters: Mapping[str, Tensor]) -> bytes:
        """Return the digest of the shared ones of some parameters."""
        return parameters_digest(parameters, self._layout)

    def _checkpoint(self, state: RoundState) -> Checkpoint:
        """Return the moving average as a model that can be sampled from."""
        return Checkpoint(
            model=self._plan.model,
            schedule=self._plan.schedule,
            sampler=self._plan.evaluation.sampler,
            parameters=state.average.parameters,
        )


def run_round(
    plan: RunPlan, layout: ParameterLayout, state: RoundState, summation: Summation
) -> tuple[RoundState, tuple[int, ...]]:
    """Return the state after one round, and the silos in its sum.

    Raises:
        CohortTooSmall: too few silos are left; nothing was revealed.
        RoundAborted: the round has no sum, or an impossible one: a silo lied.
    """
    number = state.round_number + 1
    numbers = round_grid(plan, layout.segments, number, state.ranges, layout.counts)
    field_bits = plan.field_bits(number)
    numbers.check_headroom(plan, field_bits)
    task = RoundTask(
        round_number=number,
        parameters=floats_to_bytes(flatten(state.parameters, layout)),
        ranges=floats_to_bytes(state.ranges),
        lengths=tuple(plan.num_words(number, s.size) for s in layout.stretches),
        field_bits=field_bits,
        is_held=state.is_initial or plan.update.broadcast_bits > 0,
    )
    total = summation.sum_round(task)
    try:
        means = [
            mean_update(
                plan, stretch, grid, total.words[place], part.contributors, number
            )
            for stretch, grid, (_, part, place) in zip(
                layout.stretches, numbers.grids, places(total.parts), strict=True
            )
        ]
    except Overflow as error:
        raise RoundAborted(str(error)) from None
    mean = means[0] if len(means) == 1 else np.concatenate(means)
    if not mean.any():
        logger.warning(
            "round %d: the mean update is zero throughout; if silos do learn, the grid "
            "is too coarse for them: more update.value_bits, a smaller clipping_norm, "
            'or rounding "stochastic"',
            number,
        )
    return apply(plan, layout, with_error(layout, state), mean), total.survivors
