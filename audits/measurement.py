"""What the silos measured on their own models: where the plan asks for it, and so."""

from collections.abc import Iterator

from audits.accounts import Account, Accounts, Placed
from audits.evidence import AGGREGATOR
from audits.findings import Finding, count, fail, passed, warn
from audits.sums import place
from protocol.measurement import MAX_DISTANCE, measurement_round
from protocol.model_records import MeasuredInSilos, MeasurementSkipped
from protocol.records import Finished, RoundOpened, Summed, Survivors

OWN_WORD = "measured by the silos themselves (their own word)"


Told = Placed[MeasuredInSilos] | Placed[MeasurementSkipped]


def check_measurement(accounts: Accounts) -> list[Finding]:
    """Check that the silos' measurement was made as the plan says, and told rightly."""
    aggregator, asked = accounts.aggregator, accounts.plan.evaluation.in_silos
    made: list[tuple[Account, Told]] = []
    for account in accounts.everyone:
        made += [(account, placed) for placed in account.all(MeasuredInSilos)]
        made += [(account, placed) for placed in account.all(MeasurementSkipped)]
    if not asked:
        return [
            _fail(account, placed, "a measurement that the plan does not ask for")
            for account, placed in made
        ]
    if aggregator is None:
        return [warn("measurement", "Not checked: the aggregator's transcript lacks.")]
    if not made:
        if aggregator.last(Finished) is None:
            return []
        said = "The run ended without the measurement that the plan asks for."
        return [fail("measurement", said, party=AGGREGATOR)]
    found = [
        _fail(account, placed, "a second measurement") for account, placed in made[1:]
    ]
    account, first = made[0]
    record = first.record
    if isinstance(record, MeasurementSkipped):
        reason = f"No mean of the silos' measurements is told: {record.reason}"
        if _is_summed(accounts):
            reason += ". Their sum was opened all the same: the aggregator knows it"
        return [*found, warn("measurement", reason, place(account, first))]
    found += [_fail(account, first, why) for why in _wrong(accounts, record)]
    return found or [passed("measurement", f"{sentence(record)}.")]


def sentence(measured: MeasuredInSilos) -> str:
    """Return what was measured, and on whose word, without a full stop."""
    return (
        f"Per-silo Fréchet distance ({measured.extractor}): {measured.mean:.2f} ± "
        f"{measured.standard_deviation:.2f} over {count(measured.num_silos, 'silo')}, "
        f"{measured.num_samples:,} samples each, {OWN_WORD}"
    )


def _fail(account: Account, placed: Told, why: str) -> Finding:
    """Return a FAIL about one record."""
    return fail(
        "measurement",
        f"{account.party} tells of {why}.",
        place(account, placed),
        party=account.party,
    )


def _wrong(accounts: Accounts, measured: MeasuredInSilos) -> Iterator[str]:
    """Yield what is wrong with the measurement that the aggregator tells of."""
    plan, number = accounts.plan, measurement_round(accounts.plan)
    everyone = accounts.everyone
    if measured.round_number != number:
        yield f"a measurement as round {measured.round_number}, not {number}"
    if measured.num_samples != plan.evaluation.num_samples:
        yield (
            f"{measured.num_samples:,} samples a silo; the plan says "
            f"{plan.evaluation.num_samples:,}"
        )
    if measured.num_silos != len(set(measured.survivors)):
        yield f"{measured.num_silos} silos and names {len(set(measured.survivors))}"
    if not 0 <= measured.mean <= MAX_DISTANCE:
        yield f"a mean of {measured.mean:g}, which no distances have"
    sums = [p.record for a in everyone for p in a.all(Survivors)]
    for record in sums:
        named = set(record.silos) == set(measured.survivors)
        if record.round_number == number and not named and _is_last(record, sums):
            yield "other silos in the measurement than a sum held"
            break
    ends = {p.record.average for a in everyone for p in a.all(Finished)}
    if ends - {measured.average}:
        yield "a measurement of another model than the run ended with"
    if not any(
        p.record.round_number == number for a in everyone for p in a.all(RoundOpened)
    ):
        yield "a measurement that no record shows to have begun"


def _is_summed(accounts: Accounts) -> bool:
    """Return whether a record says that the sum of the measurements was opened."""
    number = measurement_round(accounts.plan)
    return any(
        placed.record.round_number == number
        for account in accounts.everyone
        for placed in account.all(Summed)
    )


def _is_last(record: Survivors, sums: list[Survivors]) -> bool:
    """Return whether no later slot of a record's round has survivors."""
    place = (record.setup, record.slot)
    return all(
        (other.setup, other.slot) <= place
        for other in sums
        if other.round_number == record.round_number
    )
