"""Runs with noise inside the secure sum, from the plan to the audit."""

import numpy as np
import pytest

import aggregator.rounds
import silo.noisy_round
import silo.store
from aggregator.state import with_num_values
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from crypto.frame import Kind
from crypto.ring import unpack_blocks
from privacy.noise import sampler_bound
from privacy.pricing import epsilon
from protocol import records
from protocol.aggregation_settings import AggregationConfig
from protocol.noise_plan import round_noise
from protocol.plan import PlanDraft, make_plan
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig
from protocol.transcript import read_records
from protocol.update_settings import UpdateConfig
from silo.errors import SiloError
from tests.distributions import accepts, discrete_gaussian
from tests.end_to_end.conftest import Crash, Harness, tiny_draft

DELTA, VARIANCE = 1e-3, 250_000_000


def noisy_draft(mechanism: str, **changes) -> PlanDraft:
    own = {"unit": "silo"} if mechanism == "silo" else {
        "sample_rate": 0.25, "multiplicity": 1,
    }  # fmt: skip
    privacy = PrivacyConfig(
        mechanism=mechanism,
        share_variance=VARIANCE,
        delta=DELTA,
        spare_steps=1,
        **own,
    )
    training = TrainingConfig(
        local_steps=1, examples_per_step=8, optimizer_state="fresh", learning_rate=1e-12
    )
    sections = {
        "training": training,
        "update": UpdateConfig(value_bits=24, clipping_norm=4.0),
        "privacy": privacy,
        "aggregation": AggregationConfig(optimizer="adam", learning_rate=1e-3),
    }
    return tiny_draft(**(sections | changes))


def records_of(run: Harness, kind: type, name: str = "silo-1"):
    entries = read_records(run.federation.silo(name).run(run.plan) / "transcript")
    return [entry.record for entry in entries if isinstance(entry.record, kind)]


def audit(run: Harness):
    return run_audit(load_evidence(run.federation.root, None))


class Losses:
    """Loses the replies of some silos in some of the stages where updates leave."""

    def __init__(self, *rounds: tuple[int, ...]) -> None:
        self.rounds, self.stage = rounds, -1

    def __call__(self, moment: str, kind: int, silo: int) -> bool:
        if (moment, kind, silo) == ("before", Kind.ACTIVE, 0):
            self.stage += 1
        lost = self.rounds[self.stage] if self.stage < len(self.rounds) else ()
        return moment == "after" and kind == Kind.ACTIVE and silo in lost


@pytest.fixture
def made(monkeypatch):
    """Count the noisy vectors that are made."""
    real, made = silo.noisy_round.make_noisy_update, []

    def counted(*arguments):
        made.append(real(*arguments))
        return made[-1].copy()

    monkeypatch.setattr(silo.noisy_round, "make_noisy_update", counted)
    return made


@pytest.fixture
def sums(monkeypatch):
    """Keep the sums that the aggregator opens, and over whom."""
    real, sums = aggregator.rounds.mean_update, []

    def kept(plan, layout, grid, words, survivors, number):
        sums.append((words.copy(), survivors))
        return real(plan, layout, grid, words, survivors, number)

    monkeypatch.setattr(aggregator.rounds, "mean_update", kept)
    return sums


def levels(plan, words, count):
    """Return the values of a sum of so many noisy vectors, in grid steps."""
    values = np.empty(plan.privacy.num_values, np.int64)
    for start, fields in unpack_blocks(words, 32, values.size):
        values[start : start + fields.size] = fields
    bound = sampler_bound(plan.privacy.share_variance)
    return values - count * ((1 << 23) - 1 + bound)


def test_an_update_is_sent_once_more_as_it_is_and_four_silos_make_the_noise(
    harness, made, sums
):
    # Attempt 1 of round 1 loses two silos and is not opened; attempt 2 loses one.
    run = harness(noisy_draft("silo"), num_silos=5)
    run.run(Losses((1, 2), (4,)))
    assert len(made) == 10  # five silos, two rounds, whatever the attempts
    (words, survivors), (_, everyone) = sums
    assert survivors == (0, 1, 2, 3)
    assert len(everyone) == 5
    total = sum(made[silo] for silo in survivors)
    assert np.array_equal(words, total)
    # Nothing was learned at this rate: the sum of four silos is noise alone.
    sample = levels(run.plan, words, 4)
    assert accepts(sample, discrete_gaussian(4 * VARIANCE))
    # Its variance is known to 1.4 %: neither three silos nor five, at six of those.
    assert sample.var() == pytest.approx(4 * VARIANCE, rel=0.083)
    found = audit(run)
    assert not found.with_severity(Severity.FAIL)
    event = round_noise(run.plan)
    for party in run.plan.silos:
        spent = records_of(run, records.NoiseSpent, party.name)
        assert [one.round_number for one in spent] == [1, 1, 2]
        assert spent[-1].events == (event.times(2),)
        assert spent[-1].epsilon == epsilon((event.times(2),), DELTA)
    opened = records_of(run, records.LedgerOpened)[0]
    assert (opened.unit, opened.relation) == ("silo", "updates-or-zeros")


