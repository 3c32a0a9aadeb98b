"""Mean and spread of the Fréchet distances that silos measure on their own models.

One more slot, behind all rounds, summed like an update (``protocol.measurement``). The
aggregator learns the two sums and nothing else; without enough silos, or with sums
that cannot be, there is a record that says why, and the run ends as it would.
"""

from dataclasses import dataclass

from aggregator.errors import CohortTooSmall, RoundAborted
from aggregator.evaluation import Reference
from aggregator.state import RoundState
from aggregator.sums import Summation
from crypto.secagg.parts import whole
from diffusion.parameters import ParameterLayout, flatten, parameters_digest
from protocol.bodies import floats_to_bytes
from protocol.envelope import Kind
from protocol.heads import ShownHead
from protocol.measurement import (
    MEASURE,
    NUM_WORDS,
    WORD_BITS,
    MeasureRequest,
    mean_and_spread,
    measurement_digest,
    measurement_round,
)
from protocol.model_records import MeasuredInSilos, MeasurementSkipped
from protocol.plan import RunPlan
from protocol.stretches import Agreed, Dealing


@dataclass(frozen=True, kw_only=True)
class MeasureTask:
    """What the measurement asks of every silo: see ``aggregator.sums.Task``."""

    round_number: int
    average: bytes
    statistics: bytes
    field_bits: int = WORD_BITS
    kind: Kind = Kind.MEASURE
    stage: str = MEASURE

    def request(
        self, shown: ShownHead, attempt: int, *, sum_notice: bytes = b""
    ) -> MeasureRequest:
        """Return the request to every silo."""
        return MeasureRequest(
            round_number=self.round_number,
            attempt=attempt,
            shown=shown,
            average=self.average,
            statistics=self.statistics,
            sum_notice=sum_notice,
        )

    def dealing(self, plan: RunPlan, agreed: Agreed) -> Dealing:
        """Return the one stretch, which all members fill whatever the plan deals."""
        return Dealing(agreed, whole(NUM_WORDS, agreed.members))

    def model_digest(self) -> bytes:
        """Return the digest of average and statistics that silos sign."""
        return measurement_digest(self.average, self.statistics)


def measure_in_silos(
    plan: RunPlan,
    layout: ParameterLayout,
    state: RoundState,
    summation: Summation,
    reference: Reference | None,
) -> MeasuredInSilos | MeasurementSkipped:
    """Let the silos measure their finished models; return what came of it.

    Args:
        state: after the last round.
        reference: None leaves the measurement out.
    """
    number = measurement_round(plan)
    if reference is None:
        return MeasurementSkipped(
            round_number=number, reason="started without reference statistics"
        )
    average = state.average.parameters
    task = MeasureTask(
        round_number=number,
        average=floats_to_bytes(flatten(average, layout)),
        statistics=reference.content,
    )
    try:
        total = summation.sum_round(task)
        mean, spread = mean_and_spread(total.words, len(total.survivors))
    except (CohortTooSmall, RoundAborted, ValueError) as error:
        return MeasurementSkipped(round_number=number, reason=str(error)[:400])
    return MeasuredInSilos(
        round_number=number,
        survivors=tuple(plan.silos[silo].name for silo in sorted(total.survivors)),
        num_silos=len(total.survivors),
        mean=mean,
        standard_deviation=spread,
        extractor=reference.extractor.name,
        extractor_digest=reference.extractor.digest,
        reference=reference.digest,
        reference_count=reference.statistics.count,
        num_samples=plan.evaluation.num_samples,
        average=parameters_digest(average, layout).hex(),
    )


def in_words(measured: MeasuredInSilos | MeasurementSkipped) -> str:
    """Return what came of the measurement in one line."""
    if isinstance(measured, MeasurementSkipped):
        return f"no measurement in the silos: {measured.reason}"
    return (
        f"per-silo {measured.extractor}: {measured.mean:.3f} ± "
        f"{measured.standard_deviation:.3f} over {measured.num_silos} silos "
        f"({measured.num_samples} samples each, measured by the silos themselves)"
    )
