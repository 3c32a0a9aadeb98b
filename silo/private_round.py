"""One silo's private training over the rounds of a run: ledger, checkpoints, claims.

Order within a round: reserve the planned steps in the ledger → train → at every
checkpoint write the steps really taken, then the checkpoint → close the reservation.
All of it is on disk before the update is. Started again after a crash, the round goes
on from the last checkpoint with fresh randomness, and whatever may have been taken
since is counted, too.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from diffusion.means import CentralImages
from diffusion.parameters import load_parameters, parameters_of
from diffusion.parts import DenoisingNetwork
from diffusion.schedule import Schedule
from privacy.accounting import Budget
from privacy.events import SampledGaussian
from privacy.pricing import epsilon
from protocol import records
from protocol.mechanism import round_event, steps_of_run
from protocol.plan import PlanDraft
from protocol.reference_settings import reference_events
from silo.account import PrivacyAccount
from silo.canary_run import ScoredSteps
from silo.central_images import release_central_images
from silo.entries import LedgerHead
from silo.errors import ConfigRejected, DataError
from silo.ledger import LedgerBroken
from silo.partial import PartialRound, forget_partial, load_partial, save_partial
from silo.private_training import Kept, multiplicity_of, train_privately
from silo.proximal import ProximalTerm
from silo.prv import prv_epsilon
from silo.randomness import PrivateRandom
from silo.resources import LocalResources
from silo.training import Progress, TrainingState
from silo.units import units_of


class PrivateRounds:
    """DP-SGD of one silo in one run, on account.

    Args:
        digest: of the plan, hexadecimal; the ledger names it.
        folder: the run's own folder; the ledger has its name.
        canaries: take part in the steps, and are scored.

    Raises:
        ConfigRejected: there is no folder for ledgers.
        DataError: delta is not below 1 / (number of privacy units), or the images do
            not say whose they are.
        LedgerBroken: the run's ledger is damaged, or of another data set.
        NotPrivate: the model mixes examples.
    """

    def __init__(
        self,
        plan: PlanDraft,
        digest: str,
        folder: Path,
        resources: LocalResources,
        canaries: ScoredSteps | None = None,
    ) -> None:
        self._canaries = canaries
        privacy, local = plan.privacy, resources.privacy
        if local.ledgers is None:
            raise ConfigRejected("a plan with a mechanism needs a ledger's folder")
        self._plan, self._folder, self._resources = plan, folder, resources
        self._units = units_of(resources.images, privacy.unit)
        check_delta(privacy.delta, len(self._units), privacy.unit)
        if local.limit is not None:
            check_delta(local.limit.delta, len(self._units), privacy.unit)
        self._random = PrivateRandom(local.insecure_seed)
        budget = Budget(privacy.epsilon, privacy.delta) if privacy.epsilon else None
        self._account = PrivacyAccount.open(
            local.ledgers,
            folder.name,
            plan=digest,
            delta=privacy.delta,
            identity=resources.identity,
            images=resources.images,
            units=self._units,
            run_budget=budget,
            account_limit=local.limit,
            max_steps=_max_steps(plan),
            fresh=local.new_ledger,
            is_secure=self._random.is_secure,
        )

    @property
    def head(self) -> LedgerHead:
        """The head of the ledger."""
        return self._account.head

    def opened(self) -> records.LedgerOpened:
        """Return the record of the ledger that is open."""
        opened = self._account.opened
        return records.LedgerOpened(
            commitment=opened.commitment,
            unit=opened.unit,
            relation=opened.relation,
            delta=opened.delta,
            randomness=opened.randomness,
            fresh=opened.fresh,
        )

    def record(self, round_number: int) -> records.PrivacySpent | records.NoiseSpent:
        """Return what goes to the transcript of all that was released."""
        return self.spent(round_number)

    def spent(self, round_number: int) -> records.PrivacySpent:
        """Return the record of all that was released up to a round."""
        account, delta = self._account, self._plan.privacy.delta
        events, earlier = account.events, account.earlier_events
        mine = [event for event in events if isinstance(event, SampledGaussian)]
        claim = prv_epsilon(mine, delta)
        return records.PrivacySpent(
            round_number=round_number,
            ledger_size=account.head.size,
            ledger_head=account.head.digest,
            multiplicity=multiplicity_of(self._plan, self._resources.device),
            events=tuple(mine),
            earlier=earlier,
            epsilon=epsilon(events, delta),
            epsilon_prv=claim.epsilon,
            prv_error=claim.eps_error,
            account_epsilon=epsilon((*earlier, *events), delta),
        )

    def train(
        self,
        model: DenoisingNetwork,
        schedule: Schedule,
        state: TrainingState,
        *,
        round_number: int,
        model_digest: bytes = bytes(32),
        proximal: ProximalTerm | None = None,
    ) -> TrainingState:
        """Train a model in place for one round; the ledger is closed when it returns.

        Central images in the place of a network are drawn instead of trained.

        Args:
            proximal: draws the parameters to where the round began, also after a crash
                in the middle of it.

        Raises:
            BudgetExceeded: the round would spend more than a limit; nothing was run.
            LedgerBroken, StateBroken: ledger and checkpoint do not belong together.
            TrainingDiverged: the parameters are not finite any more.
        """
        observe = self._resources.observe
        return self._carry_out(
            self._plan,
            model,
            schedule,
            state,
            round_number,
            model_digest,
            observe,
            proximal,
        )

    def pre_train(
        self,
        model: DenoisingNetwork,
        schedule: Schedule,
        alone: PlanDraft,
        *,
        observe: Callable[[Progress], None],
    ) -> None:
        """Train a model in place before round 1; in the ledger that is round 0.

        Args:
            alone: the pre-training as a plan of one round, of the same mechanism.

        Raises:
            BudgetExceeded, LedgerBroken, StateBroken, TrainingDiverged: as
                :meth:`train`.
        """
        state = TrainingState()
        self._carry_out(alone, model, schedule, state, 0, bytes(32), observe)

    def _carry_out(
        self,
        plan: PlanDraft,
        model: DenoisingNetwork,
        schedule: Schedule,
        state: TrainingState,
        round_number: int,
        model_digest: bytes,
        observe: Callable[[Progress], None],
        proximal: ProximalTerm | None = None,
    ) -> TrainingState:
        """Reserve, train and close one round of a plan."""
        account, local = self._account, self._resources
        checkpoint, model_hex = load_partial(self._folder), model_digest.hex()
        done = account.begin(
            round_number,
            round_event(plan),
            checkpoint_steps=local.privacy.checkpoint_steps,
            model=model_hex,
            partial=checkpoint.partial if checkpoint else None,
        )
        if checkpoint is not None and done:
            load_parameters(model, checkpoint.parameters)
            state = TrainingState(checkpoint.moments)

        planted = self._canaries.begin(self._random) if self._canaries else None

        def keep(kept: Kept) -> None:
            head = account.take(kept.noised_steps)
            if self._canaries is not None and planted is not None:
                self._canaries.keep(planted)
            partial = PartialRound(
                round_number=round_number, model=model_hex, step=kept.step, ledger=head
            )
            parameters = parameters_of(model)
            save_partial(self._folder, partial, parameters, kept.state.moments)

        if isinstance(model, CentralImages):
            state = release_central_images(
                model,
                local.images,
                self._units,
                plan,
                first_step=done,
                random=self._random,
                keep=keep,
                checkpoint_steps=local.privacy.checkpoint_steps,
            )
        else:
            state = train_privately(
                model,
                local.images,
                self._units,
                schedule,
                plan,
                state,
                round_number=max(1, round_number),
                first_step=done,
                device=local.device,
                random=self._random,
                observe=observe,
                keep=keep,
                checkpoint_steps=local.privacy.checkpoint_steps,
                after_noise=_after_noise(proximal),
                canaries=planted,
            )
        account.close_round(round_number)
        return state

    def release(self, event: SampledGaussian, what: str) -> PrivateRandom:
        """Charge a release outside of training; lend the randomness for it.

        The charge is on disk when this returns. Made anew after a crash, the release
        is another one, and is charged again.

        Raises:
            BudgetExceeded: a limit would be passed; nothing was charged.
        """
        self._account.release(event, what)
        return self._random

    def check_ledger(self, head: LedgerHead | None) -> None:
        """Refuse a ledger that lacks the head which a finished round remembers.

        Raises:
            LedgerBroken: it was deleted, cut off or restored from a backup.
        """
        if head is not None and not self._account.ledger.contains(head):
            raise LedgerBroken(
                f"ledger {self._folder.name} lacks entries that this silo has written: "
                "it was deleted, or restored from a backup; put the newest one back"
            )

    def forget_partial(self) -> None:
        """Remove the checkpoint of a round whose update is on disk."""
        forget_partial(self._folder)

    def finish(self) -> None:
        """Give back what an unfinished round has reserved: the run is over."""
        self._account.abandon()
        self.forget_partial()

    def close(self) -> None:
        """Let another process have the ledger."""
        self._account.close()


def _after_noise(
    proximal: ProximalTerm | None,
) -> Callable[[Sequence[nn.Parameter]], None] | None:
    """Return what the private optimizer is to add to gradients that are noised."""
    if proximal is None:
        return None
    return lambda parameters: proximal.add_gradients()


def _max_steps(plan: PlanDraft) -> int:
    """Return how many steps a run may take: one a round where noise is in the sum."""
    if plan.privacy.is_in_sum:
        return plan.num_rounds + plan.privacy.spare_steps
    return steps_of_run(plan) + len(reference_events(plan))


def check_delta(delta: float, num_units: int, unit: str) -> None:
    """Refuse a delta that one privacy unit in the data set could use up.

    Raises:
        DataError: delta is not below 1 / (number of units).
    """
    if delta >= 1 / num_units:
        raise DataError(
            f"delta is {delta:g}, not below 1 / {num_units:,}, one over the "
            f"number of {unit}s here: publishing one of them whole would satisfy it"
        )