def test_record_distributed_learns_nothing_locally_and_passes_the_audit(harness, sums):
    run = harness(noisy_draft("record-distributed"), num_silos=5)
    state = run.run(Losses((3,)))
    assert [len(survivors) for _, survivors in sums] == [4, 5]
    assert state.moments is not None
    assert not audit(run).with_severity(Severity.FAIL)
    spent = records_of(run, records.NoiseSpent)[-1]
    assert spent.events == (round_noise(run.plan).times(2),)
    assert spent.multiplicity == 1


@pytest.mark.parametrize("mechanism", ["silo", "record-distributed"])
def test_after_a_crash_the_stored_vector_goes_on(harness, made, mechanism):
    run = harness(noisy_draft(mechanism, num_rounds=1), num_silos=5)

    def crash(moment: str, kind: int, silo: int) -> None:
        if (moment, kind, silo) == ("after", Kind.ACTIVE, 2):
            raise Crash

    with pytest.raises(Crash):
        run.run(crash)
    run.run()
    assert len(made) == 5
    assert all(len(replies) == 1 for replies in run.masked.values())
    assert records_of(run, records.NoiseSpent)[-1].events[0].steps == 1
    assert not audit(run).with_severity(Severity.FAIL)


@pytest.mark.parametrize("moment", ["before the entry", "before the vector is saved"])
def test_a_vector_that_was_never_saved_is_charged_all_the_same(
    harness, made, monkeypatch, moment
):
    run = harness(noisy_draft("silo", num_rounds=1), num_silos=5)
    place = (silo.store.RunStore, "save_round")
    if moment == "before the entry":
        place = (silo.noisy_round.NoisyRounds, "_whole_update")
    real, deaths = getattr(*place), []

    def dying(*arguments):
        if not deaths:
            deaths.append(moment)
            raise Crash
        return real(*arguments)

    monkeypatch.setattr(*place, dying)
    with pytest.raises(Crash):
        run.run()
    run.run()
    assert records_of(run, records.NoiseSpent)[-1].events[0].steps == 2
    if moment == "before the vector is saved":
        assert len(made) == 6
        assert not np.array_equal(made[0], made[1])
    failed = {f.check for f in audit(run).with_severity(Severity.FAIL)}
    assert not failed & {"mechanism", "ledgers", "epsilon"}


def again(run: Harness, draft: PlanDraft) -> Harness:
    """Return another run of the same silos on the same images."""
    return Harness(
        run.federation,
        make_plan(with_num_values(draft), run.plan.aggregator_key, run.plan.silos),
    )


def test_accounts_of_both_kinds_add_up_and_units_do_not(harness):
    first = harness(noisy_draft("record-distributed", num_rounds=1), num_silos=5)
    first.run()
    dp_sgd = tiny_draft(
        name="dp-sgd",
        num_rounds=1,
        privacy=PrivacyConfig(
            mechanism="dp-sgd", noise_multiplier=1.0, delta=DELTA, sample_rate=0.25,
            multiplicity=1,
        ),
    )  # fmt: skip
    second = again(first, dp_sgd)
    second.run()
    (spent,) = records_of(second, records.PrivacySpent)
    assert spent.earlier == (round_noise(first.plan),)
    both = (*spent.earlier, *spent.events)
    assert spent.account_epsilon == epsilon(both, DELTA) > spent.epsilon
    third = again(first, noisy_draft("silo", name="whole"))
    with pytest.raises(SiloError, match="does not compose to one for silos; --new-le"):
        third.run()


def test_a_silo_that_diverges_adds_noise_alone(harness, sums, monkeypatch):
    run = harness(noisy_draft("silo", num_rounds=1), num_silos=5)
    real = silo.noisy_round.train

    def diverging(model, *arguments, **options):
        real(model, *arguments, **options)
        raise silo.noisy_round.TrainingDiverged("the loss is not finite")

    monkeypatch.setattr(silo.noisy_round, "train", diverging)
    run.run()
    ((words, survivors),) = sums
    assert len(survivors) == 5
    assert accepts(levels(run.plan, words, 5), discrete_gaussian(5 * VARIANCE))
