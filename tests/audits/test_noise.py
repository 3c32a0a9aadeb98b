"""Noise in the sum, recomputed: a row for each lie about it, beside an honest run."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import pytest

import tests.audits.evidence_builder as builder
from aggregator.state import with_num_values
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from audits.report.content import make_content
from audits.report.markdown import render_markdown
from audits.report.page import render_html
from audits.spending import quoted_noise, spendings
from crypto.keys import IdentityKey
from diffusion.config import UNetConfig
from privacy.pricing import epsilon, share_epsilon
from protocol import records as r
from protocol.aggregation_settings import EvaluationConfig
from protocol.noise_plan import round_noise
from protocol.plan import PlanDraft, RunPlan, SiloParty, make_plan
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig
from protocol.update_settings import UpdateConfig
from tests.audits.evidence_builder import (
    AGGREGATOR,
    Edit,
    Parties,
    change,
    digest,
    omit,
    script,
    write_run,
)

ROUNDS, DELTA, SILO = 3, 1e-3, "basel"
SILOS = ("amsterdam", "basel", "cork", "derry", "essen")
MECHANISMS = {
    "silo": PrivacyConfig(mechanism="silo", unit="silo", epsilon=8.0, delta=DELTA),
    "record-distributed": PrivacyConfig(
        mechanism="record-distributed", epsilon=8.0, delta=DELTA, sample_rate=0.1
    ),
}


@pytest.fixture(scope="module", autouse=True)
def five_silos():
    before, builder.SILOS = builder.SILOS, SILOS
    yield
    builder.SILOS = before


@lru_cache
def parties_of(mechanism: str) -> Parties:
    """Return five silos, four of which make a sum; one may collude."""
    keys = {name: IdentityKey.generate() for name in (AGGREGATOR, *SILOS)}
    draft = PlanDraft(
        name="five-hospitals",
        num_rounds=ROUNDS,
        seed=7,
        model=UNetConfig(
            architecture="residual", dim=8, channels=1, dim_mults=(1, 2), image_size=16
        ),
        training=TrainingConfig(local_steps=1, optimizer_state="fresh"),
        update=UpdateConfig(value_bits=24),
        privacy=MECHANISMS[mechanism],
        evaluation=EvaluationConfig(every_rounds=1),
    )
    silos = [
        SiloParty(name=name, identity_key=keys[name].public.hex()) for name in SILOS
    ]
    return Parties(
        make_plan(with_num_values(draft), keys[AGGREGATOR].public, silos), keys
    )


def spent(plan: RunPlan, number: int, **changes) -> r.NoiseSpent:
    """Return the record of a silo after a round."""
    events = (round_noise(plan).times(number),)
    price, share = epsilon(events, DELTA), share_epsilon(events, DELTA)
    return replace(
        r.NoiseSpent(
            round_number=number,
            ledger_size=1 + 3 * number,
            ledger_head=digest("ledger", number),
            multiplicity=0,
            events=events,
            earlier=(),
            epsilon=price,
            share_epsilon=share if math.isfinite(share) else None,
            account_epsilon=price,
        ),
        **changes,
    )


def noisy_script(plan: RunPlan, lost=None):
    """Return what all parties do."""
    is_silo = plan.privacy.mechanism == "silo"
    relation = "updates-or-zeros" if is_silo else "add-or-remove-one"
    opened = r.LedgerOpened(
        commitment=digest("tags"),
        unit=plan.privacy.unit,
        relation=relation,
        delta=DELTA,
        randomness="operating-system",
        fresh=False,
    )
    actions = []
    for party, item in script(rounds=ROUNDS, lost=lost):
        actions.append((party, item))
        if isinstance(item, r.Opened) and party in SILOS:
            actions.append((party, opened))
        if isinstance(item, r.RoundOpened) and party in SILOS:
            mine = spent(plan, item.round_number)
            seen = r.LedgerSeen(
                round_number=item.round_number,
                silo=party,
                size=mine.ledger_size,
                head=mine.ledger_head,
            )
            actions += [(party, mine), (AGGREGATOR, seen)]
    return actions


def audit_of(folder, parties, actions):
    write_run(folder, parties, actions)
    return run_audit(load_evidence(folder, None))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_an_honest_run_passes_and_the_report_says_all_of_the_claim(mechanism, tmp_path):
    parties = parties_of(mechanism)
    plan = parties.plan
    audit = audit_of(tmp_path / "run", parties, noisy_script(plan, lost={2: "cork"}))
    assert not audit.with_severity(Severity.FAIL)
    passes = {f.check for f in audit.findings if f.severity == Severity.PASS}
    assert {"privacy", "mechanism", "epsilon", "ledgers", "randomness"} <= passes
    events = (round_noise(plan).times(ROUNDS),)
    (mine,) = [each for each in spendings(audit.accounts) if each.silo == SILO]
    assert mine.epsilon == epsilon(events, DELTA) <= 8.0
    assert mine.share_epsilon == share_epsilon(events, DELTA) > mine.epsilon
    content = make_content(audit)
    claim = content["privacy"]["claim"]
    assert "at least 3 of those in every sum are honest" in claim
    assert "no sum of fewer than 4 silos" in claim
    assert "if secure aggregation fails" in claim.lower()
    noise = [f.statement for f in audit.findings if "WARNING: the noise" in f.statement]
    assert bool(noise) == ("WARNING: the noise" in claim) == (mechanism == "silo")
    for text in (render_html(content), render_markdown(content)):
        assert "If secure aggregation fails" in text
        assert "Rényi" in text


@dataclass(frozen=True)
class Row:
    """One lie, and what must be found."""

    name: str
    check: str
    words: str
    lie: tuple[Edit, ...]


def lying(number: int, **changes) -> Edit:
    return change(SILO, r.NoiseSpent, number, **changes)


def everywhere(**changes) -> Edit:
    """Return an edit of all events of the silo, with the price that they have."""

    def edit(actions):
        return [(party, told(party, item)) for party, item in actions]

    def told(party, item):
        if party != SILO or not isinstance(item, r.NoiseSpent):
            return item
        events = tuple(replace(event, **changes) for event in item.events)
        price = epsilon(events, DELTA)
        return replace(
            item,
            events=events,
            epsilon=price,
            account_epsilon=price,
            share_epsilon=share_epsilon(events, DELTA),
        )

    return edit


def fewer(silos: int, kind: type) -> Edit:
    """Return an edit: the aggregator records a sum of so many silos in round 2."""
    field = "survivors" if kind is r.RoundClosed else "silos"
    return change(AGGREGATOR, kind, 2, **{field: SILOS[:silos]})


ROWS = [
    Row("another share of the noise", "mechanism", "share variance 1,000",
        (everywhere(share_variance=10**9),)),
    Row("more silos relied on", "mechanism", "min survivors 5, the plan says 4",
        (everywhere(min_survivors=5),)),
    Row("a smaller sensitivity", "mechanism", "sensitivity",
        (everywhere(sensitivity=100.0),)),
    Row("a smaller sample rate", "mechanism", "sample rate",
        (everywhere(sample_rate=0.01),)),
    Row("a round not counted", "mechanism", "2 rounds on account, 3 were made",
        (lambda actions: [(p, replace(i, events=(i.events[0].times(2),))
          if p == SILO and isinstance(i, r.NoiseSpent) and i.round_number == 3 else i)
          for p, i in actions],)),
    Row("a round not written down", "mechanism", "without writing down",
        (omit(SILO, r.NoiseSpent, 2),)),
    Row("a ledger per image", "mechanism", "keeps its ledger per",
        (change(SILO, r.LedgerOpened, unit="tissue"),)),
    Row("an epsilon below its events", "epsilon", "claims epsilon 0.5",
        (lying(3, epsilon=0.5),)),
    Row("an infinite epsilon said to be none", "epsilon", "claims epsilon inf",
        (lying(3, epsilon=None),)),
    Row("a failing sum said to cost less", "epsilon", "if secure aggregation fails",
        (lying(3, share_epsilon=0.5),)),
    Row("an account without its earlier runs", "epsilon", "with earlier runs",
        (lying(3, account_epsilon=0.5),)),
    Row("a ledger set back", "ledgers", "set back",
        (lying(3, ledger_size=4, ledger_head=digest("ledger", 1)),)),
    Row("a sum of three announced", "mechanism", "a sum of 3 silos",
        (fewer(3, r.Survivors),)),
    Row("a round closed with three", "mechanism", "a sum of 3 silos",
        (fewer(3, r.RoundClosed),)),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_lie_about_noise_in_the_sum_is_found(tmp_path, row):
    parties = parties_of("record-distributed")
    actions = noisy_script(parties.plan)
    for edit in row.lie:
        actions = edit(actions)
    audit = audit_of(tmp_path / "run", parties, actions)
    found = [f.statement for f in audit.with_severity(Severity.FAIL)
             if f.check == row.check]  # fmt: skip
    assert any(row.words in statement for statement in found), [
        f.statement for f in audit.findings if f.severity != Severity.PASS
    ]


def test_a_plan_whose_noise_misses_its_target_fails(tmp_path):
    parties = parties_of("record-distributed")
    privacy = replace(parties.plan.privacy, share_variance=5 * 10**7)
    weaker = replace(parties.plan, privacy=privacy)
    audit = audit_of(tmp_path / "run", Parties(weaker, parties.keys),
                     noisy_script(weaker))  # fmt: skip
    found = [f.statement for f in audit.with_severity(Severity.FAIL)]
    assert any("The plan's noise costs" in statement for statement in found), found


def test_an_infinite_price_is_no_number():
    plan = parties_of("silo").plan
    tiny = replace(round_noise(plan), share_variance=1)
    assert math.isinf(epsilon((tiny.times(9),), DELTA))


def test_a_run_that_ended_early_is_not_cheaper(tmp_path):
    parties = parties_of("record-distributed")
    one = round_noise(parties.plan)
    (most, *_) = [
        replace(each, epsilon=epsilon((one,), DELTA), share_epsilon=0.1)
        for each in spendings(
            audit_of(tmp_path / "run", parties, noisy_script(parties.plan)).accounts
        )
    ]
    whole = (one.times(ROUNDS),)
    assert quoted_noise(parties.plan, most) == (
        epsilon(whole, DELTA),
        share_epsilon(whole, DELTA),
    )
    dearer = replace(most, epsilon=99.0)
    assert quoted_noise(parties.plan, dearer)[0] == 99.0
