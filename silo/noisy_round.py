"""One silo's part in runs with noise inside the secure sum: ledger, vector, noise.

Order within a round: reserve one step in the ledger → make the vector → add the noise →
write the step as taken, and close → the caller saves the noisy fields, once. All of it
is on disk before anything leaves. A silo that is killed before the fields are saved
makes other ones, and is charged again, although nothing of the first had left; fields
that were saved are the only ones that ever leave for this round, in whatever slot.
"""

import logging
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from diffusion.parameters import ParameterLayout, difference, parameters_of
from diffusion.parts import DenoisingNetwork
from diffusion.schedule import Schedule
from privacy.clipping import Vector
from privacy.events import NoisySum
from privacy.pricing import epsilon, share_epsilon
from protocol import records
from protocol.grids import RoundGrid
from protocol.noise_plan import round_noise
from protocol.plan import RunPlan
from silo.canary_run import ScoredSteps
from silo.noisy_update import make_noisy_update
from silo.one_step import gradient_sum
from silo.private_round import PrivateRounds
from silo.private_training import multiplicity_of
from silo.proximal import proximal_term
from silo.resources import LocalResources
from silo.training import TrainingDiverged, TrainingState, train

logger = logging.getLogger(__name__)


class NoisyRounds(PrivateRounds):
    """Noise of one silo inside the sums of one run, on account.

    Args and errors are those of :class:`~silo.private_round.PrivateRounds`.
    """

    def __init__(self, plan: RunPlan, store: Path, resources: LocalResources) -> None:
        super().__init__(plan, plan.digest.hex(), store, resources)
        self._run = plan
        self._silo = plan.silo_index(resources.identity.public)

    def record(self, round_number: int) -> records.NoiseSpent:
        """Return the record of all that is charged up to a round."""
        account, delta = self._account, self._run.privacy.delta
        events, earlier = account.events, account.earlier_events
        mine = tuple(event for event in events if isinstance(event, NoisySum))
        is_silo = self._run.privacy.mechanism == "silo"
        device = self._resources.device
        return records.NoiseSpent(
            round_number=round_number,
            ledger_size=account.head.size,
            ledger_head=account.head.digest,
            multiplicity=0 if is_silo else multiplicity_of(self._run, device),
            events=mine,
            earlier=earlier,
            epsilon=_finite(epsilon(events, delta)),
            share_epsilon=_finite(share_epsilon(mine, delta)),
            account_epsilon=_finite(epsilon((*earlier, *events), delta)),
        )

    def contribute(
        self,
        model: DenoisingNetwork,
        schedule: Schedule,
        layout: ParameterLayout,
        numbers: RoundGrid,
        *,
        round_number: int,
        model_digest: bytes,
    ) -> npt.NDArray[np.uint64]:
        """Return this silo's noisy fields of a round, packed; the ledger is closed.

        Call it once for a round, and save what it returns before anything leaves.

        Args:
            model: holds the round's global parameters; "silo" trains it in place.

        Raises:
            BudgetExceeded: the round would spend more than a limit; nothing was made.
            LedgerBroken, StateBroken: ledger and store do not belong together.
        """
        self._account.begin(
            round_number,
            round_noise(self._run),
            checkpoint_steps=1,
            model=model_digest.hex(),
            partial=None,
        )
        if self._run.privacy.mechanism == "silo":
            vector = self._whole_update(model, schedule, layout, round_number)
        else:
            vector = gradient_sum(
                model,
                self._resources.images,
                self._units,
                schedule,
                self._run,
                layout,
                round_number=round_number,
                device=self._resources.device,
                random=self._random,
                observe=self._resources.observe,
            )
        words = make_noisy_update(self._run, numbers, vector)
        self._account.take(1)
        self._account.close_round(round_number)
        return words

    def _whole_update(
        self,
        model: DenoisingNetwork,
        schedule: Schedule,
        layout: ParameterLayout,
        round_number: int,
    ) -> Vector:
        """Return what local training changed; zeros where it diverged.

        A refusal would tell others something about the data that no noise covers.
        """
        before = parameters_of(model)
        mu = self._run.training.proximal_mu
        try:
            train(
                model,
                self._resources.images,
                schedule,
                self._run,
                TrainingState(),
                silo=self._silo,
                round_number=round_number,
                device=self._resources.device,
                observe=self._resources.observe,
                proximal=proximal_term(model, layout.names, mu),
            )
        except TrainingDiverged as error:
            logger.warning("round %d: %s; it adds noise alone", round_number, error)
            return np.zeros(layout.size, np.float32)
        return difference(parameters_of(model), before, layout)


def _finite(price: float) -> float | None:
    """Return a price; None for infinity, which no record can hold."""
    return price if math.isfinite(price) else None


def make_mechanism(
    plan: RunPlan,
    folder: Path,
    resources: LocalResources,
    canaries: ScoredSteps | None = None,
) -> PrivateRounds:
    """Return a silo's part in the plan's privacy mechanism, on account.

    Args:
        folder: the run's own folder.
        canaries: are in the steps of DP-SGD, where the plan has them.
    """
    if plan.privacy.is_in_sum:
        return NoisyRounds(plan, folder, resources)
    return PrivateRounds(plan, plan.digest.hex(), folder, resources, canaries)
