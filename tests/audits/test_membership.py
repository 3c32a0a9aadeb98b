"""Opened canaries: the honest silo, and a row for each way not to be one."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from audits.accounts import Account, Accounts
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import MAX_TEXT, Severity, worst
from audits.membership import FALSE_ALARM, analyse_canaries, check_canaries, downward
from protocol import records as r
from protocol.audit_records import CanariesCommitted, CanariesOpened
from protocol.canaries import canary_commitment, draw_included
from protocol.transcript import Entry
from tests.audits.evidence_builder import (
    SILOS,
    Edit,
    Script,
    change,
    find,
    omit,
    repeat,
    write_run,
)
from tests.audits.test_budget import (
    EVENT,
    ROUNDS,
    STEPS,
    private_parties,
    private_script,
)

SILO, M = "basel", 600
SEED = bytes(range(32))
T = ROUNDS * STEPS
PARTIES = private_parties()
HONEST = private_script()


def scores(
    *, noise: float = 1.0, size: float = 1.0, rate: float = EVENT.sample_rate
) -> tuple[float, ...]:
    """Return scores of canaries in a mechanism that may be broken."""
    random = np.random.default_rng(9)
    drawn = random.normal(0, noise * math.sqrt(T) * EVENT.noise_multiplier, M)
    taking = random.binomial(T, rate, M) * draw_included(SEED, M)
    return tuple(np.round(drawn + size * taking, 6).tolist())


COMMITTED = CanariesCommitted(
    form="gradient",
    num_canaries=M,
    commitment=canary_commitment(SEED, M, "gradient").hex(),
)
OPENED = CanariesOpened(form="gradient", seed=SEED.hex(), num_steps=T, scores=scores())


def with_canaries(
    committed: CanariesCommitted = COMMITTED, opened: CanariesOpened = OPENED
) -> Script:
    """Return a private run in which one silo planted canaries."""
    actions = list(HONEST)
    start = find(actions, SILO, r.LedgerOpened)
    actions.insert(start + 1, (SILO, committed))
    actions.insert(find(actions, SILO, r.Finished), (SILO, opened))
    return actions


def accounts_of(actions: Script) -> Accounts:
    """Return the accounts of a script, without files."""
    silos = {name: Account(name, PARTIES.plan) for name in SILOS}
    for party, item in actions:
        if party in silos and hasattr(item, "kind"):
            account = silos[party]
            account.add(Entry(account.num_records, "", item, b""))
    return Accounts(PARTIES.plan, None, silos)


def move(kind: type[r.Record], *, to: Callable[[Script], int]) -> Edit:
    """Return an edit: the silo writes a record somewhere else."""

    def edit(actions: Script) -> Script:
        index = find(actions, SILO, kind)
        rest = [*actions[:index], *actions[index + 1 :]]
        place = to(rest)
        return [*rest[:place], actions[index], *rest[place:]]

    return edit


def opened(**changes: object) -> Edit:
    return change(SILO, CanariesOpened, **changes)


def last_masked(actions: Script) -> int:
    return find(actions, SILO, r.Masked, ROUNDS)


def as_input(actions: Script, size: float = 9.0) -> Script:
    """Return a run whose canaries are images, told apart too well."""
    included = draw_included(SEED, M)
    commitment = canary_commitment(SEED, M, "input").hex()
    committed = dataclasses.replace(COMMITTED, form="input", commitment=commitment)
    noise = np.random.default_rng(9).normal(-10, 1, M)
    told = tuple((included * size + noise).tolist())
    return with_canaries(
        committed,
        CanariesOpened(form="input", seed=SEED.hex(), num_steps=0, scores=told),
    )


@dataclass(frozen=True)
class Row:
    """What a silo does, and what is found."""

    name: str
    edit: Edit
    words: str
    severity: Severity = Severity.FAIL


ROWS = [
    Row("another seed", opened(seed="11" * 32), "the commitment does not open"),
    Row("no seed", opened(seed="zz"), "the opening is none"),
    Row("short seed", opened(seed="11"), "seed: must be 32 bytes"),
    Row("a score too few", opened(scores=OPENED.scores[1:]), "599 scores for 600 can"),
    Row("a step too many", opened(num_steps=T + 1), "7 steps, and 6 are on account"),
    Row("a step too few", opened(num_steps=T - 1), "5 steps, and 6 are on account"),
    Row("opened twice", repeat(SILO, CanariesOpened), "opened twice"),
    Row(
        "two commitments",
        repeat(SILO, CanariesCommitted, commitment="22" * 32),
        "two different commitments",
    ),
    Row("no commitment", omit(SILO, CanariesCommitted), "opened without a commit"),
    Row(
        "committed after training",
        move(CanariesCommitted, to=last_masked),
        "after round or training began",
    ),
    Row(
        "opened before the last update",
        move(CanariesOpened, to=last_masked),
        "before record",
    ),
    Row("never opened", omit(SILO, CanariesOpened), "finished without opening"),
    Row(
        "not yet opened",
        lambda actions: omit(SILO, r.Finished)(omit(SILO, CanariesOpened)(actions)),
        "has not opened them",
        Severity.WARN,
    ),
    Row("noise × 0.75", opened(scores=scores(noise=0.75)), "noise: the scores are too"),
    Row("noise × 0.5", opened(scores=scores(noise=0.5)), "noise: the scores are too"),
    Row("no noise", opened(scores=scores(noise=0.0)), "noise: the scores are too"),
    Row(
        "not sampled", opened(scores=scores(rate=1.0)), "gap: included canaries left m"
    ),
    Row(
        "clip × 4", opened(scores=scores(size=4.0)), "gap: included canaries left more"
    ),
    Row("leaked images", as_input, "Clopper–Pearson: error rates of at most"),
    Row(
        "doubtful images",
        lambda actions: as_input(actions, size=1.4),
        "epsilon may be above the claimed",
        Severity.WARN,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_contradicts_is_found(row):
    found = check_canaries(accounts_of(row.edit(with_canaries())))
    assert worst(found) == row.severity
    mine = [f for f in found if f.severity == row.severity]
    assert any(row.words in f.statement for f in mine), [f.statement for f in found]
    assert {f.party for f in mine} == {SILO}
    assert {f.check for f in found} == {"canaries"}


class TestHonest:
    def test_no_canaries_no_finding(self):
        assert check_canaries(accounts_of(HONEST)) == []
        assert analyse_canaries(accounts_of(HONEST)) == ()

    def test_the_statement_claims_no_more_than_it_may(self):
        (finding,) = check_canaries(accounts_of(with_canaries()))
        assert finding.severity == Severity.PASS
        assert finding.statement.startswith("No violation found")
        assert "proves no epsilon" in finding.statement
        assert f"once in {round(1 / FALSE_ALARM):,} runs" in finding.statement
        assert max(map(len, (finding.statement, *finding.evidence))) < MAX_TEXT
        bounds, power = finding.evidence
        assert "one-run at least" in bounds
        assert "Gaussian estimate" in bounds and "(no bound)" in bounds
        assert "noise × 0.5 100%" in power

    def test_the_analysis_is_that_of_the_claim(self):
        (analysis,) = analyse_canaries(accounts_of(with_canaries()))
        assert (analysis.silo, analysis.num_canaries) == (SILO, M)
        assert analysis.num_included == draw_included(SEED, M).sum()
        both = sorted(analysis.included_scores + analysis.excluded_scores)
        assert both == sorted(OPENED.scores)
        assert analysis.expected_gap == pytest.approx(0.6)
        assert analysis.expected_stddev == pytest.approx(math.sqrt(6))
        assert analysis.expected_included_stddev == pytest.approx(math.sqrt(6.54))
        assert analysis.claimed_epsilon == pytest.approx(2.468, abs=0.01)
        for bound in analysis.bounds:
            assert 0 <= bound.epsilon < analysis.claimed_epsilon

    def test_after_a_crash_steps_may_be_missing_from_the_scores(self):
        edited = opened(num_steps=T - 1)(with_canaries())
        again = (SILO, r.Resumed(software="cloister test"))
        (finding,) = check_canaries(accounts_of([*edited, again]))
        assert finding.severity == Severity.PASS
        (analysis,) = analyse_canaries(accounts_of([*edited, again]))
        assert analysis.expected_gap == pytest.approx(0.5)

    def test_an_equal_commitment_may_stand_twice(self):
        edited = repeat(SILO, CanariesCommitted)(with_canaries())
        (finding,) = check_canaries(accounts_of(edited))
        assert finding.severity == Severity.PASS

    def test_too_few_canaries_say_so(self):
        committed = CanariesCommitted(
            form="gradient",
            num_canaries=1,
            commitment=canary_commitment(SEED, 1, "gradient").hex(),
        )
        told = dataclasses.replace(OPENED, scores=(-1.0,))
        (finding,) = check_canaries(accounts_of(with_canaries(committed, told)))
        assert "too few to tell anything" in finding.evidence[0]


class TestWholeRun:
    """Through files, as everybody audits."""

    @pytest.mark.parametrize(
        ("edit", "verdict"),
        [(lambda actions: actions, "PASS"), (ROWS[14].edit, "FAIL")],
        ids=["honest", "halved"],
    )
    def test_verdict(self, tmp_path, edit, verdict):
        write_run(tmp_path / "run", PARTIES, edit(with_canaries()))
        audit = run_audit(load_evidence(tmp_path / "run", None))
        assert audit.verdict == verdict
        claims = [f.statement for f in audit.findings if f.check == "privacy"]
        assert ("No epsilon may be quoted" in claims[0]) == (verdict == "FAIL")


def test_negative_numbers_stay_impossible_elsewhere():
    actions = change(SILO, r.PrivacySpent, 1, ledger_size=-1)(with_canaries())
    account = accounts_of(actions).silos[SILO]
    assert [placed.record for placed in account.impossible] == ["ledger_size is -1"]


def test_lower_bounds_are_rounded_down():
    assert [downward(x) for x in (2.9999, 0.0, math.inf)] == ["2.999", "0", "∞"]
